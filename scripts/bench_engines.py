#!/usr/bin/env python3
"""Measure the engines side by side on one task, on the CPU, in one run.

    python scripts/bench_engines.py panda_lift_cube --num-envs 16 --steps 50

For each engine: seconds of CPU until the environment is there (with what it compiles), and control
steps of all environments per second of CPU, random actions, restarts and observations included. CPU
seconds, since other programs on the machine would be in the wall clock; `wall` is that beside it.
"""

import argparse
import json
import time

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task

ENGINES = ("mujoco", "warp", "mjx")


def measure(name: str, engine: str, num_envs: int, steps: int) -> dict[str, float | str]:
    """Return the figures of one engine."""
    kind = load_task(name)
    began, cpu = time.perf_counter(), time.process_time()
    env = Env(kind(kind.Config()), num_envs, seed=1, engine=engine, nthread=1)
    naction = len(env.task.actions)
    rng = torch.Generator().manual_seed(2)
    root = env.current()

    def step() -> None:
        nonlocal root
        root["action"] = 2.0 * torch.rand(num_envs, naction, generator=rng) - 1.0
        _, root = env.step_and_maybe_reset(root)  # type: ignore[assignment]

    for _ in range(3):  # Warp captures its graphs in the second call
        step()
    built, build_wall = time.process_time() - cpu, time.perf_counter() - began
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    return {
        "engine": engine,
        "num_envs": num_envs,
        "build_cpu_s": round(built, 1),
        "build_wall_s": round(build_wall, 1),
        "env_steps_per_cpu_s": round(num_envs * steps / cpu),
        "env_steps_per_wall_s": round(num_envs * steps / wall),
        "faults": int((env.sim.faults != 0).sum()),
    }


def main() -> None:
    """Print one line of JSON per engine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for engine in args.engines:
        print(json.dumps(measure(args.task, engine, args.num_envs, args.steps)), flush=True)


if __name__ == "__main__":
    main()
