"""The contract between a policy and whatever it drives: a robot, or its simulated twin.

    robot.connect()
    robot.reset()                                    # at the start pose
    observation = robot.observe()                    # values by name, as the card names them
    sent = robot.command(target)                     # absolute, in the channels' units
    robot.disconnect()                               # safe

A driver says before it connects what it measures (`features`, without history) and what it takes
(`channels`), and how often (`control_dt`); `real.control.match.check_policy` compares all of it
with a policy's card before anything moves. History and delays are the `Observer`'s, limits the
`SafeRobot`'s.

**Threads.** One thread at a time calls `observe`, `command` and `reset` (`SafeRobot` sees to it).
`hold`, `stop` and `disconnect` may come from any other thread, at any time, also while one of those
calls hangs: they never wait for a lock that it can hold. Nobody can interrupt a call that hangs
with Python's global lock in its hands, so what a driver calls must release it, as rospy and franky
do.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from penspin_style.features import ActionChannel, Feature


class RobotError(RuntimeError):
    """The robot cannot do what is asked; the message says which, why and what helps."""


class RequestError(RobotError):
    """What was asked for is at fault, not the robot: another option or package is needed.

    On a command line, exit code 2.
    """


class StoppedError(RobotError):
    """The robot has been stopped, and takes no command until it is reset; says why."""


@dataclass(frozen=True)
class Observation:
    """What a robot measured at one time."""

    values: dict[str, np.ndarray]
    """Feature -> its current value, without history; arrays that the caller may keep."""
    stamp: float
    """When it was measured, s on the robot's monotonic clock; a frame that is repeated keeps its
    own. `time.monotonic()`, but for a twin that runs as fast as it goes. Who checks a robot
    (`SafeRobot`) asks of it only whether it is another one than before."""
    measured: np.ndarray | None = None
    """(naction,) what the channels command as measured, in their units; None if it is not."""


class Robot(Protocol):
    """A driver. One file in `real/drivers/` each."""

    @property
    def features(self) -> Mapping[str, Feature]:
        """What `observe` returns, by name, without history; known before connecting."""
        ...

    @property
    def channels(self) -> tuple[ActionChannel, ...]:
        """What `command` takes, in this order, with units and limits; known before connecting."""
        ...

    @property
    def control_dt(self) -> float:
        """Seconds between two commands."""
        ...

    @property
    def target(self) -> np.ndarray:
        """(naction,) float64, in the channels' units: what the robot follows now.

        That is what was sent last, and after a reset where the robot then stands. `delta` actions
        start from here.

        Raises:
            RobotError: there is none before the first reset.
        """
        ...

    def connect(self) -> None:
        """Open the connection; again is no error.

        Raises:
            RobotError: there is no such robot, or another one than the driver describes.
        """
        ...

    def disconnect(self) -> None:
        """Leave the robot safe and close the connection; again is no error.

        Raises:
            RobotError: the connection is closed, but several stops were not confirmed.
        """
        ...

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Go to the start pose, slowly; a stopped robot takes commands again.

        A stop on the way ends it, and the robot stays stopped.

        start: values that replace the driver's own start, by name; a twin also places its objects.

        Raises:
            RobotError: it is not connected, does not arrive, or knows none of these values.
        """
        ...

    def observe(self) -> Observation:
        """Return the newest measurement.

        Raises:
            RobotError: it is not connected, or nothing arrives any more.
        """
        ...

    def command(self, target: np.ndarray) -> np.ndarray:
        """Send absolute targets; return what was really sent, both (naction,) in channel units.

        A call that a stop overtakes sends nothing: it looks whether the robot is stopped right
        before it sends. If the stop came in that very moment, it is sent once more afterwards.

        Raises:
            StoppedError: the robot is stopped.
            RobotError: it is not connected, or the target is none.
        """
        ...

    def hold(self) -> None:
        """Keep the last safe target until the next command; again is no error.

        Where another call hangs, the robot has been sent nothing since, and keeps what it follows;
        this then returns at once rather than wait for its turn.
        """
        ...

    def stop(self) -> None:
        """Damp all motion and go limp, until the next `reset`; again is no error.

        From its first moment on commands are refused. It returns when it is confirmed that the
        robot has stopped, and raises if it is not; then it is called again, also while an earlier
        call still hangs. Only what has been confirmed need not be sent again.

        Raises:
            RobotError: it is not confirmed; says why.
        """
        ...


class Driver(Robot, Protocol):
    """A robot that a name on the command line opens."""

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the joints that `reset` can be given by themselves."""
        ...


def stop_surely(stop: Callable[[], object], *, tries: int = 3, pause: float = 0.1) -> None:
    """Call what stops a robot until it is confirmed, at most so many times; for `disconnect`.

    pause: s between two tries.

    Raises:
        RobotError: no try was confirmed; says why the last one was not.
    """
    for left in reversed(range(tries)):
        try:
            stop()
            return
        except Exception as error:
            if not left:
                raise RobotError(
                    f"the robot may still move, {tries} stops were not confirmed ({error}): use "
                    "its emergency stop"
                ) from error
            time.sleep(pause)


def check_target(target: np.ndarray, channels: Sequence[ActionChannel]) -> np.ndarray:
    """Return a target as a new (naction,) float64 array.

    Raises:
        RobotError: another shape, not numbers, or not finite.
    """
    array = np.asarray(target)
    if array.shape != (len(channels),) or array.dtype.kind not in "fiu":
        raise RobotError(
            f"a target must be ({len(channels)},) real numbers, got {array.shape} of {array.dtype}"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise RobotError(f"the target of {channels[at].name} is {array[at]}")
    return array
