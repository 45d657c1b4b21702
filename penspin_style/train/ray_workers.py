"""Rollout workers on Ray: `launcher=ray cluster.env=8`, many processes that collect for one.

Each worker is a Ray actor with a `RolloutWorker`. In an iteration the weights go into Ray's object
store once, every worker acts with them, and what they collect comes back through the store and is
learned from as one batch, environments side by side in the order of the workers.

A worker that dies is lost with what it was collecting: the iteration goes on with the batches of
the others, a new worker begins new episodes and joins once it is there. A batch that is not what
was asked, or whose checksum is another, is dropped. Both are said and counted.
"""

import contextlib
import dataclasses
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict

from penspin_style.config import ClusterConfig, TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.system import interrupt, ranks
from penspin_style.train import parallel
from penspin_style.train.rollout_worker import (
    Arrays,
    Batch,
    RolloutWorker,
    fault_of,
    fault_records,
    merged,
    packed_weights,
)

SILENCE = 600.0
"""Seconds after which a worker that says nothing is given up."""
ATTEMPTS = 3
"""How often Ray is started, of which each waits 30 s."""
MAX_LOST = 5
"""How often in a row a worker may be lost before the run ends."""


class _LostError(Exception):
    """A worker's process is gone."""


@dataclasses.dataclass
class _Slot:
    """One of the workers, whichever process it is now."""

    state: Arrays | None = None
    """To go on from, not yet sent."""
    actor: Any = None
    begun: Any = None
    """What will tell that it can collect; None once it has."""
    name: str = ""
    losses: int = 0
    """In a row."""


