"""A rail whose task has a script: it pulls the cart back from wherever it is.

The script counts its steps and draws at a restart, so that there is something to keep.
"""

import torch

from tests.support.rail import Config, Rail


class Homing:
    """Four times the distance to the middle, and a trace of what it remembers."""

    def __init__(self, sim):
        self.sim = sim
        self.asked, self.drawn = torch.zeros(sim.num_envs), torch.zeros(sim.num_envs)
        self.memory = {"asked": self.asked, "drawn": self.drawn}

    def restart(self, mask, rng):
        draw = torch.rand(len(mask), generator=rng)
        self.drawn.copy_(torch.where(mask, draw, self.drawn))
        self.asked.masked_fill_(mask, 0.0)

    def act(self):
        self.asked.add_(1.0)
        place = self.sim.data.qpos[:, 0].float()
        return (-4.0 * place + 0.01 * self.asked + 0.001 * self.drawn)[:, None]


class Homed(Rail):
    Config = Config

    def expert(self, sim):
        return Homing(sim)


TASK = Homed
