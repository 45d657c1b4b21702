"""A scripted expert for `panda_lift_cube`, without memory: above the cube, down, close, up.

What it does follows from where things are now, so that it can be asked in any state, as those that
a student gets into, and a cube that slipped is taken anew.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim
from tasks.panda.lift_cube import HALF

if TYPE_CHECKING:
    from tasks.panda.lift_cube import LiftCube

ABOVE, STEEP, RIM = 0.08, 5.0, 0.006  # m, m/m, m: the funnel that leads down to the cube
AT_CUBE = 0.02  # m from the tool centre point, at which the fingers close
SHUT = 0.3  # share of the gripper's stroke below which its target presses on the cube
BEYOND = 0.03  # m above the height of success, where the cube is brought


class LiftExpert:
    """Actions of the script in every environment of a simulation."""

    def __init__(self, task: "LiftCube[Any]", sim: Sim) -> None:
        """Look up nothing: the task holds views of all that the script sees."""
        self.task = task
        self.memory: dict[str, Tensor] = {}

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Begin anew where the mask says: there is nothing to forget."""

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 4)."""
        task, cfg = self.task, self.task.cfg
        tool, cube, opening = task.arm.position, task.box, task.memory["opening"]
        level = (tool - cube)[:, :2].norm(dim=1)
        is_there = (tool - cube).norm(dim=1) < AT_CUBE
        place = cube.clone()
        place[:, 2] += (STEEP * (level - RIM)).clamp(0.0, ABOVE)
        up = cube.clone()
        up[:, 2] = HALF + cfg.lift_height + BEYOND
        holds = is_there & (opening < SHUT)
        # from where the target is, which integrates the actions
        change = torch.where(holds[:, None], up, place) - task.target()
        grip = 1.0 - 2.0 * is_there.float()
        return torch.cat((change / cfg.move_scale, grip[:, None]), dim=1).clamp(-1.0, 1.0)
