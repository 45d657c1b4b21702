"""A scripted expert for `real2sim_pick_place`: from above, close, lift, carry, set down, let go.

It remembers nothing: what it does follows from where things are now, so that a student
can be put right anywhere, and an object that was dropped is picked up anew.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penspin_style import rotation
from penspin_style.sim.sim import Sim
from tasks.robots.panda.description import DOWN, FINGER_OPEN
from tasks.robots.panda.model import CartesianArm

if TYPE_CHECKING:
    from tasks.real2sim.pick_place import PickPlace

ABOVE = 0.09  # m, from where the hand comes down
CARRY = 0.08  # m, that the object is lifted
POSTURE = 0.05  # share of the way to the home posture that the elbow goes in a step
GAIN = 0.4  # share of the way that a step's target is ahead
SINK = 0.03  # m, the most that the object's is below it
STEP = 0.03  # m, the most that the tool's target is away from the tool
TURN = 0.15  # rad, the most that it is turned
HELD = (0.025, 0.012)  # m off the grasp up to which what slips is held, and the fingers close
EMPTY = 0.006  # m, that fingers with nothing between them are closer than the object's side
SLOW = 0.015  # m, the most that it is above or below
SQUEEZE = 0.008  # m, that the fingers' target is within the object's side
PRESSES = 0.002  # m, of the fingers' target from which what is between them is held
FREE = 0.008  # m, that a finger is away from the object's side when the hand leaves
PLACED = (0.012, 0.022)  # m from the goal at which it is let go, and at which it may stay
LOW = 0.008  # m above it, or below
LOWEST = 0.013  # m, of the tool: what has slipped up between the fingers gets no lower


class PickPlaceExpert:
    """Actions of the script in every environment of a simulation."""

    def __init__(self, task: "PickPlace", sim: Sim) -> None:
        """Look up what the script sees."""
        self.task, self.sim = task, sim
        self.memory: dict[str, Tensor] = {}
        # what is in the air would fall
        self._lets_go = task.cfg.hand_at_end != "closed" and task.cfg.goal_height[1] == 0.0
        self.arm = CartesianArm(sim, task.home)
        self.arm.posture_gain = POSTURE
        self.down = rotation.to_matrix(torch.tensor(DOWN, device=sim.device))

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Begin anew where the mask says: there is nothing to forget."""

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 9)."""
        task, sim = self.task, self.sim
        tool, thing, goal = task.positions(sim)
        grasp = task.grasp_point(sim)
        turn = self._turn()
        opening = sim.data.qpos[:, task.finger].float()
        half = 0.5 * task.widths[task.memory["variant"]]
        fingers = task.memory["fingers"].mean(dim=1)
        closed = (half - SQUEEZE).clamp(min=0.0)
        presses = fingers < closed + PRESSES
        off, lost = (tool - grasp).norm(dim=1), presses & (opening < half - EMPTY)
        is_there = (off < torch.where(presses, *HELD)) & (turn.norm(dim=1) < 0.2) & ~lost
        holds = is_there & presses
        away = goal - thing
        level = away[:, :2].norm(dim=1)
        is_low = (away[:, 2].abs() < LOW) | (tool[:, 2] < LOWEST)
        placed = (level < torch.where(presses, *PLACED)) & is_low
        let_go = placed & self._lets_go
        target = torch.where(holds[:, None], tool + self._carry(away, level), self._come(grasp))
        leave = tool.clone()
        leave[:, 2] += STEP * (opening > half + FREE)
        target = torch.where(let_go[:, None], leave, target)
        turn = torch.where(let_go[:, None], 0.0, turn)
        change = GAIN * (target - tool)
        change[:, 2].clamp_(-SLOW, SLOW)
        change = change * (STEP / change.norm(dim=1, keepdim=True).clamp(min=STEP))
        turn = turn * (TURN / turn.norm(dim=1, keepdim=True).clamp(min=TURN))
        arm = self.arm.goal(tool + change, turn) - sim.data.qpos[:, :7].float()
        wanted = torch.where(is_there & ~let_go, closed, FINGER_OPEN)
        grip = (wanted - fingers) / task.cfg.grip_scale
        action = torch.cat((arm / task.cfg.action_scale, grip[:, None].expand(-1, 2)), dim=1)
        return action.clamp(-1.0, 1.0)

    def _turn(self) -> Tensor:
        """Return the turn of the hand that points it down and closes it along the narrow side."""
        across = rotation.to_matrix(self.task.turned(self.sim))[:, :, 1]
        yaw = torch.atan2(-across[:, 0], across[:, 1])
        hand = self.sim.data.site_xmat[:, self.task.tcp]
        now = torch.atan2(hand[:, 0, 1], -hand[:, 1, 1])
        # either finger may be on either side
        off = torch.remainder(yaw - now + 0.5 * torch.pi, torch.pi) - 0.5 * torch.pi
        c, s = (now + off).cos(), (now + off).sin()
        zero, one = torch.zeros_like(c), torch.ones_like(c)
        about = torch.stack((c, -s, zero, s, c, zero, zero, zero, one), dim=1).unflatten(1, (3, 3))
        return rotation.rotation_vector(about @ self.down @ hand.transpose(1, 2))

    def _come(self, grasp: Tensor) -> Tensor:
        """Return where the open hand goes: above the object, and down once it is over it."""
        tool = self.arm.position
        level = (tool - grasp)[:, :2].norm(dim=1)
        height = grasp[:, 2] + (5.0 * (level - 0.008)).clamp(0.0, ABOVE)
        target = torch.cat((grasp[:, :2], height[:, None]), dim=1)
        low = tool[:, 2] < height - 0.03
        target[:, :2] = torch.where(low[:, None], tool[:, :2], target[:, :2])
        return target

    def _carry(self, away: Tensor, level: Tensor) -> Tensor:
        """Return how the hand that holds the object moves: up, across, and down at the goal."""
        rise = (4.0 * (level - 0.01)).clamp(0.0, CARRY)
        up = (away[:, 2] + rise).clamp(min=-SINK)
        across = torch.where((up > 0.03)[:, None], 0.0, away[:, :2])
        return torch.cat((across, up[:, None]), dim=1)
