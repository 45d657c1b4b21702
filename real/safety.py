"""Between a policy and a robot: limits that hold whatever the policy asks for, and a watchdog.

Per control step and channel, with x the target sent and dt the control step:

    low <= x_t <= high
    |x_t - x_(t-1)| <= velocity dt
    |x_t - 2 x_(t-1) + x_(t-2)| <= acceleration dt^2

All three hold at once, because a step is only as long as leaves room to brake before the limit.
What is no target (NaN, another shape or type) is never forwarded: the robot brakes and holds.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style.features import ActionChannel, Feature
from real.robot import Observation, Robot, RobotError, StoppedError

_ROUNDING = 1e-9
"""Share by which steps stay below their limits, so that no rounding exceeds these."""
_HEADROOM = 1e-5
"""Share by which the card's own speed is exceeded: a full action is a float32 sum in training."""
_PACE = 1.05
"""Commands per control step, in the mean, above which they are not forwarded."""


@dataclass(frozen=True)
class Limits:
    """What a robot's targets may do; (naction,) each, in the channels' units and s."""

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    tolerance: np.ndarray
    """How far a measured channel may be from its target; infinity for any distance,"""
    patience: float = 0.5
    """for this many seconds; after as many again the robot is stopped."""

    def __post_init__(self) -> None:
        """Refuse what no robot can honour."""
        n = len(self.low)
        for name in ("low", "high", "velocity", "acceleration", "tolerance"):
            value = getattr(self, name)
            if value.shape != (n,) or np.isnan(value).any():
                raise ValueError(f"limits.{name} must be ({n},) numbers, got {value}")
        for name in ("velocity", "acceleration", "tolerance"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"limits.{name} must be positive, got {getattr(self, name)}")
        if not (np.isfinite(self.low) & np.isfinite(self.high) & (self.low < self.high)).all():
            raise ValueError(f"limits.low must be below limits.high, got {self.low}, {self.high}")
        if not 0 < self.patience < float("inf"):
            raise ValueError(f"limits.patience must be positive, got {self.patience}")

    @classmethod
    def of(
        cls,
        channels: Sequence[ActionChannel],
        control_dt: float,
        *,
        velocity: Any = None,
        acceleration: Any = None,
        tolerance: Any = None,
        patience: float = 0.5,
    ) -> "Limits":
        """Return limits: those of a card's channels, unless others are given.

        By default velocity is what an action of 1 asks for, acceleration what turns that round
        within one control step, so that neither changes what the policy was trained to do; a
        channel may be 12 full actions away from its target.

        velocity, acceleration, tolerance: one number for all channels, or one each.
        """
        n = len(channels)
        step = np.array([c.scale if c.mode == "delta" else c.high - c.low for c in channels])
        speed = _each(velocity, n, step * (1.0 + _HEADROOM) / control_dt)
        return cls(
            low=np.array([c.low for c in channels]),
            high=np.array([c.high for c in channels]),
            velocity=speed,
            acceleration=_each(acceleration, n, 2.0 * speed / control_dt),
            tolerance=_each(tolerance, n, 12.0 * step),
            patience=patience,
        )


def _each(given: Any, n: int, default: np.ndarray) -> np.ndarray:
    if given is None:
        return default
    return np.broadcast_to(np.asarray(given, dtype=np.float64), (n,)).copy()


