"""The environments that a configuration asks for, and what an algorithm is told of them."""

from typing import Any

import torch

from penspin_style.algo.algorithm import Interface
from penspin_style.algo.registry import find_algorithm
from penspin_style.config import SimConfig, TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.system import ranks
from penspin_style.train.find_task import find_robot
from penspin_style.train.parallel import count_threads


def resolve_device(name: str) -> torch.device:
    """Return the device; `auto` is the first GPU if there is one, of several ranks each its own.

    Raises:
        ValueError: a GPU is asked for and there is none, or one for several ranks.
    """
    (own, count), found = ranks.here(), torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count > 1 and found else "cuda:0" if found else "cpu"
    if name.startswith("cuda") and not found:
        raise ValueError(f"device={name}: torch finds no GPU here; use device=cpu")
    if name.startswith("cuda") and count > 1:
        if name != "cuda" or count > found:
            raise ValueError(
                f"device={name}: {count} processes, {found} GPUs; use device=cuda, one for each"
            )
        return torch.device(f"cuda:{own}")
    return torch.device(name)


def make_env(sim: SimConfig, task: Task[Any], device: torch.device, **settings: Any) -> Env:
    """Return environments; settings: further keywords of `Env`."""
    return Env(
        task,
        device=device,
        engine=sim.engine,
        nthread=count_threads(sim),
        nconmax=sim.nconmax,
        njmax=sim.njmax,
        renderer=sim.renderer,
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
