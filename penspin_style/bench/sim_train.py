"""Simulation and training against the bare engine on the same model, alternating in one run."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import mujoco
import numpy as np
import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import rollout, torch_threads
from penspin_style.algo.registry import find_algorithm, make_algorithm
from penspin_style.bench.alternate import alternate, make_env, report
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.sim.batch_sim import BatchSim, controls
from penspin_style.sim.sim import Sim
from penspin_style.train.run import interface


def sim(cfg: TrainConfig, task: type[Task[Any]], *, rounds: int, steps: int) -> dict[str, Any]:
    """Return env steps/s of the full environment over the bare engine's.

    `ratio` is against the engine calls that leave the same fields current (position and velocity
    stages at the new state), `bare_ratio` against the substeps alone. All three go through the same
    states under random actions, see `Tape`.
    """
    env = make_env(cfg, task)
    shape = (steps, cfg.num_envs, len(env.task.actions))
    actions = torch.rand(shape, generator=env.rng) * 2.0 - 1.0
    start = env.state_dict()
    root = [env.current()]

    def restore() -> None:
        env.load_state_dict(start)
        root[0] = env.current()

    def full(i: int) -> None:
        root[0].set("action", actions[i])
        root[0] = env.step_and_maybe_reset(root[0])[1]

    tape = Tape(env, full, steps)
    speeds = alternate(
        {"env": full, "staged": tape.staged, "bare": tape.bare},
        rounds,
        steps,
        prepare=restore,
        ready={"staged": tape.ready, "bare": tape.ready},
    )
    return report(cfg, speeds, {"ratio": ("env", "staged"), "bare_ratio": ("env", "bare")})


def train(cfg: TrainConfig, task: type[Task[Any]], *, rounds: int, steps: int) -> dict[str, Any]:
    """Return samples/s of training, roll-out and update, over the bare engine's env steps/s.

    Both start from the same states; the engine goes the way that the first policy's actions led.
    steps: control steps of each measurement; rounded up to whole iterations.

    Raises:
        ValueError: the algorithm learns from recorded data, or needs what the task does not give.
    """
    settings = find_algorithm(cfg.algo.name).env_settings(cfg.algo, training=True)
    if settings is None:
        raise ValueError(f"algo={cfg.algo.name} needs no environment: nothing to measure")
    env = make_env(cfg, task, **settings)
    device = torch.device("cpu")
    algo = make_algorithm(cfg, interface(env), device=device, seed=cfg.seed)
    if not algo.collects:
        raise ValueError(f"algo={cfg.algo.name} collects nothing as configured: nothing to measure")
    root = [env.current()]
    buffer: list[TensorDict | None] = [None]
    start, untrained = env.state_dict(), copy.deepcopy(algo.state_dict())

    def restore() -> None:
        env.load_state_dict(start)
        algo.load_state_dict(untrained)
        root[0] = env.current()

    def iterate(i: int) -> None:
        if i % algo.horizon == 0:
            buffer[0], root[0] = rollout(env, algo, root[0], buffer[0])
            with torch_threads(cfg.learn_threads):
                algo.process(buffer[0])
                algo.update()

    def act(i: int) -> None:
        root[0] = env.step_and_maybe_reset(algo.act(root[0]))[1]

    whole = -(-steps // algo.horizon) * algo.horizon
    tape = Tape(env, act, whole)
    contenders = {"train": iterate, "staged": tape.staged}
    ready = {"staged": tape.ready}
    speeds = alternate(contenders, rounds, whole, prepare=restore, ready=ready)
    return report(cfg, speeds, {"ratio": ("train", "staged")})


class _Write(NamedTuple):
    """Rows of an engine's array that an environment wrote."""

    name: str
    ids: np.ndarray
    values: np.ndarray


class _Frame(NamedTuple):
    """What an engine is given in a control step."""

    writes: list[_Write]
    inputs: dict[str, torch.Tensor]


class Tape:
    """What an environment does to its engine, for the engine alone to go the same way again.

    With the same controls alone the engine would soon be elsewhere: what falls in the environment
    is picked up again, what falls in the engine lies still and is cheaper, or dearer, to compute.
    So the tape holds all that is written between two calls, restarts and parameters too, and the
    inputs of each substep: every state of the replay is the environment's own, bit for bit.
    """

    def __init__(self, env: Env, walk: Callable[[int], object], steps: int) -> None:
        """Record walk(0) to walk(steps - 1), each a control step of the environment.

        Raises:
            ValueError: its engine is not `mujoco.batch`.
        """
        if not isinstance(env.sim, BatchSim):
            raise ValueError(
                "this benchmark compares with mujoco.batch: use sim.engine=mujoco device=cpu"
            )
        self.sim, self.batch, self.n_substeps = env.sim, env.sim.batch, env.n_substeps
        self._live = {name: env.sim.params[name].numpy() for name in dir(env.sim.params)}
        self._live["state"] = self.batch.state
        self._left = self._snapshot()
        self._frames: list[_Frame] = []
        self._control: tuple[np.ndarray, int] | None = None
        env.world.sim = cast(Sim, self)
        try:
            for i in range(steps):
                walk(i)
        finally:
            env.world.sim = self.sim

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sim, name)

    def step(
        self, nstep: int, inputs: Mapping[str, torch.Tensor], mask: torch.Tensor | None = None
    ) -> None:
        """Note what was written since the last step, and the inputs; step the simulation."""
        writes = []
        for name, value in self._live.items():
            changed = (value != self._left[name]).reshape(len(value), -1).any(axis=1)
            if changed.any():
                ids = np.flatnonzero(changed)
                writes.append(_Write(name, ids, value[ids].copy()))
        self._frames.append(_Frame(writes, {k: v.clone() for k, v in inputs.items()}))
        self.sim.step(nstep, inputs, mask)
        self._left = self._snapshot()

    def ready(self, i: int) -> None:
        """Write what the environment had written before it called the engine in step i."""
        writes, inputs = self._frames[i]
        for name, ids, values in writes:
            self._live[name][ids] = values
            if name in mujoco.MjModel._setconst_inputs:
                self.batch.set_const(ids)
        self._control = None
        if inputs:
            control, spec = controls(inputs)
            self._control = np.ascontiguousarray(control), spec

    def bare(self, i: int) -> None:
        """Compute the substeps of a step that is ready."""
        if self._control is None:
            self.batch.step(None, self.n_substeps)
        else:
            self.batch.rollout(self.n_substeps, *self._control, record=())

    def staged(self, i: int) -> None:
        """Compute the substeps of a step that is ready, then position and velocity stages."""
        stage = int(mujoco.mjtStage.mjSTAGE_VEL)
        if self._control is None:
            self.batch.step(None, self.n_substeps, stage)
        else:
            self.bare(i)
            self.batch.forward(None, stage)

    def _snapshot(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self._live.items()}
