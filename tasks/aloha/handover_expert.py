"""A scripted expert for `aloha_handover`: what the hands do one after the other, seven stages.

Its states along the way are where a share of training episodes may begin (`algo.starts.bank`).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim, make_sim
from tasks.aloha.arms import Arm
from tasks.aloha.handover import MEETING, HandOver
from tasks.aloha.reach import Reach, follow

STAGES = ("above", "at_box", "grasp", "lift", "meet", "take", "give", "leave", "carry")
PITCH = 0.45  # rad, by which the left hand points down
SPEED = 0.015  # rad a step
CLOSE_STEPS = 20
CLOSED, OPEN = -1.0, 1.0


class Wish(NamedTuple):
    """Where a hand should be, and whether it is open."""

    position: Tensor
    matrix: Tensor
    grip: Tensor


class Expert:
    """Actions of the script in every environment of a simulation; it begins with `restart`."""

    def __init__(self, task: HandOver, sim: Sim) -> None:
        self.task, self.sim = task, sim
        self.ghost = make_sim(sim.model, sim.num_envs, sim.device)
        self.arms: tuple[Arm, Arm] = (task.left, task.right)
        self.reach = [Reach(sim, self.ghost, arm) for arm in self.arms]
        n, device = sim.num_envs, sim.device
        self.stage = torch.zeros(n, dtype=torch.long, device=device)
        self.wait = torch.zeros(n, dtype=torch.long, device=device)
        self.yaw = torch.zeros(n, device=device)
        self.grasp = torch.zeros(n, 3, device=device)
        """Where the left hand takes the box."""

    def restart(self, mask: Tensor) -> None:
        """Begin anew where the mask says, with the box standing where it is."""
        task, data = self.task, self.sim.data
        self.stage.masked_fill_(mask, 0)
        self.wait.masked_fill_(mask, 0)
        top = data.site_xpos[:, task.top].float()
        off = top - self.arms[0].base
        yaw = 0.7 * torch.atan2(off[:, 1], off[:, 0])
        self.yaw.copy_(torch.where(mask, yaw, self.yaw))
        self.grasp.copy_(torch.where(mask[:, None], top, self.grasp))
        for reach in self.reach:
            reach.sag.masked_fill_(mask[:, None], 0.0)

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 14), and go on to the next stages."""
        follow(self.ghost, self.sim, self.arms)
        wishes = self._wishes()
        scale = self.task.targets.scale
        action = torch.zeros(self.sim.num_envs, 14, device=self.sim.device)
        for arm, reach, wish in zip(self.arms, self.reach, wishes, strict=True):
            change = reach.step(wish.position, wish.matrix, speed=SPEED)
            first = arm.ctrl.start
            action[:, first : first + 6] = change / scale[first : first + 6]
            action[:, first + 6] = wish.grip
        self._go_on(wishes)
        return action.clamp(-1.0, 1.0)

    def _wishes(self) -> tuple[Wish, Wish]:
        task, data, stage = self.task, self.sim.data, self.stage
        bottom = data.site_xpos[:, task.bottom].float()
        target = data.mocap_pos[:, task.target].float()
        meeting = torch.tensor(MEETING, device=stage.device)
        yaw = torch.where(stage <= 3, self.yaw, torch.zeros_like(self.yaw))
        left = self.grasp.clone()
        back = torch.stack((yaw.cos(), yaw.sin(), torch.zeros_like(yaw)), dim=1)
        left += torch.where((stage == 0)[:, None], _row(left, 0.0, 0.0, 0.06) - 0.06 * back, 0.0)
        left = torch.where((stage == 3)[:, None], self.grasp + _row(left, 0, 0, 0.08), left)
        left = torch.where((stage >= 4)[:, None], meeting + _row(left, -0.01, 0, 0.02), left)
        left = torch.where((stage >= 7)[:, None], meeting + _row(left, -0.16, 0, 0.03), left)
        right = meeting + _row(left, 0.13, 0.0, -0.02)
        right = torch.where(((stage == 5) | (stage == 6) | (stage == 7))[:, None], bottom, right)
        hold = right  # the right hand stays where it has taken the box
        self._taken = torch.where((stage == 5)[:, None], bottom, getattr(self, "_taken", bottom))
        right = torch.where(((stage == 6) | (stage == 7))[:, None], self._taken, hold)
        right = torch.where((stage == 8)[:, None], target + _row(left, 0.0, 0.0, -0.02), right)
        grip_left = torch.where((stage >= 2) & (stage <= 6), CLOSED, OPEN)
        grip_left = torch.where(stage >= 7, OPEN, grip_left)
        grip_right = torch.where(stage >= 6, CLOSED, OPEN)
        return (
            Wish(left, _turn(yaw, PITCH), grip_left),
            Wish(right, _turn(torch.full_like(yaw, math.pi), 0.1), grip_right),
        )

    def _go_on(self, wishes: tuple[Wish, Wish]) -> None:
        stage = self.stage
        far = [reach.error(wish.position) for reach, wish in zip(self.reach, wishes, strict=True)]
        near = torch.stack(
            (
                far[0] < 0.02,
                far[0] < 0.008,
                self.wait >= CLOSE_STEPS,
                far[0] < 0.03,
                (far[0] < 0.015) & (far[1] < 0.03),
                far[1] < 0.01,
                self.wait >= CLOSE_STEPS,
                self.wait >= 15,
                torch.zeros_like(stage, dtype=torch.bool),
            )
        ).gather(0, stage[None])[0]
        self.wait.add_(1).mul_(~near)
        stage.add_(near.long())


def _row(like: Tensor, x: float, y: float, z: float) -> Tensor:
    return like.new_tensor((x, y, z)).expand_as(like)


def _turn(yaw: Tensor, pitch: float) -> Tensor:
    """Return rotations (n, 3, 3) of a hand that points to `yaw`, and down by `pitch` rad."""
    c, s = yaw.cos(), yaw.sin()
    cp, sp = math.cos(pitch), math.sin(pitch)
    zero = torch.zeros_like(yaw)
    rows = (c * cp, -s, c * sp, s * cp, c, s * sp, zero - sp, zero, zero + cp)
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))
