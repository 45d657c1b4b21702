"""Policies that answer chunks, as policies that answer one action: temporal ensembling, in numpy.

A chunk is what to do in this control step and the next `horizon` - 1. With a new chunk in every
step there are up to `horizon` opinions on what to do now; Zhao et al. 2023 (arXiv 2304.13705)
weigh them with exp(-k i), the oldest first (i = 0), and so does `Ensemble`.
"""

import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from penspin_style.features import PolicyCard


class ChunkPolicy(Protocol):
    """What answers chunks."""

    @property
    def card(self) -> PolicyCard:
        """What it reads and commands."""
        ...

    @property
    def horizon(self) -> int:
        """Actions of a chunk."""
        ...

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return (horizon, naction), or (n, horizon, naction) of a batch; within [-1, 1]."""
        ...


class Ensemble:
    """The opinions of an episode's last chunks on what to do now."""

    def __init__(self, horizon: int, k: float = 0.01) -> None:
        """Begin an episode.

        k: how much less a newer opinion counts; 0 for all alike.
        """
        self.horizon, self.k = horizon, k
        self._chunks: deque[np.ndarray] = deque(maxlen=horizon)

    def reset(self) -> None:
        """Begin an episode."""
        self._chunks.clear()

    def __call__(self, chunk: np.ndarray) -> np.ndarray:
        """Return the action (..., naction) of this control step, of a new chunk among the others.

        chunk: (..., horizon, naction).

        Raises:
            ValueError: another horizon.
        """
        if chunk.shape[-2] != self.horizon:
            raise ValueError(f"a chunk has {chunk.shape[-2]} actions, not {self.horizon}")
        self._chunks.append(np.asarray(chunk))
        age = range(len(self._chunks) - 1, -1, -1)
        said = np.stack([c[..., a, :] for c, a in zip(self._chunks, age, strict=True)])
        weight = np.exp(-self.k * np.arange(len(said)))
        return np.tensordot(weight / weight.sum(), said, axes=1)


class Broker:
    """A chunk policy as `real.control.loop` asks a policy: one action a control step."""

    def __init__(self, policy: ChunkPolicy, k: float = 0.01) -> None:
        self.policy, self.card = policy, policy.card
        self.ensemble = Ensemble(policy.horizon, k)

    def reset(self) -> None:
        """Begin an episode."""
        self.ensemble.reset()

    def ask(self, inputs: Mapping[str, np.ndarray], deadline: float) -> np.ndarray | None:
        """Return the action (naction,); None if it came too late."""
        action = self.ensemble(self.policy(inputs)).clip(-1.0, 1.0).astype(np.float32)
        return action if time.monotonic() < deadline else None

    def counts(self) -> dict[str, int]:
        """Return nothing: nothing can be lost."""
        return {}

    def close(self) -> None:
        """Do nothing."""
