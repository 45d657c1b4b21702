"""Hand a box from the left arm of ALOHA to the right one: MuJoCo Playground's `AlohaHandOver`.

A box of 4 x 3 x 6 cm stands on the left half of the table; a ghost in the air on the right shows
where it is wanted, out of the left arm's reach. The action moves the position targets of both arms'
joints and grippers. The 83 numbers of the observation, the reward and the initial draws are the
published ones.

**Success**: the box's centre is within `target_distance` (5 cm) of the target's, the fingers of the
right hand press on it from both sides, and no finger of the left hand touches it. Playground
defines none.

The reward pays what a potential gains above its best of the episode, so that regress costs nothing:
a penalty for it leaves policies with both hands clasping the box. A box that falls after it was
lifted ends the episode, and so does one that leaves the world.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.rewards import RunningMax
from penspin_style.env.task import Expert, ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.sim import Sim
from tasks.aloha import arms
from tasks.robots.aloha import description
from tasks.robots.aloha import model as aloha
from tasks.robots.aloha.keyframes import KEYFRAMES

HOME, COMMAND = KEYFRAMES["handover"]["home"]
SPREAD = (0.05, 0.1)  # m, half widths of the draws of the box's x and y
TARGET = (0.20, 0.0, 0.25)  # m
TARGET_SPREAD = 0.15  # m, half width of the draws of each axis
TARGET_LEAST_X = 0.15  # m
MEETING = (0.0, 0.0, 0.24)  # m, where the box changes hands
BEFORE, PAST = -0.1, 0.0  # m, x of the box below which only the left hand has it, above the right
GRIP_HALF = 0.015  # m, half of the box's width between the fingers
WORLD = 1.0  # m


@dataclass
class Config(TaskConfig):
    """Numbers of the task."""

    control_dt: float = 0.02
    episode_length: int = 250
    reward: dict[str, float] = field(
        default_factory=lambda: {"progress": 1.0, "hold": 0.02, "dropped": -0.1}
    )
    potential: dict[str, float] = field(
        default_factory=lambda: {
            "gripper_box": 1.0,
            "box_handover": 4.0,
            "handover_target": 8.0,
            "no_table_collision": 0.3,
        }
    )
    """Weights of the potential's terms; it is their weighted mean."""
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {"teacher": {name: ObsTerm() for name in HandOver.units}}
    )
    clock: int = 250
    """Control steps after which `episode_time` is 1, whatever the time limit is."""
    action_scale: float = 0.015
    """Change of a target for an action of 1: rad, and m for the grippers."""
    left_gripper_low: float = 0.01
    """m, lower limit of the left gripper's target: closed less, it is opened more often."""
    lifted_height: float = 0.15
    """m, height of the box from which on it counts as lifted,"""
    dropped_height: float = 0.05
    """and below which it has then been dropped."""
    target_distance: float = 0.05
    """m from box to target that count as success."""
    grasp_force: float = 0.5
    """N with which each finger of the right hand presses on the box in a success."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        super().__post_init__()
        if set(self.potential) != set(_POTENTIAL) or sum(self.potential.values()) <= 0:
            raise ValueError(
                f"task.potential must weigh {', '.join(_POTENTIAL)}, with a sum above 0; "
                f"got {self.potential}"
            )
        if self.clock < 1:
            raise ValueError(f"task.clock must be at least 1, got {self.clock}")
        low, high = description.GRIPPER_CLOSED, description.GRIPPER_OPEN
        if not low <= self.left_gripper_low < high:
            raise ValueError(
                f"task.left_gripper_low must be in [{low}, {high}), got {self.left_gripper_low}"
            )


_POTENTIAL = ("gripper_box", "box_handover", "handover_target", "no_table_collision")


class HandOver(Task[Config]):
    """See the module's docstring."""

    Config = Config
    units: ClassVar[dict[str, str]] = {
        "qpos": "1",
        "qvel": "1",
        "finger_gap": "m",
        "box_top": "m",
        "box_bottom": "m",
        "left_gripper_pos": "m",
        "left_gripper_mat": "1",
        "right_gripper_pos": "m",
        "right_gripper_mat": "1",
        "box_mat": "1",
        "target_to_box": "m",
        "episode_time": "1",
    }

    def spec(self) -> mujoco.MjSpec:
        """Return table, arms, box, the ghost, and what the fingers feel of box and table."""
        spec = aloha.scene()
        aloha.add_handover_box(spec)
        target = spec.worldbody.add_body(name="target", mocap=True, pos=TARGET)
        target.add_geom(
            name="target",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=aloha.HANDOVER_BOX_HALF,
            mass=0,
            rgba=[1.0, 0.0, 0.0, 0.3],
            contype=0,
            conaffinity=0,
        )
        for side in description.SIDES:
            arms.add_touch_sensors(spec, side, "box")
            arms.table_contact(side).add_to(spec)
        return spec

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the changes of the fourteen position targets."""
        low = {"left_gripper": self.cfg.left_gripper_low}
        return description.actions(scale=self.cfg.action_scale, lower=low)

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the arms' joints and grippers."""
        return aloha.joints(self.spec().compile(), COMMAND)

    def start(self, sim: Sim) -> None:
        """Look up ids; allocate what the reward remembers of an episode."""
        model, device = sim.model, sim.device
        self.left, self.right = arms.both(sim, "box")
        self.targets = arms.Targets(self.actions, device)
        self.box = model.body("box").id
        self.top, self.bottom = (model.site(f"box_{end}").id for end in ("top", "bottom"))
        self.target = int(model.body_mocapid[model.body("target").id])
        self.fingers = [*range(6, 8), *range(arms.QPOS + 6, arms.QPOS + 8)]
        self.table = [arms.table_contact(side).view(sim) for side in description.SIDES]
        self.home, self.command = (torch.tensor(x, device=device) for x in (HOME, COMMAND))
        self.meeting = torch.tensor(MEETING, device=device)
        self.memory = {
            "steps": torch.zeros(sim.num_envs, device=device),
            "first": torch.zeros(sim.num_envs, device=device),
            "lifted": torch.zeros(sim.num_envs, dtype=torch.bool, device=device),
        }
        whole = sum(self.cfg.potential.values())
        self.weights = {name: weight / whole for name, weight in self.cfg.potential.items()}
        self.terms: dict[str, Tensor] = {}  # the last step's, for its metrics
        self.best = RunningMax(self.memory, "best", self.weights, sim)

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Put the arms at home, the box on the left of the table and the target on the right."""
        n, device = sim.num_envs, sim.device
        draw = 2.0 * torch.rand(n, 5, generator=rng, device=device) - 1.0
        qpos = self.home.repeat(n, 1)
        at = 2 * arms.QPOS
        qpos[:, at : at + 2] += draw[:, :2] * torch.tensor(SPREAD, device=device)
        target = torch.tensor(TARGET, device=device) + TARGET_SPREAD * draw[:, 2:]
        target[:, 0].clamp_(min=TARGET_LEAST_X)
        arms.write(sim.data.qpos, qpos, mask)
        arms.write(sim.data.ctrl, self.command.expand(n, -1), mask)
        arms.write(sim.data.mocap_pos[:, self.target], target, mask)
        for value in self.memory.values():
            value.masked_fill_(mask, 0)
        self.best.clear(mask)

    def followed(self, sim: Sim) -> Tensor:
        """Return the commands: they begin with open grippers, the fingers half open."""
        return sim.data.ctrl

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Add to the last targets, not to the measured joints."""
        sim.data.ctrl.copy_(self.targets.move(sim.data.ctrl, action))
        self.memory["steps"].add_(1.0)

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the terms of `units`, in the world; of each rotation matrix two rows."""
        data = sim.data
        return {
            "qpos": data.qpos,
            "qvel": data.qvel,
            "finger_gap": data.qpos[:, self.fingers] - GRIP_HALF,
            "box_top": data.site_xpos[:, self.top],
            "box_bottom": data.site_xpos[:, self.bottom],
            "left_gripper_pos": self.left.position(sim),
            "left_gripper_mat": self.left.matrix(sim)[:, 1:],
            "right_gripper_pos": self.right.position(sim),
            "right_gripper_mat": self.right.matrix(sim)[:, 1:],
            "box_mat": data.xmat[:, self.box, 1:],
            "target_to_box": data.xpos[:, self.box] - data.mocap_pos[:, self.target],
            "episode_time": self.memory["steps"][:, None] / self.cfg.clock,
        }

    def potential(self, sim: Sim) -> dict[str, Tensor]:
        """Return the four published terms, (num_envs,) each."""
        data = sim.data
        box, target = data.xpos[:, self.box], data.mocap_pos[:, self.target].float()
        left, right = self.left.position(sim), self.right.position(sim)
        before, past = box[:, 0] < BEFORE, box[:, 0] >= PAST
        near_left = _near(data.site_xpos[:, self.top], left) * ~past
        at_bottom = _near(data.site_xpos[:, self.bottom], right)
        near_right = at_bottom * ~before + at_bottom * past  # twice where the left has let go
        given = torch.maximum(_near(box, self.meeting), _near(left, self.meeting) * past)
        hits = torch.stack([view.touching.any(dim=1) for view in self.table]).any(dim=0)
        return {
            "gripper_box": near_left + near_right,
            "box_handover": given,
            "handover_target": _near(target, box) * near_right * _beyond(left[:, 0], 0.0, -1.0),
            "no_table_collision": 1.0 - hits.float(),
        }

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return what the potential gained above its best, a bonus for holding on, the drop."""
        memory = self.memory
        terms = self.terms = self.potential(sim)
        total = self.best.weigh(terms)
        first = memory["best"].isinf()
        memory["first"].copy_(torch.where(first, total, memory["first"]))
        gain = self.best.gain_of(total)
        box = sim.data.xpos[:, self.box]
        memory["lifted"] |= box[:, 2] > self.cfg.lifted_height
        away = _beyond(self.left.position(sim)[:, 0], 0.0, -1.0)
        hold = total * away * _beyond(box[:, 0], 0.1, 1.0)
        return {
            "progress": gain,
            "hold": torch.where(first, 0.0, hold),
            "dropped": self.dropped(sim).float(),
        }

    def dropped(self, sim: Sim) -> Tensor:
        """Return whether a box that had been lifted is down again, (num_envs,) bool."""
        return self.memory["lifted"] & (sim.data.xpos[:, self.box, 2] < self.cfg.dropped_height)

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the box was dropped, has left the world, or is below the table."""
        box = sim.data.xpos[:, self.box]
        return (box.abs() > WORLD).any(dim=1) | (box[:, 2] < 0.0) | self.dropped(sim)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the box is at the target, held by the right hand alone."""
        off = sim.data.xpos[:, self.box] - sim.data.mocap_pos[:, self.target]
        near = off.norm(dim=1) < self.cfg.target_distance
        held = self.right.grasps(sim, self.cfg.grasp_force)
        return near & held & ~self.left.touches()

    def progress(self, sim: Sim) -> Tensor:
        """Return what the potential has gained since the episode's first step."""
        return (self.memory["best"] - self.memory["first"]).clamp(min=0.0)

    def expert(self, sim: Sim) -> Expert:
        """Return the script of `handover_expert.py`."""
        from tasks.aloha import handover_expert

        return handover_expert.Expert(self, sim)

    def step_metrics(self, sim: Sim) -> dict[str, Tensor]:
        """Return the potential's terms, and whether the box is lifted, is past the middle."""
        box = sim.data.xpos[:, self.box]
        return {
            **(self.terms or self.potential(sim)),
            "lifted": (box[:, 2] > self.cfg.lifted_height).float(),
            "past": (box[:, 0] >= PAST).float(),
        }

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return the means of the potential's terms, and shares of episodes by how far they got."""
        means = {name: sums[name] / steps for name in _POTENTIAL}
        reached = {f"ever_{name}": sums[name] > 0 for name in ("lifted", "past")}
        return means | reached | {"dropped": terminated}


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Return exp(-10 distance), (num_envs,)."""
    return torch.exp(-10.0 * (a - b).norm(dim=1))


def _beyond(x: Tensor, limit: float, direction: float) -> Tensor:
    """Return a step of about 5 cm from 0 to 1 at `limit` m, in the direction +1 or -1."""
    return torch.sigmoid(100.0 * direction * (x - limit))


NAME = "aloha_handover"
TASK = HandOver
