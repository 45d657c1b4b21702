"""Policies that answer chunks, as policies that answer one action, in numpy.

A chunk is what to do in this control step and the next `horizon` - 1.

Temporal ensembling: with a new chunk in every step there are up to `horizon` opinions on what to do
now; Zhao et al. 2023 (arXiv 2304.13705) weigh them with exp(-k i), the oldest first (i = 0), and so
does `Ensemble`. Their actions are positions. Where ours are steps from the last target, opinions
are averaged on where that target is to be: a step is meant from where its own chunk would have led,
and the mean of steps goes on with what has been made good already, long after the chunks that were
wrong.

Receding horizon: Chi et al. 2023 (arXiv 2303.04137) carry out the first part of a chunk and ask
again, as `RecedingPolicy` does.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penspin_style.deploy.policy import Policy, fork, horizon_of, set_deadline


class Ensemble:
    """The opinions of an episode's last chunks on what to do now."""

    def __init__(self, horizon: int, k: float = 0.01, delta: Sequence[bool] | None = None) -> None:
        """Begin an episode.

        k: how much less a newer opinion counts; 0 for all alike.
        delta: (naction,), channels whose actions are steps from the last target; None for none.
        """
        self.horizon, self.k = horizon, k
        self.delta = np.asarray(() if delta is None else delta, bool)
        self._chunks: deque[np.ndarray] = deque(maxlen=horizon)
        self._moved: np.ndarray | None = None

    def reset(self) -> None:
        """Begin an episode."""
        self._chunks.clear()
        self._moved = None

    def __call__(self, chunk: np.ndarray) -> np.ndarray:
        """Return the action (..., naction) of this control step, of a new chunk among the others.

        It is taken to be carried out; one of a `delta` channel is within [-1, 1].

        chunk: (..., horizon, naction).

        Raises:
            ValueError: another horizon.
        """
        if chunk.shape[-2] != self.horizon:
            raise ValueError(f"a chunk has {chunk.shape[-2]} actions, not {self.horizon}")
        moved = np.zeros(chunk[..., 0, :].shape) if self._moved is None else self._moved
        delta = self.delta if self.delta.size else np.zeros(chunk.shape[-1], bool)
        # since the episode's begin and in actions, where a target is to be
        places = moved[..., None, :] + np.cumsum(chunk, axis=-2)
        self._chunks.append(np.where(delta, places, chunk))
        age = range(len(self._chunks) - 1, -1, -1)
        said = np.stack([c[..., a, :] for c, a in zip(self._chunks, age, strict=True)])
        weight = np.exp(-self.k * np.arange(len(said)))
        mean = np.tensordot(weight / weight.sum(), said, axes=1)
        action = np.where(delta, (mean - moved).clip(-1.0, 1.0), mean)
        self._moved = moved + action
        return action


class EnsembledPolicy:
    """A policy of chunks as one of actions, see `penspin_style.deploy.policy`."""

    def __init__(self, policy: Policy, k: float = 0.01) -> None:
        self.policy, self.card = policy, policy.card
        self.deadline = float("inf")
        delta = [a.mode == "delta" for a in policy.card.actions]
        self.ensemble = Ensemble(horizon_of(policy), k, delta)

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


class RecedingPolicy:
    """A policy of chunks as one of actions: some of a chunk are carried out, then a new one."""

    def __init__(self, policy: Policy, steps: int) -> None:
        """Begin an episode.

        steps: actions of a chunk that are carried out.

        Raises:
            ValueError: a chunk has fewer.
        """
        horizon = horizon_of(policy)
        if not 1 <= steps <= horizon:
            raise ValueError(f"{steps} actions of a chunk: it must be from 1 to its {horizon}")
        self.policy, self.card, self.steps = policy, policy.card, steps
        self.deadline = float("inf")
        self._left: deque[np.ndarray] = deque()

    def fork(self) -> "RecedingPolicy":
        """Return another one, of the same chunks, that has seen nothing yet."""
        return RecedingPolicy(fork(self.policy), self.steps)

    def reset(self) -> None:
        """Begin an episode."""
        self.policy.reset()
        self._left.clear()

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action (naction,), or (n, naction) of inputs with a batch axis."""
        if not self._left:
            set_deadline(self.policy, self.deadline)
            chunk = self.policy.act(observation)
            chunk = chunk if horizon_of(self.policy) > 1 else chunk[..., None, :]
            self._left.extend(chunk[..., i, :] for i in range(self.steps))
        return self._left.popleft()
