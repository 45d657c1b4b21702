"""Bring a box up to a fixed place with a Panda: MuJoCo Playground's `PandaPickCubeCartesian`.

A box of 4 x 4 x 6 cm stands on the floor in front of the hand, a few centimetres to its left or
right; a ghost 0.2 m up shows where it is wanted. The action moves the tool centre point sideways
and up and down, the hand's rotation and the tool's x staying what they are, and the gripper. Joint
targets follow in closed form from the tool's target; where there are none, they stay.

**Success**: the box's centre is within `target_distance` (5 cm) of the target's. The episode
terminates there, and as in `panda_pick_cube`.

The observation is the 66 numbers of `panda_pick_cube`, whether the last target was out of reach,
and the last action. The reward pays what the published weighted sum gains above its best of the
episode. Playground does five things otherwise: it starts the box half in the floor; its gripper
takes the sign of the action alone; its contact of hand and box has a weight that it never adds; its
tool centre point is 3.4 mm further down; it begins one episode in twenty with the box in the hand,
evaluations too. Here that is a choice of training, `algo.starts.bank=0.05`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.rewards import RunningMax
from penspin_style.env.task import Expert, ObsTerm
from penspin_style.features import ActionChannel
from penspin_style.sim.sim import Sim
from tasks.panda.pick_cube import (
    HALF,
    PICKED,
    PICKED_CTRL,
    PickConfig,
    PickCube,
    add_contact_sensor,
    start_rows,
)
from tasks.robots.panda import kinematics
from tasks.robots.panda.description import FINGER_OPEN

LOW_HOME = (-2e-05, 0.47804, -0.00055, -1.81309, -0.00161, 2.34597, 0.78501, FINGER_OPEN)
"""The published keyframe `low_home`."""
SAG = 0.03  # m that the arm's weight brings the tool nearer than its target
HEIGHT = 0.20  # m, of the box's target
REACH = ((-0.32, 0.32), (0.02, 0.5))  # m, of the tool's target: y, z
JAW = 0.02  # m that an action of 1 opens the gripper by
LIFTED = 0.05  # m, height of the box from which on it counts as lifted


@dataclass
class CartesianConfig(PickConfig):
    """Numbers of the task, with images or without."""

    control_dt: float = 0.05
    episode_length: int = 200
    reward: dict[str, float] = field(default_factory=lambda: {"progress": 1.0})
    potential: dict[str, float] = field(
        default_factory=lambda: {
            "gripper_box": 4.0,
            "box_target": 8.0,
            "no_floor_collision": 0.25,
            "no_box_collision": 0.05,
            "robot_target_qpos": 0.0,
            "action_rate": -0.0005,
            "no_solution": -0.01,
            "lifted": 0.5,
            "success": 2.0,
        }
    )
    """Weights of the sum whose gains are the reward."""
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {"teacher": {name: ObsTerm() for name in PickCubeCartesian.units}}
    )
    action_scale: float = 0.005
    """m that the tool's target moves for an action of 1."""
    box_init_range: float = 0.05
    """m, half width of the draw of the box's y."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        super().__post_init__()
        if set(self.potential) != set(_POTENTIAL):
            raise ValueError(
                f"task.potential must weigh {', '.join(_POTENTIAL)}; got {self.potential}"
            )
        if not 0.0 <= self.box_init_range <= 0.3:
            raise ValueError(
                f"task.box_init_range must be in [0, 0.3] m, got {self.box_init_range}"
            )


_POTENTIAL = (
    *("gripper_box", "box_target", "no_floor_collision", "no_box_collision"),
    *("robot_target_qpos", "action_rate", "no_solution", "lifted", "success"),
)
C = TypeVar("C", bound=CartesianConfig)


class PickCubeCartesian(PickCube[C]):
    """What the task shares with `panda_pick_cube_cartesian_vision`."""

    home: ClassVar[tuple[float, ...]] = LOW_HOME
    units: ClassVar[dict[str, str]] = {**PickCube.units, "no_solution": "1", "last_action": "1"}

    def spec(self) -> mujoco.MjSpec:
        """Return the world of `panda_pick_cube`, and whether hand and box touch."""
        spec = super().spec()
        add_contact_sensor(spec, "hand_capsule", "box")
        return spec

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return y and z of the tool's target, and the gripper's."""
        scale = self.cfg.action_scale
        moves = (
            ActionChannel(f"tcp_{axis}", "m", scale, low, high, "delta")
            for axis, (low, high) in zip("yz", REACH, strict=True)
        )
        return (*moves, ActionChannel("gripper", "m", JAW, 0.0, FINGER_OPEN, "delta"))

    def start(self, sim: Sim) -> None:
        """Look up ids; find where the tool begins; allocate what an episode remembers."""
        super().start(sim)
        n, device = sim.num_envs, sim.device
        at, turn = kinematics.forward(self.home_ctrl[None, :7])
        self.begin, self.turn = at[0], turn
        self.plane = float(at[0, 0]) - SAG
        self.reach = torch.tensor(REACH, device=device).unbind(1)
        self.hand_box = int(sim.model.sensor_adr[sim.model.sensor("hand_capsule_box").id])
        self.memory |= {
            "tip": at.repeat(n, 1),
            "no_solution": torch.zeros(n, 1, device=device),
            "last_action": torch.zeros(n, 3, device=device),
            "action_rate": torch.zeros(n, device=device),
            "first": torch.zeros(n, device=device),
        }
        self.record = RunningMax(self.memory, "record", self.cfg.potential, sim)

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Put the arm at home and the box on the floor, somewhere on a line before the hand."""
        n, device = sim.num_envs, sim.device
        draw = torch.rand(n, generator=rng, device=device)
        box = torch.tensor((self.plane, 0.0, HALF[2]), device=device).repeat(n, 1)
        box[:, 1] = self.cfg.box_init_range * (2.0 * draw - 1.0)
        target = torch.tensor((self.plane, 0.0, HEIGHT), device=device).expand(n, 3)
        self.put(sim, mask, box, target, self.target_quat(n, rng))
        self.memory["tip"].copy_(torch.where(mask[:, None], self.begin, self.memory["tip"]))
        for name in ("no_solution", "last_action", "action_rate", "first"):
            self.memory[name][mask] = 0.0
        self.record.clear(mask)

    def target_quat(self, num_envs: int, rng: torch.Generator) -> Tensor:
        """Return no rotation: the target stands upright, as the box does."""
        return torch.eye(1, 4, device=rng.device).expand(num_envs, 4)

    def followed(self, sim: Sim) -> Tensor:
        """Return y and z of the tool's target, and the gripper's."""
        return torch.cat((self.memory["tip"][:, 1:], sim.data.ctrl[:, 7:8].float()), dim=1)

    def start_bank(self, device: torch.device) -> Tensor:
        """Return the published keyframe `picked`, from which a training may begin."""
        return start_rows((PICKED,), (PICKED_CTRL,), device)

    def set_start_state(self, sim: Sim, mask: Tensor, rows: Tensor, rng: torch.Generator) -> None:
        """Start from such rows; the tool's target is where their commands bring it."""
        super().set_start_state(sim, mask, rows, rng)
        tip, _ = kinematics.forward(sim.data.ctrl[:, :7].float())
        self.memory["tip"].copy_(torch.where(mask[:, None], tip, self.memory["tip"]))

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Move the tool's target, as far as the arm reaches, and the gripper's."""
        memory, ctrl = self.memory, sim.data.ctrl
        goal = memory["tip"].clone()
        goal[:, 1:] += self.cfg.action_scale * action[:, :2]
        goal[:, 1:] = goal[:, 1:].clamp(*self.reach)
        turn = self.turn.expand(sim.num_envs, 3, 3)
        joints, exists = kinematics.inverse(goal, turn, ctrl[:, :7].float())
        memory["tip"].copy_(torch.where(exists[:, None], goal, memory["tip"]))
        memory["no_solution"].copy_(~exists[:, None])
        memory["action_rate"].copy_((action - memory["last_action"]).norm(dim=1))
        memory["last_action"].copy_(action)
        jaw = ctrl[:, 7:8] + JAW * action[:, 2:]
        ctrl.copy_(torch.cat((joints, jaw), dim=1).clamp(self.low, self.high))

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the terms of `units`."""
        own = {name: self.memory[name] for name in ("no_solution", "last_action")}
        return {**super().observe(sim), **own}

    def potential(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return the terms of the published sum, (num_envs,) each."""
        _, box, _ = self._positions(sim)
        return {
            **super().reward(sim, action),
            "no_box_collision": 1.0 - (sim.data.sensordata[:, self.hand_box] > 0).float(),
            "action_rate": self.memory["action_rate"],
            "no_solution": self.memory["no_solution"][:, 0],
            "lifted": (box[:, 2] > LIFTED).float(),
            "success": self.success(sim).float(),
        }

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return what the sum of `potential` has gained above its best."""
        begins = self.memory["record"].isinf()
        gain = self.record.gain(self.potential(sim, action))
        first = self.memory["first"]
        first.copy_(torch.where(begins, self.memory["record"], first))
        return {"progress": gain}

    def progress(self, sim: Sim) -> Tensor:
        """Return what the sum has gained since the episode's first step."""
        return (self.memory["record"] - self.memory["first"]).clamp(min=0.0)

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the box is at its target, has left the world, or is below the floor."""
        return super().terminated(sim) | self.success(sim)

    def expert(self, sim: Sim) -> Expert:
        """Return the script that takes the box and lifts it."""
        from tasks.panda.pick_cube_cartesian_expert import CartesianExpert

        return CartesianExpert(self, sim)


@dataclass
class Config(CartesianConfig):
    """Numbers of the task."""


class PandaPickCubeCartesian(PickCubeCartesian[Config]):
    """See the module's docstring."""

    Config = Config

    def success(self, sim: Sim) -> Tensor:
        """Return whether the box's centre is within `target_distance` of the target's."""
        return self.is_at_target(sim)


NAME = "panda_pick_cube_cartesian"
TASK = PandaPickCubeCartesian
