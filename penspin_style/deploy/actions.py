"""From actions in [-1, 1] to targets in the channels' units, and back.

`delta` channels add to the target before; they are computed as the training environment does, in
float32, so that a twin with the training's physics repeats it bit for bit.
"""

from collections.abc import Sequence

import numpy as np

from penspin_style.features import ActionChannel, PolicyCard

MODES = ("delta", "absolute")


class Decoder:
    """What a card's action channels make of an action."""

    def __init__(self, card: PolicyCard | Sequence[ActionChannel]) -> None:
        """Take the channels of a card, or channels themselves.

        Raises:
            ValueError: a mode that does not exist, limits that are none, a scale of 0.
        """
        self.channels = tuple(card.actions if isinstance(card, PolicyCard) else card)
        for c in self.channels:
            if c.mode not in MODES:
                raise ValueError(f"channel {c.name!r}: mode {c.mode!r} is not one of {MODES}")
            if not (np.isfinite([c.low, c.high]).all() and c.low < c.high):
                raise ValueError(f"channel {c.name!r}: low {c.low} must be below high {c.high}")
            if c.mode == "delta" and not (np.isfinite(c.scale) and c.scale > 0):
                raise ValueError(f"channel {c.name!r}: scale must be positive, is {c.scale}")
        self.low = np.array([c.low for c in self.channels])
        self.high = np.array([c.high for c in self.channels])
        self._delta = np.array([c.mode == "delta" for c in self.channels])
        # the environment multiplies float32 by the scale, rounded to float32, in one operation
        self._scale = np.array([c.scale for c in self.channels], np.float32).astype(np.float64)

    def decode(self, action: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return targets (..., naction) float64, within the channels' limits.

        action: (..., naction); what is outside [-1, 1] is clipped, as in training.
        last: (..., naction), what was really sent last: `robot.target`.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        action, last = self._checked("action", action), self._checked("last target", last)
        return self._targets(np.clip(action, -1.0, 1.0).astype(np.float32), _single(last))

    def encode(self, target: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return the actions (..., naction) float32 that lead from `last` to `target`.

        What no action reaches is clipped to [-1, 1]. A target that `decode` made of the same `last`
        is reached exactly.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        target, last = self._checked("target", target), self._checked("last target", last)
        before = _single(last)
        moved = (target - before) / self._scale
        placed = 2.0 * (target - self.low) / (self.high - self.low) - 1.0
        action = np.clip(np.where(self._delta, moved, placed), -1.0, 1.0).astype(np.float32)
        missed = self._targets(action, before) != target
        if missed.any():  # by a rounding, or because no action reaches it
            for side in (-2.0, 2.0):
                other = np.clip(np.nextafter(action, np.float32(side)), -1.0, 1.0)
                hits = missed & (self._targets(other, before) == target)
                action = np.where(hits, other, action)
        return action

    def steps(self, target: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return (..., naction) how many full actions it takes from `last` to `target`.

        Beyond 1 no action reaches that far. 0 for absolute channels, which reach all their limits.
        """
        return np.where(self._delta, (target - last) / self._scale, 0.0)

    def origin(self, target: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Return the last target from which an action has led to a target, (..., naction).

        It is the only one unless the target is at a limit; of absolute channels, which come from
        anywhere, it is `low`.
        """
        return np.where(self._delta, target - self._scale * action, self.low)

    def _targets(self, action: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return the targets of float32 actions in [-1, 1]."""
        exact = action.astype(np.float64)
        moved = _single(before + self._scale * exact)  # as one fused operation rounds it
        placed = self.low + 0.5 * (exact + 1.0) * (self.high - self.low)
        return np.clip(np.where(self._delta, moved, placed), self.low, self.high)

    def _checked(self, what: str, value: np.ndarray) -> np.ndarray:
        array = np.asarray(value)
        if array.ndim < 1 or array.shape[-1] != len(self.channels) or array.dtype.kind not in "fiu":
            raise ValueError(
                f"the {what} must be (..., {len(self.channels)}) real numbers, got "
                f"{array.shape} of {array.dtype}"
            )
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            at = int(np.argwhere(~np.isfinite(array))[0][-1])
            raise ValueError(f"the {what} of {self.channels[at].name} is not finite")
        return array


def _single(value: np.ndarray) -> np.ndarray:
    """Return the values as float32 holds them, as float64."""
    return value.astype(np.float32).astype(np.float64)
