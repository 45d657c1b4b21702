"""Put a peg into a socket with both arms of ALOHA: MuJoCo Playground's `AlohaPegInsertion`.

Socket and peg lie before the left and the right arm. A frozen policy of `aloha_pick`, the same for
both arms, lifts them until the middles of both hands' fingertips are above `switch_height`. From
then on, for good, the learner acts, and has `window` steps. It sees what the picking policy sees of
each arm, 2 x 53 numbers, and how the peg's tip lies to the socket; noise and latency are the
published ones.

**Success**: the peg's tip is less than 10 mm from where the socket ends: 8 mm is home.

A share of the training's episodes (`ring_starts`) begins after the switch, in one of the last ten
states in which this environment's arms have switched; evaluations begin at the table. Rewards are
paid after the switch alone. What this does otherwise than upstream:

* grippers move by 0.001 m for an action of 1: at the published 0.02 (`ablation=published_scale`) a
  single action opens a hand and drops the peg. The picking policy keeps its own scale;
* four reward terms are ours, without weight by default: `success`, `align`, `angle`, `approach`;
* the critic is also told, without noise, how the peg lies to the socket and in the hands;
* the left waist's command begins where the waist is, as the right one's does;
* an action that comes late moves a target by the scale of when it was taken;
* each arm draws its own latency.

`final_grasp` is paid at step 160 (`clock`), as published: most episodes have ended by then.
"""

import math
import pathlib
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.rewards import near
from penspin_style.env.start_bank import read_bank
from penspin_style.env.task import Expert, Latency, ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.sim import Sim
from tasks.aloha import arms, one_arm
from tasks.aloha.attempts import Attempts
from tasks.aloha.picker import Picker
from tasks.aloha.preinsertion import Ring
from tasks.robots.aloha import description
from tasks.robots.aloha import model as aloha
from tasks.robots.aloha.keyframes import KEYFRAMES

HOME, COMMAND = KEYFRAMES["insertion"]["home"]
OBJECTS = ("socket", "peg")  # of the left and of the right arm
RADIUS = (0.27, 0.42)  # m from the base
BEARING, YAW, MIDDLE = math.radians(14.5), math.radians(5.0), 0.25  # half widths, middle; rad
WAIST = 0.1  # rad, half width of the draw of the waists
TARGETS = ((-0.1, 0.0, 0.25), (0.1, 0.0, 0.25))  # m, where the objects are to be held up
AXIS = 0.01  # m from the socket's axis, within which the peg goes in
HOME_DISTANCE = 0.01  # m
FAR, NEAR = 0.25, 0.02  # m, scales of `approach`: to where the socket ends, to its axis
FALLEN = 0.07  # m, height
GRASPED = 0.03  # m
TILT = math.cos(math.radians(80.0))
WORLD = 1.0  # m
_BANK = pathlib.Path(__file__).parents[1] / "assets" / "insertion_starts"
_PER_ARM = tuple(f"{side}_{name}" for side in description.SIDES for name in one_arm.UNITS)
STATE = (*_PER_ARM, "tip_error")
"""The terms that a policy reads."""
_TRUTH = ("episode_time", "tip_in_socket", "peg_in_socket", "grips")


