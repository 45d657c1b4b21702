"""Limits of a robot's targets that hold whatever is asked for.

Per control step and channel, with x the target sent and dt the control step:

    low <= x_t <= high
    |x_t - x_(t-1)| <= velocity dt
    |x_t - 2 x_(t-1) + x_(t-2)| <= acceleration dt^2

All three hold at once, because a step is only as long as leaves room to brake before the limit.
What is no target (NaN, another shape or type) is never forwarded: the robot brakes and holds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style.features import ActionChannel
from real.robot import RobotError

_all = np.logical_and.reduce  # half the time of `all`, which is asked several times per target
_ROUNDING = 1e-9
"""Share by which steps stay below their limits, so that no rounding exceeds these."""
_HEADROOM = 1e-5
"""Share by which the card's own speed is exceeded: a full action is a float32 sum in training."""


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


class TargetLimiter:
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
        self._size = np.maximum(np.abs(limits.low), np.abs(limits.high))
        slack = 16.0 * np.finfo(np.float64).eps * self._size
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
            if ok and array.dtype != np.float64:
                with np.errstate(over="ignore"):  # longer floats become infinite, and are refused
                    array = array.astype(np.float64)
        except Exception:  # whatever an object raises that should have been an array, it is none
            ok = False
        if not ok:
            self.interventions["shape"] += 1
            return None
        if not _all(np.isfinite(array)):
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
        if count and not _all(sent == wanted):
            self._count(wanted)
        self._before, self.last = x, sent
        self._note_step()
        return sent.copy()

    def could_be(self, sent: np.ndarray) -> bool:
        """Return whether a driver may really have sent this for what `limited` returned last.

        It must be (naction,) finite numbers, inside the limits but for rounding to float32, and no
        farther from what was asked than one step.
        """
        if sent.shape != (self._n,) or not _all(np.isfinite(sent)):
            return False
        rounding = 4.0 * np.finfo(np.float32).eps * self._size
        inside = (sent >= self.limits.low - rounding) & (sent <= self.limits.high + rounding)
        return bool(_all(inside & (np.abs(sent - self.last) <= self._step + rounding)))

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
        limits, counts, asked = self.limits, self.interventions, wanted - self.last
        found = False
        if not (_all(wanted >= limits.low) and _all(wanted <= limits.high)):
            counts["position"] += 1
            found = True
        if not _all(np.abs(asked) <= self._step):
            counts["velocity"] += 1
            found = True
        if not _all(np.abs(asked - self._moved[0]) <= self._change):
            counts["acceleration"] += 1
            found = True
        if not found:
            counts["braking"] += 1
