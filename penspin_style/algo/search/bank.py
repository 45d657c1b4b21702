"""From trajectories to states that training episodes may begin in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from penspin_style.algo.search.plans import Snapshot
from penspin_style.data.trajectory import Trajectory
from penspin_style.env.world import World

EVERY = 12
"""Control steps between two states of a trajectory."""


def held_states(
    world: World, trajectories: Sequence[Trajectory], *, seconds: float
) -> tuple[Tensor, int]:
    """Return states along trajectories, at rest, that hold; and how many were tried.

    A state holds if the episode goes on for so many seconds after its velocities were set to zero,
    while the action is zero.

    Returns: rows of `Task.start_state`, (n, k).
    """
    parts = [t.snapshot(torch.arange(0, t.steps + 1, EVERY)) for t in trajectories]
    states: Snapshot = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    n = world.sim.num_envs
    total = len(states["sim"])
    found = []
    for rows in torch.arange(total).split(n):
        filled = torch.cat((rows, rows[-1:].expand(n - len(rows))))
        began, held = _try_to_hold(world, states, filled, seconds)
        found.append(began[: len(rows)][held[: len(rows)]])
    return torch.cat(found), total


def _try_to_hold(
    world: World, states: Snapshot, rows: Tensor, seconds: float
) -> tuple[Tensor, Tensor]:
    """Return the states (n, k) in which worlds began at rest, and which of them held, (n,)."""
    task, sim = world.task, world.sim
    world.restore(states, rows)
    sim.data.qvel.zero_()
    sim.forward()
    began = task.start_state(sim).clone()
    action = torch.zeros(len(rows), len(task.actions))
    held = torch.ones(len(rows), dtype=torch.bool)
    for _ in range(round(seconds / world.cfg.control_dt)):
        world.begin(action)
        world.advance()
        held &= ~world.finish(action).terminated & (sim.faults == 0)
    return began, held
