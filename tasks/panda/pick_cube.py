"""Bring a box to a target with a Franka Panda: MuJoCo Playground's `PandaPickCube`.

A box of 4 x 4 x 6 cm stands at a random place on the floor; a ghost in the air shows where it is
wanted. The action moves the position targets of the arm's seven joints and of the gripper. The 66
numbers of the observation, the reward and the initial draws are the published ones.

**Success**: the box's centre is within `target_distance` (5 cm) of the target's; its rotation does
not matter. Playground defines none for this task; 5 cm is what its Cartesian variant uses.

The episode terminates when the box is more than 1 m from the origin along any axis, or its centre
is below the floor; the time limit truncates it.

`PickCube` is what this task shares with `panda_pick_cube_orientation`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.checks import check_reward_keys
from penspin_style.env.rewards import RunningMax, near
from penspin_style.env.task import Expert, ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim
from tasks.panda.pick_cube_expert import PickCubeExpert
from tasks.robots.panda import model as panda
from tasks.robots.panda.description import ARM, FINGER_OPEN, TCP

HALF = (0.02, 0.02, 0.03)  # m
MASS = 0.096  # kg
START = (0.7, 0.0, HALF[2])  # m, middle of the places where the box starts
SPREAD = 0.2  # m, half width of the draws of x and y, of the box and of the target
LIFT = (0.2, 0.4)  # m, of the target above START
WORLD = 1.0  # m
HOME = (0.0, 0.3, 0.0, -1.57079, 0.0, 2.0, -0.7853, FINGER_OPEN)
GRASP = 0.02  # m from gripper to box at which a search sees a gripper as there
HAND = ("left_finger_pad", "right_finger_pad", "hand_capsule")  # the geoms that meet the floor


@dataclass
class PickConfig(TaskConfig):
    """Numbers of both tasks."""

    control_dt: float = 0.02
    episode_length: int = 150
    reward: dict[str, float] = field(
        default_factory=lambda: {
            "gripper_box": 4.0,
            "box_target": 8.0,
            "no_floor_collision": 0.25,
            "robot_target_qpos": 0.3,
        }
    )
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {"teacher": {name: ObsTerm() for name in PickCube.units}}
    )
    action_scale: float = 0.04
    """Change of a joint's target for an action of 1: rad, and m for the gripper."""
    reached_distance: float = 0.012
    """Metres from gripper to box, to be undercut once per episode before `box_target` pays."""
    target_distance: float = 0.05
    """Metres from box to target that count as success."""
    dynamics_noise: bool = False
    """Vary the box's mass and friction and the arm's damping, which Playground does not."""
    skin: bool = False
    """Draw the Menagerie's meshes instead of our primitives, where they are installed."""


PICKUP = (
    (
        *(0.2897, 0.50732, -0.140016, -2.176, -0.0310497, 2.51592, -0.49251, 0.04, 0.0399982),
        *(0.511684, 0.0645413, 0.0298665, 0.6657811, 0.0, 0.0, -0.7461471),
    ),
    (
        *(0.2897, 0.496673, -0.142836, -2.14746, -0.0295746, 2.52378, -0.492496, 0.04, 0.0399988),
        *(0.529553, 0.0731702, 0.0299388, 0.9420897, 8.846127e-06, -4.975239e-06, -0.3353609),
    ),
)
PICKUP_CTRL = (
    (0.2897, 0.423, -0.144392, -2.13105, -0.0291743, 2.52586, -0.492492, 0.04),
    (0.2897, 0.458, -0.144392, -2.13105, -0.0291743, 2.52586, -0.492492, 0.04),
)
"""The published keyframes `pickup` and `pickup1`, open fingers around a box: qpos, and ctrl,"""
PICKED = (
    *(0.0481, 0.5604, -0.0417, -1.8459, 0.0342, 2.3654, 0.7852, 0.0198, 0.02),
    *(0.6368, 0.0064, 0.1179, 0.9999797, 9.999797e-05, -0.0009999797, -0.006299872),
)
PICKED_CTRL = (*PICKED[:7], 0.0)
"""and `picked`, a box in the hand."""
P = TypeVar("P", bound=PickConfig)


