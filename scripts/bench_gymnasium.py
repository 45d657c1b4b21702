#!/usr/bin/env python3
"""Measure a task at several numbers of environments beside a plain Gymnasium loop, in turns.

    python scripts/bench_gymnasium.py task=real2sim_pick_place [--num-envs 1 64 256 1024 4096]
        [--rounds 5] [--plot FILE.png] [KEY=VALUE ...]

The loop is one environment of the same model as one writes it for Gymnasium: it clips and scales
the action, calls `mj_step` for the same time, and returns joint positions and velocities. It
computes neither the task's observation nor its reward and randomises nothing, so it is faster than
the whole task would be. Ours is the whole environment, with restarts. Both get random actions.
`sim.nthread=1` compares on one core; by default ours has all of them. One line of JSON each:
env steps per second, and how many times the loop's they are, medians of the rounds with the
smallest and largest.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import gymnasium
import mujoco
import numpy as np
import torch

from penspin_style.bench.alternate import make_env
from penspin_style.env.env import Env
from penspin_style.train.compose import compose_train

SIZES = (1, 64, 256, 1024, 4096)


class Plain(gymnasium.Env):
    """One environment of a model, driven by its actuators."""

    def __init__(self, model: mujoco.MjModel, n_substeps: int, episode_length: int) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self.n_substeps, self.episode_length, self.age = n_substeps, episode_length, 0
        low, high = model.actuator_ctrlrange.T
        self.middle, self.reach = 0.5 * (low + high), 0.05 * (high - low)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (model.nu,), np.float32)
        shape = (model.nq + model.nv,)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin in the model's first keyframe, or its defaults."""
        super().reset(seed=seed)
        mujoco.mj_resetDataKeyframe(self.model, self.data, 0 if self.model.nkey else -1)
        self.age = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Command, simulate, look."""
        self.data.ctrl[:] = self.middle + self.reach * np.clip(action, -1.0, 1.0)
        mujoco.mj_step(self.model, self.data, self.n_substeps)
        self.age += 1
        return self._observe(), 0.0, False, self.age >= self.episode_length, {}

    def _observe(self) -> np.ndarray:
        return np.concatenate((self.data.qpos, self.data.qvel)).astype(np.float32)


def plain_rate(env: Plain, steps: int, rng: np.random.Generator) -> float:
    """Return the env steps per second of a loop over one environment."""
    actions = rng.uniform(-1.0, 1.0, (steps, *env.action_space.shape)).astype(np.float32)
    env.reset()
    began = time.perf_counter()
    for action in actions:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - began)


def our_rate(env: Env, steps: int) -> float:
    """Return the env steps per second of all environments."""
    shape = (steps, env.num_envs, len(env.task.actions))
    actions = 2.0 * torch.rand(shape, generator=env.rng) - 1.0
    root = env.current()
    began = time.perf_counter()
    for action in actions:
        root = env.step_and_maybe_reset(root.set("action", action))[1]
    return steps * env.num_envs / (time.perf_counter() - began)


def measure(overrides: Sequence[str], sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Return a row for the loop and one for each number of environments."""
    cfg, task, _ = compose_train(overrides)
    rng = np.random.default_rng(0)
    envs = {}
    for size in sizes:
        cfg.num_envs = size
        envs[size] = make_env(cfg, task)
    first = envs[sizes[0]]
    plain = Plain(first.sim.model, first.n_substeps, cfg.task.episode_length)
    rates: dict[int | None, list[float]] = {size: [] for size in (None, *sizes)}
    for round_ in range(rounds + 1):
        found: dict[int | None, float] = {None: plain_rate(plain, 400, rng)}
        found |= {size: our_rate(env, min(200, max(4, 8192 // size))) for size, env in envs.items()}
        if round_:  # the first one warms caches up
            for size, rate in found.items():
                rates[size].append(rate)
    rows = []
    for size, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[None], strict=True)]
        row: dict[str, Any] = {"num_envs": size} if size else {"loop": "Gymnasium"}
        row["per_s"] = [round(f(values)) for f in (min, statistics.median, max)]
        row["ratio"] = [round(f(ratios), 2) for f in (min, statistics.median, max)]
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw env steps per second over the number of environments."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    ours = rows[1:]
    sizes = [row["num_envs"] for row in ours]
    low, middle, high = zip(*(row["per_s"] for row in ours), strict=True)
    axes.plot(sizes, middle, "o-", label="penspin_style")
    axes.fill_between(sizes, low, high, alpha=0.2)
    axes.axhline(rows[0]["per_s"][1], color="gray", linestyle="--", label="Gymnasium loop")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="environments", ylabel="env steps per second", ylim=(0, None))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the rows; draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-envs", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    rows = measure(args.overrides, args.num_envs, args.rounds)
    for row in rows:
        print(json.dumps(row), flush=True)
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
