"""What the tasks on ALOHA's arms share: places in the model, base frames, targets, grasps, fans.

An object that a hand may grasp is named when the world is built (`add_touch_sensors`) and when the
hand is looked up (`Arm`). Positions are (num_envs, 3) m in the world unless they say otherwise.
"""

import math
from collections.abc import Sequence

import mujoco
import torch
from torch import Tensor

from penspin_style.features import ActionChannel
from penspin_style.sim.sim import Sim
from tasks.robots.aloha.description import BASES, CHANNELS, SIDES

FINGERS = ("left", "right")
QPOS = len(CHANNELS) + 1
"""Positions of one arm: six joints and two fingers."""
GRASP_ANGLE = math.radians(75.0)
"""How far a finger's force may be from the direction to the other finger."""
_FOUND, _FORCE = 1 << 0, 1 << 1
_NET_FORCE = 3  # one row: the number of contacts, and the sum of their forces in the world's frame


def add_touch_sensors(spec: mujoco.MjSpec, side: str, body: str) -> None:
    """Add `SIDE_FINGER_touches_BODY` for the two fingers: number of contacts, force on the body."""
    for finger in FINGERS:
        _add_contact_sensor(
            spec, f"{side}_{finger}_finger_link", mujoco.mjtObj.mjOBJ_BODY, body, _FOUND | _FORCE
        )


def add_table_sensors(spec: mujoco.MjSpec, side: str) -> None:
    """Add `SIDE_FINGER_touches_table` for the two fingers, positive while one touches it."""
    for finger in FINGERS:
        _add_contact_sensor(
            spec, f"{side}_{finger}_finger_link", mujoco.mjtObj.mjOBJ_GEOM, "table", _FOUND
        )


def _add_contact_sensor(
    spec: mujoco.MjSpec, link: str, kind: mujoco.mjtObj, other: str, data: int
) -> None:
    spec.add_sensor(
        name=f"{link.removesuffix('_finger_link')}_touches_{other}",
        type=mujoco.mjtSensor.mjSENS_CONTACT,
        objtype=mujoco.mjtObj.mjOBJ_BODY,
        objname=link,
        reftype=kind,
        refname=other,
        intprm=[data, _NET_FORCE, 1],
    )


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
        self._touch = [
            int(model.sensor_adr[model.sensor(f"{side}_{f}_touches_{grasps}").id])
            for f in (FINGERS if grasps else ())
        ]

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

    def forces(self, sim: Sim) -> tuple[Tensor, Tensor]:
        """Return the forces of the left and the right finger on what it may grasp, N."""
        data = sim.data.sensordata
        left, right = (data[:, at + 1 : at + 4] for at in self._touch)
        return left, right

    def touches(self, sim: Sim) -> Tensor:
        """Return whether a finger touches what the hand may grasp, (num_envs,) bool."""
        return (sim.data.sensordata[:, self._touch] > 0).any(dim=1)

    def grasps(self, sim: Sim, least: float = 2.5) -> Tensor:
        """Return whether both fingers press more than `least` N towards each other, (num_envs,)."""
        xpos = sim.data.site_xpos
        across = xpos[:, self._fingers[1]] - xpos[:, self._fingers[0]]
        across = across / across.norm(dim=1, keepdim=True)
        held = torch.ones(sim.num_envs, dtype=torch.bool, device=sim.device)
        for force, sign in zip(self.forces(sim), (1.0, -1.0), strict=True):
            size = force.norm(dim=1)
            towards = sign * (force * across).sum(dim=1)
            held &= (size > least) & (towards > math.cos(GRASP_ANGLE) * size)
        return held


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


def fan(
    num_envs: int,
    rng: torch.Generator,
    *,
    radius: tuple[float, float],
    bearing: float,
    yaw: float,
) -> tuple[Tensor, Tensor]:
    """Draw places before an arm: x, y (num_envs, 2) m in its base's frame, and yaws (num_envs,).

    A place is at `radius` m and up to `bearing` rad to either side; the object's long axis points
    away from the base, up to `yaw` rad off.
    """
    draw = torch.rand(num_envs, 3, generator=rng, device=rng.device)
    far = radius[0] + (radius[1] - radius[0]) * draw[:, 0]
    angle = bearing * (2.0 * draw[:, 1] - 1.0)
    place = torch.stack((far * angle.cos(), far * angle.sin()), dim=1)
    return place, angle + yaw * (2.0 * draw[:, 2] - 1.0)


def write(field: Tensor, value: Tensor, mask: Tensor) -> None:
    """Write value (num_envs, n) into a live field where the mask says."""
    field.copy_(torch.where(mask[:, None], value.to(field.dtype), field))


def both(sim: Sim, grasps: str = "") -> tuple[Arm, Arm]:
    """Return the left and the right arm."""
    left, right = (Arm(sim, side, grasps) for side in SIDES)
    return left, right
