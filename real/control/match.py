"""Whether a policy, or a trajectory of one, is for a robot: rate, channels and features.

Every path that lets a policy move something asks here before anything moves: `penspin rollout` in
this process and through a server, `replay make` and `run`, `twin`, and the control loop itself.
"""

from collections.abc import Mapping
from typing import Protocol

from penspin_style.deploy.bundle import BundleError, check_features
from penspin_style.features import ActionChannel, Feature, PolicyCard, command_differences
from real.robot import RequestError


class MismatchError(RequestError):
    """A policy is for another robot than this one; another policy or robot must be named."""


class Described(Protocol):
    """What a robot says of itself before it is connected; see `real.robot.Robot`."""

    @property
    def features(self) -> Mapping[str, Feature]:
        """What it measures, by name."""
        ...

    @property
    def channels(self) -> tuple[ActionChannel, ...]:
        """What it takes, in this order."""
        ...

    @property
    def control_dt(self) -> float:
        """Seconds between two commands."""
        ...


def check_policy(card: PolicyCard, robot: Described) -> None:
    """Check that a robot measures what a policy reads and takes what it gives, at its rate.

    Compared are the control step; of each channel name, order, unit, mode, scale and limits; of
    each feature shape, unit and type. Histories and delays are the observer's.

    Raises:
        MismatchError: names every difference.
    """
    check_commands(card, robot)
    try:
        check_features(card, robot.features)
    except BundleError as error:
        raise MismatchError(str(error)) from error


def check_commands(card: PolicyCard, robot: Described, what: str = "") -> None:
    """Check the control step and the channels alone, of a policy that need see nothing.

    what: put before the differences.

    Raises:
        MismatchError: names every difference.
    """
    faults = command_differences(card, robot.channels, robot.control_dt, "robot")
    if faults:
        raise MismatchError(what + "; ".join(faults))
