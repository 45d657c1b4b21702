"""A scripted expert for `aloha_pick`, without memory: what it does follows from the present state.

So it can be asked in any state, as those that a student gets into (`algo.teacher=expert`):

- nothing in the hand: to the bar along a funnel. The farther the hand is beside the bar, the higher
  above it; the hand points along the bar and down, the more steeply the nearer the bar is.
- at the bar: the hand closes. One that has closed on nothing opens, and so does one elsewhere.
- both fingers press: up, and on to where the bar is at its target as it lies in the hand now, so
  that a bar that slips or turns in the hand is brought there all the same.

Whether a hand is closing or opening is told by where its command is, beside its fingers.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penspin_style.rotation import rotation_vector
from penspin_style.sim.sim import Sim, make_sim
from tasks.aloha.one_arm import OneArm
from tasks.aloha.reach import Reach
from tasks.robots.aloha import model as aloha
from tasks.robots.aloha.description import ARM

if TYPE_CHECKING:
    from tasks.aloha.pick import Pick

PITCH, NEAR, FAR = (0.9, 0.7), 0.2, 0.45  # rad down at bars so many m from the base
SPEED = 0.02  # rad a control step
ABOVE, STEEP, RIM = 0.06, 8.0, 0.005  # m, m/m, m: the funnel's height, how steep, where it ends
ASTRAY = 0.03  # m beside the bar that a hand turned by a radian counts as
BEGIN, GO_ON = 0.012, 0.03  # m from the grip at which a hand closes, and goes on closing
OPEN, SHUTTING = 0.03, 0.003  # m: fingers that are open; how far the command is ahead of them
TILT = 0.3  # rad of pitch that is not astray
PRESS = 1.0  # N of each finger on a bar that is held
LIFT = 0.05  # m that a bar is raised before it is turned
MOST_TURN = 1.0  # rad from its bearing that a bar which lies astray is still taken along


class PickExpert:
    """Actions of the script in every environment of a simulation, for the arms of its tasks."""

    def __init__(self, tasks: "Sequence[Pick]", sim: Sim) -> None:
        """Build the simulation whose arms stand where the commands lead."""
        self.scale = torch.cat([task.targets.scale for task in tasks])
        self.ghost = make_sim(sim.model, sim.num_envs, sim.device, nthread=1)
        self.picking = [self._picking(task, sim) for task in tasks]
        self.memory: dict[str, Tensor] = {}

    def _picking(self, task: "Pick", sim: Sim) -> "Picking":
        return Picking(
            sim,
            self.ghost,
            task.one,
            goal=lambda: task.goal(sim),
            lying=lambda: aloha.TABLE_Z + task.half_width(sim),
            low=task.targets.low,
            high=task.targets.high,
        )

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Forget nothing: there is nothing to forget."""

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 7 for each arm)."""
        for picking in self.picking:
            picking.settle()
        self.ghost.forward()
        change = torch.cat([picking.change() for picking in self.picking], dim=1)
        return (change / self.scale).clamp(-1.0, 1.0)


class Picking:
    """How one arm is to go on, in every environment of a simulation.

    ghost: a simulation of the same model; before `change` is asked, `settle` has put its arm where
    the commands lead, and it has been forwarded. goal: where the bar's middle is wanted, (num_envs,
    3) m. lying: how high it is on the table, (num_envs,) m. low, high: (7,) limits of the arm's
    targets.
    """

    def __init__(
        self,
        sim: Sim,
        ghost: Sim,
        one: OneArm,
        *,
        goal: Callable[[], Tensor],
        lying: Callable[[], Tensor],
        low: Tensor,
        high: Tensor,
    ) -> None:
        self.sim, self.ghost, self.one, self.arm = sim, ghost, one, one.arm
        self.goal, self.lying, self.low, self.high = goal, lying, low, high
        self.reach = Reach(ghost, self.arm)
        first = sim.model.actuator(f"{self.arm.side}_{ARM[0]}").id
        stiffness = sim.model.actuator_gainprm[first : first + len(ARM), 0]
        self.stiffness = torch.tensor(stiffness, device=sim.device)

    def settle(self) -> None:
        """Put the ghost's arm where the commands lead: below them, for its weight pulls it down."""
        sim, arm, n = self.sim, self.arm, len(ARM)
        ctrl, weight = sim.data.ctrl[:, arm.ctrl], sim.data.qfrc_bias[:, arm.qpos][:, :n]
        qpos = self.ghost.data.qpos[:, arm.qpos]
        qpos[:, :n] = ctrl[:, :n] - weight / self.stiffness
        qpos[:, n] = ctrl[:, n]

    def change(self) -> Tensor:
        """Return how the seven targets are to change, (num_envs, 7) rad and m.

        The gripper's is beyond what any action says: it is to open, or to close.
        """
        held, shut = self.grasp()
        to, turn = self._approach()
        lifted, turned = self._carry()
        held = held[:, None]
        n = len(ARM)
        ctrl = self.sim.data.ctrl[:, self.arm.ctrl][:, :n].float()
        joints = self.reach.swing(
            torch.where(held, lifted, to),
            torch.where(held, turned, turn),
            speed=SPEED,
            low=self.low[:n] - ctrl,
            high=self.high[:n] - ctrl,
        )
        return torch.cat((joints, (1.0 - 2.0 * shut)[:, None]), dim=1)

    def grasp(self) -> tuple[Tensor, Tensor]:
        """Return whether the hand holds the bar, and whether it is to close, (num_envs,) bool."""
        data, arm = self.sim.data, self.arm
        far = (arm.tips(self.sim) - data.site_xpos[:, self.one.grip]).norm(dim=1)
        fingers = data.qpos[:, arm.qpos][:, len(ARM)]
        ahead = fingers - data.ctrl[:, arm.ctrl][:, len(ARM)]
        held = arm.grasps(self.sim, PRESS) & (far < 2.0 * GO_ON)
        begins = (far < BEGIN) & (fingers > OPEN)
        return held, held | begins | ((far < GO_ON) & (ahead > SHUTTING))

    def _approach(self) -> tuple[Tensor, Tensor]:
        """Return how the settled hand is to move, m and rad, (num_envs, 3) each, to the bar."""
        one, data, arm = self.one, self.sim.data, self.arm
        grip = data.site_xpos[:, one.grip].float()
        to_base = arm.to_base(grip)
        share = ((to_base[:, :2].norm(dim=1) - NEAR) / (FAR - NEAR)).clamp(0.0, 1.0)
        along = arm.vector_to_base(data.xmat[:, one.body, :, 0])
        bearing = torch.atan2(to_base[:, 1], to_base[:, 0])
        off = _wrapped(torch.atan2(along[:, 1], along[:, 0]) - bearing)
        yaw = bearing + off.clamp(-MOST_TURN, MOST_TURN)
        wanted = _hand(yaw, PITCH[0] + (PITCH[1] - PITCH[0]) * share)
        wanted = arm.turn[:, None] * wanted  # from the base's frame to the world's
        turn = rotation_vector(wanted @ arm.matrix(self.ghost).transpose(1, 2))
        # fingers that point down more or less steeply pass beside the bar all the same
        hand = arm.matrix(self.sim).transpose(1, 2)
        tilt = (hand @ rotation_vector(wanted @ hand).unsqueeze(2))[:, :, 0]
        tilt[:, 1] = (tilt[:, 1].abs() - TILT).clamp(min=0.0)
        astray = tilt.norm(dim=1)
        off = wanted.transpose(1, 2) @ (arm.tips(self.sim) - grip).unsqueeze(2)
        beside = off[:, 1, 0].abs() + ASTRAY * (astray - 0.1).clamp(min=0.0)
        height = (STEEP * (beside - RIM)).clamp(0.0, ABOVE)
        place = grip.clone()
        place[:, 2] += height
        place = place - 0.5 * height[:, None] * wanted[:, :, 0]
        # the fingers' middle is fixed in the hand; where the hand will be once it is turned
        offset = arm.matrix(self.sim).transpose(1, 2) @ (
            arm.tips(self.sim) - arm.position(self.sim)
        ).unsqueeze(2)
        return place - (wanted @ offset)[:, :, 0] - arm.position(self.ghost), turn

    def _carry(self) -> tuple[Tensor, Tensor]:
        """Return how the hand is to move, m and rad, (num_envs, 3) each, with the bar in it."""
        one, sim, arm = self.one, self.sim, self.arm
        bar, hand = sim.data.xmat[:, one.body], arm.matrix(sim)
        lie = hand.transpose(1, 2) @ bar
        off = bar.transpose(1, 2) @ (arm.position(sim) - one.place()).unsqueeze(2)
        wanted = torch.diag(arm.turn) @ lie.transpose(1, 2)
        turn = rotation_vector(wanted @ arm.matrix(self.ghost).transpose(1, 2))
        place = self.goal() + (torch.diag(arm.turn) @ off)[:, :, 0]
        share = ((one.place()[:, 2] - self.lying()) / LIFT).clamp(0.0, 1.0)[:, None]
        rise = torch.zeros_like(place)
        rise[:, 2] = LIFT
        shift = share * (place - arm.position(self.ghost)) + (1.0 - share) * rise
        return shift, share * turn


def _wrapped(angle: Tensor) -> Tensor:
    """Return angles in [-pi, pi] rad."""
    return torch.atan2(angle.sin(), angle.cos())


def _hand(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Return rotations (n, 3, 3) of a hand that points to `yaw`, and down by `pitch` rad."""
    c, s, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    zero = torch.zeros_like(yaw)
    rows = (c * cp, -s, c * sp, s * cp, c, s * sp, -sp, zero, cp)
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))
