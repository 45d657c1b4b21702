"""Policies that answer chunks, as policies that answer one action: temporal ensembling, in numpy.

A chunk is what to do in this control step and the next `horizon` - 1. With a new chunk in every
step there are up to `horizon` opinions on what to do now; Zhao et al. 2023 (arXiv 2304.13705)
weigh them with exp(-k i), the oldest first (i = 0), and so does `Ensemble`.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from penspin_style.deploy.policy import Policy, fork, horizon_of, set_deadline


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


class EnsembledPolicy:
    """A policy of chunks as one of actions, see `penspin_style.deploy.policy`."""

    def __init__(self, policy: Policy, k: float = 0.01) -> None:
        self.policy, self.card = policy, policy.card
        self.deadline = float("inf")
        self.ensemble = Ensemble(horizon_of(policy), k)

    def fork(self) -> "EnsembledPolicy":
        """Return another one, of the same chunks, that has seen nothing yet."""
        return EnsembledPolicy(fork(self.policy), self.ensemble.k)

    def reset(self) -> None:
        """Begin an episode."""
        self.policy.reset()
        self.ensemble.reset()

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action (naction,) float32, or (n, naction) of inputs with a batch axis."""
        set_deadline(self.policy, self.deadline)
        chunk = self.policy.act(observation)
        chunk = chunk if self.ensemble.horizon > 1 else chunk[..., None, :]
        return self.ensemble(chunk).clip(-1.0, 1.0).astype(np.float32)
