"""What the tasks on ALOHA's arms share: places in the model, base frames, targets, grasps.

A body that a hand may grasp is named when the world is built (`add_touch_sensors`) and when the
hand is looked up (`Arm`). Positions are (num_envs, 3) m in the world unless they say otherwise.
"""

import math
from collections.abc import Sequence

import mujoco
import torch
from torch import Tensor

from penspin_style.features import ActionChannel
from penspin_style.sim.contacts import Contact, ContactView
from penspin_style.sim.sim import Sim
from tasks.robots.aloha.description import BASES, CHANNELS, SIDES
from tasks.robots.aloha.model import FINGER_GEOMS

FINGERS = ("left", "right")
QPOS = len(CHANNELS) + 1
"""Positions of one arm: six joints and two fingers."""
GRASP_ANGLE = math.radians(75.0)
"""How far a finger's force may be from the direction to the other finger."""


def add_touch_sensors(spec: mujoco.MjSpec, side: str, body: str) -> None:
    """Add what `Arm` needs to say what the fingers of a side do to a body."""
    solid = [geom.name for geom in spec.body(body).geoms if geom.contype]
    _touch(side, body, solid).add_to(spec)


def table_contact(side: str) -> Contact:
    """Return the contact of a side's four finger capsules with the table."""
    return Contact(f"{side}_fingers_table", _capsules(side), ("table",))


def _touch(side: str, body: str, geoms: Sequence[str]) -> Contact:
    return Contact(f"{side}_fingers_{body}", _capsules(side), geoms)


def _capsules(side: str) -> tuple[str, ...]:
    """Return the geoms of a hand's fingers: two of the left one, two of the right one."""
    return tuple(f"{side}_{name}" for name in FINGER_GEOMS)


class Arm:
    """One arm in a running simulation; its fields are views of live ones, taken once."""

    def __init__(self, sim: Sim, side: str, grasps: str = "") -> None:
        """Look up an arm; grasps: the body of `add_touch_sensors`, if there is one."""
        model, device = sim.model, sim.device
        first = int(model.jnt_qposadr[model.joint(f"{side}_waist").id])
        command = model.actuator(f"{side}_waist").id
        self.side = side
        self.qpos = slice(first, first + QPOS)
        """Of `sim.data.qpos` and `qvel`: the arms come before free bodies."""
        self.ctrl = slice(command, command + len(CHANNELS))
        self.gripper = model.site(f"{side}_gripper").id
        self._fingers = [model.site(f"{side}_{f}_finger").id for f in FINGERS]
        self._tips = [model.site(f"{side}_{f}_fingertip").id for f in FINGERS]
        pos, yaw = BASES[side]
        self.base = torch.tensor(pos, device=device)
        """m, in the world."""
        sign = round(math.cos(yaw))
        self.turn = torch.tensor([float(sign), float(sign), 1.0], device=device)
        """Signs that turn the world's axes into the base's and back: bases stand at 0 or pi."""
        self._opposite = torch.tensor((1.0, -1.0), device=device)
        self._touch = None
        if grasps:
            geoms = range(model.ngeom)
            mine = [i for i in geoms if model.geom_bodyid[i] == model.body(grasps).id]
            solid = [model.geom(i).name for i in mine if model.geom_contype[i]]
            self._touch = _touch(side, grasps, solid).view(sim)

    def position(self, sim: Sim) -> Tensor:
        """Return where the gripper's site is."""
        return sim.data.site_xpos[:, self.gripper]

    def matrix(self, sim: Sim) -> Tensor:
        """Return the rotation of the gripper's site, (num_envs, 3, 3)."""
        return sim.data.site_xmat[:, self.gripper]

    def tips(self, sim: Sim) -> Tensor:
        """Return the middle between the fingertips."""
        xpos = sim.data.site_xpos
        return 0.5 * (xpos[:, self._tips[0]] + xpos[:, self._tips[1]])

    def to_base(self, points: Tensor) -> Tensor:
        """Return points (..., 3) of the world in the base's frame."""
        return (points - self.base) * self.turn

    def from_base(self, points: Tensor) -> Tensor:
        """Return points (..., 3) of the base's frame in the world."""
        return points * self.turn + self.base

    def vector_to_base(self, vectors: Tensor) -> Tensor:
        """Return vectors (..., 3) of the world in the base's frame."""
        return vectors * self.turn

    def matrix_to_base(self, matrices: Tensor) -> Tensor:
        """Return rotations (..., 3, 3) from the world in the base's frame."""
        return matrices * self.turn[:, None]

    @property
    def touch(self) -> ContactView:
        """How the fingers' four capsules touch what the hand may grasp.

        Raises:
            ValueError: the arm was looked up without a body to grasp.
        """
        if self._touch is None:
            raise ValueError(f"Arm({self.side!r}): name the body that it may grasp")
        return self._touch

    def forces(self) -> Tensor:
        """Return the forces of the left and the right finger on the body, (num_envs, 2, 3) N."""
        return -self.touch.force.unflatten(1, (2, 2)).sum(dim=2)

    def touches(self) -> Tensor:
        """Return whether a finger touches what the hand may grasp, (num_envs,) bool."""
        return self.touch.touching.any(dim=1)

    def grasps(self, sim: Sim, least: float = 2.5, *, forces: Tensor | None = None) -> Tensor:
        """Return whether both fingers press more than `least` N towards each other, (num_envs,).

        forces: those of `forces`, where they are at hand.
        """
        xpos = sim.data.site_xpos
        across = xpos[:, self._fingers[1]] - xpos[:, self._fingers[0]]
        across = across / across.norm(dim=1, keepdim=True)
        forces = self.forces() if forces is None else forces
        size = forces.norm(dim=2)
        towards = (forces * across[:, None]).sum(dim=2) * self._opposite
        return ((size > least) & (towards > math.cos(GRASP_ANGLE) * size)).all(dim=1)


class Targets:
    """Position targets that actions move: `ctrl <- clip(ctrl + scale * action, limits)`.

    They add to the last command, not to the measured joints. The limits are the channels', which a
    task may narrow.
    """

    def __init__(self, channels: Sequence[ActionChannel], device: torch.device) -> None:
        rows = [(channel.scale, channel.low, channel.high) for channel in channels]
        self.scale, self.low, self.high = torch.tensor(rows, device=device).unbind(1)

    def move(self, ctrl: Tensor, action: Tensor) -> Tensor:
        """Return the next targets (num_envs, n) of the present ones and actions in [-1, 1]."""
        return (ctrl + self.scale * action).clamp(self.low, self.high)


def write(field: Tensor, value: Tensor, mask: Tensor) -> None:
    """Write value (num_envs, n) into a live field where the mask says."""
    field.copy_(torch.where(mask[:, None], value.to(field.dtype), field))


def both(sim: Sim, grasps: str = "") -> tuple[Arm, Arm]:
    """Return the left and the right arm."""
    left, right = (Arm(sim, side, grasps) for side in SIDES)
    return left, right
