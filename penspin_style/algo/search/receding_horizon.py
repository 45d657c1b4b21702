"""One plan that is followed: predictive sampling takes the best of many, MPPI their mean.

Predictive sampling: Howell et al., arXiv 2212.00541. MPPI: Williams et al., arXiv 1509.01149; the
weight of a plan is exp(value / temperature).
"""

import torch
from torch import Tensor

from penspin_style.algo.search.beam import Beams, BeamSearch
from penspin_style.algo.search.knots import interpolate, shift
from penspin_style.algo.search.plans import Outcome, gather


class PredictiveSampling(BeamSearch):
    """The beam search of one beam."""

    def choose(self, value: Tensor, owner: Tensor, outcome: Outcome, before: int) -> Tensor:
        """Return the best plan, if one survived."""
        best = value.argmax(dim=0, keepdim=True)
        return best[torch.isfinite(value[best])]


class MPPI(BeamSearch):
    """Follows the mean of all plans, weighted by their values."""

    def advance(self, beams: Beams, rng: torch.Generator) -> Beams | None:
        """Return the beam after `search.keep` more steps, or None if no plan survives."""
        cfg = self.cfg
        owner, knots, _, outcome = self._try_plans(beams, rng)
        scale = self._adapted(beams, owner, outcome.survived)
        if not outcome.survived.any():
            return None
        weight = torch.softmax(outcome.value / cfg.temperature, dim=0)
        mean = torch.einsum("n,nka->ka", weight, knots)[None]
        actions = interpolate(mean, cfg.horizon, cfg.knot, 0)[: cfg.keep]
        return self._carried_out(beams, mean, actions, scale)

    def _carried_out(
        self, beams: Beams, plan: Tensor, actions: Tensor, scale: Tensor
    ) -> Beams | None:
        """Return the beam after actions (keep, 1, naction), which no roll-out has tried."""
        worlds = self.worlds
        n = worlds.sim.num_envs
        first = torch.arange(n) == 0
        worlds.world.restore(beams.state, torch.zeros(n, dtype=torch.long))
        gain = torch.zeros(1)
        for action in actions:
            earned, terminated = worlds.step(action.expand(n, -1).contiguous(), first)
            gain = gain + earned[:1]
            if bool(terminated[0]) or bool(worlds.sim.faults[0]):
                return None
        return Beams(
            gather(worlds.world.snapshot(), torch.zeros(1, dtype=torch.long)),
            shift(plan, self.cfg.keep, self.cfg.knot),
            scale,
            beams.gain + gain,
            torch.cat((beams.actions, actions.transpose(0, 1)), dim=1),
            worlds.task.success(worlds.sim)[:1].clone(),
        )