class Workers:
    """All workers of a run; used as a context, in which Ray runs."""

    def __init__(self, cfg: TrainConfig, task: type[Task[Any]]) -> None:
        """Check that this can be trained so; start nothing.

        Raises:
            ValueError: it cannot, Ray is not installed, or nothing listens at its address.
        """
        if not parallel.can(cfg.algo.name):
            raise ValueError(
                f"algo={cfg.algo.name} collects in its own process; leave launcher=ray out, or "
                f"choose among {parallel.able()}"
            )
        if ranks.size() > 1:
            raise ValueError("launcher=ray starts its processes itself; leave torchrun out")
        self.ray = _ray()
        _check_reachable(cfg.cluster.address)
        self.cfg, self.task = cfg, task
        self.slots = [_Slot() for _ in range(cfg.cluster.workers)]
        self.counts = dict.fromkeys(("started", "lost", "dropped_samples", "corrupt_batches"), 0)
        self.say: Callable[[str], None] = lambda text: None
        self._joined = False  # whether all were there once
        self._iteration = 0  # of weights sent
        self._asked: dict[Any, tuple[int, int]] = {}  # -> slot, iteration
        self._row: dict[str, float] = {}
        self._close = contextlib.ExitStack()

    def __enter__(self) -> "Workers":
        """Start Ray, or join it.

        Raises:
            ValueError: it is not there, or too small.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(_running(self.ray, self.cfg.cluster))
            _check_size(self.ray, self.cfg.cluster)
            self._close = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.slots = [_Slot() for _ in self.slots]
        self._asked.clear()
        self._close.close()

    # An iteration.

    def collect(self, algo: Any, env: Env, stage: int, say: Callable[[str], None]) -> TensorDict:
        """Return what the workers collected, [horizon, num_envs of all that are there].

        env: is given their statistics and faults. stage: of the curriculum.

        Raises:
            PeerLostError: a worker is lost again and again.
        """
        self.say = say
        batches: list[Batch] = []
        while not batches:
            if not self._asked:
                self._ask(algo, stage)
            batches = self._gather(algo.horizon)
        if self.cfg.rollout.pipeline_stage_num == 2:
            self._ask(algo, stage)
        for batch in batches:
            env.statistics.finished.add_(torch.from_numpy(batch.finished.copy()).to(env.device))
            env.faults.counts.add_(torch.from_numpy(batch.fault_counts.copy()).to(env.device))
            env.faults.others += fault_records(batch, self.cfg.num_envs)
        self._row = parallel.joined_rows([batch.starts for batch in batches])
        self._row["ray/workers"] = float(len(batches))
        return merged([batch.arrays for batch in batches], dim=1, device=algo.rng.device)

    def metrics(self) -> dict[str, float]:
        """Return how many batches came in the last iteration, and what was lost in the run."""
        names = ("lost", "dropped_samples", "corrupt_batches")
        return self._row | {f"ray/{name}": float(self.counts[name]) for name in names}

    def _ask(self, algo: Any, stage: int) -> None:
        """Send the weights to all that are there, and let them collect."""
        ready = self._ready(stage)
        if algo.needs_first:
            self._take_first(algo, ready)
        self._iteration += 1
        weights = self.ray.put(packed_weights(algo))
        for k in ready:
            ref = self.slots[k].actor.collect.remote(self._iteration, stage, weights)
            self._asked[ref] = (k, self._iteration)

    def _take_first(self, algo: Any, ready: list[int]) -> None:
        """Give the learner's statistics what all workers observe before the first step."""
        refs = [self.slots[k].actor.root.remote() for k in ready]
        roots = []
        for ref in refs:
            with contextlib.suppress(_LostError):  # the batch of that one will be missing as well
                roots.append(self._get(ref))
        if roots:
            algo.take_first(merged(roots, dim=0, device=algo.rng.device))

    def _ready(self, stage: int) -> list[int]:
        """Return the workers that are there: all at first, later at least one.

        Raises:
            PeerLostError: they do not come.
        """
        began = time.monotonic()
        while True:
            for k, slot in enumerate(self.slots):
                if slot.actor is None or slot.state is not None:
                    self._begin(k, slot, stage)
            coming = {slot.begun: k for k, slot in enumerate(self.slots) if slot.begun is not None}
            needed = len(self.slots) if not self._joined else 1
            here = len(self.slots) - len(coming)
            for ref in self._done(coming, wait=here < needed):
                self._join(coming[ref], ref)
            there = [k for k, slot in enumerate(self.slots) if slot.actor and slot.begun is None]
            if len(there) >= needed:
                self._joined = True
                return there
            if time.monotonic() - began > SILENCE:
                raise ranks.PeerLostError(
                    f"after {SILENCE:.0f} s {len(there)} of {len(self.slots)} workers are there"
                )

    def _begin(self, k: int, slot: _Slot, stage: int) -> None:
        number = k
        if slot.actor is None:
            if slot.state is None:  # its seeds are nobody else's
                number = self.counts["started"]
                self.counts["started"] += 1
            remote = self.ray.remote(RolloutWorker).options(
                num_cpus=self.cfg.cluster.cpus,
                max_restarts=0,
                scheduling_strategy="SPREAD" if self.cfg.cluster.num_nodes > 1 else "DEFAULT",
            )
            slot.actor = remote.remote(self.cfg, self.task, k)
        slot.begun = slot.actor.begin.remote(number, stage, slot.state)
        slot.state = None

    def _join(self, k: int, ref: Any) -> None:
        try:
            self.slots[k].name = self._get(ref)
        except _LostError as error:
            self._lose(k, f"{error} as it began")
        else:
            self.slots[k].begun = None

    def _gather(self, horizon: int) -> list[Batch]:
        """Return the good batches that were asked for, in the order of the workers."""
        shape = (horizon, self.cfg.num_envs)
        each = horizon * self.cfg.num_envs
        found: dict[int, Batch] = {}
        began = time.monotonic()
        while self._asked:
            for ref in self._done(self._asked, wait=True):
                k, iteration = self._asked.pop(ref)
                try:
                    batch: Batch = self._get(ref)
                except _LostError as error:
                    self._lose(k, str(error), each)
                    continue
                self.slots[k].losses = 0
                if fault := fault_of(batch, worker=k, iteration=iteration, shape=shape):
                    self.counts["corrupt_batches"] += 1
                    self.counts["dropped_samples"] += each
                    self.say(f"warning: a batch of worker {k} is dropped, {each} samples: {fault}")
                else:
                    found[k] = batch
            if time.monotonic() - began > SILENCE:
                for k, _ in self._asked.values():
                    self._lose(k, f"has said nothing for {SILENCE:.0f} s", each)
                self._asked.clear()
        return [found[k] for k in sorted(found)]

    def _lose(self, k: int, reason: str, samples: int = 0) -> None:
        """Forget a worker's process, so that another is started.

        Raises:
            PeerLostError: it was lost too often.
        """
        slot = self.slots[k]
        self.counts["lost"] += 1
        self.counts["dropped_samples"] += samples
        name = f"worker {k}{f' ({slot.name})' if slot.name else ''}"
        if slot.losses + 1 > MAX_LOST:
            raise ranks.PeerLostError(
                f"{name} {reason}, {slot.losses + 1} times in a row; every checkpoint so far is "
                "whole, and resume=true continues"
            )
        self.say(f"warning: {name} {reason}: {samples} samples are dropped, another is started")
        self.ray.kill(slot.actor)
        self.slots[k] = _Slot(losses=slot.losses + 1)

    # Ray.

    def _done(self, refs: Any, *, wait: bool) -> list[Any]:
        """Return which of these have come.

        wait: for one, at most a second: signals are handled in between.
        """
        listed = list(refs)
        if not listed:
            return []
        count, seconds = (1, 1.0) if wait else (len(listed), 0.0)
        return self.ray.wait(listed, num_returns=count, timeout=seconds)[0]

    def _get(self, ref: Any) -> Any:
        """Return what a worker sent; raise what it raised.

        Raises:
            _LostError: its process, or the machine, is gone.
        """
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            raise _LostError("has died") from error

    # State.

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what the workers go on from, flat, and what was counted; waits for them."""
        out = {
            f"{parallel.WORKERS}{name}": torch.tensor(count) for name, count in self.counts.items()
        }
        for k, slot in enumerate(self.slots):
            state = slot.state
            if state is None and slot.actor is not None and slot.begun is None:
                with contextlib.suppress(_LostError):  # the next iteration will count it
                    state = self._get(slot.actor.state.remote())
            for key, value in (state or {}).items():
                out[f"{parallel.WORKERS}{k}/{key}"] = torch.from_numpy(value.copy())
        return out

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Let the workers go on from `state_dict`; one that it does not have begins new episodes.

        So do all where the run was none of Ray's.
        """
        self._asked.clear()
        for name in self.counts:
            self.counts[name] = int(state.get(f"{parallel.WORKERS}{name}", torch.tensor(0)))
        for k, slot in enumerate(self.slots):
            start = f"{parallel.WORKERS}{k}/"
            own = {key: value for key, value in state.items() if key.startswith(start)}
            if own:
                slot.state = {key.removeprefix(start): v.cpu().numpy() for key, v in own.items()}


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ValueError(
            f"launcher=ray needs Ray ({error}): pip install 'penspin_style[ray]'"
        ) from error
    return ray


