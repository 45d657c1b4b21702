"""A channel of a robot goes a little way and back: does it follow, and nothing else move?

It finds joints in another order, of another sign or unit, and motors that are off, before a policy
does. The targets take the way of a policy's: the control loop, its limits, its watchdog.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penspin_style.features import ActionChannel
from real.control.loop import Command
from real.control.safety import SafeRobot
from real.robot import Observation, RobotError

SHARE = 0.05
"""Of its range that a channel goes which is no angle."""
_RISE = 0.5
"""Seconds that the way there takes at least; no step is longer than half a full action."""
_REST = 0.4
"""Seconds that a channel is given to arrive before it is looked at, and again when it is back."""
_ENOUGH = (0.5, 1.5)
"""Shares of the way that a channel which follows may be seen to go."""
_STILL = 0.5
"""Share of its own way that a channel may be seen to go while another one is moved."""
FOLLOWS = "follows"


@dataclass(frozen=True)
class Wiggled:
    """What one channel did."""

    name: str
    unit: str
    wanted: float
    """How far it was sent, in `unit`; the sign is the direction."""
    moved: float | None
    """How far it was measured to go; None where that is not known, as when nothing was sent."""
    verdict: str
    """`FOLLOWS`, or what is wrong, or that nobody looked."""


def size_of(channel: ActionChannel, radians: float) -> float:
    """Return how far a channel goes, in its unit: an angle so many radians, else a `SHARE`."""
    return radians if channel.unit == "rad" else SHARE * (channel.high - channel.low)


def way_of(channel: ActionChannel, at: float, radians: float) -> float:
    """Return how far a channel goes from where it stands: towards the middle of its range.

    Raises:
        RobotError: it is outside its limits there, or would leave them.
    """
    size = size_of(channel, radians)
    way = size if at <= 0.5 * (channel.low + channel.high) else -size
    if not (channel.low <= at <= channel.high and channel.low <= at + way <= channel.high):
        raise RobotError(
            f"{channel.name} stands at {at:.4g} {channel.unit}, and {way:+.4g} from there; its "
            f"limits are {channel.low:.4g} to {channel.high:.4g}: move it by hand, or take a "
            "smaller --wiggle"
        )
    return way


class WiggleSource:
    """The targets for one channel; a `real.control.loop.TargetSource` that ends by itself."""

    def __init__(
        self, channels: Sequence[ActionChannel], name: str, radians: float, control_dt: float
    ) -> None:
        """Prepare. name: of the channel; radians: how far it goes, if it is an angle."""
        self.channels, self.radians = channels, radians
        self.at = [c.name for c in channels].index(name)
        self.channel = channel = channels[self.at]
        reach = channel.scale if channel.mode == "delta" else channel.high - channel.low
        size = size_of(channel, radians)
        rise = max(math.ceil(_RISE / control_dt), math.ceil(2.0 * size / reach))
        rest = math.ceil(_REST / control_dt)
        up = [k / rise for k in range(1, rise + 1)]
        still = [0.0] * rest
        self._shares = [*still, *still, *up, *[1.0] * rest, *up[-2::-1], *still, 0.0]
        # the steps before which it has had its time to arrive; what drifts is the mean of the ends
        self._looks = (2 * rest, 2 * rest + rise + rest, len(self._shares) - 1)
        self.steps = len(self._shares)
        """Control steps that it takes."""

    def check(self, robot: SafeRobot) -> None:
        """Do nothing: it is made for its robot."""

    def begin(self) -> None:
        """Begin."""
        self._step, self.ended = 0, False
        self._seen: list[np.ndarray] = []
        self._from = np.zeros(len(self.channels))
        self._way = 0.0

    def next(self, observation: Observation, last: np.ndarray, deadline: float) -> Command:
        """Return the next target.

        Raises:
            RobotError: the channel has no room to go.
        """
        if self._step == 0:
            self._from = last.copy()
            self._way = way_of(self.channel, float(last[self.at]), self.radians)
        if self._step in self._looks and observation.measured is not None:
            self._seen.append(observation.measured)
        target = self._from.copy()
        target[self.at] += self._way * self._shares[self._step]
        self._step += 1
        self.ended = self._step == self.steps
        return Command(target)

    def counts(self) -> dict[str, int]:
        """Return nothing: it always answers."""
        return {}

    def result(self) -> Wiggled:
        """Return what was seen."""
        name, unit = self.channel.name, self.channel.unit
        if len(self._seen) < len(self._looks):
            return Wiggled(name, unit, self._way, None, "not seen")
        before, there, after = self._seen
        moved = there - 0.5 * (before + after)
        return Wiggled(name, unit, self._way, float(moved[self.at]), self._verdict(moved))

    def _verdict(self, moved: np.ndarray) -> str:
        share = moved[self.at] / self._way
        others = np.abs(moved) / [size_of(c, self.radians) for c in self.channels]
        others[self.at] = 0.0
        if others.max() > _STILL:
            other = self.channels[int(np.argmax(others))].name
            return f"{other} moves" + (", too" if share >= _ENOUGH[0] else " instead")
        if share <= -_ENOUGH[0]:
            return "goes the other way"
        if share < _ENOUGH[0]:
            return "does not follow"
        return FOLLOWS if share <= _ENOUGH[1] else "goes too far"
