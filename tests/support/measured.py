"""The cart of `toy`, which reports more than success: how far it came, whether it stayed.

It moves x' - x in a step, so that an episode's sum is where it ended less where it began. Carts of
even and odd environments count as different kinds.
"""

import torch

from tests.support import toy


class MeasuredCart(toy.Cart):
    """See the module's docstring. **Success**: the cart is within `close` of the middle."""

    score = "travel"
    kind_names = ("even", "odd")

    def start(self, sim):
        super().start(sim)
        self.memory["before"] = torch.zeros(sim.num_envs, device=sim.device)

    def apply_action(self, sim, action):
        super().apply_action(sim, action)
        self.memory["before"].copy_(sim.data.qpos[:, 0])

    def step_metrics(self, sim):
        return {"moved": sim.data.qpos[:, 0] - self.memory["before"]}

    def episode_metrics(self, sums, steps, terminated):
        return {
            "travel": sums["moved"],
            "survival": ~terminated & (steps >= self.cfg.episode_length),
            "time_to_fall": steps * self.cfg.control_dt,
            "share_far": sums["moved"] >= 0.1,
        }

    def kinds(self, sim):
        return torch.arange(sim.num_envs, device=sim.device) % 2


TASK = MeasuredCart
