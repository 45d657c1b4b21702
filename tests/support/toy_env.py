"""Environments of carts: made, placed, stepped and compared."""

import pathlib
import warnings

import torch

from penspin_style.env.env import Env
from penspin_style.env.task import ObsTerm
from tests.support.toy import Cart, Config

with warnings.catch_warnings():  # torchrl's own use of what it deprecates
    warnings.simplefilter("ignore", DeprecationWarning)


ROOT = pathlib.Path(__file__).parents[2]
NAN = float("nan")
RICH = {
    "teacher": {"position": ObsTerm(noise=0.01), "velocity": ObsTerm(delay=(0, 2), history=3)},
    "critic": {name: ObsTerm() for name in ("position", "velocity", "last_action")},
}


def make(num_envs=4, *, kind=Cart, seed=1, stagger=False, **config):
    config.setdefault("randomize", False)
    return Env(kind(Config(**config)), num_envs, seed=seed, stagger=stagger)


def place(env, *positions):
    """Put the carts there, at rest; return the root from which to step."""
    env.sim.data.qpos[:, 0] = torch.tensor(positions, dtype=torch.float64)
    env.sim.data.qvel.zero_()
    env.sim.forward()
    return env.current()


def step(env, *actions):
    td = env.current().set("action", torch.tensor(actions, dtype=torch.float32)[:, None])
    return env.step_and_maybe_reset(td)[0]


def column(value):
    return value.view(-1).tolist()


def draw_actions(env, steps, seed=0):
    return 2 * torch.rand(steps, env.num_envs, 1, generator=torch.Generator().manual_seed(seed)) - 1


def drive(env, actions):
    return torch.stack([step(env, *a.view(-1).tolist()) for a in actions])


def differing(a, b):
    keys = set(a.keys(True, True)) | set(b.keys(True, True))
    return {key for key in keys if not torch.equal(a[key], b[key])}


class Fragile(Cart):
    """A cart whose observation or reward can be made to fail in single environments."""

    bad_observation = bad_reward = None

    def observe(self, sim):
        terms = super().observe(sim)
        if self.bad_observation is not None:
            terms["velocity"] = terms["velocity"] + self.bad_observation[:, None]
        return terms

    def reward(self, sim, action):
        terms = super().reward(sim, action)
        if self.bad_reward is not None:
            terms["near"] = terms["near"] + self.bad_reward
        return terms
