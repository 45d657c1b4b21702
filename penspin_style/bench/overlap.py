"""What `overlap=true` gives: training with it and in turns, alternating in one run."""

import copy
import dataclasses
import statistics
import time
from typing import Any

from tensordict import TensorDict

from penspin_style.algo.algorithm import torch_threads
from penspin_style.algo.registry import find_algorithm, make_algorithm
from penspin_style.bench.alternate import alternate, make_env, report
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.train.collection import Collection, check
from penspin_style.train.environment import interface


def overlap(cfg: TrainConfig, task: type[Task[Any]], *, rounds: int, steps: int) -> dict[str, Any]:
    """Return samples/s with `overlap=true` over those in turns, from the same states.

    `ratio` of the rates, `cpu_ratio` of the processor's time for a sample, and `collect_share`, how
    much of an iteration in turns is spent collecting: beside enough cores `ratio` is at most 1 over
    the larger of that and the rest.
    steps: control steps of each measurement; rounded up to whole iterations.

    Raises:
        ValueError: nothing can be collected ahead: algorithm, configuration or device.
    """
    cfg, ahead = (dataclasses.replace(cfg, overlap=on) for on in (False, True))
    check(ahead)
    settings = find_algorithm(cfg.algo.name).env_settings(cfg.algo, training=True)
    env = make_env(cfg, task, **(settings or {}))
    contenders = {"overlap": _Contender(ahead, env), "in_turns": _Contender(cfg, env)}
    start = env.state_dict()

    def restore() -> None:
        env.load_state_dict(start)
        for contender in contenders.values():
            contender.restore()

    speeds = alternate(
        {name: contender.iterate for name, contender in contenders.items()},
        rounds,
        -(-steps // contenders["overlap"].algo.horizon),
        prepare=restore,
        ready={name: contender.begin for name, contender in contenders.items()},
    )
    ours, base = contenders["overlap"], contenders["in_turns"]
    return {
        **report(cfg, speeds, {"ratio": ("overlap", "in_turns")}, per_env=ours.algo.horizon),
        "cpu_ratio": round(statistics.median(ours.cpu) / statistics.median(base.cpu), 3),
        "collect_share": round(statistics.median(base.shares), 3),
    }


class _Contender:
    """One of the two ways to train, with networks of its own."""

    def __init__(self, cfg: TrainConfig, env: Env) -> None:
        self.cfg, self.env = cfg, env
        self.algo = make_algorithm(cfg, interface(env), device=env.device, seed=cfg.seed)
        self.collection = Collection.make(cfg, self.algo, env)
        self.cpu: list[float] = []
        """Seconds of the processor, by iteration;"""
        self.shares: list[float] = []
        """of the time, what `Collection.next` has taken."""
        self._untrained = copy.deepcopy(self.algo.state_dict())
        self._batch: TensorDict | None = None

    def restore(self) -> None:
        """Begin again with the weights of the beginning."""
        self.algo.load_state_dict(self._untrained)
        self.collection.load_state_dict({}, self.env)

    def begin(self, i: int) -> None:
        """Collect the first batch; each iteration then learns from one and collects one."""
        if i == 0:
            self._batch = self.collection.next(self.env)

    def iterate(self, i: int) -> None:
        """Train an iteration."""
        cpu, began = time.process_time(), time.perf_counter()
        with self.collection.ahead(self.env), torch_threads(self.cfg.learn_threads):
            self.algo.process(self._batch)
            self.algo.update()
        learned = time.perf_counter()
        self._batch = self.collection.next(self.env)
        ended = time.perf_counter()
        self.cpu.append(time.process_time() - cpu)
        self.shares.append((ended - learned) / (ended - began))
