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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import mujoco
import torch
from torch import Tensor

from penspin_style import rotation
from penspin_style.env.task import Task
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim
from tasks.pen import gait, grasps, search_cost, shapes
from tasks.pen.config import UNITS, PenConfig
from tasks.robots.allegro import description as hand
from tasks.robots.allegro import model as allegro

HOLD_HEIGHT = 0.615  # m, where the reward wants the pen's centre
FLAT = 0.03  # m of z-spread that cost nothing
GRAVITY = -9.81  # m/s^2
TIMESTEP = 0.005  # s, of the published physics
TOUCH = 0.05  # N from which a tactile channel is on

C = TypeVar("C", bound=PenConfig)


class PenTask(Task[C]):
    """What the pen tasks share."""

    units: ClassVar[dict[str, str]] = UNITS
    varied: ClassVar[tuple[str, ...]] = ("geom_size", "geom_pos", "body_inertia")
    kind_names: ClassVar[tuple[str, ...]] = tuple(f"L/D {ratio:g}" for ratio in shapes.RATIOS)
    score: ClassVar[str] = "turns"
    limbs: ClassVar[tuple[tuple[int, ...], ...]] = search_cost.FINGERS
    search_cost, propose = search_cost.terms, search_cost.propose

    def spec(self) -> mujoco.MjSpec:
        """Return hand and pen, with physics steps of 5 ms as published, of 10 ms if fast."""
        spec = allegro.scene()
        radius = shapes.RADIUS * self.cfg.scales[0]
        allegro.add_pen(spec, radius, radius * shapes.RATIOS[0], 0.015)
        for body in spec.bodies:
            body.gravcomp = 0.0
        option = spec.option
        option.gravity = [0.0, 0.0, 0.0]  # see `place`
        option.timestep = TIMESTEP
        option.integrator = mujoco.mjtIntegrator.mjINT_EULER
        option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        option.impratio = 10.0
        option.iterations, option.ls_iterations = 10, 20
        if self._is_fast:
            allegro.simplify(spec)
        return spec

    @property
    def _is_fast(self) -> bool:
        return self.cfg.physics == "fast"

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
        touching, once = "hand_.*|pen", "startup"

        def row(field: str, names: str, low: float, high: float, middle: float, **more: Any) -> Any:
            if (width := self.cfg.difficulty) < 1.0:
                low, high = (middle + width * (end - middle) for end in (low, high))
            return Randomize(field, names, low, high, **more)

        return [
            row("body_mass", "pen", 0.010, 0.020, 0.015, when=once),
            row("body_ipos", "pen", -0.001, 0.001, 0.0, operation="add", when=once),
            row("geom_friction", touching, 0.3, 3.0, 1.0, column=0, shared=True, when=once),
            row("geom_solref", touching, 0.5, 1.0, 1.0, column=1, shared=True, when=once),
            row("actuator_gainprm", ".*", 2.5, 3.5, 3.0, column=0),
            row("actuator_biasprm", ".*", -0.11, -0.09, -0.1, column=2),
        ]

    def vary(self, sim: Sim, rng: torch.Generator) -> None:
        """Make the pens: size, and a solid cylinder's inertia of it and of the mass drawn."""
        n, device = sim.num_envs, sim.device
        ratio = torch.tensor(shapes.RATIOS, device=device)[
            torch.randint(len(shapes.RATIOS), (n,), generator=rng, device=device)
        ]
        nominal = torch.tensor(self.cfg.scales, device=device)[self._slots(sim)]
        jitter = 2.0 * torch.rand(n, generator=rng, device=device) - 1.0
        scale = nominal + self.cfg.scale_jitter * jitter
        if (width := self.cfg.difficulty) < 1.0:
            scale = torch.lerp(nominal.new_tensor(self.cfg.scales).mean(), scale, width)
            ratio = torch.lerp(ratio.new_tensor(shapes.RATIOS).mean(), ratio, width)
        radius = shapes.RADIUS * scale
        size = sim.params.geom_size[:, self.geom]
        size[:, 0], size[:, 1] = radius, radius * ratio - self._cap * radius
        if not self._is_fast:
            band = sim.model.geom("pen_band").id  # is only drawn
            size = sim.params.geom_size[:, band]
            size[:, 0] = allegro.BAND_WIDE * radius
            size[:, 1] = allegro.BAND_LONG * radius * ratio
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
        # views of the live fields, taken once
        self.qpos = sim.data.qpos[:, first : first + 16]
        self.qvel = sim.data.qvel[:, :16]
        self.torque = sim.data.actuator_force
        self.pen, self.pen_quat = sim.data.xpos[:, self.body], sim.data.xquat[:, self.body]
        self.pen_mat = sim.data.xmat[:, self.body]
        self.tips = sim.data.site_xpos
        self.tip_ids = torch.tensor(tips, device=device)
        self.spin_velocity = sim.data.qvel[:, self.dof : self.dof + 6]
        limits = (hand.LOWER, hand.UPPER)
        self.low, self.high = (torch.tensor(limit, device=device) for limit in limits)
        self.cloud = shapes.surface_points(device)
        self.grasps = self.load_grasps(device)
        self._odds = gait.balanced_odds(self.grasps) if self.cfg.balanced else None
        self.read = {name for terms in self.cfg.observation.values() for name in terms}
        if self._is_fast and "tactile" in self.read:
            raise ValueError("task.physics=fast has no touch sensors: observe no `tactile`")
        self.touch = torch.zeros(n, len(allegro.TACTILE), device=device)
        if not self._is_fast:
            adr = int(model.sensor_adr[model.sensor(allegro.TACTILE[0]).id])
            self.touch = sim.data.sensordata[:, adr : adr + len(allegro.TACTILE)]
        # a capsule's length is counted without its caps
        self._cap = allegro.CAP if self._is_fast else 0.0
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
        if self._odds is not None:
            u = torch.rand(n, 1, generator=rng, device=device)
            ids = torch.searchsorted(self._odds[slots], u)[:, 0].clamp(max=count - 1)
        else:
            ids = torch.randint(count, (n,), generator=rng, device=device)
        row = self.grasps[slots, ids]
        self.place(sim, mask, row)
        for name, (std, _) in (
            ("joint_offset", self.cfg.joint_noise),
            ("action_offset", self.cfg.action_noise),
        ):
            std *= self.cfg.difficulty
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
        if not self._is_fast:
            self.memory["tactile"].copy_(self._tactile())

    def substeps(self, sim: Sim, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Disturb targets and pen in each physics step; draw the sensors' noise of this step."""
        num, device, width = sim.num_envs, sim.device, self.cfg.difficulty
        shape = (num, len(allegro.TACTILE))
        hold = torch.rand(shape, generator=rng, device=device) < self.cfg.tactile_hold
        drop = torch.rand(shape, generator=rng, device=device) < self.cfg.tactile_dropout
        self.memory["tactile_hold"].copy_(hold)
        self.memory["tactile_drop"].copy_(drop)
        noise = torch.randn(num, 16, generator=rng, device=device)
        self.memory["joint_noise"].copy_(width * self.cfg.joint_noise[1] * noise)
        noise = torch.randn(n, num, 16, generator=rng, device=device)
        target = self.memory["target"] + self.memory["action_offset"]
        # white noise of the same strength, however long a physics step is
        std = width * self.cfg.action_noise[1] * math.sqrt(TIMESTEP / sim.timestep)
        inputs = {"ctrl": target + std * noise}
        if width * self.cfg.push_probability > 0:
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
        if self.read - terms.keys():
            terms |= self._invariant(sim)
        return {name: terms[name]() for name in self.read}

    def _invariant(self, sim: Sim) -> dict[str, Callable[[], Tensor]]:
        """Return the terms that a roll of the pen and a swap of its ends do not change."""
        axis, velocity = self.pen_mat[:, :, 2], self.spin_velocity.float()
        size = self.size(sim)
        seen = gait.tip_features(self.tips[:, self.tip_ids], self.pen, axis, size[:, 0])
        return {
            **{name: (lambda value=value: value) for name, value in seen.items()},
            "joint_pos": self.qpos.float,
            "target_error": lambda: self.memory["target"] - self.qpos.float(),
            "joint_vel": self.qvel.float,
            "pen_offset": lambda: self.pen - self.pen.new_tensor(gait.MIDDLE),
            "pen_line": lambda: gait.line_features(axis),
            "pen_linvel": lambda: velocity[:, :3],
            "pen_rate": lambda: rotation.rotate(self.pen_quat, velocity[:, 3:]),
            "pen_size": lambda: size[:, :2],
        }

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return PenSpin's terms, from differences over the control step, and those not published.

        Without `alive` to drop a pen pays more than to hold it. `posture`, in [0, 1], is near 1 for
        a hand that holds the pen well at its present angle, `sides` for fingertips on the sides of
        the pen where they belong there; `drop` is 1 where the pen falls. What has the weight 0 is
        not computed.
        """
        spin = self._angvel()[:, 2]
        linvel = (self.pen - self.memory["last_pos"]) / self.cfg.control_dt
        power = (self.torque.abs() * self.qvel.abs()).sum(dim=1).float()
        offset = torch.cat((self.pen[:, :2], self.pen[:, 2:] - HOLD_HEIGHT), dim=1)
        spread = shapes.vertical_extent(self.size(sim), self.pen_mat[:, :, 2])
        return {
            "rotate": spin.clamp(-self.cfg.paid_rate, self.cfg.paid_rate),
            "over_speed": (spin - self.cfg.free_rate).clamp(min=0.0),
            "linvel": linvel.abs().sum(dim=1),
            "pose_diff": (self.qpos.float() - self.memory["grasp"]).square().sum(dim=1),
            "torque": self.torque.square().sum(dim=1),
            "work": power.square().clamp(max=self.cfg.work_limit),
            "z_spread": torch.where(spread > FLAT, spread, 0.0),
            "position": offset.square().sum(dim=1),
            "alive": torch.ones_like(spin),
            **self._shaping(sim, torch.zeros_like(spin)),
        }

    def _shaping(self, sim: Sim, zero: Tensor) -> dict[str, Tensor]:
        """Return the terms that lead to a gait, zero where they do not count."""
        axis, weights = self.pen_mat[:, :, 2], self.cfg.reward
        drop, posture, sides = zero, zero, zero
        if weights["drop"]:
            drop = self.terminated(sim).float()
        if weights["posture"]:
            posture = torch.exp(-gait.posture_cost(self.qpos.float(), self.pen, axis))
        if weights["sides"]:
            sides = 1.0 - gait.side_error(self.tips[:, self.tip_ids], self.pen, axis)
        return {"drop": drop, "posture": posture, "sides": sides}

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the pen, or one of its ends, has left the band of heights."""
        (low, high), cfg = self.ends(sim)[:, :, 2].aminmax(dim=1), self.cfg
        return (self.pen[:, 2] < cfg.lowest) | (low < cfg.lowest_end) | (high > cfg.highest_end)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the pen has turned by half a turn since the episode began."""
        return self.progress(sim) >= 0.5

    def progress(self, sim: Sim) -> Tensor:
        """Return the turns made since the episode began."""
        return self.memory["turned"] + self._turn()

    def start_state(self, sim: Sim) -> Tensor:
        """Return joints and pen, their velocities, and the targets, (num_envs, 61)."""
        pen = sim.data.qpos[:, self.at : self.at + 7]
        parts = (self.qpos, pen, self.qvel, self.spin_velocity, self.memory["target"])
        return torch.cat([part.float() for part in parts], dim=1)

    def set_start_state(self, sim: Sim, mask: Tensor, rows: Tensor, rng: torch.Generator) -> None:
        """Start from such rows (num_envs, 61)."""
        where = mask[:, None]
        pose, velocity, target = rows.split((grasps.SIZE, 22, 16), dim=1)
        self.place(sim, mask, pose)
        for live, value in ((self.qvel, velocity[:, :16]), (self.spin_velocity, velocity[:, 16:])):
            live.copy_(torch.where(where, value.to(live.dtype), live))
        self._set("target", mask, target)
        control = sim.data.ctrl
        control.copy_(torch.where(where, target.to(control.dtype), control))

    def start_bank(self, device: torch.device) -> Tensor:
        """Return states along searched trajectories, at rest, (n, 61)."""
        return gait.bank().to(device)

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
        size = self._param(sim, "geom_size", self.geom)
        if self._cap:
            size = size + self._cap * size[:, :1] * size.new_tensor((0.0, 1.0, 0.0))
        return size

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
        odds = cfg.difficulty * cfg.push_probability
        forces = torch.zeros(n, num, sim.model.nv, device=device)
        when = torch.randint(n, (2, num), generator=rng, device=device).sort(dim=0).values
        new = torch.rand(2, num, 1, generator=rng, device=device) < odds
        draw = torch.randn(2, num, 3, generator=rng, device=device)
        # the same momentum, however long the physics step that pushes is
        mass = self._param(sim, "body_mass", self.body)[:, None] * (TIMESTEP / sim.timestep)
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
