#!/usr/bin/env python3
"""Measure, field by field, how far MJX or Warp goes another way than MuJoCo C on a task.

    python scripts/engine_parity.py panda_pick_cube [--engine mjx] [--num-envs 4] [--steps 100]
        [--seed 3] [--iterations N]

All get the same models and states, as the task draws them, and the same random actions. A line of
JSON per field: the largest difference over all steps, environments and elements; the same of
MuJoCo C itself from joints a microradian (or micrometre) off, since contact is chaotic; and the
largest value. --iterations: of the solver and its line search instead of the model's, for engines
that stop at different points of the way otherwise.
"""

import argparse
import json
from typing import Any

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import mujoco
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.sim.sim import Sim

NUDGE = 1e-6


def make(name: str, engine: str, num_envs: int, *, seed: int, iterations: int | None = None) -> Env:
    """Return an environment; iterations: of the solver and its line search."""
    kind: Any = load_task(name)

    class Converged(kind):
        def compile(self) -> mujoco.MjModel:
            model = super().compile()
            if iterations is not None:
                model.opt.iterations = model.opt.ls_iterations = iterations
            return model

    return Env(Converged(kind.Config()), num_envs, seed=seed, engine=engine, nthread=1)


def begin_alike(env: Env, like: Env, nudge: float = 0.0) -> None:
    """Put an environment into what another has drawn: models, states, memory; then nudge it."""
    for field in dir(like.sim.params):
        env.sim.params[field].copy_(like.sim.params[field])
    env.sim.set_const()
    env.sim.set_state(like.sim.get_state().to(env.sim.get_state()))
    for name, value in like.task.memory.items():
        env.task.memory[name].copy_(value)
    if nudge:
        env.sim.data.qpos[:] += nudge
        env.sim.forward()


def difference(field: str, one: Sim, other: Sim) -> float:
    """Return the largest difference of a field, 0 where it has no element."""
    a, b = (sim.data[field].double() for sim in (one, other))
    return float((a - b).abs().max()) if a.numel() else 0.0


def compare(envs: list[Env], exact: Env, steps: int, *, seed: int) -> list[dict[str, float]]:
    """Return field -> largest difference from `exact`, for each of the others."""
    fields = [f for f in dir(envs[0].sim.data) if f in exact.sim.data]
    worst = [{field: difference(field, env.sim, exact.sim) for field in fields} for env in envs]
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        shape = (exact.num_envs, len(exact.task.actions))
        action = 2.0 * torch.rand(shape, generator=rng) - 1.0
        for env in (*envs, exact):
            env.world.begin(action)
            env.world.advance()
        for env, found in zip(envs, worst, strict=True):
            for field in fields:
                found[field] = max(found[field], difference(field, env.sim, exact.sim))
    return worst


def main() -> None:
    """Print one line of JSON per field, and one for all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--engine", choices=("mjx", "warp"), default="mjx")
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--iterations", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    common = {"seed": args.seed, "iterations": args.iterations}
    one = make(args.task, args.engine, args.num_envs, **common)
    exact, nudged = (make(args.task, "mujoco", args.num_envs, **common) for _ in range(2))
    begin_alike(exact, one)
    begin_alike(nudged, exact, NUDGE)
    found, drift = compare([one, nudged], exact, args.steps, seed=args.seed)
    for field, value in found.items():
        size = exact.sim.data[field].abs().max() if exact.sim.data[field].numel() else 0.0
        row = {"field": field, args.engine: value, "nudged": drift[field], "size": float(size)}
        print(json.dumps(row), flush=True)
    faults = int((one.sim.faults != 0).sum())
    print(json.dumps({"task": args.task, "steps": args.steps, "faults": faults}))


if __name__ == "__main__":
    main()
