"""Honest ratios: our code against the bare engine, on the same model, alternating, in one run.

Machines drift; a ratio of two measurements that took turns does not. Each figure is the median over
rounds, with the smallest and largest beside it.
"""

import copy
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import mujoco
import mujoco.batch
import numpy as np
import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import rollout, torch_threads
from penspin_style.algo.ppo import PPO
from penspin_style.config import TrainConfig
from penspin_style.deploy.bundle import Bundle
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.run import resolve_device
from penspin_style.sim.batch_sim import BatchSim


def sim(cfg: TrainConfig, task: type[Task[Any]], *, rounds: int, steps: int) -> dict[str, Any]:
    """Return env steps/s of the full environment over the bare engine's.

    `ratio` is against the engine call that leaves the same fields current (position and velocity
    stages at the new state), `bare_ratio` against the substeps alone. All three start from the same
    states and the engine repeats the controls that the environment's random actions led to.
    """
    env = make_env(cfg, task)
    batch, n = _batch(env), env.n_substeps
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

    controls = []
    for i in range(steps):
        full(i)
        controls.append(batch.ctrl.copy())

    def engine(stage: mujoco.mjtStage) -> Callable[[int], None]:
        def call(i: int) -> None:
            batch.ctrl = controls[i]
            batch.step(None, n, int(stage))

        return call

    contenders = {
        "env": full,
        "staged": engine(mujoco.mjtStage.mjSTAGE_VEL),
        "bare": engine(mujoco.mjtStage.mjSTAGE_NONE),
    }
    speeds = alternate(contenders, rounds, steps, prepare=restore)
    return report(cfg, speeds, {"ratio": ("env", "staged"), "bare_ratio": ("env", "bare")})


def train(cfg: TrainConfig, task: type[Task[Any]], *, rounds: int, steps: int) -> dict[str, Any]:
    """Return PPO samples/s, roll-out and update together, over the bare engine's env steps/s.

    Both start from the same states; the engine repeats the controls that the first policy's actions
    led to. steps: control steps of each measurement; rounded up to whole iterations.
    """
    env = make_env(cfg, task)
    batch, n = _batch(env), env.n_substeps
    device = torch.device("cpu")
    algo = PPO(cfg.algo, env.inputs, len(env.task.actions), device=device, seed=cfg.seed)
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

    whole = -(-steps // algo.horizon) * algo.horizon
    controls = []
    for _ in range(whole):
        root[0] = env.step_and_maybe_reset(algo.act(root[0]))[1]
        controls.append(batch.ctrl.copy())

    def physics(i: int) -> None:
        batch.ctrl = controls[i]
        batch.step(None, n, int(mujoco.mjtStage.mjSTAGE_VEL))

    speeds = alternate({"train": iterate, "staged": physics}, rounds, whole, prepare=restore)
    return report(cfg, speeds, {"ratio": ("train", "staged")})


def onnx(path: pathlib.Path, *, calls: int) -> dict[str, Any]:
    """Return the time that one action takes, batch 1 on one thread, in ms: median, p99, longest.

    What is timed is all that a robot waits for: checks of the observation, graph, check of the
    action.
    """
    bundle = Bundle.load(path)
    rng = np.random.default_rng(0)
    observations = [
        {
            i.name: rng.integers(0, 256, shape, np.uint8)
            if dtype == "uint8"
            else rng.random(shape, np.float32)
            for i in bundle.card.inputs
            for dtype, shape in [i.tensor]
        }
        for _ in range(32)
    ]
    times = []
    for i in range(calls + 100):
        began = time.perf_counter()
        bundle(observations[i % len(observations)])
        times.append(1e3 * (time.perf_counter() - began))
    taken = np.array(times[100:])  # the first ones warm up
    p50, p99 = np.percentile(taken, (50, 99))
    return {
        "calls": calls,
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "max_ms": round(float(taken.max()), 3),
    }


def make_env(cfg: TrainConfig, task: type[Task[Any]]) -> Env:
    """Return an environment to measure in; its restarts spread evenly over time."""
    return Env(
        task(cfg.task),
        cfg.num_envs,
        resolve_device(cfg.device),
        seed=cfg.seed,
        engine=cfg.sim.engine,
        nthread=cfg.sim.nthread,
        stagger=True,
    )


def _batch(env: Env) -> mujoco.batch.Batch:
    if not isinstance(env.sim, BatchSim):
        raise ValueError(
            "this benchmark compares with mujoco.batch: use sim.engine=mujoco device=cpu"
        )
    return env.sim.batch


def alternate(
    contenders: Mapping[str, Callable[[int], object]],
    rounds: int,
    steps: int,
    *,
    prepare: Callable[[], None],
    finish: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Return calls per second of each contender in each round; they take turns.

    contenders: called with 0 .. steps - 1 in each round.
    prepare: brings about the start that all have in common; its time does not count.
    finish: returns when all that was called is done; its time counts.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, call in contenders.items():
            prepare()
            began = time.perf_counter()
            for i in range(steps):
                call(i)
            finish()
            if round_:  # the first round compiles, captures and warms caches up
                speeds[name].append(steps / (time.perf_counter() - began))
    return speeds


def report(
    cfg: TrainConfig,
    speeds: Mapping[str, list[float]],
    ratios: Mapping[str, tuple[str, str]],
    *,
    per_env: int = 1,
    unit: str = "",
) -> dict[str, Any]:
    """Return medians over rounds, with the smallest and largest beside them.

    speeds: what `alternate` returned. ratios: name -> (ours, the base), both among the speeds.
    per_env: how many things a call does for each environment, whose rate is `<name>_<unit>per_s`.
    """
    out: dict[str, Any] = {"num_envs": cfg.num_envs, "cores": os.cpu_count()}
    for name, (ours, base) in ratios.items():
        pairs = [a / b for a, b in zip(speeds[ours], speeds[base], strict=True)]
        out[name] = round(statistics.median(pairs), 3)
        out[f"{name}_spread"] = [round(min(pairs), 3), round(max(pairs), 3)]
    for name, values in speeds.items():
        rates = [v * cfg.num_envs * per_env for v in values]
        out[f"{name}_{unit}per_s"] = [round(f(rates)) for f in (min, statistics.median, max)]
    return out
