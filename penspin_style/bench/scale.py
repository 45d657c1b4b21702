"""What more workers would give: one of them measured, 1 to 64 predicted, 1 and 2 really run.

`torchrun` starts this module as one rank and as two, in turns; each measures its iterations, with
one thread. The prediction gives every worker a core like ours and a link like that between two
processes here:

- `ranks`, what `torchrun` starts: all collect and learn alike, gradients are summed in a ring at
  each step of the optimiser.
- `one_learner`: workers only collect and send their samples; one learns from all of them, then its
  weights go back to them along a tree.
"""

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import rollout, torch_threads
from penspin_style.algo.registry import find_algorithm, make_algorithm
from penspin_style.bench.alternate import make_env
from penspin_style.config import TrainConfig
from penspin_style.env.task import Task
from penspin_style.system import ranks
from penspin_style.train import parallel
from penspin_style.train.compose import compose_train
from penspin_style.train.environment import interface, resolve_device

WORKERS = (1, 2, 4, 8, 16, 32, 64)
RUN = (1, 2)
"""How many ranks are really started."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one worker and of a link between two, seconds and bytes; medians."""

    samples: int
    """Of a worker's iteration."""
    collect: float
    learn: float
    sample_bytes: float
    weights: int
    """Bytes of all networks: as many as of their gradients."""
    steps: int
    """Of the optimiser in an iteration."""
    latency: float
    """Of a message of two numbers,"""
    per_byte: float
    """and what each byte adds."""
    broadcast: float
    """Of the weights to one other process."""


def scale(
    cfg: TrainConfig, task: type[Task[Any]], overrides: Sequence[str], *, rounds: int, steps: int
) -> dict[str, Any]:
    """Return what was measured, and samples/s by the number of workers.

    steps: control steps of each measurement; rounded up to whole iterations.

    Raises:
        ValueError: the algorithm trains in one process alone.
        RuntimeError: a rank has ended otherwise.
    """
    if not parallel.can(cfg.algo.name):
        raise ValueError(
            f"algo={cfg.algo.name} trains in one process: nothing to measure; choose among "
            f"{parallel.able()}"
        )
    found: dict[int, list[dict[str, float]]] = {count: [] for count in RUN}
    for _ in range(rounds):
        for count in RUN:
            found[count].append(_torchrun(count, steps, overrides))
    one, two = (
        {key: statistics.median(row[key] for row in found[count]) for key in found[count][0]}
        for count in RUN
    )
    link = {key: two[key] for key in ("latency", "per_byte", "broadcast")}
    own = {field.name: one[field.name] for field in dataclasses.fields(Cost) if field.name in one}
    cost = Cost(**{**own, **link})  # type: ignore[arg-type]
    measured = {count: [row["rate"] for row in found[count]] for count in RUN}
    return {
        "num_envs": cfg.num_envs,
        "cores": os.cpu_count(),
        "collect_per_s": round(cost.samples / cost.collect),
        "learn_per_s": round(cost.samples / cost.learn),
        "bytes_per_sample": round(cost.sample_bytes),
        "weights_bytes": round(cost.weights),
        "optimizer_steps": round(cost.steps),
        "all_reduce_ms": round(1e3 * ring(cost, 2), 3),
        "broadcast_ms": round(1e3 * cost.broadcast, 3),
        "workers": {str(n): _row(cost, n, measured.get(n)) for n in WORKERS},
        "measured_ratio": round(two["rate"] / one["rate"], 3),
    }


def _row(cost: Cost, workers: int, measured: list[float] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "ranks": round(by_ranks(cost, workers)),
        "one_learner": round(by_one_learner(cost, workers)),
    }
    if measured:
        row["measured"] = [round(f(measured)) for f in (min, statistics.median, max)]
    return row


def by_ranks(cost: Cost, workers: int) -> float:
    """Return samples/s where all collect and learn, their gradients summed at every step."""
    seconds = cost.collect + cost.learn + cost.steps * ring(cost, workers)
    return workers * cost.samples / seconds


