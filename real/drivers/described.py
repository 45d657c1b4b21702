"""What every driver of ours knows of its robot without a connection, and its last target."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from penspin_style.features import ActionChannel, Feature
from real.drivers import external
from real.robot import RobotError, StoppedError


class Described:
    """The part of `real.robot.Robot` that is the same for every driver.

    own: what the robot measures itself, also: what comes from elsewhere. channels: what it takes.
    """

    called: ClassVar[str]
    """The robot in messages, as `the arm`."""

    def __init__(
        self,
        own: Iterable[Feature],
        also: Sequence[external.External],
        channels: tuple[ActionChannel, ...],
        control_dt: float,
    ) -> None:
        self.control_dt = control_dt
        self.sensors = external.Readers(also)
        self.features: Mapping[str, Feature] = external.named(own, also)
        self.channels = channels
        self._low = np.array([c.low for c in channels])
        self._high = np.array([c.high for c in channels])
        self._target: np.ndarray | None = None
        self._stopped = ""  # why it takes no commands until it is reset

    @property
    def target(self) -> np.ndarray:
        """What the robot follows now, in the channels' order and units, a copy.

        Raises:
            RobotError: there is none before the first reset.
        """
        if self._target is None:
            raise RobotError(f"{self.called} follows no target before its first reset")
        return self._target.copy()

    def _check_running(self) -> None:
        if self._stopped:
            raise StoppedError(self._stopped)
