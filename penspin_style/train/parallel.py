"""One training in several processes, `torchrun --nproc-per-node N -m penspin_style train ...`.

Every rank simulates `num_envs` environments of its own seed and holds the same networks: gradients,
advantages' scale and normalisers are those of all ranks' samples (`system/ranks.py`). Rank 0 alone
writes, but for dumps of faulty states; a checkpoint holds what is each rank's own beside what is
common. Evaluations are the same on every rank, which is as fast as waiting for one.
"""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from penspin_style.algo.algorithm import Algorithm
from penspin_style.algo.registry import algorithm_names, find_algorithm
from penspin_style.config import SimConfig, TrainConfig
from penspin_style.env.env import Env
from penspin_style.system import ranks
from penspin_style.system.interrupt import Stop

WORKERS = "workers/"
"""Begins the keys of a checkpoint's `env` where workers collected; see `ray_workers.py`."""
GRACE = 5.0
"""Seconds in which a second signal does not end a rank: a terminal's Ctrl-C comes twice, by itself
and from `torchrun`."""


def check(cfg: TrainConfig) -> None:
    """Check that what is trained can be trained in several processes, if there are.

    Raises:
        ValueError: the algorithm cannot.
    """
    if ranks.size() > 1 and not can(cfg.algo.name):
        raise ValueError(
            f"algo={cfg.algo.name} trains in one process, and torchrun has started "
            f"{ranks.size()}; leave torchrun out, or choose among {able()}"
        )


def able() -> str:
    """Return the names of the algorithms that can be trained in several processes."""
    return ", ".join(name for name in algorithm_names() if can(name))


def can(algo: str) -> bool:
    """Return whether an algorithm can be trained in several processes."""
    return bool(getattr(find_algorithm(algo), "many_ranks", False))


def count_threads(sim: SimConfig) -> int:
    """Return the threads of the CPU engine, 0 for all cores; processes here share the cores."""
    count = ranks.here()[1]
    if sim.nthread or count == 1:
        return sim.nthread
    return max(1, len(os.sched_getaffinity(0)) // count)


# What a rank has alone.


def rank_states(algo: Algorithm, env: Env | None) -> dict[str, Any]:
    """Return what the ranks above 0 have alone, by number; on rank 0 only, and for it nothing."""
    if ranks.size() == 1:
        return {}
    common = algo.state_dict()
    own = {f"algo/{k}": common[k] for k in _own_keys(algo) if k in common}
    own |= {} if env is None else {f"env/{k}": v for k, v in env.state_dict().items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in own.items()}
    found = {str(k): _nested(load(part)) for k, part in enumerate(ranks.gather(save(tensors)))}
    found.pop("0", None)
    return {"ranks": found}


def own_state(algo: Algorithm, state: dict[str, Any], *, by_workers: bool) -> dict[str, Any]:
    """Return a checkpoint's `algo` and `env` as this rank continues them.

    `env` is None where the checkpoint is of fewer ranks: this one begins anew. So it does where
    workers collected before and do not now.

    by_workers: whether they do now.
    """
    if ranks.is_first():
        return state if by_workers or not _of_workers(state) else {**state, "env": None}
    found = state.get("ranks", {}).get(str(ranks.rank()))
    common = {k: v for k, v in state["algo"].items() if k not in _own_keys(algo)}
    if found is None:
        return {"algo": {**common, "rng": algo.state_dict()["rng"]}, "env": None}
    return {"algo": {**common, **found["algo"]}, "env": found["env"]}


def change_of_size(
    state: dict[str, Any], samples: int, now: int, *, by_workers: bool
) -> tuple[int, str]:
    """Return how many processes a checkpoint is of, and what is different now, if anything.

    samples: of an iteration now. now: processes that collect. by_workers: see `own_state`.
    """
    before = 1 + len(state.get("ranks", {}))
    if of_workers := _of_workers(state):
        # before the first iteration there are none yet
        before = len({n for key in state["env"] if (n := key.split("/")[1]).isdigit()}) or now
    others = bool(of_workers) != by_workers
    text = "" if not others else "all begin new episodes"
    if before != now:
        more = f"{now - before} of them begin new episodes"
        fewer = f"the episodes of the {before - now} others are dropped"
        text = (
            f"{now} processes go on, there were {before}: an iteration has {samples} "
            f"samples instead of {before * samples // now}; "
        ) + (text or (more if now > before else fewer))
    return before, text


def _of_workers(state: dict[str, Any]) -> bool:
    return any(key.startswith(WORKERS) for key in state["env"])


def _own_keys(algo: Algorithm) -> tuple[str, ...]:
    return getattr(algo, "rank_state", ())


def _nested(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    out: dict[str, dict[str, Tensor]] = {"algo": {}, "env": {}}
    for key in sorted(flat):  # safetensors gives them in any order
        room, name = key.split("/", 1)
        out[room][name] = flat[key]
    return out


# What all ranks have done.


def env_metrics(env: Env) -> dict[str, float]:
    """Return `Env.metrics` over the episodes of all ranks."""
    statistics = env.statistics
    statistics.finished = ranks.total(statistics.finished)
    return env.metrics()


def shared_row(row: dict[str, float]) -> dict[str, float]:
    """Return an iteration's figures over the ranks that have them: means, of extremes the extreme.

    On rank 0; elsewhere they stay as they are.
    """
    if ranks.size() == 1:
        return row
    return row | joined_rows([json.loads(p) for p in ranks.gather(json.dumps(row).encode())])


def joined_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return figures over the processes that have them: means, of extremes the extreme."""
    joined: dict[str, float] = {}
    for key in dict.fromkeys(key for each in rows for key in each):
        values = [each[key] for each in rows if key in each]
        if key.endswith(("_max", "_min")):
            joined[key] = max(values) if key.endswith("_max") else min(values)
        else:
            joined[key] = math.fsum(values) / len(values)
    return joined


def of_first(*numbers: float | None) -> list[float | None]:
    """Return what rank 0 has computed: the same everywhere, to the last bit."""
    if ranks.size() == 1:
        return list(numbers)
    told = ranks.broadcast(json.dumps(numbers).encode())
    return json.loads(told)


def is_asked_to_end(stop: Stop) -> bool:
    """Return whether a signal has come to any rank; then it has come to all."""
    if number := ranks.largest(stop.number):
        stop.number = number
    return number != 0
