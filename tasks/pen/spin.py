"""Spin a pen with the Allegro hand: PenSpin's `AllegroHandHora` on MuJoCo (arXiv 2407.18902).

The hand lies on its back, the pen on its fingertips. An action moves the targets of 16 joints, at
20 Hz; a PD controller of 200 Hz with noise of its own follows them. The teacher knows where the pen
is, how it is made and where it touches; see `pen_spin_student` for what a robot knows.

**Success**: the pen has turned by half a turn about +z since the episode began. `turns` are counted
from where the pen's axis points, not from the angular velocity that is rewarded.

An episode ends when the pen's centre, or its lower end, drops below a height, or its upper end
rises above one: this pen's ends, not those of the last asset, as published.

What is mapped, and how (PhysX -> MuJoCo):

| published | here |
| --- | --- |
| torques every 5 ms, velocity by difference | actuators; Euler's `qvel` is that difference |
| friction 0.3 to 3, of hand and pen | `geom_friction`, sliding |
| restitution r, acting above 0.2 m/s | damping ratio 1 - r / 2 of the contacts' `solref` |
| joint friction 0.01, armature 0.001 | `frictionloss` in N·m, `armature` in kg·m² |
| pen's inertia 1e-4 kg·m², isotropic | a solid cylinder's, of each pen's mass and size |
| z-spread of 100 points of the last step | of the whole cylinder, now; with any observation |
| index, thumb, middle, ring; x, y, z, w | index, middle, ring, thumb as the hardware; w, x, y, z |
"""

from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import mujoco
import torch
from torch import Tensor

from penspin_style import rotation
from penspin_style.env.task import ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim
from tasks.pen import grasps, shapes
from tasks.robots.allegro import description as hand
from tasks.robots.allegro import model as allegro

HOLD_HEIGHT = 0.615  # m, where the reward wants the pen's centre
FLAT = 0.03  # m of z-spread that cost nothing
GRAVITY = -9.81  # m/s^2
TOUCH = 0.05  # N from which a tactile channel is on

PRIVILEGED = (
    *("pen_pos", "pen_scale", "pen_mass", "pen_friction", "pen_com", "pen_quat", "pen_angvel"),
    *("tip_pos", "pen_restitution", "tactile"),
)
"""What the teacher is told beside the joints: 61 numbers."""


