"""Bring a box to a target pose with a Franka Panda: MuJoCo Playground's `PandaPickCubeOrientation`.

`panda_pick_cube`, but the ghost in the air is turned by up to `target_angle` (45 degrees) about an
axis of any direction.

**Success**: the box's centre is within `target_distance` (5 cm) of the target's, and the rotation
that turns the box into the target is by less than `target_turn` (0.2 rad). A box that only looks
the same, turned by 90 degrees, does not count; the reward does not pay it either.
Playground defines no success for this task.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from penspin_style.rotation import from_axis_angle
from penspin_style.sim.sim import Sim
from tasks.panda.pick_cube import JointPickConfig, JointPickCube


@dataclass
class Config(JointPickConfig):
    """Numbers of the task."""

    target_angle: float = math.pi / 4
    """Largest angle, rad, by which the target is turned."""
    target_turn: float = 0.2
    """Angle between box and target, rad, that counts as success."""


class PandaPickCubeOrientation(JointPickCube[Config]):
    """See the module's docstring."""

    Config = Config

    def target_quat(self, num_envs: int, rng: torch.Generator) -> Tensor:
        """Draw a turn about an axis through a random point of a cube, as published."""
        draw = torch.rand(num_envs, 4, generator=rng, device=rng.device)
        point = 2.0 * draw[:, :3] - 1.0
        axis = point / point.norm(dim=1, keepdim=True)
        return from_axis_angle(axis, self.cfg.target_angle * draw[:, 3])

    def success(self, sim: Sim) -> Tensor:
        """Return whether the box is at the target, turned as the target is."""
        box, target = sim.data.xmat[:, self.box], sim.data.xmat[:, self.target]
        # the trace of the rotation between the two, which is 1 + 2 cos(angle)
        trace = (box * target).flatten(1).sum(dim=1)
        is_aligned = trace > 1.0 + 2.0 * math.cos(self.cfg.target_turn)
        return self.is_at_target(sim) & is_aligned


NAME = "panda_pick_cube_orientation"
TASK = PandaPickCubeOrientation
