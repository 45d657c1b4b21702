"""The environments that a configuration asks for, and what an algorithm is told of them."""

from typing import Any

import torch

from penspin_style.algo.algorithm import Interface
from penspin_style.algo.registry import find_algorithm
from penspin_style.config import SimConfig, TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.train.find_task import find_robot


def resolve_device(name: str) -> torch.device:
    """Return the device; `auto` is the first GPU if there is one.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}: torch finds no GPU here; use device=cpu")
    return torch.device(name)


def make_env(sim: SimConfig, task: Task[Any], device: torch.device, **settings: Any) -> Env:
    """Return environments; settings: further keywords of `Env`."""
    return Env(
        task,
        device=device,
        engine=sim.engine,
        nthread=sim.nthread,
        nconmax=sim.nconmax,
        njmax=sim.njmax,
        **settings,
    )


def env_settings(cfg: TrainConfig, *, training: bool) -> dict[str, Any] | None:
    """Return the keywords of `Env` that the algorithm asks for, None if it needs no environment."""
    return find_algorithm(cfg.algo.name).env_settings(cfg.algo, training=training)


def needs_env(algo: str) -> bool:
    """Return whether an algorithm needs an environment, as it is unless configured otherwise."""
    found = find_algorithm(algo)
    return found.env_settings(found.Config(), training=True) is not None


def interface(env: Env | None) -> Interface:
    """Return what an algorithm is told of an environment, or that there is none."""
    if env is None:
        return Interface((), (), 0.0, lambda group: (), find_robot)
    return Interface(env.inputs, env.task.actions, env.cfg.control_dt, env.groups.reads, find_robot)
