"""A robot that is read and told nothing: what would be sent is noted instead."""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from real.control.wrapper import Wrapper
from real.robot import Observation, Robot, RobotError, StoppedError, check_target


class DryRobot(Wrapper):
    """Any robot, for a rehearsal; itself a robot.

    It stands where it is: a reset begins at the measured channels, and moves nothing. What is
    measured is not compared with targets that nothing follows. A driver that was never told
    anything sends nothing when it is disconnected.
    """

    def __init__(self, robot: Robot, *, realtime: bool = True) -> None:
        """Wrap a robot.

        realtime: whether its time passes by itself.
        """
        super().__init__(robot)
        self.realtime = realtime
        self.sent: list[np.ndarray] = []
        """What would have been sent, (naction,) each."""
        self._target: np.ndarray | None = None
        self._stopped = False

    @property
    def target(self) -> np.ndarray:
        """What would have been sent last.

        Raises:
            RobotError: there is none before the first reset.
        """
        if self._target is None:
            raise RobotError("there is no target before the first reset")
        return self._target.copy()

    def clock(self) -> float:
        """Return the time, s: in fast time a control step for each target."""
        return time.monotonic() if self.realtime else len(self.sent) * self.control_dt

    def connect(self) -> None:
        """Connect the robot, which sends nothing."""
        self.robot.connect()

    def disconnect(self) -> None:
        """Disconnect the robot."""
        self.robot.disconnect()
        self._target = None

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Begin where the robot stands.

        Raises:
            RobotError: it does not measure its channels, or one is outside its limits.
        """
        here = self.robot.observe().measured
        if here is None:
            raise RobotError("a robot that does not measure its channels cannot be rehearsed")
        self._target, self._stopped = np.asarray(here, np.float64).copy(), False

    def observe(self) -> Observation:
        """Return what the robot measures."""
        return dataclasses.replace(self.robot.observe(), measured=None)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Note a target, (naction,), clipped to the channels' limits; return that.

        Raises:
            StoppedError: it was stopped.
            RobotError: it is no target.
        """
        if self._stopped:
            raise StoppedError("the rehearsal was stopped; reset it to go on")
        wanted = check_target(target, self.channels)
        low, high = (np.array([getattr(c, k) for c in self.channels]) for k in ("low", "high"))
        self._target = np.clip(wanted, low, high)
        self.sent.append(self._target)
        return self._target.copy()

    def hold(self) -> None:
        """Do nothing: nothing moves."""

    def stop(self) -> None:
        """Take no targets until the next reset."""
        self._stopped = True

    def lines(self) -> list[str]:
        """Return for people, by channel, between what the targets would have been."""
        if not self.sent:
            return ["nothing would have been sent"]
        rows = np.stack(self.sent)
        return [
            f"{c.name}: {a:.4g} to {b:.4g} {c.unit}, {c.low:.4g} to {c.high:.4g} allowed"
            for c, a, b in zip(self.channels, rows.min(0), rows.max(0), strict=True)
        ]
