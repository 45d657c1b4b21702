"""Many twins in one simulation, in step: `SimRobot` is one of them, policies are evaluated on many.

    batch = BatchTwin(load_twin("pen_shifted"), 200)
    batch.reset()
    while not batch.done.all():
        values = batch.observe().values                 # (200, ...) each
        batch.command(decoder.decode(actions, batch.target))
    batch.measures()

The physics, the controller and the success are the task's; what is drawn comes from one generator
in the order of `Env`, so that without perturbations it repeats an environment of the same seed.
"""

import copy
import functools
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penspin_style.deploy.actions import Decoder
from penspin_style.env.task import ObsTerm, Task, TaskConfig
from penspin_style.env.world import World
from penspin_style.features import Feature
from penspin_style.train.compose import compose_train, nearest
from real.robot import Observation, RobotError
from real.twin.config import TwinConfig
from real.twin.sensors import Sensors

_JOINTS = ""
"""Under which name the joints' positions pass the sensors, where no feature measures them."""


class BatchTwin:
    """`num` twins of one description. Time stands still but in `command` and `advance`."""

    def __init__(self, config: TwinConfig, num: int = 1, *, nthread: int = 1) -> None:
        """Build the world.

        Raises:
            UsageError, ValueError: the task, its overrides, a feature or a perturbation is invalid.
        """
        found, kind = _composed(config.task, config.overrides)
        cfg = copy.deepcopy(found)
        names = _feature_names(kind, cfg, config)
        self._read = (*dict.fromkeys((*names, *(row.feature for row in config.measured))),)
        cfg.observation, cfg.latency = {"robot": {name: ObsTerm() for name in self._read}}, {}
        self.config, self.num, self.cfg = config, num, cfg
        self.task: Task[Any] = kind(cfg)
        self.world = World(
            self.task, num, seed=config.seed, nthread=nthread, perturb=config.perturb
        )
        self.sim, self.cameras = self.world.sim, self.world.cameras
        self.channels = self.task.actions
        self.control_dt = cfg.control_dt
        self.timestep, self.substeps = self.sim.timestep, self.world.n_substeps
        self.decoder = Decoder(self.channels)
        self._is_absolute = torch.tensor([float(c.mode == "absolute") for c in self.channels])
        # who comes at any time must find what was measured the latency before it
        self._is_continuous = config.realtime and config.observation_latency > 0
        self._all = torch.ones(num, dtype=torch.bool)
        self._find_measured()
        self.features = self._describe(names)
        self.sensors = self._make_sensors()
        self._offsets = self._find_offsets()
        self._ticks, self._origin = 0, 0.0
        self._ready = False

    # Episodes.

    @torch.inference_mode()
    def seed(self, seed: int) -> None:
        """Make everything from the next reset on depend on the seed alone."""
        self.world.seed(seed)
        self.sensors.seed(seed)

    @torch.inference_mode()
    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Begin an episode in every world.

        start: `qpos` (nq,) or (num, nq), positions to begin from instead of the task's own draw; or
            single joints by name, as `box`: 7 numbers for a free one. `state` (nstate,) or (num,
            nstate): whole rows of the simulation, bit for bit.

        Raises:
            RobotError: there is no such joint, or the numbers are others.
        """
        self.world.restart(
            self._all, drawn=self._offset, placed=(lambda: self._place(start)) if start else None
        )
        self.sim.faults.zero_()
        self.sensors.clear()
        self._pending: deque[tuple[int, Tensor]] = deque()
        self._open = self._limp = False
        terms = self.task.observe(self.sim)  # some tasks place their targets here
        followed = self.task.followed(self.sim)
        begin = self._true(terms) if followed is None else followed.double().numpy()
        self.target = np.clip(begin, self.decoder.low, self.decoder.high)
        self._last_action = torch.from_numpy(self.decoder.encode(self.target, self.target))
        zeros = torch.zeros(self.num)
        self._sums = {name: zeros.clone() for name in self.task.step_metrics(self.sim)}
        self.steps = zeros.clone()
        self._terminated = zeros.bool()
        self._succeeded = zeros.bool()
        self._faulty = zeros.bool()
        self._alive = ~zeros.bool()
        self._sampled = -1
        self._ready = True
        if self.config.observation_latency:
            self._sample()

    @property
    def time(self) -> float:
        """Seconds; never goes back, also not at a reset."""
        return self._origin + self._ticks * self.timestep

    @property
    def terminated(self) -> np.ndarray:
        """(num,) bool: whether the task has ended the episode."""
        return self._terminated.numpy().copy()

    @property
    def done(self) -> np.ndarray:
        """(num,) bool: whether the episode is over, by a fall, by its length or by a fault."""
        return (~self._alive).numpy()

    @torch.inference_mode()
    def measures(self) -> dict[str, np.ndarray]:
        """Return what the episodes amount to until now, (num,) each, as the task names it.

        `success` (at any step), `steps`, `terminated`, `faulty`, and the task's `episode_metrics`.
        """
        summed = self.task.episode_metrics(self._sums, self.steps, self._terminated)
        said = {
            "success": self._succeeded & ~self._faulty,
            "steps": self.steps,
            "terminated": self._terminated,
            "faulty": self._faulty,
        }
        return {name: value.numpy().copy() for name, value in {**said, **summed}.items()}

    # The robot's side.

    @torch.inference_mode()
    def observe(self) -> Observation:
        """Return what has arrived; values (num, *shape), stamp that of the first world."""
        self._check_ready()
        if self._sampled != self._ticks:
            self._sample()
        values, stamps = self.sensors.read(self.time)
        out = {name: values[name] for name in self.features}
        return Observation(out, float(stamps[0]), self._measured(values))

    def command(self, target: np.ndarray) -> np.ndarray:
        """Send targets (num, naction); let one control step pass. Return what was really sent."""
        self.send(target)
        self.advance(self.substeps)
        return self.target.copy()

    def send(self, target: np.ndarray) -> None:
        """Send targets (num, naction) that act when the command's latency is over."""
        self._check_ready()
        # what the controller can do in a control step is all that it is told
        action = self.decoder.encode(target, self.target)
        self.target = self.decoder.decode(action, self.target)
        late = round(self.config.command_latency / self.timestep)
        self._pending.append((self._ticks + late, torch.from_numpy(action)))

    @torch.inference_mode()
    def advance(self, substeps: int) -> None:
        """Let physics steps pass; without a new command the last one goes on."""
        end = self._ticks + substeps
        while self._ticks < end:
            if self._limp:
                self._damp()
                continue
            if self._pending and self._pending[0][0] <= self._ticks:
                self._begin(self._pending.popleft()[1])
                continue  # another may be due at the same moment
            if self.world.substep >= self.substeps or not self._open:
                self._begin(self._last_action * self._is_absolute)  # stay where it is
            due = self._pending[0][0] if self._pending else end
            count = min(end, due, self._ticks + self.substeps - self.world.substep) - self._ticks
            self._step(1 if self._is_continuous else count)

    def limp(self) -> None:
        """From now on let the motors only damp."""
        self._limp = True
        self._pending.clear()

    # Physics.

    def _begin(self, action: Tensor) -> None:
        """Begin a control step, as `Env` does; one in which no time has passed does not count."""
        if self._open and self.world.substep:
            self._finish()
        self.world.begin(action)
        self._last_action, self._open = action, True

    def _step(self, count: int) -> None:
        self.world.advance(count)
        self._ticks += count
        if self.world.substep >= self.substeps:
            self._finish()
        if self._is_continuous or (self.config.observation_latency and not self._open):
            self._sample()

    def _damp(self) -> None:
        self.sim.data.ctrl.copy_(self.sim.data.actuator_length)
        self.sim.step(1)
        self._ticks += 1

    def _finish(self) -> None:
        """Count the control step that is over, unless the episode was over before it."""
        if not self._open:
            return
        self._open = False
        alive = self._alive
        if not alive.any():
            return
        self.steps += alive
        if self.sim.faults.any():
            self._faulty |= (self.sim.faults != 0) & alive
            alive = alive & ~self._faulty
            self.sim.faults.zero_()
        _, terminated, success = self.world.finish(self._last_action)
        for name, value in self.task.step_metrics(self.sim).items():
            self._sums[name] += torch.where(alive, value.float(), 0.0)
        self._succeeded |= success & alive
        self._terminated |= terminated & alive
        self._alive = alive & ~self._terminated & (self.steps < self.cfg.episode_length)

    # What the robot knows of itself.

    def _find_measured(self) -> None:
        """Look up where the channels are measured: joints of their names, or given features."""
        model = self.sim.model
        joints = {model.joint(i).name: int(model.jnt_qposadr[i]) for i in range(model.njnt)}
        names = [c.name for c in self.channels]
        self._at = [joints[name] for name in names] if set(names) <= set(joints) else None
        if self._at is None and not self.config.measured:
            missing = sorted(set(names) - set(joints))
            raise ValueError(
                f"the channels {missing} are no joints; say in `measured` which features of "
                f"{self.config.task} measure the channels {names}"
            )

    def _true(self, terms: Mapping[str, Tensor]) -> np.ndarray:
        """Return where the channels are, (num, naction) in their units."""
        if self._at is not None:
            return self.sim.data.qpos[:, self._at].double().numpy()
        return self._read_channels({name: value.numpy() for name, value in terms.items()})

    def _measured(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return where the channels are measured to be."""
        return self._read_channels(values) if self.config.measured else values[_JOINTS].copy()

    def _read_channels(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        rows = [
            values[row.feature].reshape(self.num, -1)[:, : row.count] * float(row.scale)
            for row in self.config.measured
        ]
        return np.concatenate(rows, axis=1).astype(np.float64)

    def _sample(self) -> None:
        """Measure the worlds as they are now."""
        truth = {name: self._array(value) for name, value in self._terms().items()}
        if not self.config.measured:
            truth[_JOINTS] = self._true({})
        self.sensors.sample(self.time, truth)
        self._sampled = self._ticks

    def _terms(self) -> dict[str, Tensor]:
        terms = self.world.observe(images=bool(self.cameras.names))
        return {name: terms[name] for name in self._read}

    @staticmethod
    def _array(value: Tensor) -> np.ndarray:
        return (value if value.dtype == torch.uint8 else value.float()).numpy()

    def _describe(self, names: tuple[str, ...]) -> dict[str, Feature]:
        """Return the features, from one look at the world."""
        units = {**self.task.units, **self.cameras.units}
        out = {}
        for name, value in self._terms().items():
            dtype = "uint8" if value.dtype == torch.uint8 else "float32"
            out[name] = Feature(name, tuple(value.shape[1:]), units[name], dtype)
        if self.config.measured:
            truth = {name: self._array(value) for name, value in self._terms().items()}
            width = self._read_channels(truth).shape[1]
            if width != len(self.channels):
                raise ValueError(
                    f"`measured` gives {width} numbers for {len(self.channels)} channels, "
                    f"{[c.name for c in self.channels]}"
                )
        return {name: out[name] for name in names}

    def _make_sensors(self) -> Sensors:
        cfg, bias = self.config, {}
        for key, given in (("noise", cfg.noise), ("bias", cfg.bias)):
            for name in given:
                if name not in self.features:
                    raise ValueError(
                        f"{key}.{name}: the twin has no such feature{nearest(name, self.features)}"
                    )
        for name, value in cfg.bias.items():
            array, shape = np.asarray(value, dtype=float), self.features[name].shape
            flat = array.size == int(np.prod(shape))
            if array.ndim and not flat:
                raise ValueError(f"bias.{name} has {array.size} numbers, the feature is {shape}")
            bias[name] = array.reshape(shape) if array.ndim else array
        return Sensors(
            self.num,
            self.control_dt,
            images=self.cameras.names,
            noise=cfg.noise,
            bias=bias,
            state_drop=cfg.state_drop,
            frame_drop=cfg.frame_drop,
            latency=cfg.observation_latency,
            seed=cfg.seed,
        )

    def _offset(self) -> None:
        for name, offset in self._offsets.items():
            self.task.memory[name] += offset

    def _find_offsets(self) -> dict[str, Tensor]:
        memory, out = self.task.memory, {}
        for name, value in self.config.offset.items():
            if name not in memory:
                raise ValueError(f"offset.{name}: the task has no such{nearest(name, memory)}")
            out[name] = torch.as_tensor(value, dtype=torch.float32)
            if out[name].dim() and out[name].shape != memory[name].shape[1:]:
                raise ValueError(
                    f"offset.{name} must have {tuple(memory[name].shape[1:])} numbers, has "
                    f"{tuple(out[name].shape)}"
                )
        return out

    def _place(self, start: Mapping[str, np.ndarray]) -> None:
        """Replace what the task has drawn."""
        model, qpos = self.sim.model, self.sim.data.qpos.clone()
        joints = {model.joint(i).name: i for i in range(model.njnt)}
        if "state" in start:
            if len(start) > 1:
                raise RobotError(f"start has `state`, which is everything, and {sorted(start)}")
            rows = self._rows("state", start["state"], self.sim.get_state().shape[1])
            self.sim.set_state(rows, self._all)
            self.task.place(self.sim, self._all, self.sim.data.qpos.clone())
            self.sim.set_state(rows, self._all)
            return
        for name, value in start.items():
            begin, width = 0, model.nq
            if name in joints:
                begin = int(model.jnt_qposadr[joints[name]])
                width = {0: 7, 1: 4}.get(int(model.jnt_type[joints[name]]), 1)
            elif name != "qpos":
                raise RobotError(f"start has {name!r}{nearest(name, ['qpos', 'state', *joints])}")
            qpos[:, begin : begin + width] = self._rows(name, value, width)
        self.task.place(self.sim, self._all, qpos)

    def _rows(self, name: str, value: np.ndarray, width: int) -> Tensor:
        array = np.asarray(value, dtype=np.float64)
        if array.shape not in ((width,), (self.num, width)) or not np.isfinite(array).all():
            raise RobotError(
                f"start[{name!r}] must be ({width},) finite numbers, or ({self.num}, {width}), "
                f"got {array.shape}"
            )
        return torch.from_numpy(array).expand(self.num, width)

    def _check_ready(self) -> None:
        if not self._ready:
            raise RobotError("the twin has not been reset")


@functools.cache  # half a second, and the same for every batch of a twin
def _composed(task: str, overrides: tuple[str, ...]) -> tuple[TaskConfig, type[Task[Any]]]:
    """Return the task's configuration, not to be changed, and its class."""
    train, kind, _ = compose_train([f"task={task}"], overrides)  # a file's: they run no code
    return train.task, kind


def _feature_names(kind: type[Task[Any]], cfg: TaskConfig, config: TwinConfig) -> tuple[str, ...]:
    """Return what the twin measures: what is asked for, else what the student reads.

    Raises:
        ValueError: the task has no such term or image.
    """
    legal = {**kind.units, **cfg.images}
    for name in (*config.features, *(row.feature for row in config.measured)):
        if name not in legal:
            raise ValueError(f"features: {config.task} observes no {name!r}{nearest(name, legal)}")
    groups = cfg.observation
    read = groups["student"] if "student" in groups else [n for g in groups.values() for n in g]
    return tuple(dict.fromkeys(config.features or read))
