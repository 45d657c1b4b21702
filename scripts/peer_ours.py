#!/usr/bin/env python3
"""One of our tasks with random actions, for `bench_peers.py`: `peer_ours.py [flags] task=NAME ...`.

`env`: environment steps per second. `substeps`: steps of physics in one of them.
"""

import argparse
from functools import partial

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import torch
from peer_protocol import Kinds, parse, serve, stepping

from penspin_style.bench.alternate import make_env
from penspin_style.train.compose import compose_train


def prepare(args: argparse.Namespace) -> Kinds:
    """Take the first step; return what measures."""
    cfg, task, _ = compose_train([*args.more, f"num_envs={args.num_envs}"])
    env = make_env(cfg, task)
    root = [env.current()]

    def step(action: torch.Tensor) -> None:
        root[0] = env.step_and_maybe_reset(root[0].set("action", action))[1]

    shape = (50, args.num_envs, len(env.task.actions))
    actions = 2.0 * torch.rand(shape, generator=env.rng) - 1.0
    return {
        "env": stepping(step, actions, args.num_envs, args.seconds),
        "substeps": lambda: round(env.cfg.control_dt / env.sim.timestep),
    }


if __name__ == "__main__":
    serve(("mujoco", "torch"), partial(prepare, parse(__doc__)))
