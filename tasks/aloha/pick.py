"""Pick a bar with one arm of ALOHA and bring it to a pose: MuJoCo Playground's `AlohaPick`.

A bar lies in a fan before the arm, pointing away from it; a ghost in the air shows where it is
wanted, upright along the arm. The action moves the position targets of seven joints. It takes
effect late, the observation is noisy and late, sizes and masses vary: the policy is for a robot,
and for both arms of it. The 53 numbers of the observation, their noise, the latencies, the reward
and the initial draws are the published ones; `one_arm.py` has what both arms share.

**Success**: the bar's centre is within a distance of the target, and its rotation matrix within an
error, by the episode's level:

| level | 0 | 1 | 2 | 3 | 4 |
| --- | --- | --- | --- | --- | --- |
| distance, mm | 40 | 31.25 | 22.5 | 13.75 | 5 |
| error, degrees | 15 | 11.875 | 8.75 | 5.625 | 2.5 |

The error is the Frobenius norm of the difference of two rows, about 1.4 times the angle. Each
environment's level rises by one when success holds at the last step of an episode, and never falls.
Evaluations are at `task.level`.

The reward pays what a potential gains above its best of the episode (`progress`); `potential`, of
weight 0 as published, pays its value at every step.

Other than upstream's, tall bars lie on the table and not in it, the inertia follows size and mass,
which reach those of the insertion's socket, and what the past observations were is forgotten at
the end of an episode. The gripper shares the scale of the joints, as published.
"""

import math
import pathlib
from dataclasses import dataclass, field
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.rewards import RunningMax, near
from penspin_style.env.start_bank import read_bank
from penspin_style.env.task import Expert, Latency, ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.contacts import Contact
from penspin_style.sim.sim import Sim
from tasks.aloha import arms, one_arm
from tasks.robots.aloha import description
from tasks.robots.aloha import model as aloha

DISTANCES = (0.04, 0.03125, 0.0225, 0.01375, 0.005)  # m, of success, by level
ERRORS = tuple(math.radians(x) for x in (15.0, 11.875, 8.75, 5.625, 2.5))
RADIUS = (0.2, 0.45)  # m from the base
BEARING, YAW = math.radians(22.5), math.radians(5.0)  # half widths
WAIST = 0.2  # rad, half width of the draw of the waist
TARGET = (-0.1, 0.0, 0.25)  # m, of the left arm; the right one's is mirrored
TARGET_SPREAD = 0.1  # m, half width of the draws of each axis
MID_LINE = 0.469 + 0.073  # m before the base, where the bar's far end has crossed the middle
LIFTED = 0.17  # m
REACHED = 0.015  # m between fingertips and grip
FORCE = 7.0  # N that are paid in full
WORLD = 1.0  # m
_BANK = pathlib.Path(__file__).parents[1] / "assets" / "pick_starts"


