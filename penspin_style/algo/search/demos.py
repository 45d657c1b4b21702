"""Trajectories of a task's scripted expert, in the format of searched ones."""

from collections.abc import Iterator

import torch
from torch import Tensor

from penspin_style.algo.search.trajectory import replay
from penspin_style.data.trajectory import Trajectory
from penspin_style.env.task import Expert
from penspin_style.env.world import World


def demonstrate(world: World, expert: Expert, *, seed: int, steps: int) -> Trajectory:
    """Let the expert act in one world from the start that the seed draws.

    It ends after so many control steps, or where the task terminates. `replay` of its actions from
    its first state repeats it bit for bit.
    """
    everywhere = torch.ones(1, dtype=torch.bool)
    rng = torch.Generator(device=world.rng.device).manual_seed(seed)  # a replay draws none of it
    world.seed(seed)
    world.restart(everywhere)
    start = world.snapshot()

    def actions() -> Iterator[Tensor]:
        expert.restart(everywhere, rng)
        for step in range(steps):
            ended = world.task.terminated(world.sim) | (world.sim.faults != 0)
            if step and bool(ended):
                return
            yield expert.act()[0]

    return replay(world, start, actions())
