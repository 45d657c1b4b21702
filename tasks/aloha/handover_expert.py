"""A scripted expert for `aloha_handover`: what the hands do one after the other, in nine stages.

The left hand goes above the box, to it, grasps, lifts and brings it to the middle; the right one
takes it from below; the left lets go and leaves; the right carries the box to the target. States
along the way are where a share of the training episodes may begin (`algo.starts.bank`).
"""

import math

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim, make_sim
from tasks.aloha.arms import Arm
from tasks.aloha.handover import MEETING, HandOver
from tasks.aloha.reach import Reach, follow

STAGES = ("above", "at_box", "grasp", "lift", "meet", "take", "give", "leave", "carry")
TAKE = STAGES.index("take")
PITCH = (0.45, 0.1)  # rad, by which the left and the right hand point down
YAW_SHARE = 0.7  # of the box's bearing from the left base, to which the left hand is turned
SPEED = 0.015  # rad a control step
CLOSE_STEPS, OPEN_STEPS = 20, 15  # control steps for which grippers close and open
LEFT_SHUT = (0, 0, 1, 1, 1, 1, 1, 0, 0)  # by stage
RIGHT_SHUT = (0, 0, 0, 0, 0, 0, 1, 1, 1)


class Expert:
    """Actions of the script in every environment of a simulation; it begins with `restart`."""

    def __init__(self, task: HandOver, sim: Sim) -> None:
        """Build the simulation whose arms stand where the commands are."""
        n, device = sim.num_envs, sim.device
        self.task, self.sim = task, sim
        self.ghost = make_sim(sim.model, n, device)
        self.arms: tuple[Arm, Arm] = (task.left, task.right)
        self.reach = [Reach(sim, self.ghost, arm) for arm in self.arms]
        self.stage = torch.zeros(n, dtype=torch.long, device=device)
        """Into `STAGES`."""
        self.wait = torch.zeros(n, dtype=torch.long, device=device)
        """Control steps in this stage."""
        self.yaw = torch.zeros(n, device=device)
        """rad, of the left hand while it grasps and lifts."""
        self.grasp, self.taken = (torch.zeros(n, 3, device=device) for _ in range(2))
        """m, where the left hand takes the box, and where the right one does."""
        self.memory = {name: getattr(self, name) for name in ("stage", "wait", "yaw")}
        self.memory |= {"grasp": self.grasp, "taken": self.taken}
        self.memory |= {f"{r.arm.side}_sag": r.sag for r in self.reach}

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Begin anew where the mask says, with the box standing where it is."""
        top = self.sim.data.site_xpos[:, self.task.top].float()
        off = top - self.arms[0].base
        yaw = YAW_SHARE * torch.atan2(off[:, 1], off[:, 0])
        self.yaw.copy_(torch.where(mask, yaw, self.yaw))
        self.grasp.copy_(torch.where(mask[:, None], top, self.grasp))
        for value in (self.stage, self.wait):
            value.masked_fill_(mask, 0)
        for reach in self.reach:
            reach.sag.masked_fill_(mask[:, None], 0.0)

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 14), and go on to the next stages."""
        follow(self.ghost, self.sim, self.arms)
        n, stage, scale = self.sim.num_envs, self.stage, self.task.targets.scale
        action = torch.zeros(n, len(scale), device=stage.device)
        yaws = (self.yaw * (stage <= 3), torch.full_like(self.yaw, math.pi))
        far = []
        for i, place in enumerate(self._places()):
            arm, reach = self.arms[i], self.reach[i]
            change = reach.step(place, _turn(yaws[i], PITCH[i]), speed=SPEED)
            *joints, gripper = range(arm.ctrl.start, arm.ctrl.stop)
            action[:, joints] = change / scale[joints]
            shut = torch.tensor((LEFT_SHUT, RIGHT_SHUT)[i], device=stage.device)[stage]
            action[:, gripper] = 1.0 - 2.0 * shut
            far.append(reach.error(place))
        self._go_on(*far)
        return action.clamp(-1.0, 1.0)

    def _places(self) -> tuple[Tensor, Tensor]:
        """Return where the hands should be now, (num_envs, 3) m each."""
        task, data, n = self.task, self.sim.data, self.sim.num_envs
        bottom = data.site_xpos[:, task.bottom].float()
        self.taken.copy_(torch.where((self.stage <= TAKE)[:, None], bottom, self.taken))
        target = data.mocap_pos[:, task.target].float()
        meeting = target.new_tensor(MEETING).expand(n, 3)
        behind = torch.stack((self.yaw.cos(), self.yaw.sin(), -torch.ones(n).to(target)), dim=1)
        above = self.grasp - 0.06 * behind
        lifted = _off(self.grasp, 0.0, 0.08)
        met, aside = _off(meeting, -0.01, 0.02), _off(meeting, -0.16, 0.03)
        left = (above, self.grasp, self.grasp, lifted, met, met, met, aside, aside)
        wait = _off(meeting, 0.13, -0.02)
        right = (*[wait] * TAKE, bottom, self.taken, self.taken, _off(target, 0.0, -0.02))
        here = torch.arange(n, device=target.device)
        return torch.stack(left)[self.stage, here], torch.stack(right)[self.stage, here]

    def _go_on(self, left: Tensor, right: Tensor) -> None:
        """Begin the next stages where a stage is over; how far the hands are, (num_envs,) m."""
        over = torch.stack(
            (
                left < 0.02,
                left < 0.008,
                self.wait >= CLOSE_STEPS,
                left < 0.03,
                (left < 0.015) & (right < 0.03),
                right < 0.01,
                self.wait >= CLOSE_STEPS,
                self.wait >= OPEN_STEPS,
                torch.zeros_like(left, dtype=torch.bool),
            )
        ).gather(0, self.stage[None])[0]
        self.wait.add_(1).mul_(~over)
        self.stage.add_(over.long())


def _off(place: Tensor, x: float, z: float) -> Tensor:
    """Return places (n, 3) moved by x and z m."""
    return place + place.new_tensor((x, 0.0, z))


def _turn(yaw: Tensor, pitch: float) -> Tensor:
    """Return rotations (n, 3, 3) of a hand that points to `yaw`, and down by `pitch` rad."""
    c, s = yaw.cos(), yaw.sin()
    cp, sp = math.cos(pitch), math.sin(pitch)
    zero = torch.zeros_like(yaw)
    rows = (c * cp, -s, c * sp, s * cp, c, s * sp, zero - sp, zero, zero + cp)
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))
