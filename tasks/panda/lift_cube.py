"""Lift a cube with a Franka Panda: the task of SERL's and RLinf's `PandaPickCube-v0`.

A 4 cm cube lies at a random place on the floor. The action moves the tool centre point (three
numbers) and the gripper (one); the gripper keeps pointing down.

**Success**: the cube's centre has risen by at least `lift_height` (0.2 m) above where it lay, and
is within `hold_distance` (5 cm) of the tool centre point: held, not thrown. `success_once` counts
an episode in which that was so at any step.

The episode terminates when the cube leaves the workspace by more than 15 cm; the time limit
truncates it.

What SERL's version gets wrong and this one does not: success is defined; the time limit is
`truncated`, never `terminated`; the gripper term is the measured joint, not the command; cameras
have names; every environment draws from the one seeded generator; no noslip iterations, which
MuJoCo Warp refuses. A step moves the target by at most 2.5 cm, not 10 cm.
"""

from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.rewards import progress
from penspin_style.env.task import Expert, ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim
from tasks.robots.panda import description
from tasks.robots.panda import model as panda
from tasks.robots.panda.description import FINGER, FINGER_OPEN, TCP, WORKSPACE

HALF = 0.02  # m
ABSENT = (-0.9, 0.0, HALF)  # m
HOME = torch.tensor(description.HOME)

PRIVILEGED = (
    *("tcp_pos", "tcp_vel", "target_error", "gripper", "gripper_target"),
    *("box_pos", "box_to_tcp", "box_vel", "box_yaw"),
)
"""What the teacher observes."""


@dataclass
class LiftConfig(TaskConfig):
    """Numbers of the lifting tasks."""

    control_dt: float = description.CONTROL_DT
    episode_length: int = 80
    reward: dict[str, float] = field(
        default_factory=lambda: {"reach": 0.1, "grasp": 0.3, "close": 0.3, "lift": 2.0}
    )
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {name: ObsTerm() for name in PRIVILEGED},
        }
    )
    move_scale: float = description.MOVE_SCALE
    """Metres that the target moves for an action of 1."""
    grip_scale: float = description.GRIP_SCALE
    """Share of the gripper's stroke that its target moves for an action of 1."""
    lift_height: float = 0.2
    """Metres that the cube must rise."""
    hold_distance: float = 0.05
    """Metres between cube and tool centre point that still count as held."""
    joint_noise: float = 0.05
    """Half width of the noise on the arm's initial joints, rad."""
    box_yaw: float = 0.3
    """Half width of the cube's initial yaw, rad."""
    skin: bool = False
    """Draw the Menagerie's meshes instead of our primitives, where they are installed."""


C = TypeVar("C", bound=LiftConfig)


