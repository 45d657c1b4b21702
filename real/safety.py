"""Between a policy and a robot: limits, a comparison with what is measured, and a watchdog.

`SafeRobot` is a robot that wraps one. What it does, in this order, with each target: is it finite
and of the right shape; position, velocity and acceleration (`real.guard`); does the robot follow.
"""

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from penspin_style.features import ActionChannel, Feature
from real.guard import Guard, Limits
from real.robot import Observation, Robot, RobotError, StoppedError

__all__ = ["Guard", "Limits", "SafeRobot", "Watchdog"]

_PACE = 1.05
"""Commands per control step, in the mean, above which they are not forwarded."""


class SafeRobot:
    """Any robot, behind a guard; itself a robot. May be used from several threads."""

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
        self.robot = robot
        self.limits = limits or Limits.of(robot.channels, robot.control_dt)
        self.guard = Guard(self.limits, robot.control_dt)
        self.interventions = self.guard.interventions
        """Kind -> how often; beside the guard's `self_check` and `pace`."""
        self.reason = "it has not been reset"
        """Why it takes no commands; empty while it does."""
        self.clock: Callable[[], float] = clock or getattr(robot, "clock", time.monotonic)
        self._lock = threading.RLock()
        self._at = self._credit = 0.0
        self._astray: float | None = None  # since when a channel is too far from its target
        self._far = 0  # which one
        self._invalid: float | None = None  # since when no valid target has come

    @property
    def features(self) -> Mapping[str, Feature]:
        """Those of the robot."""
        return self.robot.features

    @property
    def channels(self) -> tuple[ActionChannel, ...]:
        """Those of the robot."""
        return self.robot.channels

    @property
    def control_dt(self) -> float:
        """That of the robot."""
        return self.robot.control_dt

    @property
    def target(self) -> np.ndarray:
        """What was sent last."""
        with self._lock:
            return self.robot.target

    def connect(self) -> None:
        """Connect the robot."""
        self.robot.connect()

    def disconnect(self) -> None:
        """Disconnect the robot, which leaves it safe."""
        with self._lock:
            self.reason = self.reason or "it is disconnected"
            self.robot.disconnect()

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Let the robot go to its start; the limits count from there, at rest."""
        with self._lock:
            self.reason = "it is being reset"
            self.robot.reset(start)
            self.guard.begin(self.robot.target)
            self._at, self._credit = self.clock(), 2.0
            self._astray = self._invalid = None
            self.reason = ""

    def observe(self) -> Observation:
        """Return what the robot measured, after comparing it with what was sent."""
        with self._lock:
            seen = self.robot.observe()
            if not self.reason:
                self._compare(seen)
            return seen

    def command(self, target: np.ndarray) -> np.ndarray:
        """Send the nearest safe target; return what was really sent.

        Raises:
            StoppedError: the robot is stopped; says why.
        """
        with self._lock:
            self._check_running()
            now = self.clock()
            self._credit = min(2.0, self._credit + _PACE * (now - self._at) / self.control_dt)
            if now - self._at > 2.0 * self.control_dt:
                self.guard.rest()  # nothing has moved it since
            self._at = now
            if self._credit < 1.0 - 1e-6:
                self.interventions["pace"] += 1
                return self.guard.last.copy()
            self._credit -= 1.0
            wanted = self.guard.valid(target)
            self._note_validity(wanted is not None, now)
            if self._is_astray(now):
                self.interventions["self_check"] += 1
                wanted = None
            safe = self.guard.last if wanted is None else wanted
            return self._send(self.guard.limited(safe, count=wanted is not None))

    def hold(self) -> None:
        """Brake as the acceleration allows, one step at each call, then keep the target."""
        with self._lock:
            if self.reason:
                return
            if self.guard.can_rest:
                self.guard.rest()
                self.robot.hold()
            elif self.clock() - self._at >= 0.9 * self.control_dt:
                self._at = self.clock()
                self._send(self.guard.limited(self.guard.last, count=False))

    def stop(self, reason: str = "it was told to stop") -> None:
        """Stop the robot until the next reset."""
        with self._lock:
            self.reason = self.reason or reason
            self.robot.stop()

    def _send(self, safe: np.ndarray) -> np.ndarray:
        sent = np.asarray(self.robot.command(safe), dtype=np.float64)
        if sent.shape != safe.shape or not np.isfinite(sent).all():
            self.stop(reason := f"its driver says that it sent {sent}")
            raise StoppedError(f"the robot is stopped: {reason}")
        if not np.array_equal(sent, safe):
            self.guard.correct(sent)
        return sent

    def _check_running(self) -> None:
        if self.reason:
            raise StoppedError(f"the robot is stopped: {self.reason}; reset() it")

    def _note_validity(self, valid: bool, now: float) -> None:
        """Stop the robot if what comes has been no target for too long."""
        if valid:
            self._invalid = None
            return
        self._invalid = now if self._invalid is None else self._invalid
        if now - self._invalid > self.limits.patience:
            self.stop(f"no valid target for {self.limits.patience:g} s")
            self._check_running()

    def _compare(self, seen: Observation) -> None:
        if seen.measured is None:
            return
        away = np.abs(seen.measured - self.guard.last) - self.limits.tolerance
        if not (away > 0).any() and np.isfinite(seen.measured).all():
            self._astray = None
        elif self._astray is None:
            self._astray = seen.stamp
        self._far = int(np.argmax(away))

    def _is_astray(self, now: float) -> bool:
        """Return whether to hold since a channel does not follow; stop if that goes on."""
        if self._astray is None or now - self._astray <= self.limits.patience:
            return False
        if now - self._astray > 2.0 * self.limits.patience:
            name = self.channels[self._far].name
            self.stop(
                f"{name} has been more than {self.limits.tolerance[self._far]:g} from its target "
                f"for {now - self._astray:.2f} s"
            )
            self._check_running()
        return True


class Watchdog:
    """A thread that holds a robot for which no fresh action comes, and stops it in the end.

    It sleeps until the first `feed`, and after `rest`. Times are of `time.monotonic`.
    """

    def __init__(self, robot: Robot, *, hold: float = 0.1, stop: float = 0.5) -> None:
        """Prepare; `with` it, or `start` and `close` it.

        hold, stop: s after the last fresh action by which the robot holds, or is stopped. The
            thread acts a fifth of `hold` sooner, so that it does not come late on a busy computer.
        """
        if not 0 < hold < stop:
            raise ValueError(f"hold must be positive and below stop, got {hold} and {stop}")
        self.robot, self.early = robot, 0.2 * hold
        if robot.control_dt > hold - self.early + 1e-9:
            raise ValueError(
                f"hold, {hold} s, must be clearly longer than a control step, {robot.control_dt} s"
            )
        self.hold_after, self.stop_after = hold, stop
        self.events: list[tuple[float, str]] = []
        """(seconds, `hold` or `stop`) in order."""
        self._fed: float | None = None
        self._held = self._stopped = self._closed = False
        self._error: Exception | None = None
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def feed(self) -> None:
        """Say that a fresh action has just been sent.

        Raises:
            RobotError: the robot could not be held, and was stopped, or could not be stopped.
        """
        with self._wake:
            self._raise()
            self._fed = time.monotonic()
            self._held = self._stopped = False
            self._wake.notify()

    def rest(self) -> None:
        """Expect no action until the next `feed`."""
        with self._wake:
            self._fed = None
            self._wake.notify()

    def close(self) -> None:
        """End the thread. The robot is left as it is."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise RobotError(f"the watchdog could not make the robot safe: {error}") from error

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait(self._patience())
                if self._closed:
                    return
                act = self._due()
            if act is not None:
                self._act(act)

    def _patience(self) -> float | None:
        """Return for how long there is nothing to do, s; None for ever."""
        if self._fed is None or self._stopped:
            return None
        late = time.monotonic() - self._fed
        if not self._held:
            return max(0.0, self.hold_after - self.early - late)
        # a robot that holds may still have to brake, step by step
        return max(0.0, min(self.stop_after - self.early - late, self.robot.control_dt))

    def _due(self) -> str | None:
        if self._fed is None or self._stopped:
            return None
        late = time.monotonic() - self._fed
        if late >= self.stop_after - self.early:
            self._stopped = True
            return "stop"
        if late >= self.hold_after - self.early:
            first, self._held = not self._held, True
            return "hold" if first else "brake"
        return None

    def _act(self, what: str) -> None:
        try:
            if what == "stop":
                self._stop()
            else:
                self.robot.hold()
        except Exception as error:
            self._error = error
            if what != "stop":
                self._act("stop")
                return
        if what != "brake":
            self.events.append((time.monotonic(), what))

    def _stop(self) -> None:
        if isinstance(self.robot, SafeRobot):
            self.robot.stop(f"no fresh action for {self.stop_after:g} s")
        else:
            self.robot.stop()
