"""What one arm of ALOHA sees of the object that it picks, and how late it acts on it.

All is in the frame of the arm's own base, so that one policy serves both arms. A task makes one
`OneArm` for each arm, puts its `memory` among its own, and calls

    reset            clear(mask, rng)
    apply_action     delayed(action)
    substeps         draw(rng)
    observe          observe(target)

53 numbers, each with the published noise, drawn once a step for all groups that read them:

| term | numbers | noise |
| --- | --- | --- |
| qpos, qvel | 8 joints and fingers each | uniform, on the six joints |
| object_linvel, object_angvel | 3 each | uniform |
| gripper_mat | rows 1, 2 of the gripper's rotation | turned about a random axis |
| object_mat | rows 1, 2 of the object's | turned about a random axis |
| grip_error | 3, from the object's grip to the middle of the tips | difference of two uniform |
| target_error | 3, from the object to its target | uniform |
| target_mat | rows 0, 1: the target's, which is upright, less the object's | that of object_mat |
| command_error | 7, from the joints to their targets | that of qpos |

MuJoCo has a free body's angular velocity in the body's frame; it is turned into the base's here,
which upstream does as if it were the world's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from penspin_style import rotation
from penspin_style.sim.sim import Sim
from tasks.aloha.arms import QPOS, Arm
from tasks.robots.aloha.description import ARM, CHANNELS

UNITS = {
    "qpos": "1",
    "qvel": "1",
    "object_linvel": "m/s",
    "object_angvel": "rad/s",
    "gripper_mat": "1",
    "object_mat": "1",
    "grip_error": "m",
    "target_error": "m",
    "target_mat": "1",
    "command_error": "1",
}
"""The terms of `OneArm.observe`, in the published order."""


@dataclass
class Noise:
    """Half widths of the noise of one arm's observation."""

    joint_pos: float = 0.1
    """rad"""
    joint_vel: float = 0.1
    """rad/s"""
    object_linvel: float = 0.015
    """m/s"""
    object_angvel: float = 0.2
    """rad/s"""
    place: float = 0.015
    """m; of the fingertips' middle, of the object's grip, and of the object, drawn apart."""
    gripper_angle: float = 5.0
    """Degrees, the most by which a rotation is turned."""
    object_angle: float = 5.0
    """Degrees; published are 7.5 for the insertion."""
    scale: float = 1.0
    """Factor of them all: 0 for none."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"task.noise.{name} must be finite and >= 0, got {value}")


@dataclass
class ActionLatency:
    """How many steps late actions take effect, drawn every step; odds of 0, 1, 2, ... steps."""

    arm: list[float] = field(default_factory=lambda: [0.857, 0.107, 0.0207, 0.0145])
    """One draw for the six joints."""
    gripper: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0, 1.0])

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        for name, odds in vars(self).items():
            if not odds or min(odds) < 0 or not 0 < sum(odds) < float("inf"):
                raise ValueError(
                    f"task.action_latency.{name} must be odds >= 0 of 0, 1, ... steps, got {odds}"
                )


class Errors(NamedTuple):
    """How far an arm is from its aims, without noise, in its base's frame."""

    grip: Tensor
    """(num_envs, 3) m, from the object's grip to the middle between the fingertips."""
    target: Tensor
    """(num_envs, 3) m, from the object to the target."""
    mat: Tensor
    """(num_envs, 2, 3), rows 0 and 1 of the target's rotation less the object's."""


_PARTS = (6, 6, 3, 3, 3, 3, 3)  # numbers with additive noise, in the order of `observe`
_GROUPS = (sum(_PARTS[:2]), *_PARTS[2:])  # the joints' positions and velocities together


