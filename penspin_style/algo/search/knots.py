"""Plans: knots of the action, linear in between, and how new ones are drawn around old ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LIMIT = 1.2
"""Of a knot's absolute value; actions are clamped to 1, so that some may stay there for longer."""
_FACTORS = (0.3, 1.0, 2.0)  # of the noise, by turns
_SPARSE, _STEADY = 0.3, 0.4  # shares of what is moved where that is drawn number by number


def knot_count(horizon: int, knot: int) -> int:
    """Return the number of knots whose lines cover `horizon` steps."""
    return math.ceil(horizon / knot) + 1


def interpolate(knots: Tensor, horizon: int, knot: int, hold: int) -> Tensor:
    """Return the actions of plans, (horizon + hold, n, naction), zero in the last `hold`.

    knots: (n, knots, naction), the first at step 0 and one every `knot` steps.
    """
    steps = torch.arange(horizon)
    index, part = steps // knot, (steps % knot / knot).view(-1, 1)
    weights = torch.zeros(horizon + hold, knots.shape[1])
    weights[steps, index] = 1.0 - part[:, 0]
    weights[steps, index + 1] += part[:, 0]
    actions = torch.einsum("tk,nka->tna", weights, knots)
    return actions.clamp(-1.0, 1.0).contiguous()


def shift(knots: Tensor, steps: int, knot: int) -> Tensor:
    """Return plans (n, knots, naction) as seen `steps` later, zero from their end on."""
    count = knots.shape[1]
    times = torch.arange(count) + steps / knot
    index = times.floor().long().clamp(max=count - 1)
    part = (times - index).view(1, -1, 1)
    after = knots[:, (index + 1).clamp(max=count - 1)]
    moved = knots[:, index] * (1.0 - part) + after * part
    return torch.where((times <= count - 1).view(1, -1, 1), moved, 0.0)


class Sampler:
    """Draws plans: which numbers are moved, in which of six ways, differs from plan to plan.

    All; one limb; two limbs; some knots of some actions; some actions, all their knots alike; some
    limbs as the task proposes, with less noise. Without limbs every action is one.
    """

    def __init__(self, naction: int, limbs: Sequence[Sequence[int]]) -> None:
        groups = limbs or [[i] for i in range(naction)]
        self.limbs = torch.zeros(len(groups), naction)
        for i, group in enumerate(groups):
            self.limbs[i, list(group)] = 1.0

    def draw(
        self,
        plans: Tensor,
        sigma: Tensor,
        rank: Tensor,
        proposal: Tensor | None,
        rng: torch.Generator,
    ) -> Tensor:
        """Return new plans around old ones, (n, knots, naction).

        plans: (n, knots, naction), the old one of each.
        sigma: (n,) of the noise.
        rank: (n,) long, place of a plan among those of one old one: that of 0 stays as it is, that
            of 1 is zero.
        proposal: (n, naction) constant actions, or None.
        """
        n, count, naction = plans.shape
        way = torch.randint(6 if proposal is not None else 5, (n,), generator=rng)
        factor = torch.tensor(_FACTORS)[torch.randint(len(_FACTORS), (n,), generator=rng)]
        noise = torch.randn(n, count, naction, generator=rng)
        steady = torch.randn(n, 1, naction, generator=rng)
        sparse = (torch.rand(n, count, naction, generator=rng) < _SPARSE).float()
        chosen = (torch.rand(n, 1, naction, generator=rng) < _STEADY).float()
        some = self._some_limbs(n, rng)
        limbs = {1: self._limbs(some < 1), 2: self._limbs(some < 2)}
        moved = noise.clone()
        for number, value in (
            (1, noise * limbs[1]),
            (2, noise * limbs[2]),
            (3, noise * sparse),
            (4, (steady * chosen).expand_as(noise)),
            (5, 0.5 * noise),
        ):
            moved = torch.where((way == number).view(-1, 1, 1), value, moved)
        base = plans
        if proposal is not None:
            many = torch.randint(1, max(2, len(self.limbs)), (n, 1), generator=rng)
            to = (way == 5).view(-1, 1, 1) & (self._limbs(some < many) > 0)
            base = torch.where(to, proposal[:, None].expand_as(plans), plans)
        drawn = base + (sigma * factor).view(-1, 1, 1) * moved
        drawn = torch.where((rank == 0).view(-1, 1, 1), plans, drawn)
        drawn = torch.where((rank == 1).view(-1, 1, 1), 0.0, drawn)
        return drawn.clamp(-LIMIT, LIMIT)

    def _some_limbs(self, n: int, rng: torch.Generator) -> Tensor:
        """Return the places of the limbs in a random order, (n, limbs)."""
        return torch.rand(n, len(self.limbs), generator=rng).argsort(dim=1).argsort(dim=1)

    def _limbs(self, chosen: Tensor) -> Tensor:
        """Return which actions belong to the limbs (n, limbs) bool, (n, 1, naction) 0 or 1."""
        return (chosen.float() @ self.limbs).clamp(max=1.0)[:, None]
