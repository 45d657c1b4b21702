"""Honest ratios: contenders take turns in one run, as machines drift and such a ratio does not.

Each figure is the median over rounds, with the smallest and largest beside it.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.train.environment import resolve_device


def make_env(cfg: TrainConfig, task: type[Task[Any]], **settings: Any) -> Env:
    """Return an environment to measure in; its restarts spread evenly over time.

    settings: more keywords of `Env`.
    """
    return Env(
        task(cfg.task),
        cfg.num_envs,
        resolve_device(cfg.device),
        seed=cfg.seed,
        engine=cfg.sim.engine,
        nthread=cfg.sim.nthread,
        stagger=True,
        **settings,
    )


def alternate(
    contenders: Mapping[str, Callable[[int], object]],
    rounds: int,
    steps: int,
    *,
    prepare: Callable[[], None],
    finish: Callable[[], None] = lambda: None,
    ready: Mapping[str, Callable[[int], object]] | None = None,
) -> dict[str, list[float]]:
    """Return calls per second of each contender in each round; they take turns.

    contenders: called with 0 .. steps - 1 in each round.
    prepare: brings about the start that all have in common; its time does not count.
    finish: returns when all that was called is done; its time counts.
    ready: contender -> what is called before each of its calls; its time does not count.
    """
    ready = ready or {}
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, call in contenders.items():
            prepare()
            before = ready.get(name)
            began, waited = time.perf_counter(), 0.0
            for i in range(steps):
                if before:
                    paused = time.perf_counter()
                    before(i)
                    waited += time.perf_counter() - paused
                call(i)
            finish()
            if round_:  # the first round compiles, captures and warms caches up
                speeds[name].append(steps / (time.perf_counter() - began - waited))
    return speeds


def report(
    cfg: TrainConfig,
    speeds: Mapping[str, list[float]],
    ratios: Mapping[str, tuple[str, str]],
    *,
    per_env: int = 1,
    unit: str = "",
) -> dict[str, Any]:
    """Return medians over rounds, with the smallest and largest beside them.

    speeds: what `alternate` returned. ratios: name -> (ours, the base), both among the speeds.
    per_env: how many things a call does for each environment, whose rate is `<name>_<unit>per_s`.
    """
    out: dict[str, Any] = {"num_envs": cfg.num_envs, "cores": os.cpu_count()}
    for name, (ours, base) in ratios.items():
        pairs = [a / b for a, b in zip(speeds[ours], speeds[base], strict=True)]
        out[name] = round(statistics.median(pairs), 3)
        out[f"{name}_spread"] = [round(min(pairs), 3), round(max(pairs), 3)]
    for name, values in speeds.items():
        rates = [v * cfg.num_envs * per_env for v in values]
        out[f"{name}_{unit}per_s"] = [round(f(rates)) for f in (min, statistics.median, max)]
    return out
