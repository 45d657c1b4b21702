"""A task of your own in one file: balance a pole on a cart; train it, export it, evaluate the ONNX.

    python docs/examples/cartpole.py                       # train, export, evaluate the ONNX file
    PYTHONPATH=docs penspin train task=examples.cartpole   # the same training by the command line

Overrides on the command line go to the training, as `total_samples=20000` or `task.rail=1.0`.

**Success**: for the last 50 control steps (1 s) the pole was within `upright` of the vertical and
the cart within `near` of the middle.
"""

import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.task import ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim

FORCE = 10.0  # N
XML = f"""
<mujoco model="cartpole">
  <option timestep="0.01"/>
  <worldbody>
    <light pos="0 -2 3" dir="0 0.5 -1"/>
    <camera name="view" pos="0 -4 1" xyaxes="1 0 0 0 0.2 1"/>
    <geom name="rail" type="capsule" fromto="-2 0 0 2 0 0" size="0.02" contype="0" conaffinity="0"/>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" damping="0.05"/>
      <geom name="cart" type="box" size="0.1 0.05 0.05" mass="1" contype="0" conaffinity="0"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0" damping="0.001"/>
        <geom name="pole" type="capsule" fromto="0 0 0 0 0 1" size="0.03" mass="0.1" contype="0"
              conaffinity="0" rgba="0.8 0.5 0.2 1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="slide" gear="{FORCE}" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


@dataclass
class Config(TaskConfig):
    """Numbers of the task; each can be set on the command line as task.KEY=VALUE."""

    control_dt: float = 0.02  # s
    episode_length: int = 250
    reward: dict[str, float] = field(default_factory=lambda: {"up": 1.0, "centre": 0.5})
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {name: ObsTerm() for name in ("cart", "cart_vel", "pole", "pole_vel")}
        }
    )
    rail: float = 1.8
    """Metres from the middle at which the episode terminates."""
    upright: float = 0.1
    """Radians from the vertical that count as balanced."""
    near: float = 0.5
    """Metres from the middle within which the cart must stay for a success."""
    fallen: float = 0.8
    """Radians from the vertical at which the episode terminates."""


class CartPole(Task[Config]):
    """See the module's docstring."""

    Config = Config
    score = "success_at_end"
    units: ClassVar[dict[str, str]] = {
        **{"cart": "m", "cart_vel": "m/s"},
        **{"pole": "rad", "pole_vel": "rad/s"},
    }

    def spec(self) -> mujoco.MjSpec:
        """Return the world."""
        return mujoco.MjSpec.from_string(XML)

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the one force."""
        return (ActionChannel("push", "N", FORCE, -FORCE, FORCE, "absolute"),)

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the driven joint."""
        return (Joint("slide", "m", -self.cfg.rail, self.cfg.rail, 0.0, 0.05, 0.0),)

    def randomize(self) -> list[Randomize]:
        """Draw the pole's mass for each episode, and push the cart every half second."""
        return [
            Randomize("body_mass", names="pole", operation="scale", low=0.5, high=2.0),
            Randomize("xfrc_applied", "cart", -1.0, 1.0, column=0, when="interval", interval=0.5),
        ]

    def start(self, sim: Sim) -> None:
        """Count for how many steps each pole has been up; the environment saves `memory`."""
        self.memory = {"steps_up": torch.zeros(sim.num_envs, device=sim.device)}

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Start near the middle with the pole within 0.2 rad of the vertical."""
        draw = torch.rand(sim.num_envs, 2, generator=rng, device=sim.device)
        start = (0.4 * (draw - 0.5)).to(sim.data.qpos.dtype)
        sim.data.qpos.copy_(torch.where(mask[:, None], start, sim.data.qpos))
        self.memory["steps_up"].masked_fill_(mask, 0.0)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Push."""
        sim.data.ctrl.copy_(action)

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the state, one number a term."""
        (cart, pole), (cart_vel, pole_vel) = sim.data.qpos.T, sim.data.qvel.T
        return {"cart": cart, "cart_vel": cart_vel, "pole": pole, "pole_vel": pole_vel}

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Pay for a pole that stands and for a cart near the middle."""
        cart, pole = sim.data.qpos.T
        good = (pole.abs() < self.cfg.upright) & (cart.abs() < self.cfg.near)
        self.memory["steps_up"].add_(1.0).mul_(good)
        return {"up": pole.cos(), "centre": -cart.square()}

    def terminated(self, sim: Sim) -> Tensor:
        """End where the pole has fallen or the rail has ended."""
        cart, pole = sim.data.qpos.T
        return (pole.abs() > self.cfg.fallen) | (cart.abs() > self.cfg.rail)

    def success(self, sim: Sim) -> Tensor:
        """Tell where all has been well for a second."""
        return self.memory["steps_up"] >= 50.0


TASK = CartPole


def main(overrides: list[str]) -> None:
    """Train, export, and evaluate the exported file, each by its command."""
    out = next((o.removeprefix("out=") for o in overrides if o.startswith("out=")), "outputs")
    run = f"{out}/examples.cartpole/cartpole"
    task = ["task=examples.cartpole", "name=cartpole", "device=cpu", "video=false"]
    sizes = ["num_envs=128", "total_samples=300000", "algo.learning_rate=0.001"]
    folder = pathlib.Path(__file__).parents[1]  # where `examples.cartpole` is found
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    for command in (
        ["train", *task, *sizes, *overrides],
        ["export", run],
        ["eval", f"{run}/policy.onnx", "task=examples.cartpole", "--episodes", "100"],
    ):
        print("$ penspin", *command, flush=True)
        penspin = [sys.executable, "-m", "penspin_style", *command]
        subprocess.run(penspin, env={**os.environ, "PYTHONPATH": path}, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