@dataclass
class PenConfig(TaskConfig):
    """Numbers of the pen tasks."""

    control_dt: float = hand.CONTROL_DT
    episode_length: int = 400
    reward: dict[str, float] = field(
        default_factory=lambda: {
            "rotate": 1.0,
            "over_speed": -0.3,
            "linvel": -0.3,
            "pose_diff": -0.1,
            "torque": -0.1,
            "work": -1.0,
            "z_spread": -1.0,
            "position": -0.1,
            "alive": 0.0,  # not published
        }
    )
    observation: dict[str, dict[str, ObsTerm]] = field(default_factory=dict)
    """Empty for the published groups, less what the three switches below take away."""
    privileged: bool = True
    """Whether the teacher is told the group `privileged`."""
    tactile: bool = True
    """Whether the 32 tactile channels are in it."""
    point_cloud: bool = True
    """Whether the teacher is told the group `points`."""
    lag: int = 1
    """Control steps that measured joints and targets arrive late."""
    action_scale: float = hand.ACTION_SCALE
    """Radians that a joint's target moves for an action of 1."""
    joint_noise: list[float] = field(default_factory=lambda: [0.01, 0.005])
    """Standard deviations on the measured joints, rad: of an episode, of a control step."""
    action_noise: list[float] = field(default_factory=lambda: [0.01, 0.005])
    """Standard deviations on the targets, rad: of an episode, of a physics step."""
    push_probability: float = 0.25
    """Odds of a new push in each of two physics steps of a control step; 0 for none ever."""
    push_scale: float = 2.0
    """Standard deviation of a push as an acceleration, m/s^2."""
    push_decay: float = 0.9
    """What is left of a push after `push_interval` seconds of pushing."""
    push_interval: float = 0.08
    scales: list[float] = field(default_factory=lambda: [0.28, 0.29])
    """Nominal sizes of the pens, by turns; each has a cache of grasps."""
    scale_jitter: float = 0.025
    """Half width of the sizes around the nominal ones."""
    tactile_hold: float = 0.2
    """Odds that a tactile channel repeats its last value."""
    tactile_dropout: float = 0.1
    """Odds that a channel that is on reads off."""
    lowest: float = 0.605
    """The episode ends when the pen's centre is below this height, m,"""
    lowest_end: float = 0.56
    """when its lower end is below this one,"""
    highest_end: float = 0.71
    """or when its upper end is above this one."""
    grasps: str = ""
    """Folder with a cache of grasps per scale; empty for those that come with the tasks."""
    sides: int = 1
    """How often a grasp is used, but for once with the pen rolled and its ends perhaps swapped."""

    def __post_init__(self) -> None:
        """Fill in the published observation; refuse invalid values."""
        if self.lag < 0:
            raise ValueError(f"task.lag must be >= 0, got {self.lag}")
        if self.observation:
            for name in ("privileged", "tactile", "point_cloud"):
                if not getattr(self, name):
                    raise ValueError(
                        f"task.{name}=false changes nothing, for task.observation is given: take "
                        "the terms out of it"
                    )
        else:
            self.observation = self.published()
        super().__post_init__()
        for name in ("joint_noise", "action_noise"):
            noise = getattr(self, name)
            if len(noise) != 2 or min(noise) < 0:
                raise ValueError(f"task.{name} must be two standard deviations >= 0, got {noise}")
        for name in ("push_probability", "tactile_hold", "tactile_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"task.{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.scales or min(self.scales) - self.scale_jitter <= 0 or self.scale_jitter < 0:
            got = f"{self.scales} and {self.scale_jitter}"
            raise ValueError(f"task.scales, less task.scale_jitter >= 0, must be > 0, got {got}")

    def published(self) -> dict[str, dict[str, ObsTerm]]:
        """Return the teacher's observation groups."""
        groups = {"teacher": {"proprio": ObsTerm(delay=(self.lag, self.lag), history=3)}}
        if self.privileged:
            told = [name for name in PRIVILEGED if self.tactile or name != "tactile"]
            groups["privileged"] = {name: ObsTerm() for name in told}
        if self.point_cloud:
            groups["points"] = {"pen_points": ObsTerm()}
        return groups


C = TypeVar("C", bound=PenConfig)


class PenTask(Task[C]):
    """What the pen tasks share."""

    units: ClassVar[dict[str, str]] = {
        "proprio": "rad",
        "pen_pos": "m",
        "pen_scale": "1",
        "pen_mass": "kg",
        "pen_friction": "1",
        "pen_com": "m",
        "pen_quat": "1",
        "pen_angvel": "rad/s",
        "tip_pos": "m",
        "pen_restitution": "1",
        "tactile": "1",
        "pen_points": "m",
        "fingertips": "m",
        "pen_ends": "m",
    }
    varied: ClassVar[tuple[str, ...]] = ("geom_size", "geom_pos", "body_inertia")
    kind_names: ClassVar[tuple[str, ...]] = tuple(f"L/D {ratio:g}" for ratio in shapes.RATIOS)
    score: ClassVar[str] = "turns"

    def spec(self) -> mujoco.MjSpec:
        """Return hand and pen, with physics steps of 5 ms."""
        spec = allegro.scene()
        radius = shapes.RADIUS * self.cfg.scales[0]
        allegro.add_pen(spec, radius, radius * shapes.RATIOS[0], 0.015)
        for body in spec.bodies:
            body.gravcomp = 0.0
        option = spec.option
        option.gravity = [0.0, 0.0, 0.0]  # see `place`
        option.timestep = 0.005
        option.integrator = mujoco.mjtIntegrator.mjINT_EULER
        option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        option.impratio = 10.0
        option.iterations, option.ls_iterations = 10, 20
        return spec

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the 16 joints' targets."""
        return hand.actions(self.cfg.action_scale)

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the hand's joints."""
        rows = zip(hand.JOINTS, hand.LOWER, hand.UPPER, hand.HOME, strict=True)
        return tuple(
            Joint(name, "rad", low, high, hand.KP, hand.KD, home) for name, low, high, home in rows
        )

    def randomize(self) -> list[Randomize]:
        """Vary the pen's mass, middle and contacts once, the controller's gains at every reset."""
        touching = "hand_.*|pen"
        return [
            Randomize("body_mass", names="pen", low=0.010, high=0.020, when="startup"),
            Randomize("body_ipos", "pen", -0.001, 0.001, operation="add", when="startup"),
            Randomize("geom_friction", touching, 0.3, 3.0, column=0, shared=True, when="startup"),
            Randomize("geom_solref", touching, 0.5, 1.0, column=1, shared=True, when="startup"),
            Randomize("actuator_gainprm", low=2.5, high=3.5, column=0),
            Randomize("actuator_biasprm", low=-0.11, high=-0.09, column=2),
        ]

    def vary(self, sim: Sim, rng: torch.Generator) -> None:
        """Make the pens: size, and a solid cylinder's inertia of it and of the mass drawn."""
        n, device = sim.num_envs, sim.device
        ratio = torch.tensor(shapes.RATIOS, device=device)[
            torch.randint(len(shapes.RATIOS), (n,), generator=rng, device=device)
        ]
        nominal = torch.tensor(self.cfg.scales, device=device)[self._slots(sim)]
        jitter = 2.0 * torch.rand(n, generator=rng, device=device) - 1.0
        radius = shapes.RADIUS * (nominal + self.cfg.scale_jitter * jitter)
        band = sim.model.geom("pen_band").id  # is only drawn
        drawn = (band, allegro.BAND_WIDE, allegro.BAND_LONG)
        for geom, wide, long in ((self.geom, 1.0, 1.0), drawn):
            size = sim.params.geom_size[:, geom]
            size[:, 0], size[:, 1] = wide * radius, long * radius * ratio
        sim.params.geom_pos[:, band, 2] = (allegro.BAND_PLACE * radius * ratio).to(
            sim.params.geom_pos.dtype
        )
        mass = sim.params.body_mass[:, self.body].to(radius.dtype)
        moments = shapes.inertia(mass, radius, radius * ratio)
        sim.params.body_inertia[:, self.body] = moments.to(sim.params.body_inertia.dtype)

    def start(self, sim: Sim) -> None:
        """Look up ids and views; load the grasps; remember what lives longer than a step."""
        model, n, device = sim.model, sim.num_envs, sim.device
        self.body, self.geom = model.body("pen").id, model.geom("pen").id
        self.at = int(model.jnt_qposadr[model.joint("pen").id])
        self.dof = int(model.jnt_dofadr[model.joint("pen").id])
        first = int(model.jnt_qposadr[model.joint(hand.JOINTS[0]).id])
        tips = [model.site(name).id for name in hand.TIPS]
        adr = int(model.sensor_adr[model.sensor(allegro.TACTILE[0]).id])
        # views of the live fields, taken once
        self.qpos = sim.data.qpos[:, first : first + 16]
        self.qvel = sim.data.qvel[:, :16]
        self.torque = sim.data.actuator_force
        self.pen, self.pen_quat = sim.data.xpos[:, self.body], sim.data.xquat[:, self.body]
        self.pen_mat = sim.data.xmat[:, self.body]
        self.tips = sim.data.site_xpos
        self.tip_ids = torch.tensor(tips, device=device)
        self.touch = sim.data.sensordata[:, adr : adr + len(allegro.TACTILE)]
        limits = (hand.LOWER, hand.UPPER)
        self.low, self.high = (torch.tensor(limit, device=device) for limit in limits)
        self.cloud = shapes.surface_points(device)
        self.grasps = self.load_grasps(device)
        self.read = {name for terms in self.cfg.observation.values() for name in terms}
        joints, channels = (torch.zeros(n, k, device=device) for k in (16, len(allegro.TACTILE)))
        self.memory = {
            "target": joints.clone(),
            "grasp": joints.clone(),  # the joints that the episode began with
            "joint_offset": joints.clone(),
            "joint_noise": joints.clone(),
            "action_offset": joints.clone(),
            "push": torch.zeros(n, 3, device=device),
            "last_pos": torch.zeros(n, 3, device=device),
            "last_quat": torch.zeros(n, 4, device=device),
            "turned": torch.zeros(n, device=device),  # turns until the last control step began
            "tactile": channels.clone(),
            "tactile_hold": channels > 0,
            "tactile_drop": channels > 0,
        }

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Start from a grasp of the cache of each environment's nominal scale."""
        n, device = sim.num_envs, sim.device
        slots, count = self._slots(sim), self.grasps.shape[1]
        row = self.grasps[slots, torch.randint(count, (n,), generator=rng, device=device)]
        self.place(sim, mask, row)
        for name, (std, _) in (
            ("joint_offset", self.cfg.joint_noise),
            ("action_offset", self.cfg.action_noise),
        ):
            self._set(name, mask, std * torch.randn(n, 16, generator=rng, device=device))

    def load_grasps(self, device: torch.device) -> Tensor:
        """Return the grasps from which episodes begin, (scales, n, 23)."""
        return grasps.load(self.cfg.grasps, self.cfg.scales, sides=self.cfg.sides).to(device)

    def place(self, sim: Sim, mask: Tensor, row: Tensor) -> None:
        """Set joints, targets and pen of the masked environments to grasps (num_envs, 23).

        Nothing has weight but the pen, as published. To give the pen its own in a world without
        gravity is the same as to hold up the hand in one with it, and 15 % faster on a CPU.
        """
        where = mask[:, None]
        joints, pose = row[:, :16], row[:, 16:]
        self.qpos.copy_(torch.where(where, joints.to(self.qpos.dtype), self.qpos))
        pen = sim.data.qpos[:, self.at : self.at + 7]
        pen.copy_(torch.where(where, pose.to(pen.dtype), pen))
        sim.data.ctrl.copy_(torch.where(where, joints.to(sim.data.ctrl.dtype), sim.data.ctrl))
        weight = GRAVITY * self._param(sim, "body_mass", self.body)
        sim.data.xfrc_applied[:, self.body, 2] = weight.to(sim.data.xfrc_applied.dtype)
        for name, value in (
            ("target", joints),
            ("grasp", joints),
            ("last_pos", pose[:, :3]),
            ("last_quat", pose[:, 3:]),
        ):
            self._set(name, mask, value)
        for name in ("joint_noise", "push", "tactile", "tactile_hold", "tactile_drop"):
            self.memory[name].masked_fill_(where, 0)
        self.memory["turned"].masked_fill_(mask, 0)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Move the targets, and remember the pen as it is before the step."""
        target = self.memory["target"]
        target.add_(action, alpha=self.cfg.action_scale)
        torch.clamp(target, self.low, self.high, out=target)
        self.memory["turned"].add_(self._turn())
        self.memory["last_pos"].copy_(self.pen)
        self.memory["last_quat"].copy_(self.pen_quat)
        self.memory["tactile"].copy_(self._tactile())

    def substeps(self, sim: Sim, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Disturb targets and pen in each physics step; draw the sensors' noise of this step."""
        num, device = sim.num_envs, sim.device
        shape = (num, len(allegro.TACTILE))
        hold = torch.rand(shape, generator=rng, device=device) < self.cfg.tactile_hold
        drop = torch.rand(shape, generator=rng, device=device) < self.cfg.tactile_dropout
        self.memory["tactile_hold"].copy_(hold)
        self.memory["tactile_drop"].copy_(drop)
        noise = torch.randn(num, 16, generator=rng, device=device)
        self.memory["joint_noise"].copy_(self.cfg.joint_noise[1] * noise)
        noise = torch.randn(n, num, 16, generator=rng, device=device)
        target = self.memory["target"] + self.memory["action_offset"]
        inputs = {"ctrl": target + self.cfg.action_noise[1] * noise}
        if self.cfg.push_probability > 0:
            inputs["qfrc_applied"] = self._pushes(sim, n, rng)
        return inputs

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return those terms of `units` that some group reads."""
        measured = self.qpos.float() + self.memory["joint_offset"] + self.memory["joint_noise"]
        terms = {"proprio": lambda: torch.cat((measured, self.memory["target"]), dim=1)}
        terms |= {
            "pen_pos": lambda: self.pen,
            "pen_scale": lambda: self.size(sim)[:, 0] / shapes.RADIUS,
            "pen_mass": lambda: self._param(sim, "body_mass", self.body),
            "pen_friction": lambda: self._param(sim, "geom_friction", self.geom)[:, 0],
            "pen_com": lambda: self._param(sim, "body_ipos", self.body),
            "pen_quat": lambda: self.pen_quat,
            "pen_angvel": self._angvel,
            "tip_pos": lambda: self.tips[:, self.tip_ids],
            "pen_restitution": lambda: 2.0 - 2.0 * self._param(sim, "geom_solref", self.geom)[:, 1],
            "tactile": self._tactile,
            "pen_points": lambda: self.points(sim),
            "fingertips": lambda: allegro.fingertips(measured),
            "pen_ends": lambda: self.ends(sim) - self.pen.new_tensor(hand.PALM_POS),
        }
        return {name: terms[name]() for name in self.read}

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return PenSpin's terms, from differences over the control step, and 1 for `alive`.

        Without that one to drop a pen pays more than to hold it: short trainings need some of it.
        """
        spin = self._angvel()[:, 2]
        linvel = (self.pen - self.memory["last_pos"]) / self.cfg.control_dt
        power = (self.torque.abs() * self.qvel.abs()).sum(dim=1).float()
        offset = torch.cat((self.pen[:, :2], self.pen[:, 2:] - HOLD_HEIGHT), dim=1)
        spread = shapes.vertical_extent(self.size(sim), self.pen_mat[:, :, 2])
        return {
            "rotate": spin.clamp(-0.5, 0.5),
            "over_speed": (spin - 1.0).clamp(min=0.0),
            "linvel": linvel.abs().sum(dim=1),
            "pose_diff": (self.qpos.float() - self.memory["grasp"]).square().sum(dim=1),
            "torque": self.torque.square().sum(dim=1),
            "work": power.square(),
            "z_spread": torch.where(spread > FLAT, spread, 0.0),
            "position": offset.square().sum(dim=1),
            "alive": torch.ones_like(spin),
        }

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the pen, or one of its ends, has left the band of heights."""
        (low, high), cfg = self.ends(sim)[:, :, 2].aminmax(dim=1), self.cfg
        return (self.pen[:, 2] < cfg.lowest) | (low < cfg.lowest_end) | (high > cfg.highest_end)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the pen has turned by half a turn since the episode began."""
        return self.memory["turned"] + self._turn() >= 0.5

    def step_metrics(self, sim: Sim) -> dict[str, Tensor]:
        """Return the turns made, and how far the nearest fingertip is from the pen's middle, m."""
        reach = (self.tips[:, self.tip_ids] - self.pen[:, None]).norm(dim=2).amin(dim=1)
        return {"turns": self._turn(), "reach": reach}

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return the figures of episodes; an episode that survives counts its whole time."""
        turns = sums["turns"]
        return {
            "turns": turns,
            "survival": ~terminated & (steps >= self.cfg.episode_length),
            "time_to_fall": steps * self.cfg.control_dt,
            "share_180": turns >= 0.5,
            "share_360": turns >= 1.0,
            "finger_distance": sums["reach"] / steps.clamp(min=1),
        }

    def size(self, sim: Sim) -> Tensor:
        """Return radius and half length of each pen, (num_envs, 3) m, the last one unused."""
        return self._param(sim, "geom_size", self.geom)

    def kinds(self, sim: Sim) -> Tensor:
        """Return which of the four shapes each environment's pen has."""
        size = self.size(sim)
        ratio = size[:, 1] / size[:, 0]
        return (ratio[:, None] - ratio.new_tensor(shapes.RATIOS)).abs().argmin(dim=1)

    def points(self, sim: Sim) -> Tensor:
        """Return 100 points of each pen's surface in the world, (num_envs, 100, 3) m."""
        # coordinates before points: the product takes a third of the time
        local = self.cloud.t() * self.size(sim)[:, [0, 0, 1], None]
        return torch.baddbmm(self.pen[..., None], self.pen_mat, local).transpose(1, 2)

    def ends(self, sim: Sim) -> Tensor:
        """Return the middles of each pen's two end faces in the world, (num_envs, 2, 3) m."""
        half = self.size(sim)[:, 1, None] * self.pen_mat[:, :, 2]
        return torch.stack((self.pen - half, self.pen + half), dim=1)

    def _angvel(self) -> Tensor:
        """Return the pen's mean angular velocity over the control step, world frame, rad/s."""
        turn = rotation.multiply(self.pen_quat, rotation.conjugate(self.memory["last_quat"]))
        return rotation.to_rotation_vector(turn) / self.cfg.control_dt

    def _turn(self) -> Tensor:
        """Return the turns that the pen's axis made in this control step, signed."""
        return shapes.turns(rotation.z_axis(self.memory["last_quat"]), self.pen_mat[:, :, 2])

    def _tactile(self) -> Tensor:
        """Return the channels, 1.0 where on: some repeat their last value, some drop out."""
        now = (self.touch >= TOUCH).float()
        now = torch.where(self.memory["tactile_hold"], self.memory["tactile"], now)
        return torch.where(self.memory["tactile_drop"], 0.0, now)

    def _pushes(self, sim: Sim, n: int, rng: torch.Generator) -> Tensor:
        """Return forces on the pen's middle in two physics steps, (n, num_envs, nv) N."""
        num, device, cfg = sim.num_envs, sim.device, self.cfg
        forces = torch.zeros(n, num, sim.model.nv, device=device)
        when = torch.randint(n, (2, num), generator=rng, device=device).sort(dim=0).values
        new = torch.rand(2, num, 1, generator=rng, device=device) < cfg.push_probability
        draw = torch.randn(2, num, 3, generator=rng, device=device)
        mass = self._param(sim, "body_mass", self.body)[:, None]
        decay = cfg.push_decay ** (sim.timestep / cfg.push_interval)
        envs, push = torch.arange(num, device=device), self.memory["push"]
        for i in range(2):
            moved = torch.where(new[i], cfg.push_scale * mass * draw[i], decay * push)
            twice = (when[0] == when[1])[:, None] & (i == 1)  # one physics step pushes once
            push.copy_(torch.where(twice, push, moved))
            forces[when[i], envs, self.dof : self.dof + 3] = push
        return forces

    def _slots(self, sim: Sim) -> Tensor:
        """Return which nominal scale each environment has."""
        return torch.arange(sim.num_envs, device=sim.device) % len(self.cfg.scales)

    def _param(self, sim: Sim, name: str, row: int) -> Tensor:
        """Return a model field of each environment, also where nothing is randomised."""
        if name in sim.params:
            return sim.params[name][:, row].float()
        value = torch.as_tensor(getattr(sim.model, name)[row], dtype=torch.float32)
        return value.to(sim.device).expand(sim.num_envs, *value.shape)

    def _set(self, name: str, mask: Tensor, value: Tensor) -> None:
        memory = self.memory[name]
        memory.copy_(torch.where(mask[:, None], value, memory))


@dataclass
class Config(PenConfig):
    """Numbers of the teacher's task."""


class PenSpin(PenTask[Config]):
    """See the module's docstring."""

    Config = Config


NAME = "pen_spin"
TASK = PenSpin
