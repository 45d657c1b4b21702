"""Beam search: several states are kept, each with its plan; the best plans of all go on."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from penspin_style.algo.search.knots import Sampler, interpolate, knot_count, shift
from penspin_style.algo.search.plans import Outcome, PlanWorld, Snapshot, gather

_SHRINK, _GROW = 0.85, 1.15  # of the noise where fewer than 40 % or more than 60 % survive
_WEAK, _STRONG = 0.4, 0.6
_HELD = (0.4, 0.9)  # shares of the horizon for which a proposed action would be held
_NAME = "state/"


@dataclass
class Beams:
    """What is kept between two advances; b beams, the best one first."""

    state: Snapshot
    """(b, ...)"""
    plan: Tensor
    """(b, knots, naction), what the winning plan would have done next."""
    scale: Tensor
    """(b,) of the noise."""
    gain: Tensor
    """(b,) of the steps so far."""
    actions: Tensor
    """(b, steps so far, naction)"""
    success: Tensor
    """(b,) bool, of the last step."""

    def __len__(self) -> int:
        return len(self.gain)

    @property
    def steps(self) -> int:
        """Return the control steps so far."""
        return self.actions.shape[1]

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything, flat."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "state"}
        return own | {f"{_NAME}{name}": value for name, value in self.state.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Beams":
        """Return what `state_dict` wrote; other keys are passed over."""
        inner = {k.removeprefix(_NAME): v for k, v in state.items() if k.startswith(_NAME)}
        return cls(inner, *(state[f.name] for f in fields(cls) if f.name != "state"))


class BeamSearch:
    """Draws plans around those of each beam and keeps the best ones' first steps."""

    def __init__(self, worlds: PlanWorld) -> None:
        self.worlds, self.cfg = worlds, worlds.cfg
        task = worlds.task
        self.naction = len(task.actions)
        self.knots = knot_count(self.cfg.horizon, self.cfg.knot)
        self.sampler = Sampler(self.naction, task.limbs)
        self.survival = 1.0
        """Share of the last plans that survived."""

    def begin(self, start: Snapshot) -> Beams:
        """Return the one beam of a start, a snapshot of one row."""
        return Beams(
            start,
            torch.zeros(1, self.knots, self.naction),
            torch.ones(1),
            torch.zeros(1),
            torch.zeros(1, 0, self.naction),
            torch.zeros(1, dtype=torch.bool),
        )

    def advance(self, beams: Beams, rng: torch.Generator) -> Beams | None:
        """Return the beams after `search.keep` more steps, or None if no plan survives."""
        owner, knots, actions, outcome = self._try_plans(beams, rng)
        scale = self._adapted(beams, owner, outcome.survived)
        chosen = self.choose(beams.gain[owner] + outcome.value, owner, outcome, len(beams))
        if not len(chosen):
            return None
        return self._kept(beams, chosen, owner, knots, actions, outcome, scale)

    def _try_plans(
        self, beams: Beams, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Outcome]:
        """Return (beam of each plan, knots, actions, what they led to)."""
        cfg, n = self.cfg, self.worlds.sim.num_envs
        each = n // len(beams)
        owner = (torch.arange(n) // each).clamp(max=len(beams) - 1)
        rank = torch.arange(n) - each * owner
        self.worlds.world.restore(beams.state, owner)
        low, high = _HELD
        steps = cfg.horizon * (low + (high - low) * torch.rand(n, generator=rng))
        proposal = self.worlds.task.propose(self.worlds.sim, steps, rng)
        sigma = cfg.sigma * beams.scale[owner]
        knots = self.sampler.draw(beams.plan[owner], sigma, rank, proposal, rng)
        actions = interpolate(knots, cfg.horizon, cfg.knot, cfg.hold)
        return owner, knots, actions, self.worlds.roll(beams.state, owner, actions)

    def _adapted(self, beams: Beams, owner: Tensor, survived: Tensor) -> Tensor:
        """Return each beam's scale of the noise, nearer to where half of the plans survive."""
        count = torch.bincount(owner, minlength=len(beams))
        share = torch.bincount(owner, survived.float(), minlength=len(beams)) / count
        self.survival = float(survived.float().mean())
        factor = torch.where(share < _WEAK, _SHRINK, torch.where(share > _STRONG, _GROW, 1.0))
        low, high = self.cfg.scale_range
        return (beams.scale * factor.float()).clamp(low, high)

    def choose(self, value: Tensor, owner: Tensor, outcome: Outcome, before: int) -> Tensor:
        """Return the plans whose first steps are kept, best first: good, apart, of many beams."""
        cfg = self.cfg
        most = cfg.per_parent if before > 2 else cfg.beams
        place = self._places(outcome.kept["sim"])
        used = [0] * before
        chosen: list[int] = []
        for plan in value.argsort(descending=True, stable=True).tolist():
            parent = int(owner[plan])
            if len(chosen) == cfg.beams or not torch.isfinite(value[plan]):
                break
            if used[parent] >= most:
                continue
            if chosen and (place[chosen] - place[plan]).norm(dim=1).amin() < cfg.diversity:
                continue
            chosen.append(plan)
            used[parent] += 1
        return torch.tensor(chosen, dtype=torch.long)

    def _places(self, state: Tensor) -> Tensor:
        """Return `qpos` of states (n, nstate): after the time it comes first."""
        return state[:, 1 : 1 + self.worlds.sim.model.nq]

    def _kept(
        self,
        beams: Beams,
        chosen: Tensor,
        owner: Tensor,
        knots: Tensor,
        actions: Tensor,
        outcome: Outcome,
        scale: Tensor,
    ) -> Beams:
        parent, keep = owner[chosen], self.cfg.keep
        done = actions[:keep, chosen].transpose(0, 1)
        return Beams(
            gather(outcome.kept, chosen),
            shift(knots[chosen], keep, self.cfg.knot),
            scale[parent],
            beams.gain[parent] + outcome.gain[chosen],
            torch.cat((beams.actions[parent], done), dim=1),
            outcome.success[chosen],
        )