def start_rows(
    qpos: Sequence[Sequence[float]], ctrl: Sequence[Sequence[float]], device: torch.device
) -> Tensor:
    """Return states at rest as `Task.start_bank` does."""
    still = [0.0] * (len(qpos[0]) - 1)  # a quaternion has three velocities
    rows = [(*q, *still, *u) for q, u in zip(qpos, ctrl, strict=True)]
    return torch.tensor(rows, device=device)


class PickCube(Task[P]):
    """Everything but the target's rotation and what success asks of it."""

    home: ClassVar[tuple[float, ...]] = HOME
    """Where the arm begins, its seven joints and a finger, rad and m."""
    units: ClassVar[dict[str, str]] = {
        "qpos": "1",
        "qvel": "1",
        "gripper_pos": "m",
        "gripper_mat": "1",
        "box_mat": "1",
        "gripper_to_box": "m",
        "box_to_target": "m",
        "box_to_target_mat": "1",
        "ctrl_error": "1",
    }

    @abstractmethod
    def target_quat(self, num_envs: int, rng: torch.Generator) -> Tensor:
        """Draw rotations of the target, (num_envs, 4)."""

    def spec(self) -> mujoco.MjSpec:
        """Return floor, robot, box, the ghost, and sensors of contact between hand and floor."""
        spec = panda.scene(gravcomp=False, skin=self.cfg.skin)
        panda.add_box(spec, HALF, MASS, (0.2, 0.65, 0.3, 1.0))
        target = spec.worldbody.add_body(name="target", mocap=True, pos=START)
        target.add_geom(
            name="target",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=HALF,
            mass=0,
            rgba=[0.2, 0.65, 0.3, 0.3],
            contype=0,
            conaffinity=0,
        )
        for geom in HAND:
            add_contact_sensor(spec, geom, "floor")
        return spec

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the changes of the eight position targets."""
        scale = self.cfg.action_scale
        return tuple(
            ActionChannel(joint.name, joint.unit, scale, joint.low, joint.high, "delta")
            for joint in self.joints
        )

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the arm's seven joints and one finger."""
        return panda.joints(self.spec().compile(), torch.tensor(self.home))

    def randomize(self) -> list[Randomize]:
        """Vary the box's mass and friction and the arm's damping, if `dynamics_noise` says so."""
        if not self.cfg.dynamics_noise:
            return []
        return [
            Randomize("body_mass", names="box", operation="scale", low=0.5, high=2.0),
            Randomize("geom_friction", names="box", column=0, operation="abs", low=0.7, high=1.2),
            Randomize("dof_damping", names="joint[1-7]", operation="scale", low=0.9, high=1.1),
        ]

    def start(self, sim: Sim) -> None:
        """Look up ids; remember whether the gripper has reached the box."""
        model = sim.model
        self.tcp = model.site(TCP).id
        self.box = model.body("box").id
        self.target = model.body("target").id
        self.mocap = int(model.body_mocapid[self.target])
        self.box_qpos = int(model.jnt_qposadr[model.joint("box").id])
        touch = [int(model.sensor_adr[model.sensor(f"{geom}_floor").id]) for geom in HAND]
        self.touch = torch.tensor(touch, device=sim.device)
        limits = torch.as_tensor(model.actuator_ctrlrange, dtype=torch.float32)
        self.low, self.high = limits.to(sim.device).unbind(1)
        self.home_ctrl = torch.tensor(self.home, device=sim.device)
        self.start_pos = torch.tensor(START, device=sim.device)
        self.memory = {"reached": torch.zeros(sim.num_envs, dtype=torch.bool, device=sim.device)}

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Put the arm at home, the box on the floor and the target above it, both anywhere."""
        n, device = sim.num_envs, sim.device
        draw = torch.rand(n, 5, generator=rng, device=device)
        start = self.start_pos
        box = start.repeat(n, 1)
        box[:, :2] += SPREAD * (2.0 * draw[:, :2] - 1.0)
        target = torch.empty(n, 3, device=device)
        target[:, :2] = start[:2] + SPREAD * (2.0 * draw[:, 2:4] - 1.0)
        target[:, 2] = start[2] + LIFT[0] + (LIFT[1] - LIFT[0]) * draw[:, 4]
        self.put(sim, mask, box, target, self.target_quat(n, rng))

    def put(self, sim: Sim, mask: Tensor, box: Tensor, target: Tensor, turned: Tensor) -> None:
        """Begin at home with box and target at (num_envs, 3) m, the target turned (num_envs, 4)."""
        n, fingers = sim.num_envs, len(ARM)
        qpos = sim.data.qpos.clone()
        qpos[:, : fingers + 1] = self.home_ctrl
        qpos[:, fingers + 1] = FINGER_OPEN
        qpos[:, self.box_qpos : self.box_qpos + 3] = box
        write(sim.data.qpos, qpos, mask)
        write(sim.data.ctrl, self.home_ctrl.expand(n, -1), mask)
        write(sim.data.mocap_pos[:, self.mocap], target, mask)
        write(sim.data.mocap_quat[:, self.mocap], turned, mask)
        self.memory["reached"].masked_fill_(mask, False)

    def progress(self, sim: Sim) -> Tensor:
        """Return how far the box is above the floor, m."""
        return (sim.data.xpos[:, self.box, 2] - HALF[2]).clamp(min=0.0)

    def start_bank(self, device: torch.device) -> Tensor | None:
        """Return the published keyframes, from which a training may begin."""
        return start_rows((*PICKUP, PICKED), (*PICKUP_CTRL, PICKED_CTRL), device)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Add to the last targets, not to the measured joints."""
        ctrl = sim.data.ctrl
        ctrl.copy_((ctrl + self.cfg.action_scale * action).clamp(self.low, self.high))

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the terms of `units`; of each rotation matrix two rows, as published."""
        data = sim.data
        gripper, box, target = self._positions(sim)
        box_mat = data.xmat[:, self.box]
        return {
            "qpos": data.qpos,
            "qvel": data.qvel,
            "gripper_pos": gripper,
            "gripper_mat": data.site_xmat[:, self.tcp, 1:],
            "box_mat": box_mat[:, 1:],
            "gripper_to_box": box - gripper,
            "box_to_target": target - box,
            "box_to_target_mat": data.xmat[:, self.target, :2] - box_mat[:, :2],
            "ctrl_error": data.ctrl - data.qpos[:, : len(ARM) + 1],
        }

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return the four published terms; `box_target` pays once the box has been reached.

        And `close`, if `task.reward` weighs it, which is not published: fingers shut at the box.
        """
        gripper, box, target = self._positions(sim)
        to_box = (box - gripper).norm(dim=1)
        reached = self.memory["reached"]
        reached |= to_box < self.cfg.reached_distance
        # the distance of two rotation matrices by their first two rows
        turn = (sim.data.xmat[:, self.target, :2] - sim.data.xmat[:, self.box, :2]).flatten(1)
        to_target = 0.9 * (target - box).norm(dim=1) + 0.1 * turn.norm(dim=1)
        arm = slice(0, len(ARM))
        from_home = (sim.data.qpos[:, arm] - self.home_ctrl[arm]).norm(dim=1)
        touches = (sim.data.sensordata[:, self.touch] > 0).any(dim=1)
        terms = {
            "gripper_box": near(to_box, 5.0),
            "box_target": near(to_target, 5.0) * reached,
            "no_floor_collision": 1.0 - touches.float(),
            "robot_target_qpos": near(from_home, 1.0),
        }
        if "close" in self.cfg.reward:
            terms["close"] = near(to_box, 1.0 / GRASP) * (1.0 - self._opening(sim)).clamp(min=0.0)
        return terms

    def search_cost(self, sim: Sim, *, still: bool) -> dict[str, Tensor]:
        """Return what the reward leaves open: how the gripper comes to the box, and what then.

        `closed`: fingers shut, as a share, away from the box; `loose`: open there; `oblique`: the
        gripper does not point down, 1 - cos; `lost`: the gripper has left the box behind, m.
        """
        gripper, box, _ = self._positions(sim)
        to_box = (box - gripper).norm(dim=1)
        at_box = near(to_box, 1.0 / GRASP)
        opening = self._opening(sim)
        return {
            "closed": (1.0 - at_box) * (1.0 - opening).clamp(min=0.0),
            "loose": at_box * (opening - HALF[1] / FINGER_OPEN).clamp(min=0.0),
            "oblique": 1.0 + sim.data.site_xmat[:, self.tcp, 2, 2],
            "lost": to_box * self.memory["reached"],
        }

    def expert(self, sim: Sim) -> Expert:
        """Return the script that takes the box and brings it to its target."""
        return PickCubeExpert(self, sim)

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the box has left the world, or its centre is below the floor."""
        box = sim.data.xpos[:, self.box]
        return (box.abs() > WORLD).any(dim=1) | (box[:, 2] < 0.0)

    def is_at_target(self, sim: Sim) -> Tensor:
        """Return whether the box's centre is within `target_distance` of the target's."""
        _, box, target = self._positions(sim)
        return (target - box).norm(dim=1) < self.cfg.target_distance

    def _opening(self, sim: Sim) -> Tensor:
        """Return how far the gripper is open, (num_envs,): 0 shut, 1 wide."""
        return sim.data.qpos[:, len(ARM)].float() / FINGER_OPEN

    def _positions(self, sim: Sim) -> tuple[Tensor, Tensor, Tensor]:
        """Return gripper, box and target in the world, (num_envs, 3) m each."""
        xpos = sim.data.xpos
        return sim.data.site_xpos[:, self.tcp], xpos[:, self.box], xpos[:, self.target]


def add_contact_sensor(spec: mujoco.MjSpec, geom: str, other: str) -> None:
    """Add the sensor `GEOM_OTHER`, a positive number while the two geoms touch."""
    spec.add_sensor(
        name=f"{geom}_{other}",
        type=mujoco.mjtSensor.mjSENS_CONTACT,
        objtype=mujoco.mjtObj.mjOBJ_GEOM,
        objname=geom,
        reftype=mujoco.mjtObj.mjOBJ_GEOM,
        refname=other,
        # what to report (whether a contact was found), how to choose among many, how many
        intprm=[1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND), 0, 1],
    )


def write(field: Tensor, value: Tensor, mask: Tensor) -> None:
    """Write value (num_envs, n) into a live field where the mask says."""
    field.copy_(torch.where(mask[:, None], value.to(field.dtype), field))


@dataclass
class JointPickConfig(PickConfig):
    """Numbers of the task, the target turned or not."""

    running_max: bool = False
    """Pay only what the weighted sum of the terms gains above its best of the episode."""


J = TypeVar("J", bound=JointPickConfig)


class JointPickCube(PickCube[J]):
    """What acts on the joints and is paid as published, or for each record of that."""

    def start(self, sim: Sim) -> None:
        """Allocate also the record, if it is what pays."""
        super().start(sim)
        self.record = None
        if self.cfg.running_max:
            self.record = RunningMax(self.memory, "record", self.cfg.reward, sim)

    def put(self, sim: Sim, mask: Tensor, box: Tensor, target: Tensor, turned: Tensor) -> None:
        """Forget also the record."""
        super().put(sim, mask, box, target, turned)
        if self.record is not None:
            self.record.clear(mask)

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return the terms, or, with `running_max`, the share of each in what they gain."""
        terms = super().reward(sim, action)
        if self.record is None:
            return terms
        check_reward_keys(terms, self.cfg.reward)
        total = self.record.weigh(terms)
        share = self.record.gain_of(total) / total.clamp(min=1e-6)
        return {name: value * share for name, value in terms.items()}


@dataclass
class Config(JointPickConfig):
    """Numbers of the task."""


class PandaPickCube(JointPickCube[Config]):
    """See the module's docstring."""

    Config = Config

    def target_quat(self, num_envs: int, rng: torch.Generator) -> Tensor:
        """Return no rotation: the target stands upright, as the box does."""
        return torch.eye(1, 4, device=rng.device).expand(num_envs, 4)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the box's centre is within `target_distance` of the target's."""
        return self.is_at_target(sim)


NAME = "panda_pick_cube"
TASK = PandaPickCube