class Guard:
    """The limits of one robot, and what was sent to it last."""

    def __init__(self, limits: Limits, control_dt: float) -> None:
        """Prepare; `begin` comes next.

        Raises:
            ValueError: a step within the limits is too small to be told from its rounding.
        """
        self.limits, self.dt = limits, control_dt
        self.interventions: Counter[str] = Counter()
        """Why (`shape`, `nonfinite`, `position`, `velocity`, `acceleration`, or `braking` before a
        limit) -> how many targets were changed."""
        size = np.maximum(np.abs(limits.low), np.abs(limits.high))
        slack = 16.0 * np.finfo(np.float64).eps * size
        with np.errstate(over="ignore"):
            step = limits.velocity * control_dt * (1.0 - _ROUNDING) - slack
            change = limits.acceleration * control_dt**2 * (1.0 - _ROUNDING) - slack
        self._step = np.minimum(step, 2.0 * (limits.high - limits.low))
        self._change = np.minimum(change, 4.0 * (limits.high - limits.low))
        if (np.minimum(self._step, self._change) <= 4.0 * slack).any():
            raise ValueError("limits: a step within velocity or acceleration is lost in rounding")
        self._brakes = bool((self._change < self._step).any())
        self._n = len(limits.low)
        self.last = self._before = np.zeros(self._n)
        # upwards and downwards at once, (2, naction): half the calls, and they are what takes time
        self._edges = np.stack((limits.high, -limits.low))
        self._moved, self._room, self._reach = (np.zeros((2, self._n)) for _ in range(3))
        self._per_change, self._half_change = 8.0 / self._change, 0.5 * self._change

    def begin(self, at: np.ndarray) -> None:
        """Start at rest at a target, (naction,).

        Raises:
            RobotError: it is farther outside the limits than one step leads back.
        """
        at = np.asarray(at, dtype=np.float64)
        outside = np.maximum(self.limits.low - at, at - self.limits.high)
        reach = np.minimum(self._step, self._change)
        if at.shape != (self._n,) or not (outside <= reach).all():
            raise RobotError(
                f"the robot stands at {at}, outside its limits {self.limits.low} to "
                f"{self.limits.high}; move it inside"
            )
        self.last = at.copy()
        self.rest()

    def rest(self) -> None:
        """Note that the robot has come to rest at the last target."""
        self._before = self.last
        self._moved[:] = 0.0

    @property
    def can_rest(self) -> bool:
        """Whether the acceleration allows to rest at the last target at once."""
        return bool((np.abs(self._moved) <= self._change).all())

    def valid(self, target: Any) -> np.ndarray | None:
        """Return a target as (naction,) finite float64; None, and a count, if it is none."""
        try:
            array = np.asarray(target)
            ok = array.shape == (self._n,) and array.dtype.kind in "fiu"
            array = array.astype(np.float64) if ok else array
        except (TypeError, ValueError, OverflowError):
            ok = False
        if not ok:
            self.interventions["shape"] += 1
            return None
        if not np.isfinite(array).all():
            self.interventions["nonfinite"] += 1
            return None
        return array

    def check(self, target: Any) -> np.ndarray:
        """Return the target to send, within all limits; the last one braked if it is none."""
        wanted = self.valid(target)
        return self.limited(self.last if wanted is None else wanted, count=wanted is not None)

    def limited(self, wanted: np.ndarray, *, count: bool = True) -> np.ndarray:
        """Return the target nearest to a finite one that all limits allow; note it as sent.

        count: whether a change is an intervention.
        """
        x, room, reach = self.last, self._room, self._reach
        np.subtract(self._edges[0], x, out=room[0])
        np.add(self._edges[1], x, out=room[1])
        np.add(self._moved, self._change, out=reach)
        np.minimum(reach, self._step, out=reach)
        np.minimum(reach, self._stoppable(room) if self._brakes else room, out=reach)
        # a rounding may leave the bounds crossed, by no more than `slack`; then either will do
        sent = np.maximum(wanted, x - reach[1])
        np.minimum(sent, x + reach[0], out=sent)
        np.maximum(sent, self.limits.low, out=sent)
        np.minimum(sent, self.limits.high, out=sent)
        if count and not np.array_equal(sent, wanted):
            self._count(wanted)
        self._before, self.last = x, sent
        self._note_step()
        return sent.copy()

    def correct(self, sent: np.ndarray) -> None:
        """Note what was really sent, where that is not what `limited` returned last."""
        self.last = sent.copy()
        self._note_step()

    def _note_step(self) -> None:
        np.subtract(self.last, self._before, out=self._moved[0])
        np.negative(self._moved[0], out=self._moved[1])

    def _stoppable(self, room: np.ndarray) -> np.ndarray:
        """Return the longest step after which braking ends before the room does.

        A step d and the shorter ones that follow, d - a, d - 2 a, ..., add up to (n + 1) d -
        a n (n + 1) / 2 with n = floor(d / a), which grows with d; this is its inverse.
        """
        inside = np.maximum(room, 0.0)
        n = inside * self._per_change
        n += 1.0
        np.sqrt(n, out=n)
        n -= 1.0
        n *= 0.5
        np.floor(n, out=n)
        longest = self._half_change * n
        n += 1.0
        inside /= n
        longest += inside
        return np.minimum(longest, room, out=longest)  # outside: at least back in

    def _count(self, wanted: np.ndarray) -> None:
        limits, asked = self.limits, wanted - self.last
        kinds = {
            "position": (wanted < limits.low) | (wanted > limits.high),
            "velocity": np.abs(asked) > self._step,
            "acceleration": np.abs(asked - self._moved[0]) > self._change,
        }
        found = [kind for kind, where in kinds.items() if where.any()]
        self.interventions.update(found or ["braking"])


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
            thread acts a tenth of `hold` sooner, so that it does not come late.
        """
        if not 0 < hold < stop:
            raise ValueError(f"hold must be positive and below stop, got {hold} and {stop}")
        self.robot, self.early = robot, 0.1 * hold
        if robot.control_dt >= hold - self.early:
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
            RobotError: the robot could not be held or stopped.
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
            raise RobotError(f"the watchdog could not stop the robot: {error}") from error

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
