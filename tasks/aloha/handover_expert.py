"""A scripted expert for `aloha_handover`, without memory: what it does follows from the state.

So it can be asked in any state, as in those that a student gets into (`algo.teacher=expert`):

- nobody has the box: the left hand goes to its top along a funnel, the farther beside it the higher
  above, and closes; the right hand waits beyond the meeting place.
- the left hand has it: up, and to the meeting place; there the right hand comes and closes.
- the right hand has it: the left one opens, then leaves, and the right one carries the box to the
  target, its hand turned to where the arm reaches.

A hand has the box where its fingers are at the box and no farther open than the box is wide.
Motions are closed loops around the measured joints: the wanted change of the joints less what a
command that has been given will still move them. The servos' sag needs no model, and commands are
not read: all that counts can be seen in the observation.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from penspin_style.rotation import rotation_vector
from penspin_style.sim.sim import Sim
from tasks.aloha.arms import Arm
from tasks.aloha.handover import MEETING, HandOver
from tasks.aloha.reach import Reach, capped
from tasks.robots.aloha.description import ARM

SPEED = 0.015  # rad a control step
GAIN = 0.5  # of what is left to go, a control step
DAMPING = 0.05  # of the inverse kinematics
TURN_WEIGHTS = (0.05, 0.1)  # m that an error of one radian counts for, left and right
PITCH = (0.5, 0.2)  # rad, by which the left and the right hand point down
YAW_SHARE = 0.8  # of the box's bearing from the left base, to which the left hand is turned
RIGHT_YAW_SHARE = 0.5  # of the target's bearing from the right one, to which a hand with a box is
DIP, HIGH = 4.0, 0.45  # rad down for each m towards the right base; m, above which there is no need
MET = (-0.01, 0.0, 0.02)  # m from the meeting place: the box's top when it is handed over
ASIDE = (-0.16, 0.0, 0.03)  # m from the meeting place: where the left hand goes in the end
WAIT = (0.05, 0.0, -0.02)  # m from the meeting place: where the right hand waits
BACK = 0.04  # m, the height of the funnels
RIM, WIDTH = 0.012, 0.02  # m beside the grip where a funnel begins, and over which it is full
LIFT = (0.04, 0.08)  # m, of the box's centre, between which the way to the side opens
AROUND = 0.03  # m from the grip that a hand around the box is at most
HELD, FREE = 0.0245, 0.029  # m, openings of fingers that hold the box, and that let it go
NEAR, SLACK = 0.014, 0.012  # m from the grip at which hands close, and more once they are closing
OPEN, CLOSING = 0.037, 0.013  # m: fingers that are open, and how far they go until they hold


class Hand(NamedTuple):
    """What a hand is to the box, (num_envs,) each but the first two."""

    place: Tensor
    """m, (num_envs, 3)."""
    off: Tensor
    """m, (num_envs, 3), from it to where it is to take the box,"""
    far: Tensor
    """and how far that is."""
    opening: Tensor
    """m."""

    @property
    def holds(self) -> Tensor:
        """Whether it has the box."""
        return (self.far < AROUND) & (self.opening < HELD)

    @property
    def closes(self) -> Tensor:
        """Whether it is to close, or to stay closed."""
        share = ((OPEN - self.opening) / CLOSING).clamp(0.0, 1.0)
        return self.holds | (self.far < NEAR + SLACK * share)


class Expert:
    """Actions of the script in every environment of a simulation."""

    def __init__(self, task: HandOver, sim: Sim) -> None:
        """Look up the servos."""
        self.task, self.sim = task, sim
        self.arms = (task.left, task.right)
        self.reach = [
            Reach(sim, arm, damping=DAMPING, turn_weight=weight)
            for arm, weight in zip(self.arms, TURN_WEIGHTS, strict=True)
        ]
        self.lag = [self._lag(arm) for arm in self.arms]
        self.memory: dict[str, Tensor] = {}

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Forget nothing: there is nothing to forget."""

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 14)."""
        task, data = self.task, self.sim.data
        box, top = data.xpos[:, task.box].float(), data.site_xpos[:, task.top].float()
        left, right = self.look()
        places = (
            self._left_place(left, right, top=top, box=box),
            self._right_place(left, right, top=top, box=box),
        )
        turns = (self._left_turn(top), self._right_turn(right))
        shut = (left.closes & ~right.holds, right.closes)
        scale = task.targets.scale
        action = torch.zeros(self.sim.num_envs, len(scale), device=scale.device)
        for i, arm in enumerate(self.arms):
            *joints, gripper = range(arm.ctrl.start, arm.ctrl.stop)
            action[:, joints] = self._change(i, places[i], turns[i]) / scale[joints]
            action[:, gripper] = 1.0 - 2.0 * shut[i].float()
        return action.clamp(-1.0, 1.0)

    def look(self) -> tuple[Hand, Hand]:
        """Return what the left and the right hand are to the box now."""
        sim, hands = self.sim, []
        for arm, site in zip(self.arms, (self.task.top, self.task.bottom), strict=True):
            place = arm.position(sim).float()
            off = sim.data.site_xpos[:, site].float() - place
            opening = sim.data.qpos[:, arm.qpos][:, len(ARM)].float()
            hands.append(Hand(place, off, off.norm(dim=1), opening))
        return hands[0], hands[1]

    def _left_place(self, left: Hand, right: Hand, *, top: Tensor, box: Tensor) -> Tensor:
        """Return where the left hand is to be, (num_envs, 3) m."""
        forward = self._left_turn(top)[:, :, 0]
        down = torch.zeros_like(forward)
        down[:, 2] = -1.0
        into = torch.nn.functional.normalize(forward + down, dim=1)
        off = left.off
        beside = (off - (off * into).sum(dim=1, keepdim=True) * into).norm(dim=1)
        fetch = top - BACK * into * _funnel(beside)[:, None]
        low, high = LIFT
        carry = left.place + self._at(MET) - top
        share = ((box[:, 2] - low) / (high - low)).clamp(0.0, 1.0)[:, None]
        carry[:, :2] = left.place[:, :2] + share * (carry - left.place)[:, :2]
        leave = torch.where((left.opening > FREE)[:, None], self._at(ASIDE), left.place)
        place = torch.where(left.holds[:, None], carry, fetch)
        return torch.where(right.holds[:, None], leave, place)

    def _right_place(self, left: Hand, right: Hand, *, top: Tensor, box: Tensor) -> Tensor:
        """Return where the right hand is to be, (num_envs, 3) m."""
        beside = right.off[:, 1:].norm(dim=1)
        early = ((top - self._at(MET)).norm(dim=1) - 0.02) / 0.03
        away = torch.maximum(_funnel(beside), early.clamp(0.0, 1.0))
        away = torch.where(left.holds, away, 1.0)[:, None]
        bottom = right.place + right.off
        fetch = bottom + away * (self._at(WAIT) - bottom)
        target = self.sim.data.mocap_pos[:, self.task.target].float()
        free = (left.opening > FREE) | (left.far > 0.05)
        carry = torch.where(free[:, None], right.place + target - box, right.place)
        return torch.where(right.holds[:, None], carry, fetch)

    def _left_turn(self, top: Tensor) -> Tensor:
        """Return how the left hand is to be turned, (num_envs, 3, 3)."""
        off = top - self.arms[0].base
        yaw = YAW_SHARE * torch.atan2(off[:, 1], off[:, 0])
        return _turn(yaw, torch.full_like(yaw, PITCH[0]))

    def _right_turn(self, right: Hand) -> Tensor:
        """Return how the right hand is to be turned: down, near its base and the table."""
        target = self.sim.data.mocap_pos[:, self.task.target].float()
        off = self.arms[1].base - target
        low = ((HIGH - target[:, 2]) / 0.35).clamp(0.0, 1.0)
        pitch = PITCH[1] + right.holds * DIP * (target[:, 0] - 0.13) * low
        yaw = math.pi + RIGHT_YAW_SHARE * right.holds * torch.atan2(off[:, 1], off[:, 0])
        return _turn(yaw, pitch)

    def _at(self, offset: tuple[float, float, float]) -> Tensor:
        """Return the meeting place moved by `offset` m, (3,)."""
        meeting = torch.tensor(MEETING, device=self.sim.device)
        return meeting + meeting.new_tensor(offset)

    def _joints(self, arm: Arm) -> slice:
        """Return where the velocities of an arm's six joints are."""
        first = self.sim.model.joint(f"{arm.side}_{ARM[0]}").dofadr[0]
        return slice(first, first + len(ARM))

    def _lag(self, arm: Arm) -> Tensor:
        """Return the seconds by which an arm's joints follow their commands, (6,)."""
        model, servos = self.sim.model, arm.ctrl.start
        stiffness = model.actuator_gainprm[servos : servos + len(ARM), 0]
        lag = model.dof_damping[self._joints(arm)] / stiffness
        return torch.tensor(lag, dtype=torch.float32, device=self.sim.device)

    def _change(self, i: int, place: Tensor, turn: Tensor) -> Tensor:
        """Return the change of an arm's joint targets towards a pose, (num_envs, 6) rad."""
        arm, sim = self.arms[i], self.sim
        angle = rotation_vector(turn @ arm.matrix(sim).float().transpose(1, 2))
        change = self.reach[i].solve(place - arm.position(sim).float(), angle)
        coming = self.lag[i] * sim.data.qvel[:, self._joints(arm)].float()
        return capped(GAIN * (change - coming), SPEED)


def _funnel(beside: Tensor) -> Tensor:
    """Return how far up a funnel a hand is that is so many m beside its axis: 0 to 1."""
    return ((beside - RIM) / WIDTH).clamp(0.0, 1.0)


def _turn(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Return rotations (n, 3, 3) of a hand that points to `yaw`, and down by `pitch` rad."""
    c, s, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    zero = torch.zeros_like(yaw)
    rows = (c * cp, -s, c * sp, s * cp, c, s * sp, -sp, zero, cp)
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))
