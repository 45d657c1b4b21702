#!/usr/bin/env python3
"""MuJoCo Playground's PandaPickCube with JAX on the CPU, for `bench_peers.py`.

    peer_playground.py [flags] panda.xml

It needs playground and not penspin_style. Scene, environment and restarts are Playground's own. The
robot is that file, in place of the Menagerie's `mjx_panda.xml` that Playground would download: the
same bodies, masses, gains and contact geoms, drawn without meshes.

`env`: environment steps per second, random actions. `substeps`: steps of physics in one of them.
`published`: how long Playground's own configuration trains.
"""

import argparse
import pathlib
from functools import partial

import jax
from mujoco_playground import wrapper  # type: ignore[import-not-found]
from mujoco_playground._src import mjx_env  # type: ignore[import-not-found]
from mujoco_playground._src.manipulation.franka_emika_panda import (  # type: ignore[import-not-found]
    panda,
    pick,
)
from mujoco_playground.config.manipulation_params import (  # type: ignore[import-not-found]
    brax_ppo_config,
)
from peer_protocol import Kinds, parse, serve, stepping

TASK = "PandaPickCube"


def assets(robot: str) -> dict[str, bytes]:
    """Return the scene's files, by name. robot: the path of what stands for `mjx_panda.xml`."""
    found: dict[str, bytes] = {}
    folder = mjx_env.ROOT_PATH / "manipulation" / "franka_emika_panda" / "xmls"
    mjx_env.update_assets(found, folder, "*.xml")
    return {**found, "mjx_panda.xml": pathlib.Path(robot).read_bytes()}


def prepare(args: argparse.Namespace) -> Kinds:
    """Take the first step; return what measures."""
    panda.get_assets = partial(assets, args.more[0])
    cfg = pick.default_config()
    one = pick.PandaPickCube(config_overrides={"impl": "jax"})
    env = wrapper.wrap_for_brax_training(one, cfg.episode_length, cfg.action_repeat)
    key = jax.random.PRNGKey(0)

    def start(keys: jax.Array) -> object:
        # without weak types, which the first step removes: the second would be compiled again
        return jax.tree.map(lambda x: x.astype(x.dtype), env.reset(keys))

    state = [jax.jit(start)(jax.random.split(key, args.num_envs))]
    move = jax.jit(env.step)

    def step(action: jax.Array) -> None:
        state[0] = jax.block_until_ready(move(state[0], action))

    actions = jax.random.uniform(key, (50, args.num_envs, one.action_size), minval=-1.0)
    samples = brax_ppo_config(TASK).num_timesteps
    source = f"brax_ppo_config({TASK!r}).num_timesteps"
    return {
        "env": stepping(step, list(actions), args.num_envs, args.seconds),
        "substeps": lambda: one.n_substeps,
        "published": lambda: {"samples": samples, "from": source},
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    packages = ("playground", "mujoco-mjx", "mujoco", "jax", "brax")
    serve(packages, partial(prepare, parse(__doc__)))