@dataclass
class Config(TaskConfig):
    """Numbers of the task."""

    control_dt: float = description.CONTROL_DT
    episode_length: int = 160
    reward: dict[str, float] = field(
        default_factory=lambda: {
            "progress": 1.0,
            "potential": 0.0,
            "finger_force": 0.007,
            "no_floor_collision": 0.005,
            "joint_vel": 0.005,
            "robot_target_qpos": 0.001,
            "crossed": -1.0,
        }
    )
    potential: dict[str, float] = field(
        default_factory=lambda: {
            "gripper_box": 4.0,
            "box_target": 16.0,
            "grasped": 0.5,
            "lift": 0.5,
            "success": 0.5,
            "success_time": 0.1,
        }
    )
    """Weights of the potential's terms; it is their sum."""
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            group: {name: ObsTerm() for name in one_arm.UNITS} for group in ("teacher", "critic")
        }
    )
    latency: dict[str, Latency] = field(default_factory=lambda: {"teacher": Latency()})
    noise: one_arm.Noise = field(default_factory=one_arm.Noise)
    """Alike in all groups."""
    action_latency: one_arm.ActionLatency = field(default_factory=one_arm.ActionLatency)
    action_scale: float = description.ACTION_SCALE
    """Change of a target for an action of 1: rad, and m for the gripper."""
    side: str = "left"
    """The arm that picks; all but its name is mirrored for the other one."""
    level: int | None = None
    """Level of every episode, 0 to 4; null: the curriculum's."""
    half_width: list[float] = field(default_factory=lambda: [0.01, 0.025])
    """m, least and largest half size across the bar. Published is 0.03, which open fingers pass by
    3 mm while the noise of their place is of 12 mm; the insertion's socket has 0.022."""
    mass: list[float] = field(default_factory=lambda: [0.03, 0.15])
    """kg, least and largest; published is 0.1, the insertion's socket has 0.134."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        super().__post_init__()
        if set(self.potential) != set(_POTENTIAL):
            raise ValueError(
                f"task.potential must weigh {', '.join(_POTENTIAL)}; got {self.potential}"
            )
        if self.side not in description.SIDES:
            raise ValueError(
                f"task.side must be {' or '.join(description.SIDES)}, got {self.side!r}"
            )
        if self.level is not None and not 0 <= self.level < len(DISTANCES):
            raise ValueError(
                f"task.level must be 0 to {len(DISTANCES) - 1}, or null, got {self.level}"
            )
        for name, most in (("half_width", MOST_HALF_WIDTH), ("mass", 1.0)):
            given = getattr(self, name)
            if len(given) != 2 or not 0 < given[0] <= given[1] <= most:
                raise ValueError(
                    f"task.{name} must be [least, largest] above 0 and at most {most}, got {given}"
                )


MOST_HALF_WIDTH = 0.033
"""m, of a bar that fits between open fingers."""
_POTENTIAL = ("gripper_box", "box_target", "grasped", "lift", "success", "success_time")


class Pick(Task[Config]):
    """See the module's docstring.

    bar, target: names of the bodies in the model. It reads and writes its own arm and bar alone, so
    that two of them share a simulation (`pick_both.py`).
    """

    Config = Config
    units: ClassVar[dict[str, str]] = one_arm.UNITS
    score: ClassVar[str] = "success_at_end"
    varied: ClassVar[tuple[str, ...]] = ("geom_size", "body_mass", "body_inertia")

    def __init__(self, cfg: Config, *, bar: str = "box", target: str = "target") -> None:
        super().__init__(cfg)
        self.names = (bar, target)

    def spec(self) -> mujoco.MjSpec:
        """Return table, arm, bar, the ghost, and what the fingers feel of bar and table."""
        spec = aloha.scene((self.cfg.side,))
        self.furnish(spec)
        return spec

    def furnish(self, spec: mujoco.MjSpec) -> None:
        """Add bar, ghost and sensors to a scene that has the arm."""
        bar, name = self.names
        aloha.add_pick_box(spec, bar)
        target = spec.worldbody.add_body(name=name, mocap=True, pos=self._target())
        target.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=aloha.PICK_BOX_HALF,
            mass=0,
            rgba=[0.0, 1.0, 0.0, 0.3],
            contype=0,
            conaffinity=0,
        )
        arms.add_touch_sensors(spec, self.cfg.side, bar)
        self._low().add_to(spec)

    def _low(self) -> Contact:
        """Return what of the hand must not touch the table."""
        side = self.cfg.side
        return Contact(f"{side}_low", [f"{side}_{name}" for name in _LOW_GEOMS], ("table",))

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the changes of the seven position targets.

        They have the left arm's names on both sides: a policy does not know its side.
        """
        return description.actions(("left",), scale=self.cfg.action_scale)

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the arm's joints and gripper."""
        return aloha.joints(self.spec().compile(), description.ARM_HOME)

    def start(self, sim: Sim) -> None:
        """Look up ids; allocate what lives longer than a step."""
        model, n, device = sim.model, sim.num_envs, sim.device
        cfg = self.cfg
        bar, target = self.names
        self.one = one_arm.OneArm(sim, cfg.side, bar, noise=cfg.noise, latency=cfg.action_latency)
        self.arm = self.one.arm
        self.targets = arms.Targets(self.actions, device)
        self.geom = model.geom(bar).id
        self.end = model.site(f"{bar}_end").id
        self.target = int(model.body_mocapid[model.body(target).id])
        self.low = self._low().view(sim)
        self.held: Tensor | None = None  # in the last step, for its metrics
        home = (*description.ARM_HOME, description.GRIPPER_OPEN)
        self.home = torch.tensor(home, device=device)
        self.limits = torch.tensor([DISTANCES, ERRORS], device=device)
        """Distance in m and error of success, (2, levels)."""

        def zeros(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(n, dtype=dtype, device=device)

        self.memory = {
            **self.one.memory,
            **{name: zeros() for name in ("steps", "first", "succeeded_at")},
            **{name: zeros(torch.bool) for name in ("reached", "succeeded", "ever_succeeded")},
            "level": torch.full_like(zeros(torch.long), cfg.level or 0),
        }
        self.record = RunningMax(self.memory, "best", cfg.potential, sim)

    def vary(self, sim: Sim, rng: torch.Generator) -> None:
        """Draw width and mass of the bars; their inertia is that of a solid box."""
        draw = torch.rand(sim.num_envs, 2, generator=rng, device=sim.device)
        (thin, thick), (light, heavy) = self.cfg.half_width, self.cfg.mass
        half = thin + (thick - thin) * draw[:, 0]
        mass = light + (heavy - light) * draw[:, 1]
        length = torch.full_like(half, aloha.PICK_BOX_HALF[0])
        size = torch.stack((length, half, half), dim=1)
        square = size.square()
        others = square.sum(dim=1, keepdim=True) - square
        body = self.one.body
        for field_, value in (
            (sim.params.geom_size[:, self.geom], size),
            (sim.params.body_mass[:, body], mass),
            (sim.params.body_inertia[:, body], mass[:, None] / 3.0 * others),
        ):
            field_.copy_(value.to(field_.dtype))

    def half_width(self, sim: Sim) -> Tensor:
        """Return half the width of the bars, (num_envs,) m."""
        if "geom_size" in sim.params:
            return sim.params.geom_size[:, self.geom, 2].float()
        return torch.full((sim.num_envs,), aloha.PICK_BOX_HALF[2], device=sim.device)

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Draw the bar's place and yaw, the waist, the target; raise the level after a success."""
        self._raise_level(mask)
        n, device, arm = sim.num_envs, sim.device, self.arm
        place, yaw = one_arm.draw_fan(rng, n, radius=RADIUS, bearing=BEARING, yaw=YAW)
        draw = 2.0 * torch.rand(n, 4, generator=rng, device=device) - 1.0
        joints = self.home.repeat(n, 1)
        joints[:, 0] += WAIST * draw[:, 0]
        height = aloha.TABLE_Z + self.half_width(sim) - arm.base[2]
        bar = torch.zeros(n, 7, device=device)
        bar[:, :3] = arm.from_base(torch.cat((place, height[:, None]), dim=1))
        turn = 0.5 * (yaw + description.BASES[arm.side][1])
        bar[:, 3], bar[:, 6] = turn.cos(), turn.sin()
        target = self._drawn_target(draw[:, 1:])
        own = (joints, bar, joints[:, : len(description.CHANNELS)], target)
        for live, value in zip(self._live(sim, "qpos", "ctrl", "mocap_pos"), own, strict=True):
            arms.write(live, value, mask)
        self.one.clear(mask, rng)
        self.record.clear(mask)
        for name in _OF_EPISODE:
            self.memory[name].masked_fill_(mask, 0)

    def _live(self, sim: Sim, *fields: str) -> list[Tensor]:
        """Return views of what is this arm's, bar's and target's own of fields of `sim.data`."""
        data, arm, one = sim.data, self.arm, self.one
        views = {
            "qpos": (data.qpos[:, arm.qpos], data.qpos[:, one.qpos : one.qpos + 7]),
            "qvel": (data.qvel[:, arm.qpos], data.qvel[:, one.qvel : one.qvel + 6]),
            "ctrl": (data.ctrl[:, arm.ctrl],),
            "mocap_pos": (data.mocap_pos[:, self.target],),
        }
        return [view for field_ in fields for view in views[field_]]

    def _drawn_target(self, draw: Tensor) -> Tensor:
        """Return targets (n, 3) m in the world; draw: (n, 3) in [-1, 1]."""
        return torch.tensor(self._target(), device=draw.device) + TARGET_SPREAD * draw

    def _target(self) -> tuple[float, float, float]:
        x, y, z = TARGET
        return (x if self.cfg.side == "left" else -x, y, z)

    def _raise_level(self, mask: Tensor) -> None:
        if self.cfg.level is None:
            won = mask & self.memory["succeeded"] & (self.memory["steps"] > 0)
            self.memory["level"].add_(won).clamp_(max=len(DISTANCES) - 1)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Add what takes effect now to the last targets, not to the measured joints."""
        (ctrl,) = self._live(sim, "ctrl")
        ctrl.copy_(self.targets.move(ctrl, self.one.delayed(action)))
        self.memory["steps"].add_(1.0)

    def substeps(self, sim: Sim, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw the noise of the coming observation and the latency of the next action."""
        self.one.draw(rng)
        return {}

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the terms of `one_arm.UNITS`."""
        return self.one.observe(self.goal(sim))

    def goal(self, sim: Sim) -> Tensor:
        """Return where the bar's centre is wanted, (num_envs, 3) m in the world."""
        return sim.data.mocap_pos[:, self.target].float()

    def potential(self, sim: Sim, held: Tensor | None = None) -> dict[str, Tensor]:
        """Return the six published terms, (num_envs,) each; note what they remember.

        held: whether the hand grasps the bar, where that is known.
        """
        held = self.arm.grasps(sim) if held is None else held
        memory = self.memory
        errors = self.one.errors(self.goal(sim))
        grip, place = errors.grip.norm(dim=1), errors.target.norm(dim=1)
        turned = errors.mat.flatten(1).norm(dim=1)
        memory["reached"] |= grip < REACHED
        succeeded = self._is_near(errors, turned)
        fresh = succeeded & ~memory["ever_succeeded"]
        at = torch.where(fresh, memory["steps"], memory["succeeded_at"])
        memory["succeeded_at"].copy_(at)
        memory["ever_succeeded"] |= succeeded
        memory["succeeded"].copy_(succeeded)
        return {
            "gripper_box": near(grip, 5.0),
            "box_target": near(0.77 * place + 0.23 * turned, 5.0) * memory["reached"],
            "grasped": (held & (grip < REACHED)).float(),
            "lift": (self.one.place()[:, 2] > LIFTED).float(),
            "success": succeeded.float(),
            "success_time": succeeded * (memory["steps"] - at),
        }

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return what the potential gained above its best, its value, and the regularisers."""
        memory, data, arm = self.memory, sim.data, self.arm
        forces = arm.forces()
        held = self.held = arm.grasps(sim, forces=forces)
        terms = self.potential(sim, held)
        total = self.record.weigh(terms)
        gain = self.record.gain_of(total)
        first = memory["steps"] <= 1
        memory["first"].copy_(torch.where(first, memory["best"], memory["first"]))
        force = forces.norm(dim=2).sum(dim=1).clamp(max=FORCE) / FORCE
        touched = self.low.touching.any(dim=1)
        speed = data.qvel[:, arm.qpos].float().norm(dim=1)
        away = (data.qpos[:, arm.qpos].float() - self.home).norm(dim=1)
        return {
            "progress": gain,
            "potential": total,
            "finger_force": force * held,
            "no_floor_collision": 1.0 - touched.float(),
            "joint_vel": 1.0 / (1.0 + 9.0 * (speed - 0.5).clamp(min=0.0) / 2.0),
            "robot_target_qpos": near(away, 1.0),
            "crossed": self.crossed(sim).float(),
        }

    def crossed(self, sim: Sim) -> Tensor:
        """Return whether the bar's far end has crossed the table's middle, (num_envs,) bool."""
        return self.arm.to_base(sim.data.site_xpos[:, self.end])[:, 0] > MID_LINE

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the bar has crossed the middle or left the world."""
        return self.crossed(sim) | (self.one.place().abs() > WORLD).any(dim=1)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the bar is at its target, as near as its level asks for."""
        errors = self.one.errors(self.goal(sim))
        return self._is_near(errors, errors.mat.flatten(1).norm(dim=1))

    def _is_near(self, errors: one_arm.Errors, turned: Tensor) -> Tensor:
        distance, error = self.limits[:, self.memory["level"]]
        return (errors.target.norm(dim=1) < distance) & (turned < error)

    def progress(self, sim: Sim) -> Tensor:
        """Return what the potential has gained since the episode's first step."""
        begun = self.memory["steps"] > 0
        return torch.where(begun, self.memory["best"] - self.memory["first"], 0.0)

    def start_state(self, sim: Sim) -> Tensor:
        """Return positions, velocities, commands, the target (3) and half the bar's width (1)."""
        own = self._live(sim, *_STATE)
        half = self.half_width(sim)[:, None].to(own[0])
        return torch.cat((*own, half), dim=1)

    def set_start_state(self, sim: Sim, mask: Tensor, rows: Tensor, rng: torch.Generator) -> None:
        """Start from such rows, half of them with another target.

        Where bars have another width, the fingers and the bar give way.
        """
        live = self._live(sim, *_STATE)
        *own, half = rows.split((*(view.shape[1] for view in live), 1), dim=1)
        joints, bar, *_, ctrl, target = own = [part.clone() for part in own]
        half = half[:, 0]
        wider = self.half_width(sim) - half
        fingers = slice(6, arms.QPOS)
        spread = (joints[:, fingers] + wider[:, None]).clamp(max=description.FINGER_TRAVEL)
        is_open = ctrl[:, 6:7] > OPENING
        joints[:, fingers] = torch.where(is_open, joints[:, fingers], spread)
        lowest = aloha.TABLE_Z + self.half_width(sim)
        lies = bar[:, 2] < aloha.TABLE_Z + half + LYING
        bar[:, 2] = torch.where(lies, lowest, torch.maximum(bar[:, 2], lowest))
        draw = torch.rand(sim.num_envs, 4, generator=rng, device=sim.device)
        other = self._drawn_target(2.0 * draw[:, 1:] - 1.0)
        target.copy_(torch.where(draw[:, :1] < 0.5, other, target.float()))
        for field_, value in zip(live, own, strict=True):
            arms.write(field_, value, mask)

    def start_bank(self, device: torch.device) -> Tensor:
        """Return states along scripted picks, at rest, (n, 40): the left arm's, or turned round.

        Raises:
            DamagedError: the folder is missing or damaged.
        """
        rows = read_bank(_BANK).to(device)
        if self.cfg.side == "right":
            sizes = (arms.QPOS, 7, arms.QPOS, 6, len(description.CHANNELS), 3, 1)
            joints, bar, speeds, bar_vel, ctrl, target, half = rows.split(sizes, dim=1)
            w, x, y, z = bar[:, 3:].split(1, dim=1)
            back = bar.new_tensor((-1.0, -1.0, 1.0))  # half a turn about the vertical
            left, right = (bar.new_tensor(pos) for pos, _ in description.BASES.values())
            place, target = ((pos - left) * back + right for pos in (bar[:, :3], target))
            bar = torch.cat((place, -z, -y, x, w), dim=1)
            bar_vel = torch.cat((bar_vel[:, :3] * back, bar_vel[:, 3:]), dim=1)
            rows = torch.cat((joints, bar, speeds, bar_vel, ctrl, target, half), dim=1)
        return rows

    def expert(self, sim: Sim) -> Expert:
        """Return the script of `pick_expert.py`."""
        from tasks.aloha.pick_expert import PickExpert

        return PickExpert([self], sim)

    def step_metrics(self, sim: Sim) -> dict[str, Tensor]:
        """Return the level, and whether the bar is held, and lifted."""
        return {
            "level": self.memory["level"].float(),
            "grasped": (self.arm.grasps(sim) if self.held is None else self.held).float(),
            "lifted": (self.one.place()[:, 2] > LIFTED).float(),
        }

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return the level, and the shares of episodes that got so far, or crossed the middle."""
        reached = {f"ever_{name}": sums[name] > 0 for name in ("grasped", "lifted")}
        return {"level": sums["level"] / steps, **reached, "crossed": terminated}


OPENING = 0.02  # m, above which a gripper is commanded to be open
LYING = 0.003  # m above the table, up to which a bar lies
_STATE = ("qpos", "qvel", "ctrl", "mocap_pos")
_LOW_GEOMS = ("left_finger_bottom", "right_finger_bottom", "palm")
_OF_EPISODE = ("steps", "first", "succeeded_at", "reached", "succeeded", "ever_succeeded")

NAME = "aloha_pick"
TASK = Pick
