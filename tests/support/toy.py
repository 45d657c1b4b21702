"""The smallest task that shows everything: a cart on a rail, which a servo pushes to the middle.

The arithmetic can be done by hand. With mass m and force f = m u, u = FORCE action - DRAG v, one
substep of H seconds is  v' = (v + H FORCE a) / (1 + H DRAG),  x' = x + H v'  (MuJoCo's implicit
damping), for the default mass of 1 kg.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.task import ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim

H = 0.01  # s, a substep
FORCE, DRAG = 8.0, 8.0  # N, N s/m: full force ends at 1 m/s

XML = f"""
<mujoco model="cart">
  <option timestep="{H}" gravity="0 0 0"/>
  <worldbody>
    <camera name="view" pos="0 -3 1" xyaxes="1 0 0 0 .3 1"/>
    <body name="cart">
      <joint name="rail" type="slide" axis="1 0 0" damping="{DRAG}"/>
      <geom name="cart" type="box" size=".1 .1 .1" mass="1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="rail" gear="{FORCE}" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


@dataclass
class Config(TaskConfig):
    """Numbers of the task."""

    control_dt: float = 0.05
    episode_length: int = 40
    reward: dict[str, float] = field(default_factory=lambda: {"near": 1.0, "effort": -0.1})
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {"position": ObsTerm(), "velocity": ObsTerm(), "last_action": ObsTerm()}
        }
    )
    start: float = 1.0
    """Half width of the initial position, m."""
    rail: float = 1.5
    """Where the rail ends, m: leaving it terminates."""
    close: float = 0.1
    """Distance to the middle that counts as success, m."""


class Cart(Task[Config]):
    """See the module's docstring. **Success**: the cart is within `close` of the middle."""

    Config = Config
    units: ClassVar[dict[str, str]] = {"position": "m", "velocity": "m/s", "last_action": "1"}

    def spec(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_string(XML)

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        return (ActionChannel("push", "N", FORCE, -FORCE, FORCE, "absolute"),)

    @property
    def joints(self) -> tuple[Joint, ...]:
        return (Joint("rail", "m", -self.cfg.rail, self.cfg.rail, 0.0, DRAG, 0.0),)

    def randomize(self) -> list[Randomize]:
        return [
            Randomize("body_mass", names="cart", operation="scale", low=0.8, high=1.25),
            Randomize("dof_damping", operation="scale", low=0.9, high=1.1, when="startup"),
            Randomize("qvel", operation="add", low=0.0, high=0.01, distribution="gaussian"),
            Randomize(
                *("xfrc_applied", "cart", -0.2, 0.2), column=0, when="interval", interval=0.2
            ),
        ]

    def start(self, sim: Sim) -> None:
        self.memory = {"action": torch.zeros(sim.num_envs, 1, device=sim.device)}

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        draw = torch.rand(sim.num_envs, 1, generator=rng, device=sim.device)
        x = (self.cfg.start * (2.0 * draw - 1.0)).to(sim.data.qpos.dtype)
        sim.data.qpos.copy_(torch.where(mask[:, None], x, sim.data.qpos))
        self.memory["action"].masked_fill_(mask[:, None], 0.0)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        self.memory["action"].copy_(action)
        sim.data.ctrl.copy_(action)

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        return {
            "position": sim.data.qpos[:, 0],
            "velocity": sim.data.qvel,
            "last_action": self.memory["action"],
        }

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        return {"near": 1.0 - sim.data.qpos[:, 0].abs(), "effort": action[:, 0] ** 2}

    def terminated(self, sim: Sim) -> Tensor:
        return sim.data.qpos[:, 0].abs() > self.cfg.rail

    def success(self, sim: Sim) -> Tensor:
        return sim.data.qpos[:, 0].abs() < self.cfg.close


TASK = Cart


def substep(x: float, v: float, action: float, n: int = 5) -> tuple[float, float]:
    """Position and velocity after n substeps, by hand."""
    for _ in range(n):
        v = (v + H * FORCE * action) / (1.0 + H * DRAG)
        x += H * v
    return x, v
