"""A scripted expert for `aloha_pick`: above the bar, to it, grasp, and carry to the target.

The hand points along the bar and down, the more steeply the nearer the bar is. While it carries, it
goes to where the bar would be at its target if it lay in the hand as it does now, so that a bar
that slips or turns in the hand is brought there all the same. A bar that was dropped is picked up
anew.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim, make_sim
from tasks.aloha.reach import Reach, follow
from tasks.robots.aloha.description import ARM, CHANNELS

if TYPE_CHECKING:
    from tasks.aloha.pick import Pick

STAGES = ("above", "at_bar", "grasp", "lift", "carry")
ABOVE = 0.06  # m, from where the hand comes down
PITCH, NEAR, FAR = (1.2, 0.55), 0.2, 0.45  # rad down at bars so many m from the base
SPEED = 0.02  # rad a control step
CLOSE_STEPS = 7
LIFT = 0.06  # m
DROPPED = 0.05  # m from the fingertips to the bar's grip


class PickExpert:
    """Actions of the script in every environment of a simulation; it begins with `restart`."""

    def __init__(self, task: "Pick", sim: Sim) -> None:
        """Build the simulation whose arm stands where the commands are."""
        n, device = sim.num_envs, sim.device
        self.task, self.sim, self.arm = task, sim, task.arm
        self.ghost = make_sim(sim.model, n, device, nthread=1)
        self.reach = Reach(sim, self.ghost, self.arm)
        self.stage = torch.zeros(n, dtype=torch.long, device=device)
        """Into `STAGES`."""
        self.wait = torch.zeros(n, dtype=torch.long, device=device)
        """Control steps in this stage."""
        self.grasp = torch.zeros(n, 3, device=device)
        """m, in the world: where the fingertips take the bar."""
        self.turn = torch.eye(3, device=device).repeat(n, 1, 1)
        """How the hand stands then."""
        names = ("stage", "wait", "grasp", "turn")
        self.memory = {**{name: getattr(self, name) for name in names}, "sag": self.reach.sag}

    def restart(self, mask: Tensor, rng: torch.Generator | None = None) -> None:
        """Begin anew where the mask says, with the bar lying where it is."""
        task, data = self.task, self.sim.data
        grip = data.site_xpos[:, task.one.grip].float()
        near = self.arm.to_base(grip)[:, :2].norm(dim=1)
        share = ((near - NEAR) / (FAR - NEAR)).clamp(0.0, 1.0)
        pitch = PITCH[0] + (PITCH[1] - PITCH[0]) * share
        along = data.xmat[:, task.one.body, :, 0]
        mat = _about_z(torch.atan2(along[:, 1], along[:, 0])) @ _down(pitch)
        self.grasp.copy_(torch.where(mask[:, None], grip, self.grasp))
        self.turn.copy_(torch.where(mask[:, None, None], mat, self.turn))
        for value in (self.stage, self.wait):
            value.masked_fill_(mask, 0)
        self.reach.sag.masked_fill_(mask[:, None], 0.0)

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 7), and go on to the next stages."""
        self.restart(self._dropped())
        follow(self.ghost, self.sim, (self.arm,))
        tips, turn = self._pose()
        hand = self.arm.matrix(self.sim)
        offset = (
            hand.transpose(1, 2)
            @ (self.arm.tips(self.sim) - self.arm.position(self.sim))[:, :, None]
        )
        place = tips - (turn @ offset)[:, :, 0]
        change = self.reach.step(place, turn, speed=SPEED)
        n = len(ARM)
        action = torch.zeros(self.sim.num_envs, len(CHANNELS), device=place.device)
        action[:, :n] = change / self.task.targets.scale[:n]
        action[:, n] = 1.0 - 2.0 * (self.stage >= 2)
        self._go_on(self.reach.error(place))
        return action.clamp(-1.0, 1.0)

    def _dropped(self) -> Tensor:
        """Return where the bar is no longer in the hand that carries it, (num_envs,) bool."""
        grip = self.sim.data.site_xpos[:, self.task.one.grip]
        away = (self.arm.tips(self.sim) - grip).norm(dim=1) > DROPPED
        return (self.stage >= STAGES.index("lift")) & away

    def _pose(self) -> tuple[Tensor, Tensor]:
        """Return where the fingertips should be now (num_envs, 3) m, and how the hand is turned."""
        back = self.turn[:, :, 0] * 0.04
        up = torch.zeros_like(self.grasp)
        up[:, 2] = 1.0
        above = self.grasp + ABOVE * up - back
        lifted = self.grasp + LIFT * up
        places = torch.stack((above, self.grasp, self.grasp, lifted, lifted))
        here = torch.arange(len(self.stage), device=self.stage.device)
        place = places[self.stage, here]
        to, turn = self._carried()
        carries = self.stage == len(STAGES) - 1
        return (
            torch.where(carries[:, None], to, place),
            torch.where(carries[:, None, None], turn, self.turn),
        )

    def _carried(self) -> tuple[Tensor, Tensor]:
        """Return the pose of the hand in which the bar, as it lies in it, is at the target."""
        task, data = self.task, self.sim.data
        bar = data.xmat[:, task.one.body]
        upright = torch.diag(self.arm.turn)
        turn = upright @ bar.transpose(1, 2)
        off = self.arm.tips(self.sim) - data.xpos[:, task.one.body]
        place = task.goal(self.sim) + (turn @ off[:, :, None])[:, :, 0]
        return place, turn @ self.arm.matrix(self.sim)

    def _go_on(self, far: Tensor) -> None:
        """Begin the next stages where a stage is over; far: (num_envs,) m, how far the hand is."""
        over = torch.stack(
            (
                far < 0.03,
                far < 0.012,
                self.wait >= CLOSE_STEPS,
                far < 0.03,
                torch.zeros_like(far, dtype=torch.bool),
            )
        ).gather(0, self.stage[None])[0]
        self.wait.add_(1).mul_(~over)
        self.stage.add_(over.long())


def _about_z(yaw: Tensor) -> Tensor:
    """Return rotations (n, 3, 3) about z by `yaw` rad."""
    c, s = yaw.cos(), yaw.sin()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    return torch.stack((c, -s, zero, s, c, zero, zero, zero, one), dim=1).unflatten(1, (3, 3))


def _down(pitch: Tensor) -> Tensor:
    """Return rotations (n, 3, 3) about y by `pitch` rad."""
    c, s = pitch.cos(), pitch.sin()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    return torch.stack((c, zero, s, zero, one, zero, -s, zero, c), dim=1).unflatten(1, (3, 3))