@contextlib.contextmanager
def _running(ray: Any, cluster: ClusterConfig) -> Iterator[None]:
    """Have Ray running, started here, on the loopback interface alone, or joined."""
    here = not cluster.address
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with contextlib.ExitStack() as stack:
        if here:
            folder = tempfile.TemporaryDirectory(prefix="penspin-ray-", ignore_cleanup_errors=True)
            settings |= {
                "address": "local",  # not that of RAY_ADDRESS
                "num_cpus": cluster.workers * cluster.cpus,
                "num_gpus": 0,
                "include_dashboard": False,
                "object_store_memory": cluster.object_store * 2**20,
                "_temp_dir": stack.enter_context(folder),
            }
            # without a token of ours one would be written into the home folder
            variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            variables["RAY_worker_niceness"] = "0"  # or any other process goes before
            variables["PYTHONPATH"] = os.pathsep.join([*filter(None, sys.path), os.getcwd()])
            # or it listens on all interfaces
            constants = ray._private.ray_constants
            stack.enter_context(_replaced(vars(constants), {"ENABLE_RAY_CLUSTER": False}))
        else:
            settings["address"] = cluster.address
        stack.enter_context(_replaced(os.environ, variables))
        # it prints about each worker that dies, on standard output
        quiet = {"print_to_stdstream": lambda *_, **__: None}
        stack.enter_context(_replaced(vars(ray._private.worker), quiet))
        stack.callback(ray.shutdown)
        with _handlers_kept():
            _init(ray, settings, "Ray does not start here" if here else f"{cluster.address=!s}")
        yield


def _init(ray: Any, settings: dict[str, Any], what: str) -> None:
    """Call `ray.init`; again where a busy machine took longer than Ray waits.

    Raises:
        ValueError: it failed; begins with `what`.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            ray.init(**settings)
        except Exception as error:  # it raises that very class
            if left and "timed out during startup" in str(error):
                continue
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"{what}: {line}") from error
        return


def _check_reachable(address: str) -> None:
    """Check that something listens at HOST:PORT; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cluster.address={address}: nothing answers there ({error}); `ray start --head` there "
            "begins a cluster"
        ) from error


def _check_size(ray: Any, cluster: ClusterConfig) -> None:
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes < cluster.num_nodes:
        raise ValueError(
            f"cluster.num_nodes={cluster.num_nodes}: {nodes} have joined the Ray at "
            f"{cluster.address}; `ray start --address=HOST:6379` on each of the others"
        )
    cpus, needed = int(ray.cluster_resources().get("CPU", 0)), cluster.workers * cluster.cpus
    if cpus < needed:
        raise ValueError(
            f"{cluster.workers} workers of cluster.cpus={cluster.cpus} need {needed} CPUs, Ray has "
            f"{cpus}; use a smaller cluster.env"
        )


@contextlib.contextmanager
def _replaced(target: Any, values: dict[str, Any]) -> Iterator[None]:
    before = {key: target[key] for key in values if key in target}
    target.update(values)
    try:
        yield
    finally:
        for key in values:
            if key in before:
                target[key] = before[key]
            else:
                target.pop(key, None)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Undo that Ray takes SIGTERM: a training saves before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
