"""Pick an object from a table and place it at a goal: scanned objects as worlds to train in.

A Panda stands at a table with one object and a mark. Each environment has an object of its own,
drawn from `task.objects` at every reset: folders as `penspin real2sim convert` writes them, or
names of those that come with the package. The action moves the position targets of the arm's seven
joints and of both fingers; the hand has one motor, which takes the fingers' mean.

25 numbers are observed:

| term | numbers |
| --- | --- |
| ee_pose | 7: tool centre point, m, and the hand's quaternion, its sign nearer to pointing down |
| object_pose | 7: centre of mass, m, and principal axes' quaternion, nearer to how it lay |
| object_to_ee | 3 m, from the object's centre of mass to the tool centre point |
| object_to_goal | 3 m, from the object's centre of mass to the goal |
| gripper | 2 m: how far a finger is open (the other mirrors it), and its target |
| object_size | 3 m, extents along the object's principal axes |

**Success**: the object's centre of mass is within `goal_distance` (3 cm) of the goal, at rest (it
moves by less than `rest_speed` and turns by less than `rest_spin`), and the hand is as
`hand_at_end` says: open, closed, or any.

The episode terminates when the object leaves the table or is below it; the time limit truncates it.
"""

import functools
from typing import Any, ClassVar

import mujoco
import torch
from torch import Tensor

from penspin_style import rotation
from penspin_style.env.rewards import near
from penspin_style.env.task import Expert, Task
from penspin_style.env.user_function import load_function
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim
from penspin_style.sim.variants import FIELDS, Variants
from tasks.real2sim.catalogue import Variant, catalogue
from tasks.real2sim.config import Config
from tasks.real2sim.pick_place_expert import PickPlaceExpert
from tasks.real2sim.table import TABLE, world
from tasks.robots.panda import description
from tasks.robots.panda import model as panda
from tasks.robots.panda.description import DOWN, FINGER_OPEN, TCP

PLACES = ((0.38, 0.62), (-0.24, 0.24))
"""m, x and y of starts and goals."""
FINGERS = ("finger_joint1", "finger_joint2")
TERMS = ("reach", "lift", "carry", "release", "placed", "sparse", "custom")
"""Of the reward."""
_DRAWS = 8  # of a goal, to find one that is far enough


@functools.cache
def _joints() -> tuple[Joint, ...]:
    return panda.joints(panda.scene(gravcomp=True).compile(), torch.tensor(description.HOME))


