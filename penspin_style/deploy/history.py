"""From what a robot measures now to what a policy reads: delays and histories, step by step.

The numbers are those of the training environment, bit for bit (`penspin_style/env/terms.py`): a
ring of past values per feature and input, filled with the first value when an episode begins.
`Observer` does so while an episode goes on, `stack_episode` for one that was recorded.
"""

from collections.abc import Mapping

import numpy as np

from penspin_style.features import Feature, Input, PolicyCard

_LONGEST = 10_000
"""Control steps that a feature may reach back: a hostile card must not fill the memory."""


class Observer:
    """What a card's policy has seen until now.

    `num` worlds at once, if given: values then have a leading axis of that size, and so have the
    inputs; all begin their episodes together.
    """

    def __init__(self, card: PolicyCard, num: int | None = None) -> None:
        """Begin an episode.

        Raises:
            ValueError: a feature reaches back longer than a robot can remember.
        """
        self.card, self.num = card, num
        self._batch = () if num is None else (num,)
        self._past = [[_Past(f, self._batch) for f in group.features] for group in card.inputs]
        self.features: dict[str, Feature] = {
            f.name: f for group in card.inputs for f in group.features
        }

    def reset(self) -> None:
        """Begin an episode: the next values stand for all that was before them."""
        for group in self._past:
            for past in group:
                past.empty = True

    def __call__(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Take the values of this control step; return input -> tensor, as `Bundle` takes them.

        values: feature -> its current value; more of them do no harm.

        Raises:
            ValueError: one is missing, or of another shape or type, or not finite; nothing is taken
                then.
        """
        taken = {name: self._checked(feature, values) for name, feature in self.features.items()}
        out = {}
        for group, pasts in zip(self.card.inputs, self._past, strict=True):
            for past in pasts:
                past.push(taken[past.feature.name])
            out[group.name] = _joined(group, [past.read() for past in pasts], self._batch)
        return out

    def _checked(self, feature: Feature, values: Mapping[str, np.ndarray]) -> np.ndarray:
        if feature.name not in values:
            raise ValueError(
                f"the policy reads {feature.name!r}; the robot gives {', '.join(sorted(values))}"
            )
        value = np.asarray(values[feature.name])
        shape = (*self._batch, *feature.shape)
        fits = value.dtype == np.uint8 if feature.dtype == "uint8" else value.dtype.kind in "fiu"
        if value.shape != shape or not fits:
            raise ValueError(
                f"{feature.name} must be {shape} of {feature.dtype}, got {value.shape} of "
                f"{value.dtype}"
            )
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as that
            value = value.astype(feature.dtype, copy=False)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{feature.name} is not finite")
        return value


def stack_episode(
    card: PolicyCard, values: Mapping[str, np.ndarray], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what an `Observer` would have returned in some control steps of a recorded episode.

    values: feature -> its value in every control step, (T, *shape) in the feature's type.
    rows: (n,) the control steps; inputs are (n, ...).
    """

    def history(feature: Feature) -> np.ndarray:
        steps = np.arange(1 - feature.history, 1)[:, None] - feature.delay + rows
        return values[feature.name][steps.clip(min=0)]

    return {
        group.name: _joined(group, [history(f) for f in group.features], rows.shape)
        for group in card.inputs
    }


def _joined(group: Input, values: list[np.ndarray], batch: tuple[int, ...]) -> np.ndarray:
    """Return one input (*batch, ...) of its features' histories, each (history, *batch, *shape)."""
    if group.is_image:
        (value,) = values
        stacked = value[0] if len(value) == 1 else np.moveaxis(value, 0, len(batch))
        return stacked.copy()
    # the batch's axis first, then the history's
    rows = [
        np.moveaxis(value, 0, len(batch)).reshape(*batch, f.size)
        for f, value in zip(group.features, values, strict=True)
    ]
    return np.concatenate(rows, axis=-1)


class _Past:
    """The last values of one feature, oldest first."""

    def __init__(self, feature: Feature, batch: tuple[int, ...]) -> None:
        length = feature.history + feature.delay
        if feature.delay < 0 or feature.history < 1 or length > _LONGEST:
            raise ValueError(
                f"{feature.name}: a history of {feature.history} and a delay of {feature.delay} "
                f"control steps; together they must be 1 to {_LONGEST}"
            )
        self.feature = feature
        self.ring = np.zeros((length, *batch, *feature.shape), feature.dtype)
        self.empty = True

    def push(self, value: np.ndarray) -> None:
        if self.empty:
            self.ring[:] = value
            self.empty = False
            return
        self.ring[:-1] = self.ring[1:]
        self.ring[-1] = value

    def read(self) -> np.ndarray:
        """Return the delayed history, (history, [num], *shape): a view."""
        return self.ring[: self.feature.history]
