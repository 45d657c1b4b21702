"""A process that only collects: environments of its own, and a copy of the policy that it is sent.

A batch says who collected it, under which weights, and a checksum of all that it holds; `fault_of`
says what is wrong with one. Nothing here knows how batches and weights travel.
"""

import dataclasses
import os
import socket
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from tensordict import TensorDict
from torch import Tensor

from penspin_style.algo.algorithm import Algorithm, rollout
from penspin_style.algo.registry import make_algorithm
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.faults import FaultRecord
from penspin_style.env.task import Task
from penspin_style.sim.sim import Fault
from penspin_style.system import ranks
from penspin_style.train.curriculum import Curriculum
from penspin_style.train.environment import env_settings, interface, make_env

Arrays = dict[Any, np.ndarray]
"""By key, of nested ones by the tuple."""


@dataclasses.dataclass
class Batch:
    """What one worker collected in one iteration."""

    worker: int
    iteration: int
    """Of the weights that it acted with."""
    arrays: Arrays
    """Transitions, (horizon, num_envs, ...) each."""
    finished: np.ndarray
    """Sums over the episodes that ended; see `EpisodeStatistics`."""
    fault_counts: np.ndarray
    faults: list[tuple[int, int, np.ndarray]]
    """Environment, code and state of each that was faulty."""
    starts: dict[str, float]
    """What `Starts.metrics` says, where episodes begin elsewhere."""
    checksum: int = 0

    def seal(self) -> "Batch":
        """Note the checksum."""
        self.checksum = checksum(self)
        return self


