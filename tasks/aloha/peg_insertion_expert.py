"""A scripted expert for `aloha_peg_insertion`: each hand takes its object, then both join them.

It remembers nothing: what it does follows from the present state, so that it can be asked in any
state, as those that a student gets into (`algo.teacher=expert`). Before the switch each arm picks
as `pick_expert.py` does, which a policy would have to that has no frozen one before it
(`task.pick_policy` empty). Its states along the way are where training may begin
(`algo.starts.states`), those at the switch what fills the rings (`task.preinsertion`).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penspin_style.rotation import rotation_vector
from penspin_style.sim.sim import Sim, make_sim
from tasks.aloha.one_arm import OneArm
from tasks.aloha.pick_expert import Picking

if TYPE_CHECKING:
    from tasks.aloha.peg_insertion import Insertion

GAIN = 0.35  # share of what is measured to be wrong that a step makes good
STEP, TURN = 0.03, 0.08  # m and rad that count as wrong at most
DEEPER = 0.03  # m, by which the tip is wanted nearer to the socket's end than it is
HOME = 0.009  # m from the socket's end
INSIDE, OUTSIDE = 0.096, 0.115  # m from that end, where the tip goes in, and where it waits


class InsertionExpert:
    """Actions of the script in every environment of a simulation."""

    def __init__(self, task: "Insertion[Any]", sim: Sim) -> None:
        """Build the simulation whose arms stand where the commands lead."""
        self.task, self.sim = task, sim
        self.ghost = make_sim(sim.model, sim.num_envs, sim.device, nthread=1)
        self.picking = [self._picking(i, hand) for i, hand in enumerate(task.hands)]
        self.memory: dict[str, Tensor] = {}

    def _picking(self, i: int, hand: OneArm) -> Picking:
        n, at, targets = self.sim.num_envs, hand.arm.ctrl, self.task.targets
        return Picking(
            self.sim,
            self.ghost,
            hand,
            goal=lambda: self.task.aims[i].expand(n, 3),
            lying=lambda: self.task.home[hand.qpos + 2].expand(n),
            low=targets.low[at],
            high=targets.high[at],
        )

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Forget nothing: there is nothing to forget."""

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 14)."""
        for picking in self.picking:
            picking.settle()
        self.ghost.forward()
        task, switched = self.task, self.task.is_up(self.sim)[:, None]
        picked = torch.cat([picking.change() for picking in self.picking], dim=1) / task.pick_scale
        joined = torch.cat(self._put_together(), dim=1) / task.targets.scale
        return torch.where(switched, joined, picked).clamp(-1.0, 1.0)

    def _put_together(self) -> list[Tensor]:
        """Return how both arms' targets, (num_envs, 7) each, bring the peg into the socket."""
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
        closes = -torch.ones_like(depth)[:, None]
        for i, (picking, sign) in enumerate(zip(self.picking, (-0.5, 0.5), strict=True)):
            pivot = end if i == 0 else tip
            lever = picking.arm.position(self.sim) - pivot
            shift = sign * wrong + torch.linalg.cross(turns[i], lever)
            change = picking.reach.move(shift, turns[i], speed=float(task.targets.scale[0]))
            changes.append(torch.cat((change, closes), dim=1))
        return changes
