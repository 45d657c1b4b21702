"""The one contract of policies at run time, in numpy: what drives a robot, is served or evaluated.

    policy.reset()                        # a new episode
    action = policy.act(observation)      # in each control step

A `Bundle`, a policy behind a server, temporal ensembling of chunks and `TorchPolicy` all keep it.
Histories and delays are made before (`penspin_style.deploy.history`), actions decoded after
(`penspin_style.deploy.actions`). Three more attributes are optional:

| attribute | is | without it |
| --- | --- | --- |
| `horizon` | actions that `act` answers, of this control step and the next ones | 1 |
| `deadline` | s, monotonic, by which `act` answers or raises `NoActionError`; may be set | none |
| `fork()` | another one, for an episode at the same time; of a policy that remembers | share it |
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from penspin_style.features import PolicyCard


class NoActionError(RuntimeError):
    """The policy has no action by its deadline; the next control step may ask again."""


class Policy(Protocol):
    """See the module's docstring."""

    @property
    def card(self) -> PolicyCard:
        """What the policy needs and means."""
        ...

    def reset(self) -> None:
        """Begin an episode."""
        ...

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action in [-1, 1], (naction,); with a horizon above 1, (horizon, naction).

        observation: the card's inputs by name. Where they have a batch axis, so has the result.

        Raises:
            NoActionError: it has a `deadline`, and no action by then.
        """
        ...


def horizon_of(policy: Policy) -> int:
    """Return how many actions a policy answers at a time."""
    return getattr(policy, "horizon", 1)


def next_action(policy: Policy, observation: Mapping[str, Any]) -> np.ndarray:
    """Return the action of this control step, (naction,) or (n, naction): of a chunk the first."""
    actions = policy.act(observation)
    return actions if horizon_of(policy) == 1 else actions[..., 0, :]


def set_deadline(policy: Any, deadline: float) -> None:
    """Tell a policy that waits for others by when it must answer, s, monotonic."""
    if hasattr(policy, "deadline"):
        policy.deadline = deadline


def fork(policy: Policy) -> Policy:
    """Return a policy for an episode beside others: the same one, unless it remembers."""
    again = getattr(policy, "fork", None)
    return policy if again is None else again()
