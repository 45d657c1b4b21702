"""A scripted expert for `aloha_peg_insertion`: each hand takes its object, then both join them.

Before the switch it moves the arms as a policy would that has no frozen one before it
(`task.pick_policy` empty). Its states along the way are where training may begin
(`algo.starts.states`), those at the switch what fills the rings (`task.preinsertion`).
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penspin_style.rotation import rotation_vector
from penspin_style.sim.sim import Sim, make_sim
from tasks.aloha.one_arm import OneArm
from tasks.aloha.reach import Reach, follow

if TYPE_CHECKING:
    from tasks.aloha.peg_insertion import Insertion

STAGES = ("above", "at_object", "grasp", "lift", "carry")
ABOVE, GRASP, LIFT, CARRY = (STAGES.index(name) for name in ("above", "grasp", "lift", "carry"))
PITCH = (0.55, 0.8)  # rad, by which a hand points down; drawn
RISE = 0.08  # m above the object, from where a hand comes down and to where it lifts
SPREAD = 0.03  # m, half width of the draws of where the objects are carried
CLOSE_STEPS = 8
GAIN = 0.35  # share of what is measured to be wrong that a step makes good
STEP, TURN = 0.03, 0.08  # m and rad that count as wrong at most
DEEPER = 0.03  # m, by which the tip is wanted nearer to the socket's end than it is
HOME = 0.009  # m from the socket's end
INSIDE, OUTSIDE = 0.096, 0.115  # m from that end, where the tip goes in, and where it waits


class InsertionExpert:
    """Actions of the script in every environment of a simulation; it begins with `restart`."""

    def __init__(self, task: "Insertion[Any]", sim: Sim) -> None:
        """Build the simulation whose arms stand where the commands are."""
        self.task, self.sim = task, sim
        self.ghost = make_sim(sim.model, sim.num_envs, sim.device, nthread=1)
        self.arms = tuple(hand.arm for hand in task.hands)
        self.reach = [Reach(sim, self.ghost, arm) for arm in self.arms]
        n, device = sim.num_envs, sim.device
        self.stage = torch.zeros(n, 2, dtype=torch.long, device=device)
        """Of each hand, into `STAGES`."""
        self.wait = torch.zeros_like(self.stage)
        """Control steps in this stage."""
        self.pitch = torch.zeros(n, 2, device=device)
        self.carry = torch.zeros(n, 2, 3, device=device)
        """Where the objects are brought."""
        self.grip = torch.zeros(n, 2, 3, device=device)
        """Where the objects lay to be taken,"""
        self.yaw = torch.zeros(n, 2, device=device)
        """and where they pointed to."""
        names = ("stage", "wait", "pitch", "carry", "grip", "yaw")
        self.memory = {name: getattr(self, name) for name in names}
        self.memory |= {f"{r.arm.side}_sag": r.sag for r in self.reach}

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Begin anew where the mask says, with the objects where they are."""
        n, device, data = self.sim.num_envs, self.sim.device, self.sim.data
        draw = torch.rand(n, 2, 4, generator=rng, device=device)
        low, high = PITCH
        carry = self.task.aims + SPREAD * (2.0 * draw[..., 1:] - 1.0)
        grip = torch.stack([data.site_xpos[:, hand.grip] for hand in self.task.hands], dim=1)
        ahead = data.xmat[:, self.task.bodies, :, 0]
        for field, value in (
            (self.stage, 0),
            (self.wait, 0),
            (self.pitch, low + (high - low) * draw[..., 0]),
            (self.carry, carry),
            (self.grip, grip),
            (self.yaw, torch.atan2(ahead[..., 1], ahead[..., 0])),
        ):
            value = torch.as_tensor(value, device=device, dtype=field.dtype)
            field.copy_(torch.where(mask.view(-1, *(1,) * (field.dim() - 1)), value, field))
        for reach in self.reach:
            reach.sag.masked_fill_(mask[:, None], 0.0)

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 14), and go on to the next stages."""
        follow(self.ghost, self.sim, self.arms)
        switched = self.task.is_up(self.sim)
        scale = torch.where(switched[:, None], self.task.targets.scale, self.task.pick_scale)
        together = self._put_together()
        action = torch.empty(self.sim.num_envs, 14, device=self.sim.device)
        for i, hand in enumerate(self.task.hands):
            change, closed = self._pick(i, hand)
            change = torch.where(switched[:, None], together[i], change)
            first = hand.arm.ctrl.start
            action[:, first : first + 6] = change / scale[:, first : first + 6]
            action[:, first + 6] = torch.where(closed | switched, -1.0, 1.0)
        return action.clamp(-1.0, 1.0)

    def _pick(self, i: int, hand: OneArm) -> tuple[Tensor, Tensor]:
        """Return the change of an arm's joint targets, and whether its hand closes."""
        arm, reach, stage = hand.arm, self.reach[i], self.stage[:, i]
        towards = torch.where(stage == CARRY, math.pi * i, self.yaw[:, i])
        matrix = _turn(towards, self.pitch[:, i])
        local = arm.matrix(self.sim).transpose(1, 2) @ (
            arm.position(self.sim) - arm.tips(self.sim)
        ).unsqueeze(2)
        place = self.grip[:, i].clone()
        place[:, 2] += RISE * ((stage == ABOVE) | (stage == LIFT))
        forth = torch.stack((towards.cos(), towards.sin(), torch.zeros_like(towards)), dim=1)
        place = torch.where((stage == CARRY)[:, None], self.carry[:, i] - 0.02 * forth, place)
        wish = place + (matrix @ local).squeeze(2)
        change = reach.step(wish, matrix, speed=float(self.task.pick_scale[0]))
        far = (place - arm.tips(self.sim)).norm(dim=1)
        near = torch.stack(
            (
                far < 0.02,
                far < 0.006,
                self.wait[:, i] >= CLOSE_STEPS,
                far < 0.03,
                torch.zeros_like(stage, dtype=torch.bool),
            )
        ).gather(0, stage[None])[0]
        self.wait[:, i] = torch.where(near, 0, self.wait[:, i] + 1)
        self.stage[:, i] += near
        return change, stage >= GRASP

    def _put_together(self) -> list[Tensor]:
        """Return the changes of both arms' joint targets that bring the peg into the socket."""
        data, task = self.sim.data, self.task
        socket, peg = data.xmat[:, task.bodies].unbind(dim=1)
        tip, end = data.site_xpos[:, task.tip], data.site_xpos[:, task.end]
        off = (socket.transpose(1, 2) @ (tip - end)[:, :, None])[:, :, 0]
        depth, beside = off[:, 0], off[:, 1:].norm(dim=1)
        mirror = torch.diag(off.new_tensor((-1.0, -1.0, 1.0)))
        turn = rotation_vector(socket @ mirror @ peg.transpose(1, 2))
        inside = depth < INSIDE
        in_line = (beside < torch.where(inside, 0.02, 0.006)) & (
            turn.norm(dim=1) < torch.where(inside, 0.5, 0.12)
        )
        # once it is home, pushing on would only wind the targets up
        deeper = torch.where(depth < HOME, depth, (depth - DEEPER).clamp(min=0.004))
        waits = torch.where(inside, depth, depth.clamp(min=OUTSIDE))
        goal = torch.where(in_line, deeper, waits)
        goal = torch.where(depth > OUTSIDE + DEEPER, deeper, goal)  # there is nothing to miss
        off = torch.cat((off[:, :1] - goal[:, None], off[:, 1:]), dim=1)
        wrong = GAIN * -(socket @ off[:, :, None])[:, :, 0].clamp(-STEP, STEP)
        upright = rotation_vector(socket.transpose(1, 2))
        turns = (0.5 * upright.clamp(-TURN, TURN) * GAIN, turn.clamp(-TURN, TURN) * GAIN)
        changes = []
        for i, (arm, reach, sign) in enumerate(
            zip(self.arms, self.reach, (-0.5, 0.5), strict=True)
        ):
            pivot = end if i == 0 else tip
            lever = arm.position(self.sim) - pivot
            shift = sign * wrong + torch.linalg.cross(turns[i], lever)
            changes.append(reach.move(shift, turns[i], speed=float(task.targets.scale[0])))
        return changes


def _turn(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Return rotations (n, 3, 3) of a hand that points to `yaw`, and down by `pitch` rad."""
    c, s, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    zero = torch.zeros_like(yaw)
    rows = (c * cp, -s, c * sp, s * cp, c, s * sp, -sp, zero, cp)
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))
