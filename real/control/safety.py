"""Between a policy and a robot: limits, a comparison with what is measured, and a watchdog.

`SafeRobot` is a robot that wraps one. What it does, in this order, with each target: is it finite
and of the right shape; position, velocity and acceleration (`real.control.limits`); does the robot
follow; can what the driver says that it sent be true.
"""

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from real.control.limits import Limits, TargetLimiter
from real.control.watchdog import Watchdog
from real.control.wrapper import Wrapper
from real.robot import Observation, Robot, StoppedError

__all__ = ["Limits", "SafeRobot", "TargetLimiter", "Watchdog"]

_MOST_COMMANDS = 1.05
"""Commands per control step, in the mean, above which they are not forwarded."""
_RESETTING = "it is being reset"


class _UnsafeError(Exception):
    """The robot must be stopped, once the driver has been let go; says why."""


class SafeRobot(Wrapper):
    """Any robot, behind a limiter; itself a robot. May be used from several threads.

    `observe`, `command` and `reset` take turns at the driver. `hold`, `stop` and `disconnect` wait
    for nobody, so a driver that hangs delays neither. What a hold then does: a driver in the middle
    of a call has been sent nothing since, the robot keeps what it follows, so there is nothing left
    to brake, and `hold` only tells the driver to keep it. A target that is handed over too late is
    still within the limits; after a stop it is not followed: the stop is sent once more.
    """

    def __init__(
        self,
        robot: Robot,
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Wrap a robot.

        limits: default those of its channels.
        clock: s, monotonic; default the robot's own `clock` if it has one, else `time.monotonic`.
        """
        super().__init__(robot)
        self.limits = limits or Limits.of(robot.channels, robot.control_dt)
        self.limiter = TargetLimiter(self.limits, robot.control_dt)
        self.interventions = self.limiter.interventions
        """Kind -> how often; beside the limiter's `self_check` and `rate`."""
        self.reason = "it has not been reset"
        """Why it takes no commands; empty while it does."""
        self.clock: Callable[[], float] = clock or getattr(robot, "clock", time.monotonic)
        self._turn = threading.Lock()
        """Of the driver: held across its observe, command and reset, never waited for to stop."""
        self._state = threading.RLock()
        """Of what is noted here: never held across a call of the driver."""
        self._asked = self._confirmed = 0  # stops
        self._at = self._credit = 0.0
        self._stamp: float | None = None  # of the newest measurement,
        self._new_at = 0.0  # and when it came, by our clock: what a driver stamps may be wrong
        self._astray: float | None = None  # since when it is not to be seen that the robot follows
        self._why_astray = ""
        self._invalid: float | None = None  # since when no valid target has come

    @property
    def target(self) -> np.ndarray:
        """What was sent last."""
        return self.robot.target

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop and that is not confirmed, so that it may still move."""
        with self._state:
            return self._confirmed < self._asked

    def connect(self) -> None:
        """Connect the robot."""
        self.robot.connect()

    def disconnect(self) -> None:
        """Disconnect the robot, which leaves it safe.

        Raises:
            RobotError: it is disconnected, but it is not confirmed that it has stopped.
        """
        asked = self._refuse("it is disconnected")
        self.robot.disconnect()
        self._confirm(asked)

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Let the robot go to its start; the limits count from there, at rest.

        Raises:
            StoppedError: it was stopped on the way.
            RobotError: it cannot, or an earlier stop is still not confirmed.
        """
        if self.stopping:
            self.stop()
        asked = self._asked
        try:
            with self._turn:
                with self._state:
                    self._check_asked(asked)
                    self.reason = _RESETTING
                self.robot.reset(start)
                target = self.robot.target
                with self._state:
                    self._check_asked(asked)
                    self._begin(target)
        except Exception as error:
            if self._asked == asked:
                raise
            self.stop()  # the last may have come before the robot moved last
            raise self._stopped_error() from error

    def observe(self) -> Observation:
        """Return what the robot measured, after comparing it with what was sent."""
        with self._turn:
            seen = self.robot.observe()
        with self._state:
            if not self.reason:
                self._compare(seen)
        return seen

    def command(self, target: np.ndarray) -> np.ndarray:
        """Send the nearest safe target; return what was really sent.

        Raises:
            StoppedError: the robot is stopped; says why.
            RobotError: it cannot be commanded, or cannot be stopped where it must be.
        """
        try:
            with self._turn:
                with self._state:
                    if self.reason:
                        raise self._stopped_error()
                    safe = self._next(target)
                return self.limiter.last.copy() if safe is None else self._send(safe)
        except _UnsafeError as why:
            self.stop(str(why))
            raise self._stopped_error() from why.__cause__

    def hold(self) -> None:
        """Brake as the acceleration allows, one step at each call, then keep the target.

        Raises:
            RobotError: the driver cannot, or what it sent cannot be and it does not stop.
        """
        try:
            if not self._brake() and not self.reason:
                self.robot.hold()
        except _UnsafeError as why:
            self.stop(str(why))

    def stop(self, reason: str = "it was told to stop") -> None:
        """Stop the robot until the next reset; from now on it takes no command.

        Raises:
            RobotError: it is not confirmed that it has stopped. Call it again.
        """
        asked = self._refuse(reason)
        self.robot.stop()
        self._confirm(asked)

    # Stops.

    def _refuse(self, reason: str) -> int:
        """Take no command from now on; return the number of the stop that follows."""
        with self._state:
            if self.reason in ("", _RESETTING):
                self.reason = reason
            self._asked += 1
            return self._asked

    def _confirm(self, asked: int) -> None:
        with self._state:
            self._confirmed = max(self._confirmed, asked)

    def _check_asked(self, before: int) -> None:
        """Check that nobody has asked for a stop since."""
        if self._asked != before:
            raise _UnsafeError(self.reason)

    def _stopped_error(self) -> StoppedError:
        return StoppedError(f"the robot is stopped: {self.reason}; reset() it")

    # Targets.

    def _begin(self, target: np.ndarray) -> None:
        self.limiter.begin(target)
        self._at = self._new_at = self.clock()
        self._credit, self._stamp = 2.0, None
        self._astray = self._invalid = None
        self.reason = ""

    def _next(self, target: np.ndarray) -> np.ndarray | None:
        """Return what to send now, None for nothing."""
        now = self.clock()
        self._credit = min(2.0, self._credit + _MOST_COMMANDS * (now - self._at) / self.control_dt)
        if now - self._at > 2.0 * self.control_dt:
            self.limiter.rest()  # nothing has moved it since
        self._at = now
        if self._credit < 1.0 - 1e-6:
            self.interventions["rate"] += 1
            return None
        self._credit -= 1.0
        wanted = self.limiter.valid(target)
        self._note_validity(wanted is not None, now)
        if self._is_astray(now):
            self.interventions["self_check"] += 1
            wanted = None
        safe = self.limiter.last if wanted is None else wanted
        return self.limiter.limited(safe, count=wanted is not None)

    def _brake(self) -> bool:
        """Send one step less than the last if the robot must still brake; whether that is so.

        Where the driver is in the middle of a call it is not, and this does not wait for it.
        """
        if not self._turn.acquire(blocking=False):
            return False
        try:
            with self._state:
                if self.reason or self.limiter.can_rest:
                    self.limiter.rest()
                    return False
                if self.clock() - self._at < 0.9 * self.control_dt:
                    return True
                self._at = self.clock()
                step = self.limiter.limited(self.limiter.last, count=False)
            self._send(step)
            return True
        finally:
            self._turn.release()

    def _send(self, safe: np.ndarray) -> np.ndarray:
        """Hand a target to the driver; return what it says that it sent, if that can be."""
        try:
            said = self.robot.command(safe)
        except Exception as error:
            if self.reason:  # and the target may have gone out all the same
                raise _UnsafeError(self.reason) from error
            raise
        try:
            sent = np.asarray(said, dtype=np.float64)
        except (TypeError, ValueError):
            sent = np.array(np.nan)
        with self._state:
            if self.reason:  # a stop has overtaken this target, and goes out once more
                raise _UnsafeError(self.reason)
            if not self.limiter.could_be(sent):
                raise _UnsafeError(
                    f"its driver says that it sent {said}, where {safe} was to be sent"
                )
            if not np.array_equal(sent, safe):
                self.limiter.correct(sent)
        return sent

    def _note_validity(self, valid: bool, now: float) -> None:
        """Have the robot stopped if what comes has been no target for too long."""
        if valid:
            self._invalid = None
            return
        self._invalid = now if self._invalid is None else self._invalid
        if now - self._invalid > self.limits.patience:
            raise _UnsafeError(f"no valid target for {self.limits.patience:g} s")

    # What is measured.

    def _compare(self, seen: Observation) -> None:
        """Note since when it is not to be seen that the robot follows."""
        if seen.measured is None:
            return
        now = self.clock()
        is_new = seen.stamp != self._stamp and np.isfinite(seen.stamp)
        if is_new:
            self._stamp, self._new_at = seen.stamp, now
        is_whole = np.shape(seen.measured) == self.limiter.last.shape
        measured = seen.measured if is_whole else np.full_like(self.limiter.last, np.nan)
        away = np.abs(measured - self.limiter.last) - self.limits.tolerance
        if not (away <= 0).all():  # also where it is not a number
            far = int(np.argmax(away))
            name, most = self.channels[far].name, self.limits.tolerance[far]
            self._why_astray = f"{name} has been more than {most:g} from its target"
            self._astray = now if self._astray is None else self._astray
        elif is_new:
            self._astray = None
        elif self._astray is None:
            self._why_astray = "it has measured nothing new"
            self._astray = self._new_at

    def _is_astray(self, now: float) -> bool:
        """Return whether to hold since a channel does not follow; have it stopped in the end."""
        if self._astray is None or now - self._astray <= self.limits.patience:
            return False
        if now - self._astray > 2.0 * self.limits.patience:
            raise _UnsafeError(f"{self._why_astray} for {now - self._astray:.2f} s")
        return True