def by_one_learner(cost: Cost, workers: int) -> float:
    """Return samples/s where one process learns what the others collect, in turns."""
    samples = workers * cost.samples
    sent = cost.latency + samples * cost.sample_bytes * cost.per_byte
    told = math.ceil(math.log2(workers)) * cost.broadcast
    return samples / (cost.collect + sent + workers * cost.learn + told)


def ring(cost: Cost, workers: int) -> float:
    """Return the seconds of one sum of gradients over so many in a ring."""
    if workers == 1:
        return 0.0
    return 2 * (workers - 1) * (cost.latency / 2 + cost.weights / workers * cost.per_byte)


def _torchrun(count: int, steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Return what rank 0 of so many has measured."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    own = ["-m", __name__, str(steps), *overrides]
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    line = [*launch, f"--nproc-per-node={count}", *own]
    done = subprocess.run(line, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no output").split("\n")[-1]
        raise RuntimeError(f"{count} ranks ended with code {done.returncode}: {last}")
    return json.loads(done.stdout.strip().split("\n")[-1])


# What a rank does.


def main(argv: Sequence[str]) -> None:
    """Measure as one rank of several, and print it as JSON on the first."""
    cfg, task, _ = compose_train(list(argv[1:]))
    cfg.sim.nthread = cfg.learn_threads = 1
    with ranks.joined(resolve_device(cfg.device)):
        result = measure(cfg, task, steps=int(argv[0]))
    if ranks.is_first():
        print(json.dumps(result))


def measure(cfg: TrainConfig, task: type[Task[Any]], *, steps: int) -> dict[str, float]:
    """Return medians over iterations of at least so many control steps, after a first one."""
    settings = find_algorithm(cfg.algo.name).env_settings(cfg.algo, training=True) or {}
    seeded = dataclasses.replace(cfg, seed=ranks.own_seed(cfg.seed))
    env = make_env(seeded, task, **settings)
    algo = make_algorithm(cfg, interface(env), device=resolve_device(cfg.device), seed=cfg.seed)
    taken = [0]
    for optimizer in algo.optimizers:
        optimizer.register_step_post_hook(lambda *_: taken.__setitem__(0, taken[0] + 1))
    buffer: TensorDict | None = None
    root, times = env.current(), []
    for _ in range(1 + -(-steps // algo.horizon)):
        began = time.perf_counter()
        buffer, root = rollout(env, algo, root, buffer)
        collected = time.perf_counter()
        taken[0] = 0
        with torch_threads(cfg.learn_threads):
            algo.process(buffer)
            algo.update()
        times.append((collected - began, time.perf_counter() - collected))
    assert buffer is not None
    collect, learn = (statistics.median(row) for row in zip(*times[1:], strict=True))
    samples = algo.horizon * cfg.num_envs
    both = statistics.median(a + b for a, b in times[1:])
    optimized = {p for o in algo.optimizers for group in o.param_groups for p in group["params"]}
    weights = sum(p.numel() * p.element_size() for p in optimized)
    return {
        "rate": ranks.size() * samples / both,
        "samples": samples,
        "collect": collect,
        "learn": learn,
        "sample_bytes": buffer.bytes() / samples,
        "weights": weights,
        "steps": taken[0],
        **_link(weights),
    }


def _link(weights: int) -> dict[str, float]:
    """Return what a message costs, and a broadcast of so many bytes; nothing for one process."""
    if ranks.size() == 1:
        return {"latency": 0.0, "per_byte": 0.0, "broadcast": 0.0}
    one, values = torch.ones(()), torch.zeros(weights // 4)
    short = _seconds(lambda: ranks.average_([one], one))
    long = _seconds(lambda: ranks.average_([values], one))
    content = bytes(weights)
    return {
        "latency": short,
        "per_byte": max(0.0, long - short) / weights,
        "broadcast": _seconds(lambda: ranks.broadcast(content)),
    }


def _seconds(call: Callable[[], object], times: int = 50) -> float:
    """Return the median duration of a call that all ranks make."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


if __name__ == "__main__":
    main(sys.argv[1:])
