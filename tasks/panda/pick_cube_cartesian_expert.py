"""A scripted expert for `panda_pick_cube_cartesian`, without memory: above, down, close, up.

What it does follows from where hand, fingers and box are, which an image shows, and not from where
the tool's target is: a student of images can do the same.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim
from tasks.robots.panda.description import ARM

if TYPE_CHECKING:
    from tasks.panda.pick_cube_cartesian import PickCubeCartesian

STEEP, RIM, ABOVE = 4.0, 0.006, 0.08  # m/m, m, m: the funnel that leads down to the box
AT_BOX = 0.014  # m beside and above the box at which the fingers close
SHUT = 0.026  # m: fingers that are so far open hold the box, 2 cm to each side
GAIN = 0.25  # share of the way that the tool's target is moved in a step


class CartesianExpert:
    """Actions of the script in every environment of a simulation."""

    def __init__(self, task: "PickCubeCartesian[Any]", sim: Sim) -> None:
        """Look up what the script sees."""
        self.memory: dict[str, Tensor] = {}
        self.scale = task.cfg.action_scale
        self.tool, self.box = sim.data.site_xpos[:, task.tcp], sim.data.xpos[:, task.box]
        self.target = sim.data.xpos[:, task.target]
        self.finger = sim.data.qpos[:, len(ARM)]

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Begin anew where the mask says: there is nothing to forget."""

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 3)."""
        off = (self.box - self.tool)[:, 1:].float()
        beside = off[:, 0].abs()
        height = (STEEP * (beside - RIM)).clamp(0.0, ABOVE)
        is_there = (beside < AT_BOX) & (off[:, 1].abs() < AT_BOX)
        holds = is_there & (self.finger < SHUT)
        come = torch.stack((off[:, 0], off[:, 1] + height), dim=1)
        bring = (self.target - self.box)[:, 1:].float()
        move = GAIN * torch.where(holds[:, None], bring, come) / self.scale
        grip = 1.0 - 2.0 * is_there[:, None].float()
        return torch.cat((move, grip), dim=1).clamp(-1.0, 1.0)
