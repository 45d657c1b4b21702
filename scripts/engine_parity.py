#!/usr/bin/env python3
"""Measure, field by field, how far MJX or Warp goes another way than MuJoCo C on a task.

    python scripts/engine_parity.py panda_pick_cube [--engine mjx] [--num-envs 4] [--steps 100]
        [--seed 3] [--iterations N] [--bank] [--still] [--touching BODY BODY]

All get the same models and states, as the task draws them, and the same random actions. A line of
JSON per field: the largest difference over all steps, environments and elements; the same of
MuJoCo C itself from joints a microradian (or micrometre) off, since contact is chaotic; and the
largest value. --iterations: of the solver and its line search instead of the model's, for engines
that stop at different points of the way otherwise. --bank: states of the task's bank of start
states instead. --still: actions of 0. --touching: compare only the environments in which both
bodies touch at first; with --engine warp also how many contacts they have in every step.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import mujoco
import numpy as np
import torch
from torch import Tensor

from penspin_style.config import StartsConfig
from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.sim import Sim
from penspin_style.sim.warp_sim import WarpSim

NUDGE = 1e-6
STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


def make(
    name: str,
    engine: str,
    num_envs: int,
    *,
    seed: int,
    iterations: int | None = None,
    bank: bool = False,
) -> Env:
    """Return an environment; iterations: of the solver and its line search; bank: start there."""
    kind: Any = load_task(name)

    class Converged(kind):
        def compile(self) -> mujoco.MjModel:
            model = super().compile()
            if iterations is not None:
                model.opt.iterations = model.opt.ls_iterations = iterations
            return model

    starts = StartsConfig(bank=1.0) if bank else None
    task = Converged(kind.Config())
    return Env(task, num_envs, seed=seed, engine=engine, nthread=1, starts=starts)


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


def contacts(sim: Sim, bodies: tuple[str, str]) -> Tensor:
    """Return how many contacts two bodies have, (num_envs,), by the engine's own collisions.

    Raises:
        ValueError: the engine is MJX, which does not say.
    """
    pair = sorted(sim.model.body(name).id for name in bodies)
    count = torch.zeros(sim.num_envs, dtype=torch.long)
    if isinstance(sim, WarpSim):
        found = sim.d.contact
        n = int(sim.d.nacon.numpy()[0])
        worlds, geoms = found.worldid.numpy()[:n], found.geom.numpy()[:n]
        touching = (np.sort(sim.model.geom_bodyid[geoms], axis=1) == pair).all(axis=1)
        touching &= found.dist.numpy()[:n] < found.includemargin.numpy()[:n]
        return torch.from_numpy(np.bincount(worlds[touching], minlength=sim.num_envs))
    if not isinstance(sim, BatchSim):
        raise ValueError("MJX does not say which contacts it has: use --engine warp")
    data = mujoco.MjData(sim.model)
    for i, row in enumerate(sim.get_state().numpy()):
        model = sim.batch.get_model(i)
        mujoco.mj_setState(model, data, row, STATE)
        mujoco.mj_forward(model, data)
        ids = np.sort(model.geom_bodyid[data.contact.geom], axis=1)
        near = data.contact.dist < data.contact.includemargin
        count[i] = int(((ids == pair).all(axis=1) & near).sum())
    return count


def difference(field: str, one: Sim, other: Sim, rows: Tensor | slice = slice(None)) -> float:
    """Return the largest difference of a field in these environments, 0 where it has no element."""
    a, b = (sim.data[field][rows].double() for sim in (one, other))
    return float((a - b).abs().max()) if a.numel() else 0.0


def compare(
    envs: list[Env],
    exact: Env,
    steps: int,
    *,
    seed: int,
    rows: Tensor | slice = slice(None),
    still: bool = False,
    after_step: Callable[[], None] = lambda: None,
) -> list[dict[str, float]]:
    """Return field -> largest difference from `exact`, for each of the others.

    rows: the environments that are compared. still: actions of 0 instead of random ones.
    """
    fields = [f for f in dir(envs[0].sim.data) if f in exact.sim.data]
    worst = [{f: difference(f, env.sim, exact.sim, rows) for f in fields} for env in envs]
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        shape = (exact.num_envs, len(exact.task.actions))
        action = (2.0 * torch.rand(shape, generator=rng) - 1.0) * (not still)
        for env in (*envs, exact):
            env.world.begin(action)
            env.world.advance()
        for env, found in zip(envs, worst, strict=True):
            for field in fields:
                found[field] = max(found[field], difference(field, env.sim, exact.sim, rows))
        after_step()
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
    parser.add_argument("--bank", action="store_true")
    parser.add_argument("--still", action="store_true")
    parser.add_argument("--touching", nargs=2, metavar="BODY")
    args = parser.parse_args()
    torch.set_num_threads(1)
    common = {"seed": args.seed, "iterations": args.iterations, "bank": args.bank}
    one = make(args.task, args.engine, args.num_envs, **common)
    exact, nudged = (make(args.task, "mujoco", args.num_envs, **common) for _ in range(2))
    begin_alike(exact, one)
    begin_alike(nudged, exact, NUDGE)
    rows: Tensor | slice = slice(None)
    counts: list[tuple[Tensor, ...]] = []
    if args.touching:
        rows = contacts(exact.sim, args.touching) > 0

    def count() -> None:
        if args.touching and args.engine == "warp":
            sims = (one.sim, exact.sim, nudged.sim)
            counts.append(tuple(contacts(sim, args.touching)[rows] for sim in sims))

    found, drift = compare(
        *([one, nudged], exact, args.steps),
        seed=args.seed,
        rows=rows,
        still=args.still,
        after_step=count,
    )
    for field, value in found.items():
        size = exact.sim.data[field].abs().max() if exact.sim.data[field].numel() else 0.0
        row = {"field": field, args.engine: value, "nudged": drift[field], "size": float(size)}
        print(json.dumps(row), flush=True)
    faults = int((one.sim.faults != 0).sum())
    said = {"task": args.task, "steps": args.steps, "faults": faults}
    if counts:
        ours, theirs, off = (torch.stack(rows) for rows in zip(*counts, strict=True))
        said |= {"environments": ours.shape[1], "contacts": theirs.double().mean().item()}
        said |= {"as_many": (ours == theirs).double().mean().item()}
        said |= {"as_many_nudged": (off == theirs).double().mean().item()}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
