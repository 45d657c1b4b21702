"""A frozen policy of `aloha_pick` that moves both arms of a task, each as if it were alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from penspin_style.env.frozen_policy import FrozenPolicy
from penspin_style.features import Feature
from penspin_style.sim.sim import Sim
from tasks.aloha import one_arm
from tasks.robots.aloha import description

_SHAPES = ((8,), (8,), (3,), (3,), (2, 3), (2, 3), (3,), (3,), (2, 3), (7,))
_FEEDS = tuple(
    Feature(name, shape, unit)
    for (name, unit), shape in zip(one_arm.UNITS.items(), _SHAPES, strict=True)
)


class Picker:
    """The policy, and what it has been shown of late: it sees with the latency of its training.

    A task makes one, puts `memory` among its own, and calls `draw` in `substeps`.
    """

    def __init__(
        self,
        sim: Sim,
        key: str,
        path: str,
        *,
        odds: Sequence[float],
        scale: float,
        control_dt: float,
    ) -> None:
        """Open the policy; allocate.

        key, path: of the task's config. odds: of observations that are 0, 1, ... steps late.
        scale: rad and m that a target moves for an action of 1.

        Raises:
            ValueError: see `FrozenPolicy`.
        """
        n, device = sim.num_envs, sim.device
        actions = description.actions(description.SIDES[:1], scale=scale)
        self.policy = FrozenPolicy(key, path, _FEEDS, actions, control_dt=control_dt, device=device)
        self._odds = torch.tensor(odds, device=device)
        self._sizes = [feature.size for feature in _FEEDS]
        sides, width = len(description.SIDES), sum(self._sizes)
        self.memory = {
            "seen": torch.zeros(n, len(odds), sides, width, device=device),
            "seen_late": torch.zeros(n, dtype=torch.long, device=device),
        }
        """Newest first."""

    def draw(self, rng: torch.Generator) -> None:
        """Draw how late the next observation arrives."""
        late = self.memory["seen_late"]
        late.copy_(torch.multinomial(self._odds, len(late), replacement=True, generator=rng))

    def act(self, terms: Sequence[Mapping[str, Tensor]], first: Tensor) -> Tensor:
        """Return the actions of both arms, (num_envs, 14), on the terms of each.

        first: where an episode begins, (num_envs,) bool; nothing is late there.
        """
        seen = self.memory["seen"]
        now = _joined(terms)
        past = torch.cat((now[:, None], seen[:, :-1]), dim=1)
        seen.copy_(torch.where(first[:, None, None, None], now[:, None], past))
        envs = torch.arange(len(now), device=now.device)
        return self._answer(seen[envs, self.memory["seen_late"]])

    def answer(self, terms: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the actions of both arms, (num_envs, 14), on what is there now; note nothing."""
        return self._answer(_joined(terms))

    def _answer(self, given: Tensor) -> Tensor:
        parts = given.flatten(0, 1).split(self._sizes, dim=1)
        named = {f.name: part.unflatten(1, f.shape) for f, part in zip(_FEEDS, parts, strict=True)}
        return self.policy.act(named).view(len(given), -1)


def _joined(terms: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return what the policy is fed of each arm, (num_envs, arms, 53)."""
    rows = [torch.cat([arm[f.name].flatten(1) for f in _FEEDS], dim=1) for arm in terms]
    return torch.stack(rows, dim=1)
