"""A task whose motion can be done by hand: a servo pulls a cart along a rail to a target.

With stiffness K, drag D and a mass of 1 kg one substep of H seconds is v' = (v + H K (u - x)) /
(1 + H D), x' = x + H v' (MuJoCo's implicit damping).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from penspin_style.env.task import ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel

import mujoco  # isort: skip

H, K, D = 0.01, 400.0, 40.0
XML = f"""
<mujoco model="rail">
  <option timestep="{H}" gravity="0 0 0"/>
  <worldbody>
    <body name="cart">
      <joint name="rail" type="slide" axis="1 0 0" damping="{D}"/>
      <geom name="cart" type="box" size=".1 .1 .1" mass="1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator><position name="servo" joint="rail" kp="{K}"/></actuator>
</mujoco>
"""


@dataclass
class Config(TaskConfig):
    """Numbers of the task."""

    episode_length: int = 20
    reward: dict[str, float] = field(default_factory=lambda: {"near": 1.0})
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {"place": ObsTerm(), "speed": ObsTerm()},
            "student": {"place": ObsTerm(noise=0.5, delay=(1, 1), history=2)},
        }
    )
    start: float = 0.0
    """Half width of the initial place, m."""
    end: float = 0.9
    """Beyond it the cart falls, m."""


class Rail(Task[Config]):
    """See the module's docstring. **Success**: the cart is beyond 0.5 m."""

    Config = Config
    units: ClassVar[dict[str, str]] = {"place": "m", "speed": "m/s"}

    def spec(self):
        return mujoco.MjSpec.from_string(XML)

    @property
    def actions(self):
        return (ActionChannel("rail", "m", 0.125, -1.0, 1.0, "delta"),)

    def start(self, sim):
        n = sim.num_envs
        self.memory = {"target": torch.zeros(n, 1), "zero": torch.zeros(n, 1)}

    def reset(self, sim, mask, rng):
        draw = 2.0 * torch.rand(sim.num_envs, 1, generator=rng) - 1.0
        self.place(sim, mask, self.cfg.start * draw)

    def place(self, sim, mask, row):
        where = mask[:, None]
        for tensor in (sim.data.qpos, sim.data.ctrl, self.memory["target"]):
            tensor.copy_(torch.where(where, row.to(tensor), tensor))
        self.memory["zero"].masked_fill_(where, 0.0)

    def apply_action(self, sim, action):
        self.memory["target"].add_(action, alpha=0.125).clamp_(-1.0, 1.0)
        sim.data.ctrl.copy_(self.memory["target"])

    def observe(self, sim):
        return {"place": sim.data.qpos + self.memory["zero"], "speed": sim.data.qvel}

    def reward(self, sim, action):
        return {"near": 1.0 - sim.data.qpos[:, 0].abs()}

    def terminated(self, sim):
        return sim.data.qpos[:, 0].abs() > self.cfg.end

    def success(self, sim):
        return sim.data.qpos[:, 0] > 0.5

    def step_metrics(self, sim):
        return {"way": sim.data.qvel[:, 0].abs().float() * self.cfg.control_dt}

    def episode_metrics(self, sums, steps, terminated):
        return {"way": sums["way"], "survival": ~terminated & (steps >= self.cfg.episode_length)}


TASK = Rail


def substeps(x, v, target, n):
    """Place and speed after n substeps, by hand."""
    for _ in range(n):
        v = (v + H * K * (target - x)) / (1.0 + H * D)
        x += H * v
    return x, v
