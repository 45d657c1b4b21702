"""Values that a policy needs and the robot does not measure itself: a camera's, a tracker's.

A driver takes any number of them and hands them on under their names, beside its own.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from penspin_style.features import Feature
from real.robot import RobotError


@dataclass(frozen=True)
class External:
    """One value from beside the robot."""

    feature: Feature
    """Name, shape, unit and type, as in the policy's card; without history."""
    read: Callable[[], np.ndarray]
    """Returns the newest value; must not block."""


def named(own: Iterable[Feature], sensors: Iterable[External]) -> dict[str, Feature]:
    """Return the features of a robot and of its sensors by name.

    Raises:
        RobotError: two have one name.
    """
    found: dict[str, Feature] = {}
    for feature in (*own, *(sensor.feature for sensor in sensors)):
        if feature.name in found:
            raise RobotError(f"two sources of the feature {feature.name!r}; take one away")
        found[feature.name] = feature
    return found


def read(sensors: Iterable[External]) -> dict[str, np.ndarray]:
    """Return what the sensors read, by name, as copies.

    Raises:
        RobotError: another shape than was said, or not finite.
    """
    values = {}
    for sensor in sensors:
        feature = sensor.feature
        value = np.array(sensor.read(), feature.dtype)
        if value.shape != feature.shape:
            raise RobotError(
                f"sensor {feature.name!r} must give {feature.shape}, it gave {value.shape}"
            )
        if not np.isfinite(value).all():
            raise RobotError(f"sensor {feature.name!r} gave a number that is not finite")
        values[feature.name] = value
    return values