class OneArm:
    """One arm and the free body that it picks, in a running simulation."""

    def __init__(
        self, sim: Sim, side: str, body: str, *, noise: Noise, latency: ActionLatency
    ) -> None:
        """Look up ids; allocate `memory`.

        body: has a site `BODY_grip` and `arms.add_touch_sensors`.
        """
        model, n, device = sim.model, sim.num_envs, sim.device
        self.sim, self.noise = sim, noise
        self.arm = Arm(sim, side, body)
        self.body = model.body(body).id
        self.grip = model.site(f"{body}_grip").id
        self.qpos = int(model.jnt_qposadr[model.joint(body).id])
        """Where the object's seven positions begin in `sim.data.qpos`."""
        self.qvel = int(model.jnt_dofadr[model.joint(body).id])
        self._odds = [torch.tensor(odds, device=device) for odds in (latency.arm, latency.gripper)]
        widths = (
            *(noise.joint_pos, noise.joint_vel, noise.object_linvel, noise.object_angvel),
            *(noise.place, noise.place, noise.place),
        )
        rows = [noise.scale * w for w, k in zip(widths, _PARTS, strict=True) for _ in range(k)]
        self._widths = torch.tensor(rows, device=device)
        self._angles = torch.deg2rad(
            noise.scale * torch.tensor([noise.gripper_angle, noise.object_angle], device=device)
        )
        self._upright = torch.eye(3, device=device)[:2]
        self._envs = torch.arange(n, device=device)
        past = max(len(odds) for odds in self._odds)
        self.memory = {
            "actions": torch.zeros(n, past, len(CHANNELS), device=device),
            "late": torch.zeros(n, 2, dtype=torch.long, device=device),
            "shifts": torch.zeros(n, len(rows), device=device),
            "turns": torch.eye(3, device=device).repeat(n, 2, 1, 1),
        }
        """Newest action first; steps by which joints and gripper are late; noise to add; noise of
        the gripper's and the object's rotation."""

    def clear(self, mask: Tensor, rng: torch.Generator) -> None:
        """Forget the actions of the masked environments; draw their first noise and latency."""
        self.memory["actions"].masked_fill_(mask[:, None, None], 0.0)
        self._draw(mask, rng)

    def draw(self, rng: torch.Generator) -> None:
        """Draw the noise of the next observation and the latency of the next action."""
        self._draw(None, rng)

    def delayed(self, action: Tensor) -> Tensor:
        """Take an action (num_envs, 7) in; return the one that takes effect now."""
        past, late = self.memory["actions"], self.memory["late"]
        past.copy_(torch.cat((action[:, None], past[:, :-1]), dim=1))
        arm, gripper = past[self._envs[:, None], late].unbind(dim=1)
        return torch.cat((arm[:, : len(ARM)], gripper[:, len(ARM) :]), dim=1)

    def place(self) -> Tensor:
        """Return where the object is, (num_envs, 3) m in the world."""
        return self.sim.data.xpos[:, self.body]

    def errors(self, target: Tensor) -> Errors:
        """Return how far the arm is from its aims; target: (num_envs, 3) m in the world."""
        return self._errors(target, self.arm.matrix_to_base(self.sim.data.xmat[:, self.body]))

    def _errors(self, target: Tensor, mat: Tensor) -> Errors:
        """Return the same; mat: the object's rotation, (num_envs, 3, 3), in the base's frame."""
        data, arm = self.sim.data, self.arm
        grip = arm.tips(self.sim) - data.site_xpos[:, self.grip]
        aim = target - data.xpos[:, self.body]
        return Errors(arm.vector_to_base(grip), arm.vector_to_base(aim), self._upright - mat[:, :2])

    def observe(self, target: Tensor) -> dict[str, Tensor]:
        """Return the terms of `UNITS`; target: (num_envs, 3) m in the world."""
        data, arm = self.sim.data, self.arm
        joints, *shifts = self.memory["shifts"].split(_GROUPS, dim=1)
        joints = functional.pad(joints.unflatten(1, (2, len(ARM))), (0, QPOS - len(ARM)))
        turns = self.memory["turns"]
        live, moving = data.qpos[:, arm.qpos].float(), data.qvel.float()
        linear, angular = moving[:, self.qvel : self.qvel + 6].split(3, dim=1)
        qpos = live + joints[:, 0]
        body = data.xmat[:, self.body]
        spin = body @ angular[:, :, None]
        true = arm.matrix_to_base(body)
        gripper = turns[:, 0] @ arm.matrix_to_base(arm.matrix(self.sim))
        mat = turns[:, 1] @ true
        errors = self._errors(target, true)
        return {
            "qpos": qpos,
            "qvel": moving[:, arm.qpos] + joints[:, 1],
            "object_linvel": arm.vector_to_base(linear) + shifts[0],
            "object_angvel": arm.vector_to_base(spin[:, :, 0]) + shifts[1],
            "gripper_mat": gripper[:, 1:],
            "object_mat": mat[:, 1:],
            "grip_error": errors.grip + shifts[2] - shifts[3],
            "target_error": errors.target - shifts[4],
            "target_mat": self._upright - mat[:, :2],
            "command_error": data.ctrl[:, arm.ctrl].float() - qpos[:, : len(CHANNELS)],
        }

    def _draw(self, mask: Tensor | None, rng: torch.Generator) -> None:
        n, device, memory = self.sim.num_envs, self.sim.device, self.memory
        late = [torch.multinomial(odds, n, replacement=True, generator=rng) for odds in self._odds]
        _write(memory["late"], torch.stack(late, dim=1), mask)
        if self.noise.scale == 0:
            return
        draw = 2.0 * torch.rand(n, len(self._widths), generator=rng, device=device) - 1.0
        _write(memory["shifts"], self._widths * draw, mask)
        angle = self._angles * torch.rand(n, 2, generator=rng, device=device)
        axis = rotation.random_unit_vector((n, 2), rng)
        _write(memory["turns"], rotation.matrix_from_axis_angle(axis, angle), mask)


def draw_fan(
    rng: torch.Generator,
    n: int,
    *,
    radius: Sequence[float],
    bearing: float,
    yaw: float,
    middle: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Draw where objects lie in a fan before an arm: x, y (n, 2) m and yaw (n,) rad, in its base.

    radius: least and largest, m; bearing: half width about `middle`, rad; yaw: half width about
    the bearing, rad: the long axis points away from the base.
    """
    low, high = radius
    draw = torch.rand(n, 3, generator=rng, device=rng.device)
    r = low + (high - low) * draw[:, 0]
    towards = middle + bearing * (2.0 * draw[:, 1] - 1.0)
    place = torch.stack((r * towards.cos(), r * towards.sin()), dim=1)
    return place, towards + yaw * (2.0 * draw[:, 2] - 1.0)


def _write(field: Tensor, value: Tensor, mask: Tensor | None) -> None:
    if mask is not None:
        value = torch.where(mask.view(-1, *(1 for _ in value.shape[1:])), value, field)
    field.copy_(value)
