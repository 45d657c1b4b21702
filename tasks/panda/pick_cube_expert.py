"""A scripted expert for `panda_pick_cube` and `panda_pick_cube_orientation`, without memory.

What it does follows from the present state, so that it can be asked in any state, as those that a
student gets into (`algo.teacher=expert`):

- nothing in the hand: to the box along a funnel, higher the farther the hand is beside the box.
  Far boxes are out of reach of a hand that points down: it leans outwards, and at any box so that
  it can be turned as the target asks for.
- at the box: the fingers close. Those that have closed on nothing open again.
- the fingers press on something, and are still: up, and to where the box is at its target, turned
  as the target is. A box that slips or turns in the hand is brought there all the same.

Whether a hand is closing is told by its command, which is ahead of the fingers. The gripper's
action is 1 or -1 also where the command is at its limit: a student may be inexact without harm.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penspin_style.rotation import rotation_vector
from penspin_style.sim.sim import Sim
from tasks.robots.panda.description import ARM
from tasks.robots.panda.model import CartesianArm

if TYPE_CHECKING:
    from tasks.panda.pick_cube import PickCube

SHOULDER = (0.0, 0.0, 0.333)  # m
NEAR, FAR = 0.68, 0.93  # m from the shoulder: the hand points down, or along the arm
LEAN = 1.17  # rad from down of a far hand at the shoulder's height
LEAST, MOST = -0.4, (0.54, 0.45, 1.3)  # rad at the box; m, rad, rad/m: joint 6 allows no more
EASY = 0.1  # what the lean of a near hand counts beside that of a far one, 1
SHORT = (0.010, 0.006)  # m above and before its middle that a far box is held,
FAR_BOX = (0.8, 0.9)  # m from the shoulder
STEEP, RIM, ABOVE = 4.0, 0.006, 0.08  # m/m, m, m: the funnel, where it ends, its height
ASTRAY = (0.03, 0.1)  # m/rad beside the box that a hand counts as which is turned by more rad
BEGIN, GO_ON = 0.014, 0.035  # m from the grasp at which fingers close, and go on closing
AJAR = 0.03  # m: fingers that are so far open may begin to close,
EMPTY, OPEN = 0.012, 0.035  # m: those in between may hold the box
SHUTTING = 0.02  # m: a command below it closes
STILL = 0.15  # m/s: fingers that are slower have met something
GAIN = 0.5  # share of the way that the arm's targets are ahead,
STEP, TURN = (0.08, 0.045), (0.4, 0.12)  # m and rad at most, with an empty hand and a full one
LIFT = 0.03  # m that the box is raised before it is turned


class _FarArm(CartesianArm):
    """Also goes where the arm is nearly straight."""

    damping = 0.02
    posture_gain = 0.05


class PickCubeExpert:
    """Actions of the script in every environment of a simulation."""

    def __init__(self, task: "PickCube[Any]", sim: Sim) -> None:
        """Look up what the script sees."""
        self.task, self.sim = task, sim
        self.memory: dict[str, Tensor] = {}
        self.arm = _FarArm(sim, task.home_ctrl)
        stiffness = sim.model.actuator_gainprm[: len(ARM), 0]
        self.stiffness = torch.tensor(stiffness, device=sim.device, dtype=torch.float32)
        self.shoulder = torch.tensor(SHOULDER, device=sim.device)

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Forget nothing: there is nothing to forget."""

    def act(self) -> Tensor:
        """Return the actions of this step, (num_envs, 8)."""
        sim, n = self.sim, len(ARM)
        box, target = (sim.data.xpos[:, body].float() for body in (self.task.box, self.task.target))
        due = self._due()
        grasp = self._grasp_point(box)
        come, aim = self._approach(grasp, target, due)
        shut, held = self._grasp(grasp)
        held = held[:, None]
        lifted = ((box[:, 2:] - self.task.start_pos[2]) / LIFT).clamp(0.0, 1.0)
        change = GAIN * (come + held * (target - box - come))
        turn = GAIN * torch.where(held > 0.5, lifted * rotation_vector(due), aim)
        change = _shortened(change, STEP[0] + held * (STEP[1] - STEP[0]))
        turn = _shortened(turn, TURN[0] + held * (TURN[1] - TURN[0]))
        goal = self.arm.goal(self.arm.position + change, turn)
        # the servos hang below their targets by what the arm weighs
        goal = goal + sim.data.qfrc_bias[:, :n].float() / self.stiffness
        ahead = (goal - sim.data.ctrl[:, :n].float()) / self.task.cfg.action_scale
        # at the limit of the command it may be inexact
        grip = 1.0 - 2.0 * shut[:, None].float()
        return torch.cat((ahead, grip), dim=1).clamp(-1.0, 1.0)

    def _approach(self, grasp: Tensor, target: Tensor, due: Tensor) -> tuple[Tensor, Tensor]:
        """Return how the hand is to move, m and rad, (num_envs, 3) each, to the box."""
        hand = self.sim.data.site_xmat[:, self.task.tcp].float()
        out = self._outwards()
        wanted = _hand(out, self._lean_at_box(grasp, target, due, out))
        turn = rotation_vector(wanted @ hand.transpose(1, 2))
        off = (wanted.transpose(1, 2) @ (self.arm.position - grasp).unsqueeze(2))[:, :, 0]
        astray = ASTRAY[0] * (turn.norm(dim=1) - ASTRAY[1]).clamp(min=0.0)
        beside = off[:, :2].norm(dim=1) + astray
        height = (STEEP * (beside - RIM)).clamp(0.0, ABOVE)
        return grasp - height[:, None] * wanted[:, :, 2] - self.arm.position, turn

    def _grasp(self, grasp: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether the fingers are to close, bool, and how surely they hold, 0 to 1."""
        data, n = self.sim.data, len(ARM)
        far = (self.arm.position - grasp).norm(dim=1)
        finger = data.qpos[:, n].float()
        shutting = (data.ctrl[:, n].float() < SHUTTING) & (finger > EMPTY)
        shut = ((far < BEGIN) & (finger > AJAR)) | ((far < GO_ON) & shutting)
        still = 1.0 - (data.qvel[:, n].float().abs() / STILL).clamp(max=1.0)
        return shut, still * (shut & shutting & (finger < OPEN))

    def _grasp_point(self, box: Tensor) -> Tensor:
        """Return where the box is to be held, (num_envs, 3) m."""
        low, high = FAR_BOX
        far = (((box - self.shoulder).norm(dim=1) - low) / (high - low)).clamp(0.0, 1.0)
        shift = -SHORT[1] * _level(box)
        shift[:, 2] = SHORT[0]
        return box + far[:, None] * shift

    def _due(self) -> Tensor:
        """Return the rotation that turns the box as the target is, (num_envs, 3, 3)."""
        xmat = self.sim.data.xmat
        return xmat[:, self.task.target].float() @ xmat[:, self.task.box].float().transpose(1, 2)

    def _outwards(self) -> Tensor:
        """Return the level direction along the box's sides that is nearest to outwards, (n, 3)."""
        xpos, xmat = self.sim.data.xpos[:, self.task.box], self.sim.data.xmat[:, self.task.box]
        left = _turned_left(_level(xpos.float()))
        axes = xmat.float().transpose(1, 2)  # its rows
        along = (axes @ left.unsqueeze(2))[:, :, 0]
        best = along.abs().argmax(dim=1, keepdim=True)
        across = axes.gather(1, best[:, :, None].expand(-1, 1, 3))[:, 0]
        return -_turned_left(_level(across * along.gather(1, best).sign()))

    def _lean_at_box(self, box: Tensor, target: Tensor, due: Tensor, out: Tensor) -> Tensor:
        """Return by how much the hand is to lean at the box, (num_envs,) rad.

        A mean of what suits the box, and of what suits the target once the hand is turned there;
        the farther one counts more.
        """
        suits_box = self._lean(box)
        at_target = _hand(_level(target), self._lean(target))[:, :, 2]
        before = (at_target[:, None] @ due)[:, 0]  # turned back
        suits_target = torch.atan2((before * out).sum(dim=1), -before[:, 2])
        here, there = (EASY + self._far(place) ** 2 for place in (box, target))
        lean = (here * suits_box + there * suits_target) / (here + there)
        most = MOST[1] + MOST[2] * ((box - self.shoulder).norm(dim=1) - MOST[0])
        return torch.minimum(lean.clamp(min=LEAST), most)

    def _lean(self, place: Tensor) -> Tensor:
        """Return by how much a hand there leans outwards from down with ease, (num_envs,) rad."""
        off = place - self.shoulder
        up = torch.atan2(off[:, 2], off[:, :2].norm(dim=1))
        return self._far(place) * (LEAN + up)

    def _far(self, place: Tensor) -> Tensor:
        """Return how far a place is, from 0, easily reached, to 1, (num_envs,)."""
        return (((place - self.shoulder).norm(dim=1) - NEAR) / (FAR - NEAR)).clamp(0.0, 1.0)


def _shortened(vector: Tensor, most: Tensor) -> Tensor:
    """Return vectors (n, 3) of at most the lengths `most`, (n, 1)."""
    return vector * (most / torch.maximum(vector.norm(dim=1, keepdim=True), most))


def _level(vector: Tensor) -> Tensor:
    """Return the unit vector of a vector's level part, (n, 3)."""
    level = torch.cat((vector[:, :2], torch.zeros_like(vector[:, :1])), dim=1)
    return level / level.norm(dim=1, keepdim=True).clamp(min=1e-6)


def _turned_left(level: Tensor) -> Tensor:
    """Return level vectors (n, 3) turned by 90 degrees to the left."""
    return torch.stack((-level[:, 1], level[:, 0], level[:, 2]), dim=1)


def _hand(out: Tensor, lean: Tensor) -> Tensor:
    """Return rotations (n, 3, 3) of a hand that leans from down by `lean` rad towards `out`."""
    c, s = lean.cos()[:, None], lean.sin()[:, None]
    x = torch.cat((c * out[:, :2], s), dim=1)
    z = torch.cat((s * out[:, :2], -c), dim=1)
    return torch.stack((x, -_turned_left(out), z), dim=2)
