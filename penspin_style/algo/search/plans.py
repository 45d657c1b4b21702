"""What plans lead to: roll-outs in worlds that begin where they are told."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from penspin_style.algo.search.config import SearchConfig
from penspin_style.env.world import World

Snapshot = dict[str, Tensor]
"""States of worlds, rows first; see `World.snapshot`."""


class NoisyWorldError(ValueError):
    """Worlds of a task that begin alike do not stay alike: a plan would not lead there again."""


class Outcome(NamedTuple):
    """What each plan led to, (n, ...)."""

    value: Tensor
    """Rewards and progress less costs of the whole plan; -inf where it did not survive."""
    gain: Tensor
    """Rewards and progress of the steps that are kept."""
    survived: Tensor
    success: Tensor
    """Whether the last of the kept steps was one."""
    kept: Snapshot
    """After these."""


class PlanWorld:
    """Worlds of one task in which plans are tried."""

    def __init__(self, world: World, cfg: SearchConfig) -> None:
        """Check the weights against what the task has.

        Raises:
            ValueError: a weight is of a term that there is not.
        """
        self.world, self.task, self.sim, self.cfg = world, world.task, world.sim, cfg
        n = world.sim.num_envs
        zero = torch.zeros(n, len(self.task.actions))
        terms = self.task.reward(self.sim, zero)
        reward = world.cfg.reward if cfg.reward is None else cfg.reward
        self.reward = _checked("reward", reward, terms)
        self.progress = _checked("progress", cfg.progress, self.task.step_metrics(self.sim))
        costs = self.task.search_cost(self.sim, still=False)
        self.cost = {name: 1.0 for name in costs} | _checked("cost", cfg.cost, costs)

    def alike(self, row: int) -> Snapshot:
        """Put all worlds into what one of them is in; return that, one row.

        Raises:
            NoisyWorldError: they do not stay alike in a control step.
        """
        n = self.sim.num_envs
        start = self.world.snapshot()
        start = {name: value[row : row + 1] for name, value in start.items()}
        rows = torch.zeros(n, dtype=torch.long)
        self.world.restore(start, rows)
        action = torch.zeros(n, len(self.task.actions))
        self.world.begin(action)
        self.world.advance()
        state = self.sim.get_state()
        if not torch.equal(state, state[:1].expand_as(state)):
            raise NoisyWorldError(
                f"worlds of {type(self.task).__name__} that begin alike differ after a control "
                "step: switch off the noise that the task draws within it"
            )
        self.world.restore(start, rows)
        return start

    def roll(self, start: Snapshot, rows: Tensor, actions: Tensor) -> Outcome:
        """Carry out the actions (steps, n, naction) of plans that begin in rows of a snapshot."""
        cfg, dt = self.cfg, self.world.cfg.control_dt
        self.world.restore(start, rows)
        alive = torch.ones(len(rows), dtype=torch.bool)
        value, gain = torch.zeros(len(rows)), torch.zeros(len(rows))
        kept, success = None, ~alive
        steps = len(actions)
        for t, action in enumerate(actions):
            still = t >= cfg.horizon
            earned, result = self.step(action, alive)
            late = 1.0 + (cfg.terminal if t >= steps - cfg.terminal_steps else 0.0)
            costs = self.task.search_cost(self.sim, still=still)
            cost = weighted(self.cost, costs, len(rows)) * (late * dt)
            terminated = result | (self.sim.faults != 0) | ~torch.isfinite(earned - cost)
            alive = alive & ~terminated
            value = value + torch.where(alive, earned - cost, 0.0)
            if t < cfg.keep:
                gain = gain + torch.where(alive, earned, 0.0)
            if t == cfg.keep - 1:
                kept, success = self.world.snapshot(), self.task.success(self.sim).clone()
            if not alive.any():
                break
        kept = self.world.snapshot() if kept is None else kept
        value = torch.where(alive, value, -torch.inf)
        return Outcome(value, gain, alive, success & alive, kept)

    def step(self, action: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Carry out one action, (n, naction); return what it earned and what it terminated."""
        self.world.begin(action)
        self.world.advance(mask=None if mask is None or bool(mask.all()) else mask)
        result = self.world.finish(action)
        n = len(action)
        earned = weighted(self.reward, result.reward, n) * self.world.cfg.control_dt
        if self.progress:
            earned = earned + weighted(self.progress, self.task.step_metrics(self.sim), n)
        return earned, result.terminated


def gather(snapshot: Snapshot, rows: Tensor) -> Snapshot:
    """Return some rows of a snapshot."""
    return {name: value[rows] for name, value in snapshot.items()}


def weighted(weights: Mapping[str, float], terms: Mapping[str, Tensor], n: int) -> Tensor:
    """Return the weighted sum of terms, (n,) float32."""
    total = torch.zeros(n)
    for name, weight in weights.items():
        if weight:
            total = total + weight * terms[name].float()
    return total


def _checked(key: str, weights: Mapping[str, float], terms: Iterable[str]) -> dict[str, Any]:
    known = sorted(terms)
    for name in weights:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"search.{key}.{name}: the task has no such term; {hint}")
    return dict(weights)