class PickPlace(Task[Config]):
    """See the module's docstring."""

    Config = Config
    units: ClassVar[dict[str, str]] = {
        **{"ee_pose": "1", "object_pose": "1", "object_to_ee": "m", "object_to_goal": "m"},
        **{"gripper": "m", "object_size": "m", "goal": "m"},
    }
    reset_fields: ClassVar[tuple[str, ...]] = FIELDS
    functions: ClassVar[tuple[str, ...]] = ("reward_fn",)

    def __init__(self, cfg: Config) -> None:
        """Read the objects.

        Raises:
            ValueError: one of them is no object; the reward function cannot be imported.
        """
        super().__init__(cfg)
        random = cfg.randomization.object
        sized = cfg.randomize and random.on
        self.sizes = list(random.size) if sized else [1.0]
        self.variants: tuple[Variant, ...] = catalogue(cfg.objects, self.sizes)
        names = tuple(dict.fromkeys(variant.object.name for variant in self.variants))
        self.kind_names = names  # type: ignore[misc]  (of this configuration)
        self.draws_object = sized and random.shape
        self.reward_fn = load_function("task.reward_fn", cfg.reward_fn) if cfg.reward_fn else None

    def spec(self) -> mujoco.MjSpec:
        """Return the table, the robot, the objects and the mark."""
        return world(self.variants, tolerance=self.cfg.goal_distance, skin=self.cfg.skin)

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the changes of the position targets of seven joints and two fingers."""
        arm = (
            ActionChannel(j.name, j.unit, self.cfg.action_scale, j.low, j.high, "delta")
            for j in self.joints[:7]
        )
        grip = self.cfg.grip_scale
        hand = (ActionChannel(name, "m", grip, 0.0, FINGER_OPEN, "delta") for name in FINGERS)
        return (*arm, *hand)

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the arm's seven joints and one finger."""
        return _joints()

    def randomize(self) -> list[Randomize]:
        """Return the rows of the groups that are on."""
        return self.cfg.randomization.rows(sees=self.cfg.sees)

    def start(self, sim: Sim) -> None:
        """Look up ids and views; remember which object it is, and what the fingers are told."""
        model, n, device = sim.model, sim.num_envs, sim.device
        body, joint = model.body("object").id, model.joint("object").id
        names = [variant.name for variant in self.variants]
        self.shapes = Variants(sim, "object", names)
        self.tcp, self.hand, self.body = model.site(TCP).id, model.body("hand").id, body
        self.goal = sim.data.mocap_pos[:, int(model.body_mocapid[model.body("goal").id])]
        self.at, self.dof = int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
        self.finger = int(model.jnt_qposadr[model.joint(FINGERS[0]).id])
        limits = torch.as_tensor(model.actuator_ctrlrange[:7], dtype=torch.float32)
        self.low, self.high = limits.to(device).unbind(1)
        self.home = torch.tensor(description.HOME, device=device)
        self.down = torch.tensor(DOWN, device=device)
        rests = [variant.rest for variant in self.variants]
        # of each variant
        self.sides = torch.tensor([variant.size for variant in self.variants], device=device)
        self.lies = torch.tensor([rest.quat for rest in rests], device=device)
        self.stands = torch.tensor([rest.height for rest in rests], device=device)
        self.grasps = torch.tensor([rest.grasp for rest in rests], device=device)
        self.widths = torch.tensor([rest.width for rest in rests], device=device)
        self.memory = {
            "variant": torch.zeros(n, dtype=torch.long, device=device),
            "fingers": torch.full((n, 2), FINGER_OPEN, device=device),
        }

    def reset_model(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Give the masked environments their objects."""
        n, sizes = sim.num_envs, len(self.sizes)
        count = len(self.variants) // sizes
        size = torch.randint(sizes, (n,), generator=rng, device=sim.device)
        which = torch.arange(n, device=sim.device) % count
        if self.draws_object:
            which = torch.randint(count, (n,), generator=rng, device=sim.device)
        variant = self.memory["variant"]
        variant.copy_(torch.where(mask, which * sizes + size, variant))
        self.shapes.write(variant, mask)

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Put the arm at home, the object on the table, and the mark elsewhere on it."""
        n, device, cfg = sim.num_envs, sim.device, self.cfg
        (x0, x1), (y0, y1) = PLACES
        low, span = torch.tensor([[x0, y0], [x1 - x0, y1 - y0]], device=device)
        draw = torch.rand(n, _DRAWS + 1, 2, generator=rng, device=device)
        places = low + span * draw
        start, goals = places[:, 0], places[:, 1:]
        way = (goals - start[:, None]).norm(dim=2)
        # the first that is far enough, else the farthest
        order = torch.where(way >= cfg.least_way, 10.0 + torch.arange(_DRAWS, 0, -1.0).to(way), way)
        goal = goals[torch.arange(n, device=device), order.argmax(dim=1)]
        draw = torch.rand(n, 9, generator=rng, device=device)
        variant = self.memory["variant"]
        height = self.stands[variant]
        yaw = cfg.object_yaw * (2.0 * draw[:, 0] - 1.0)
        qpos = sim.data.qpos.clone()
        arm = self.home[:7] + cfg.joint_noise * (2.0 * draw[:, 2:] - 1.0)
        qpos[:, :7] = arm
        qpos[:, self.finger : self.finger + 2] = FINGER_OPEN
        qpos[:, self.at : self.at + 2] = start
        qpos[:, self.at + 2] = height
        qpos[:, self.at + 3 : self.at + 7] = rotation.multiply(_about_z(yaw), self.lies[variant])
        least, most = cfg.goal_height
        above = least + (most - least) * draw[:, 1]
        _write(sim.data.qpos, qpos, mask)
        ctrl = torch.cat((arm, torch.full((n, 1), FINGER_OPEN, device=device)), dim=1)
        _write(sim.data.ctrl, ctrl, mask)
        _write(self.goal, torch.cat((goal, (height + above)[:, None]), dim=1), mask)
        self.memory["fingers"].masked_fill_(mask[:, None], FINGER_OPEN)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Add to the last targets; the hand's one motor takes the mean of the fingers'."""
        cfg, arm, fingers = self.cfg, sim.data.ctrl[:, :7], self.memory["fingers"]
        arm.copy_((arm + cfg.action_scale * action[:, :7]).clamp(self.low, self.high))
        fingers.add_(action[:, 7:], alpha=cfg.grip_scale).clamp_(0.0, FINGER_OPEN)
        sim.data.ctrl[:, 7] = fingers.mean(dim=1).to(sim.data.ctrl.dtype)

    def followed(self, sim: Sim) -> Tensor:
        """Return the targets of the joints and of both fingers."""
        return torch.cat((sim.data.ctrl[:, :7].float(), self.memory["fingers"]), dim=1)

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the 25 numbers, and for a student the goal."""
        data, variant = sim.data, self.memory["variant"]
        tool, thing, goal = self.positions(sim)
        hand = _nearer(data.xquat[:, self.hand], self.down)
        turn = _nearer(data.xquat[:, self.body], self.lies[variant])
        fingers = (data.qpos[:, self.finger].float(), self.memory["fingers"].mean(dim=1))
        terms = {
            "ee_pose": torch.cat((tool, hand), dim=1),
            "object_pose": torch.cat((thing, turn), dim=1),
            "object_to_ee": tool - thing,
            "object_to_goal": goal - thing,
            "gripper": torch.stack(fingers, dim=1),
            "object_size": self.sides[variant],
        }
        if any("goal" in group for group in self.cfg.observation.values()):
            terms["goal"] = goal
        return terms

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return the terms of the configured kind; those of the others are 0."""
        success = self.success(sim)
        zero = torch.zeros(sim.num_envs, device=sim.device)
        terms: dict[str, Tensor] = dict.fromkeys(TERMS, zero)
        if self.reward_fn is not None:
            state = {**self.observe(sim), "action": action, "success": success}
            terms["custom"] = _checked(self.cfg.reward_fn, self.reward_fn(state), sim.num_envs)
        elif self.cfg.reward_type == "sparse":
            terms["sparse"] = 2.0 * success.float() - 1.0
        else:
            terms |= self._dense(sim, success)
        return terms

    def _dense(self, sim: Sim, success: Tensor) -> dict[str, Tensor]:
        """Return what pays on the way: `lift` only far from the goal, `release` only at it."""
        tool, thing, goal = self.positions(sim)
        away = goal - thing
        far, level = away.norm(dim=1), away[:, :2].norm(dim=1)
        risen = ((thing[:, 2] - self.stands[self.memory["variant"]]) / 0.05).clamp(0.0, 1.0)
        opening = sim.data.qpos[:, self.finger].float() / FINGER_OPEN
        wanted = {"open": opening, "closed": 1.0 - opening, "any": torch.ones_like(opening)}
        return {
            "reach": near((tool - self.grasp_point(sim)).norm(dim=1), 8.0),
            "lift": risen * (level / 0.08).clamp(max=1.0),
            "carry": near(far, 5.0),
            "release": wanted[self.cfg.hand_at_end] * (far < self.cfg.goal_distance),
            "placed": success.float(),
        }

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the object has left the table, or is below it."""
        x, y, z = sim.data.xpos[:, self.body].unbind(1)
        (x0, x1), (y0, y1) = TABLE
        return (x < x0) | (x > x1) | (y < y0) | (y > y1) | (z < -0.02)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the object is at the goal and at rest, the hand as it should be."""
        cfg = self.cfg
        _, thing, goal = self.positions(sim)
        moves = sim.data.qvel[:, self.dof : self.dof + 6].float()
        rests = moves[:, :3].norm(dim=1) < cfg.rest_speed
        rests &= moves[:, 3:].norm(dim=1) < cfg.rest_spin
        is_open = sim.data.qpos[:, self.finger] > cfg.open_above
        hand = {"open": is_open, "closed": ~is_open, "any": torch.ones_like(is_open)}
        at_goal = (goal - thing).norm(dim=1) < cfg.goal_distance
        return at_goal & rests & hand[cfg.hand_at_end]

    def kinds(self, sim: Sim) -> Tensor:
        """Return which object it is, into `kind_names`."""
        return self.memory["variant"] // len(self.sizes)

    def step_metrics(self, sim: Sim) -> dict[str, Tensor]:
        """Return whether the object is placed."""
        return {"placed": self.success(sim).float()}

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return the share of episodes that succeed, which evaluations break down by object."""
        return {"placed": sums["placed"] > 0}

    def expert(self, sim: Sim) -> Expert:
        """Return the script that takes the object from above and sets it down at the goal."""
        return PickPlaceExpert(self, sim)

    def positions(self, sim: Sim) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tool centre point, the object and the goal, (num_envs, 3) m each."""
        data = sim.data
        return data.site_xpos[:, self.tcp], data.xpos[:, self.body], self.goal.float()

    def turned(self, sim: Sim) -> Tensor:
        """Return how the object is turned from how it lies at yaw 0, quaternions (num_envs, 4)."""
        lies = self.lies[self.memory["variant"]]
        return rotation.multiply(sim.data.xquat[:, self.body], rotation.conjugate(lies))

    def grasp_point(self, sim: Sim) -> Tensor:
        """Return where the tool centre point takes the object, (num_envs, 3) m."""
        grasp = self.grasps[self.memory["variant"]]
        return sim.data.xpos[:, self.body] + rotation.rotate(self.turned(sim), grasp)


def _about_z(yaw: Tensor) -> Tensor:
    """Return quaternions (n, 4) that turn by `yaw` rad about z."""
    zero = torch.zeros_like(yaw)
    return torch.stack(((0.5 * yaw).cos(), zero, zero, (0.5 * yaw).sin()), dim=1)


def _nearer(quat: Tensor, to: Tensor) -> Tensor:
    """Return quaternions (n, 4) with the sign that is nearer to another's."""
    return torch.where((quat * to).sum(dim=1, keepdim=True) < 0.0, -quat, quat)


def _write(field: Tensor, value: Tensor, mask: Tensor) -> None:
    field.copy_(torch.where(mask[:, None], value.to(field.dtype), field))


def _checked(name: str, value: Any, num_envs: int) -> Tensor:
    """Return what a user's reward function gave, (num_envs,) float.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(value, Tensor) or value.shape != (num_envs,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"task.reward_fn={name} must return a tensor of one reward for each environment, "
            f"({num_envs},), got {got}"
        )
    return value.float()


NAME = "real2sim_pick_place"
TASK = PickPlace
