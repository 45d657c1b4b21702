#!/usr/bin/env python3
"""mjlab's lift-cube task as mjlab registers it, on the CPU, for `bench_peers.py`.

It needs mjlab and not penspin_style. `env`: environment steps per second, random actions.
`substeps`: steps of physics in one of them. `published`: how long mjlab's own configuration trains,
which leaves the number of environments to the command line: that of the measurement is taken.
"""

import argparse
from functools import partial

import mjlab.tasks  # type: ignore[import-not-found]  # noqa: F401  (registers them)
import torch
from mjlab.envs import ManagerBasedRlEnv  # type: ignore[import-not-found]
from mjlab.tasks.registry import load_env_cfg, load_rl_cfg  # type: ignore[import-not-found]
from peer_protocol import Kinds, parse, serve, stepping

TASK = "Mjlab-Lift-Cube-Yam"


def prepare(args: argparse.Namespace) -> Kinds:
    """Take the first step; return what measures."""
    cfg, learning = load_env_cfg(TASK), load_rl_cfg(TASK)
    cfg.scene.num_envs, cfg.seed = args.num_envs, 0
    env = ManagerBasedRlEnv(cfg, device="cpu")
    env.reset()
    actions = 2.0 * torch.rand(50, args.num_envs, env.action_manager.total_action_dim) - 1.0
    samples = learning.max_iterations * learning.num_steps_per_env * args.num_envs
    source = f"load_rl_cfg({TASK!r}): max_iterations * num_steps_per_env, {args.num_envs} at a time"
    return {
        "env": stepping(env.step, actions, args.num_envs, args.seconds),
        "substeps": lambda: cfg.decimation,
        "published": lambda: {"samples": samples, "from": source},
    }


if __name__ == "__main__":
    packages = ("mjlab", "mujoco", "mujoco-warp", "warp-lang", "torch")
    with torch.inference_mode():
        serve(packages, partial(prepare, parse(__doc__)))