def checksum(batch: Batch) -> int:
    """Return the CRC-32 of a batch: of who collected it when, and of every array as it lies."""
    value = zlib.crc32(f"{batch.worker} {batch.iteration} {batch.starts}".encode())
    named = {**batch.arrays, "finished": batch.finished, "fault_counts": batch.fault_counts}
    named |= {(env_id, code): row for env_id, code, row in batch.faults}
    for key, array in named.items():
        value = zlib.crc32(f"{key} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value


def fault_of(batch: Batch, *, worker: int, iteration: int, shape: tuple[int, int]) -> str:
    """Return why a batch cannot be learned from, empty if it can.

    worker, iteration: that were asked. shape: (horizon, num_envs).
    """
    if (batch.worker, batch.iteration) != (worker, iteration):
        return (
            f"it is of worker {batch.worker}, iteration {batch.iteration}; asked was worker "
            f"{worker}, iteration {iteration}"
        )
    if odd := [k for k, array in batch.arrays.items() if array.shape[:2] != shape]:
        return f"{odd[0]} has the shape {batch.arrays[odd[0]].shape}, not {shape} and more"
    if checksum(batch) != batch.checksum:
        return "its checksum does not match what it holds"
    return ""


def merged(parts: Sequence[Arrays], *, dim: int, device: torch.device) -> TensorDict:
    """Return what workers sent as one TensorDict, environments side by side along `dim`."""
    out = TensorDict({}, [])
    for key in parts[0]:
        joined = np.concatenate([part[key] for part in parts], axis=dim)
        out[key] = torch.from_numpy(joined)
    out.batch_size = out["done" if "done" in out.keys() else ("next", "done")].shape[: dim + 1]  # noqa: SIM118
    return out.to(device)


def packed_weights(algo: Algorithm) -> bytes:
    """Return the tensors of an algorithm's networks, statistics among them, as safetensors."""
    parts = {key: value for key, value in algo.state_dict().items() if _is_network(value)}
    tensors = {f"{key}/{name}": v for key, part in parts.items() for name, v in part.items()}
    return save({key: v.detach().cpu().contiguous().clone() for key, v in tensors.items()})


def unpacked_weights(weights: bytes) -> dict[str, dict[str, Tensor]]:
    """Return what `packed_weights` took of an algorithm's state."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in load(weights).items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = value
    return parts


def _is_network(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, Tensor) for v in value.values())


class RolloutWorker:
    """Environments, and an algorithm that acts in them; it never learns."""

    def __init__(self, cfg: TrainConfig, task: type[Task[Any]], worker: int) -> None:
        torch.set_num_threads(1)  # in a roll-out a second would only take a core from physics
        # weights are sent: no file of `algo.init_from` is needed here
        self.cfg = dataclasses.replace(cfg, device="cpu", resume=True)
        self.task, self.worker = task, worker
        self.curriculum = Curriculum(cfg.curriculum, cfg.task)
        self.env: Env | None = None
        self.number = 0
        self._buffer: TensorDict | None = None
        self._root: TensorDict | None = None

    def begin(self, number: int, stage: int, state: Arrays | None) -> str:
        """Build the environments, or put them in an earlier state; return which process this is.

        number: of all workers that were ever started, this one; it makes the seeds.
        state: what `state` returned; None to begin as the seeds say.
        """
        if self.env is None:
            self._build(number, stage)
        elif stage != self.curriculum.index:
            self._enter(stage)
        if state is not None:
            self._load({key: torch.from_numpy(value.copy()) for key, value in state.items()})
        return f"process {os.getpid()} on {socket.gethostname()}"

    def root(self) -> Arrays:
        """Return what the environments show before the next step."""
        assert self.env is not None
        return _arrays(self.env.current())

    def collect(self, iteration: int, stage: int, weights: bytes) -> Batch:
        """Return the transitions of an iteration under these weights."""
        if stage != self.curriculum.index:
            self._enter(stage)
        env, algo = self.env, self.algo
        assert env is not None
        algo.load_state_dict({**algo.state_dict(), **unpacked_weights(weights)})
        root = env.current() if self._root is None else self._root
        self._buffer, self._root = rollout(env, algo, root, self._buffer)
        batch = Batch(
            worker=self.worker,
            iteration=iteration,
            arrays=_arrays(self._buffer),
            finished=env.statistics.finished.numpy().copy(),
            fault_counts=env.faults.counts.numpy().copy(),
            faults=[(r.env_id, int(r.code), r.row.numpy()) for r in env.faults.take()],
            starts={} if env.starts is None else env.starts.metrics(),
        )
        env.statistics.finished.zero_()
        env.faults.counts.zero_()
        return batch.seal()

    def state(self) -> Arrays:
        """Return everything that a bit-exact continuation of this worker needs."""
        assert self.env is not None
        own = self.algo.state_dict()
        alone = {f"algo/{k}": own[k] for k in self.algo.rank_state if k in own}
        env = {f"env/{k}": v for k, v in self.env.state_dict().items()}
        return {key: value.numpy().copy() for key, value in {**alone, **env}.items()}

    def _build(self, number: int, stage: int) -> None:
        self.number, self.curriculum.index = number, stage
        self.env = self._make_env()
        # the learner's generator is that of number 0
        seed = ranks.seed_of(self.cfg.seed, number + 1)
        cpu = torch.device("cpu")
        self.algo: Any = make_algorithm(self.cfg, interface(self.env), device=cpu, seed=seed)
        self.algo.takes_first = False  # the learner does, from all workers' first observations

    def _enter(self, stage: int) -> None:
        before, self.curriculum.index = self.env, stage
        self.env, self._root = self._make_env(), None
        if before is not None and self.env.starts is not None and before.starts is not None:
            self.env.starts.take_over(before.starts)

    def _make_env(self) -> Env:
        cfg = self.cfg
        sim = dataclasses.replace(cfg.sim, nthread=cfg.sim.nthread or cfg.cluster.cpus)
        settings = {"num_envs": cfg.num_envs, "stagger": cfg.stagger}
        settings |= env_settings(cfg, training=True) or {}
        seed = ranks.seed_of(cfg.seed, self.number)
        task = self.task(self.curriculum.task)
        return make_env(sim, task, torch.device("cpu"), seed=seed, **settings)

    def _load(self, state: dict[str, Tensor]) -> None:
        assert self.env is not None
        parts: dict[str, dict[str, Any]] = {"algo": {}, "env": {}}
        for key, value in state.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        self.algo.load_state_dict({**self.algo.state_dict(), **parts["algo"]})
        self.env.load_state_dict(parts["env"])
        self._root = None


def fault_records(batch: Batch, num_envs: int) -> list[FaultRecord]:
    """Return a batch's faults, environments numbered over all workers."""
    return [
        FaultRecord(batch.worker * num_envs + env_id, Fault(code), torch.from_numpy(row.copy()))
        for env_id, code, row in batch.faults
    ]


def _arrays(td: TensorDict) -> Arrays:
    keys = td.keys(include_nested=True, leaves_only=True)
    return {key: td.get(key).numpy() for key in keys}