class LiftCube(Task[C]):
    """What the lifting tasks share."""

    units: ClassVar[dict[str, str]] = {
        "tcp_pos": "m",
        "tcp_vel": "m/s",
        "target_error": "m",
        "gripper": "m",
        "gripper_target": "1",
        "box_pos": "m",
        "box_to_tcp": "m",
        "box_vel": "m/s",
        "box_yaw": "1",
    }

    def spec(self) -> mujoco.MjSpec:
        """Return floor, robot and cube, with a velocity sensor at the tool centre point."""
        spec = panda.scene(gravcomp=True, skin=self.cfg.skin)
        panda.add_box(spec, (HALF, HALF, HALF), 0.1, (0.85, 0.25, 0.2, 1.0))
        spec.add_sensor(
            name="tcp_vel",
            type=mujoco.mjtSensor.mjSENS_FRAMELINVEL,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname=TCP,
        )
        return spec

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return x, y, z of the tool centre point's target, and the gripper's."""
        cfg = self.cfg
        return description.tool_actions(move_scale=cfg.move_scale, grip_scale=cfg.grip_scale)

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the arm's seven joints and one finger."""
        return panda.joints(self.spec().compile(), HOME)

    def randomize(self) -> list[Randomize]:
        """Vary the cube's mass and friction, the joints' damping, and the start."""
        noise = self.cfg.joint_noise
        return [
            Randomize("body_mass", names="box", operation="scale", low=0.5, high=2.0),
            Randomize("geom_friction", names="box", column=0, operation="abs", low=0.7, high=1.2),
            Randomize("dof_damping", names="joint[1-7]", operation="scale", low=0.9, high=1.1),
            Randomize("qpos", names="joint[1-7]", operation="add", low=-noise, high=noise),
        ]

    def start(self, sim: Sim) -> None:
        """Look up ids and views; remember the targets, which integrate the actions."""
        model, n, device = sim.model, sim.num_envs, sim.device
        self.arm = panda.CartesianArm(sim, HOME)
        box, joint = model.body("box").id, model.joint("box").id
        # views of the live fields, taken once
        self.box = sim.data.xpos[:, box]
        self.box_heading = sim.data.xmat[:, box, :2, 0]
        self.box_linvel = sim.data.qvel[:, (at := int(model.jnt_dofadr[joint])) : at + 3]
        self.finger = sim.data.qpos[:, int(model.jnt_qposadr[model.joint(FINGER).id])]
        self.tcp_linvel = sim.data.sensordata[:, :3]
        self.box_qpos = int(model.jnt_qposadr[joint])
        self.low, self.high = torch.tensor(WORKSPACE, device=device).unbind(1)
        self.centre = 0.5 * (self.low + self.high)[:2]
        self.reach = 0.5 * (self.high - self.low)[:2]
        self.home = HOME.to(device, sim.data.ctrl.dtype)
        self.start_qpos = sim.data.qpos[0].clone()
        self.start_qpos[:8] = self.home
        self.start_qpos[8] = FINGER_OPEN
        self.memory = {
            "target": torch.zeros(n, 3, device=device),
            "opening": torch.ones(n, device=device),
            "placed": torch.zeros(n, dtype=torch.bool, device=device),
            "is_absent": torch.zeros(n, dtype=torch.bool, device=device),
        }

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Put the arm at home with an open gripper and the cube somewhere on the floor."""
        draw = 2.0 * torch.rand(sim.num_envs, 3, generator=rng, device=sim.device) - 1.0
        at = self.box_qpos
        row = self.start_qpos.repeat(sim.num_envs, 1)
        row[:, at : at + 2] = self.centre + self.reach * draw[:, :2]
        half_yaw = 0.5 * self.cfg.box_yaw * draw[:, 2]
        row[:, at + 3] = torch.cos(half_yaw)
        row[:, at + 6] = torch.sin(half_yaw)
        sim.data.qpos.copy_(torch.where(mask[:, None], row, sim.data.qpos))
        sim.data.ctrl.copy_(torch.where(mask[:, None], self.home, sim.data.ctrl))
        self.memory["opening"].masked_fill_(mask, 1.0)
        self.memory["placed"].masked_fill_(mask, False)
        self.memory["is_absent"].masked_fill_(mask, False)

    def remove_object(self, sim: Sim, mask: Tensor) -> None:
        """Put the cube behind the robot's back, where no camera looks."""
        place = torch.tensor(ABSENT, dtype=sim.data.qpos.dtype, device=sim.device)
        cube = sim.data.qpos[:, self.box_qpos : self.box_qpos + 3]
        cube.copy_(torch.where(mask[:, None], place, cube))
        self.memory["is_absent"].logical_or_(mask)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Move the targets; let the arm follow its one by inverse kinematics."""
        target, opening = self.target(), self.memory["opening"]
        target.add_(action[:, :3], alpha=self.cfg.move_scale)
        torch.clamp(target, self.low, self.high, out=target)
        opening.add_(action[:, 3], alpha=self.cfg.grip_scale).clamp_(0.0, 1.0)
        self.arm.command(target)
        sim.data.ctrl[:, 7] = FINGER_OPEN * opening

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the terms of `units`."""
        target, tcp = self.target(), self.arm.position
        return {
            "tcp_pos": tcp,
            "tcp_vel": self.tcp_linvel,
            "target_error": target - tcp,
            "gripper": self.finger,
            "gripper_target": self.memory["opening"],
            "box_pos": self.box,
            "box_to_tcp": tcp - self.box,
            "box_vel": self.box_linvel,
            "box_yaw": self.box_heading,
        }

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return SERL's `grasp` and `lift`, a wide `reach`, and `close` that finds the grasp."""
        distance = self._distance()
        near = torch.exp(-20.0 * distance)
        return {
            "reach": torch.exp(-5.0 * distance),
            "grasp": near,
            "close": near * (1.0 - self.memory["opening"]),
            "lift": progress(self.box[:, 2], HALF, HALF + 1.1 * self.cfg.lift_height),
        }

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the cube has left the workspace by more than 15 cm."""
        margin = 0.15
        outside = (self.box[:, :2] - self.centre).abs() > self.reach + margin
        gone = outside.any(dim=1) | (self.box[:, 2] < -margin)
        return gone & ~self.memory["is_absent"]

    def success(self, sim: Sim) -> Tensor:
        """Return whether the cube is held `lift_height` above where it lay."""
        held = self._distance() < self.cfg.hold_distance
        return held & (self.box[:, 2] >= HALF + self.cfg.lift_height)

    def expert(self, sim: Sim) -> Expert:
        """Return the script of `lift_cube_expert.py`."""
        from tasks.panda.lift_cube_expert import LiftExpert

        return LiftExpert(self, sim)

    def target(self) -> Tensor:
        """Return where the tool centre point is to be, (num_envs, 3) m."""
        # it starts at the tool centre point, which is known once the reset is forwarded
        placed, target = self.memory["placed"], self.memory["target"]
        here = self.arm.position.clamp(self.low, self.high)
        target.copy_(torch.where(placed[:, None], target, here))
        placed.fill_(True)
        return target

    def _distance(self) -> Tensor:
        return (self.box - self.arm.position).norm(dim=1)


@dataclass
class Config(LiftConfig):
    """Numbers of the task."""


class PandaLiftCube(LiftCube[Config]):
    """See the module's docstring."""

    Config = Config


NAME = "panda_lift_cube"
TASK = PandaLiftCube