@dataclass
class Config(TaskConfig):
    """Numbers of the task."""

    control_dt: float = description.CONTROL_DT
    episode_length: int = 160
    reward: dict[str, float] = field(
        default_factory=lambda: {
            "peg_insertion": 8.0,
            "socket_rot": 0.5,
            "peg_rot": 0.5,
            "success": 0.0,
            "drop": -10.0,
            "final_grasp": 10.0,
            "robot_target_qpos": 1.0,
            "left_joint_vel": 0.5,
            "right_joint_vel": 0.5,
            "left_grip_pos": 0.25,
            "right_grip_pos": 0.25,
            "align": 0.0,
            "angle": 0.0,
            "approach": 0.0,
        }
    )
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {name: ObsTerm() for name in STATE},
            "critic": {name: ObsTerm() for name in (*STATE, *_TRUTH)},
        }
    )
    latency: dict[str, Latency] = field(default_factory=lambda: {"teacher": Latency()})
    noise: one_arm.Noise = field(default_factory=lambda: one_arm.Noise(object_angle=7.5))
    """Alike in all groups."""
    action_latency: one_arm.ActionLatency = field(default_factory=one_arm.ActionLatency)
    clock: int = 160
    """Control steps after which `episode_time` is 1 and `final_grasp` is paid, whatever the time
    limit is."""
    action_scale: float = description.ACTION_SCALE
    """rad that a joint's target moves for an action of 1."""
    gripper_scale: float = 0.001
    """m that a gripper's does; published is 0.02."""
    pick_policy: str = ""
    """Policy of `aloha_pick` that moves both arms before the switch; see `weights_folder`. Empty
    for none: the learner acts from the table on, and nothing pays it for picking."""
    pick_scale: float = description.ACTION_SCALE
    """rad and m that a target moves for an action of 1 before the switch."""
    switch_height: float = 0.17
    """m, of both fingertips' middles above which the learner takes over."""
    window: int = 60
    """Control steps from then on after which the episode is over."""
    ring_starts: float = 0.8
    """Share of episodes that begin after the switch, in the ring of such states."""
    preinsertion: str = ""
    """Folder of a bank of states that fill the rings at first, or `scripted` for those that come
    with the task; empty for the published keyframe."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        super().__post_init__()
        if not 0 <= self.ring_starts <= 1:
            raise ValueError(f"task.ring_starts must be in [0, 1], got {self.ring_starts}")
        for name in ("window", "clock"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} must be at least 1, got {getattr(self, name)}")


C = TypeVar("C", bound=Config)


class Insertion(Task[C]):
    """What the task of the teacher and that of the student have in common."""

    policies: ClassVar[tuple[str, ...]] = ("pick_policy",)
    picks_itself: ClassVar[bool] = True
    """Whether `pick_policy` acts before the switch."""
    units: ClassVar[dict[str, str]] = {
        **{f"{s}_{name}": u for s in description.SIDES for name, u in one_arm.UNITS.items()},
        "tip_error": "m",
        "episode_time": "1",
        "tip_in_socket": "m",
        "peg_in_socket": "1",
        "grips": "m",
    }

    def spec(self) -> mujoco.MjSpec:
        """Return table, arms, socket and peg, and what the fingers feel of them."""
        spec = aloha.scene()
        aloha.add_socket(spec)
        aloha.add_peg(spec)
        left, right = description.SIDES
        aloha.exclude_other_hand(spec, left, "peg")
        aloha.exclude_other_hand(spec, right, "socket")
        for side, body in zip(description.SIDES, OBJECTS, strict=True):
            arms.add_touch_sensors(spec, side, body)
        return spec

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the changes of the fourteen position targets."""
        cfg = self.cfg
        return description.actions(scale=cfg.action_scale, gripper_scale=cfg.gripper_scale)

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the arms' joints and grippers."""
        return aloha.joints(self.spec().compile(), COMMAND)

    def start(self, sim: Sim) -> None:
        """Look up ids; allocate what lives longer than a step."""
        model, n, device, cfg = sim.model, sim.num_envs, sim.device, self.cfg
        self.hands = tuple(
            one_arm.OneArm(sim, side, body, noise=cfg.noise, latency=cfg.action_latency)
            for side, body in zip(description.SIDES, OBJECTS, strict=True)
        )
        self.targets = arms.Targets(self.actions, device)
        before = description.actions(scale=cfg.pick_scale)
        self.pick_scale = arms.Targets(before, device).scale
        self.end, self.rear, self.tip = (
            model.site(name).id for name in ("socket_end1", "socket_rear", "peg_end1")
        )
        self.bodies = [hand.body for hand in self.hands]
        self.home, self.command = (torch.tensor(x, device=device) for x in (HOME, COMMAND))
        read = {name for terms in cfg.observation.values() for name in terms}
        self.shows_truth = bool(read & set(_TRUTH))
        self.aims = torch.tensor(TARGETS, device=device)
        self.ring = Ring(sim, cfg.preinsertion)
        self.picker = self.open_picker(sim) if self.picks_itself and cfg.pick_policy else None
        self.noted: dict[str, Tensor] = {}  # of the last step, for its metrics
        self.attempts = Attempts(n, len(OBJECTS), device)
        self.memory = {
            **self.attempts.memory,
            **{
                f"{side}/{name}": value
                for side, hand in zip(description.SIDES, self.hands, strict=True)
                for name, value in hand.memory.items()
            },
            **self.ring.memory,
            **(self.picker.memory if self.picker else {}),
            "steps": torch.zeros(n, device=device),
            "since": torch.zeros(n, device=device),
            "switched": torch.zeros(n, dtype=torch.bool, device=device),
            "tip_shift": torch.zeros(n, 3, device=device),
            "first": torch.zeros(n, device=device),
            "nearest": torch.zeros(n, device=device),
        }

    def open_picker(self, sim: Sim) -> Picker:
        """Return the policy of `pick_policy`.

        Raises:
            ValueError: see `FrozenPolicy`.
        """
        cfg = self.cfg
        late = cfg.latency.get("teacher")
        return Picker(
            sim,
            "task.pick_policy",
            cfg.pick_policy,
            odds=late.weights if late else [1.0],
            scale=cfg.pick_scale,
            control_dt=cfg.control_dt,
        )

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Draw places, yaws and waists; begin a share of episodes in the ring, after the switch."""
        n, device = sim.num_envs, sim.device
        qpos, ctrl = self.home.repeat(n, 1), self.command.repeat(n, 1)
        draw = 2.0 * torch.rand(n, 2, generator=rng, device=device) - 1.0
        for i, hand in enumerate(self.hands):
            arm, at = hand.arm, hand.qpos
            qpos[:, arm.qpos.start] += WAIST * draw[:, i]
            ctrl[:, arm.ctrl.start] += WAIST * draw[:, i]
            place, yaw = one_arm.draw_fan(
                rng, n, radius=RADIUS, bearing=BEARING, yaw=YAW, middle=MIDDLE
            )
            height = (self.home[at + 2] - arm.base[2]).expand(n, 1)
            qpos[:, at : at + 3] = arm.from_base(torch.cat((place, height), dim=1))
            turn = 0.5 * (yaw + description.BASES[arm.side][1])
            qpos[:, at + 3 : at + 7] = 0.0
            qpos[:, at + 3], qpos[:, at + 6] = turn.cos(), turn.sin()
            hand.clear(mask, rng)
        switched = torch.rand(n, generator=rng, device=device) < self.cfg.ring_starts
        later = self.ring.draw(rng)
        state = torch.cat((qpos, ctrl), dim=1).to(later)
        state = torch.where(switched[:, None], later, state)
        arms.write(sim.data.qpos, state[:, : sim.model.nq], mask)
        arms.write(sim.data.ctrl, state[:, sim.model.nq :], mask)
        self._begin(mask, switched)
        self._draw_tip_shift(mask, rng)

    def _begin(self, mask: Tensor, switched: Tensor) -> None:
        memory = self.memory
        for name in ("steps", "since", "first", "nearest"):
            memory[name].masked_fill_(mask, 0)
        memory["switched"].copy_(torch.where(mask, switched, memory["switched"]))
        self.attempts.clear(mask)

    def followed(self, sim: Sim) -> Tensor:
        """Return the commands: joints sag below them."""
        return sim.data.ctrl

    def learner_acts(self, sim: Sim) -> Tensor | None:
        """Return where the picking policy has done its part, (num_envs,) bool."""
        return self.is_up(sim) if self.picker else None

    def is_up(self, sim: Sim) -> Tensor:
        """Return whether both hands are up, or have been in this episode, (num_envs,) bool."""
        up = [hand.arm.tips(sim)[:, 2] > self.cfg.switch_height for hand in self.hands]
        return self.memory["switched"] | (up[0] & up[1])

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Add what takes effect now to the last targets, not to the measured joints."""
        memory = self.memory
        switched = self.is_up(sim)
        self.ring.push(sim, switched & ~memory["switched"])
        memory["switched"].copy_(switched)
        memory["since"].add_(switched)
        if self.picker:
            picked = self.picker.act(self._arm_terms(), memory["steps"] == 0)
            action = torch.where(switched[:, None], action, picked)
        memory["steps"].add_(1.0)
        scale = torch.where(switched[:, None], self.targets.scale, self.pick_scale)
        change = (scale * action).split(len(description.CHANNELS), dim=1)
        late = [hand.delayed(part) for hand, part in zip(self.hands, change, strict=True)]
        ctrl = sim.data.ctrl + torch.cat(late, dim=1)
        sim.data.ctrl.copy_(ctrl.clamp(self.targets.low, self.targets.high))

    def substeps(self, sim: Sim, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw the noise of the coming observation and the latency of the next action."""
        for hand in self.hands:
            hand.draw(rng)
        self._draw_tip_shift(None, rng)
        if self.picker:
            self.picker.draw(rng)
        return {}

    def _draw_tip_shift(self, mask: Tensor | None, rng: torch.Generator) -> None:
        noise, shift = self.cfg.noise, self.memory["tip_shift"]
        draw = torch.rand(2, *shift.shape, generator=rng, device=shift.device)
        value = 2.0 * noise.scale * noise.place * (draw[0] - draw[1])
        shift.copy_(value if mask is None else torch.where(mask[:, None], value, shift))

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the terms of `units`: each arm's in its base, the tip's error in the world."""
        xpos = sim.data.site_xpos
        terms = {
            f"{side}_{name}": value
            for side, arm in zip(description.SIDES, self._arm_terms(), strict=True)
            for name, value in arm.items()
        }
        terms["tip_error"] = xpos[:, self.rear] - xpos[:, self.tip] + self.memory["tip_shift"]
        if self.shows_truth:
            terms |= self._truth(sim)
        return terms

    def _truth(self, sim: Sim) -> dict[str, Tensor]:
        """Return what the critic alone is told."""
        xpos = sim.data.site_xpos
        socket, peg = sim.data.xmat[:, self.bodies].unbind(dim=1)
        local = socket.transpose(1, 2)
        off = xpos[:, self.tip] - xpos[:, self.end]
        return {
            "episode_time": self.memory["steps"][:, None] / self.cfg.clock,
            "tip_in_socket": (local @ off[:, :, None])[:, :, 0],
            "peg_in_socket": (local @ peg).transpose(1, 2)[:, ::2],
            "grips": torch.cat([error.grip for error in self._errors()], dim=1),
        }

    def _errors(self) -> list[one_arm.Errors]:
        n = len(self.memory["steps"])
        return [
            hand.errors(aim.expand(n, 3)) for hand, aim in zip(self.hands, self.aims, strict=True)
        ]

    def _arm_terms(self) -> list[dict[str, Tensor]]:
        return [
            hand.observe(aim.expand(len(self.memory["steps"]), 3))
            for hand, aim in zip(self.hands, self.aims, strict=True)
        ]

    def distance(self, sim: Sim) -> Tensor:
        """Return how far the peg's tip is from where the socket ends, (num_envs,) m."""
        xpos = sim.data.site_xpos
        return (xpos[:, self.end] - xpos[:, self.tip]).norm(dim=1)

    def beside(self, sim: Sim) -> Tensor:
        """Return how far the peg's tip is from the socket's axis, (num_envs,) m."""
        xpos = sim.data.site_xpos
        axis = sim.data.xmat[:, self.bodies[0], :, 0]
        return torch.linalg.cross(axis, xpos[:, self.tip] - xpos[:, self.rear]).norm(dim=1)

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return the published terms, zero before the switch."""
        memory, data = self.memory, sim.data
        errors = self._errors()
        grip = [error.grip.norm(dim=1) for error in errors]
        turned = [near(error.mat.flatten(1).norm(dim=1), 5.0) for error in errors]
        last = memory["steps"] == self.cfg.clock
        beside = self.beside(sim)
        xmat = data.xmat[:, self.bodies]
        facing = (xmat[:, 0, :, 0] * xmat[:, 1, :, 0]).sum(dim=1)  # -1: the axes are opposite
        roll = (xmat[:, 0, :, 2] * xmat[:, 1, :, 2]).sum(dim=1)
        qpos, qvel = data.qpos.float(), data.qvel.float()
        places = [hand.arm.qpos for hand in self.hands]
        away = [near((qpos[:, at] - self.home[at]).norm(dim=1), 1.0) for at in places]
        still = [_slow(qvel[:, at].norm(dim=1)) for at in places]
        held = [near(error, 5.0) for error in grip]
        distance = self.distance(sim)
        self._note_progress(sim, distance)
        dropped = self.dropped(sim)
        self.noted = {"dropped": dropped.float(), "beside": beside}
        terms = {
            "peg_insertion": _inserted(distance) * (beside < AXIS),
            "socket_rot": turned[0],
            "peg_rot": turned[1],
            "success": self.success(sim),
            "drop": dropped,
            "final_grasp": last & (grip[0] < GRASPED) & (grip[1] < GRASPED),
            "robot_target_qpos": 0.5 * (away[0] + away[1]),
            "left_joint_vel": still[0],
            "right_joint_vel": still[1],
            "left_grip_pos": held[0],
            "right_grip_pos": held[1],
            "align": near(beside, 20.0),
            "angle": torch.exp(-10.0 * (2.0 + facing - roll)),
            "approach": (1.0 - distance / FAR).clamp(min=0.0) * torch.exp(-((beside / NEAR) ** 2)),
        }
        switched = memory["switched"].float()
        return {name: term * switched for name, term in terms.items()}

    def _note_progress(self, sim: Sim, distance: Tensor) -> None:
        memory, xpos = self.memory, sim.data.site_xpos
        tip = (xpos[:, self.rear] - xpos[:, self.tip]).norm(dim=1)
        self.attempts.note(sim.data.xpos[:, self.bodies, 2], tip)
        begun = memory["steps"] <= 1
        memory["first"].copy_(torch.where(begun, distance, memory["first"]))
        nearest = torch.where(begun, distance, torch.minimum(memory["nearest"], distance))
        memory["nearest"].copy_(nearest)

    def progress(self, sim: Sim) -> Tensor:
        """Return by how much the peg's tip has come nearer since the episode's first step, m."""
        return self.memory["first"] - self.memory["nearest"]

    def dropped(self, sim: Sim) -> Tensor:
        """Return whether socket or peg is down after the switch, (num_envs,) bool."""
        low = sim.data.xpos[:, self.bodies, 2] < FALLEN
        return low.any(dim=1) & self.memory["switched"]

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether something was dropped, tilted or lost, or the window is over."""
        over = self.memory["since"] >= self.cfg.window
        return self.dropped(sim) | self.is_out_of_reach(sim) | over

    def is_out_of_reach(self, sim: Sim) -> Tensor:
        """Return whether an object is out of the world or tilted, (num_envs,) bool."""
        data = sim.data
        lost = (data.xpos[:, self.bodies].abs() > WORLD).flatten(1).any(dim=1)
        return lost | (data.xmat[:, self.bodies, 2, 2] < TILT).any(dim=1)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the peg is home, by the hands that hold it up, (num_envs,) bool."""
        return self.distance(sim) < HOME_DISTANCE

    def start_state(self, sim: Sim) -> Tensor:
        """Return positions, velocities, commands, and whether the hands are or have been up."""
        up = self.is_up(sim)[:, None]
        return torch.cat((super().start_state(sim), up.to(sim.data.qpos)), dim=1)

    def set_start_state(self, sim: Sim, mask: Tensor, rows: Tensor, rng: torch.Generator) -> None:
        """Start from such rows."""
        super().set_start_state(sim, mask, rows[:, :-1], rng)
        self._begin(mask, rows[:, -1] > 0)

    def start_bank(self, device: torch.device) -> Tensor:
        """Return states along scripted insertions, evenly over the distance of the peg's tip."""
        return read_bank(_BANK).to(device)

    def expert(self, sim: Sim) -> Expert:
        """Return the script of `peg_insertion_expert.py`."""
        from tasks.aloha.peg_insertion_expert import InsertionExpert

        return InsertionExpert(self, sim)

    def step_metrics(self, sim: Sim) -> dict[str, Tensor]:
        """Return whether the learner acts, what fell, how near the tip is, and late successes."""
        return {
            "home_again": (self.success(sim) & (self.attempts.failed > 0)).float(),
            "switched": self.memory["switched"].float(),
            **(self.noted or {"dropped": self.dropped(sim).float(), "beside": self.beside(sim)}),
        }

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return shares of episodes that got so far, in which something fell, that tried again.

        `retried`: succeeded after a failed attempt, see `Attempts`.
        """
        return {
            "retried": sums["home_again"] > 0,
            "ever_switched": sums["switched"] > 0,
            "dropped": sums["dropped"] > 0,
            "beside": sums["beside"] / steps,
        }


class PegInsertion(Insertion[Config]):
    """See the module's docstring."""

    Config = Config


def _inserted(distance: Tensor) -> Tensor:
    """Return 1 within 1 mm, falling linearly to 0.1 at 0.2 m more, and on to 0."""
    return (1.0 - 0.9 * (distance - 0.001).clamp(min=0.0) / 0.2).clamp(min=0.0)


def _slow(speed: Tensor) -> Tensor:
    """Return 1 up to 0.5, falling to 0.1 at 2 more, as the reciprocal."""
    return 1.0 / (1.0 + 9.0 * (speed - 0.5).clamp(min=0.0) / 2.0)


NAME = "aloha_peg_insertion"
TASK = PegInsertion
