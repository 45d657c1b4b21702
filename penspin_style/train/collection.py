"""Where a run's batches come from: collected in turns with learning, or ahead of it.

With `overlap=true` a second thread collects the next batch while the last one is learned from;
physics, rendering and torch let other threads run meanwhile. Who acts there is an *actor*, a second
copy of the algorithm: its weights and running statistics are those that learning began the last
batch with, so they are one update old; noise it draws from a generator of its own. What it did and
how likely that was stands in the batch, as ever.

    iteration k      learner   |   actor
    next             has batch k
    ahead            takes batch k in, learns    |   has the weights before that, collects k + 1
    its end          waits for the actor; nothing moves until the next `ahead`

A checkpoint holds the environment and the actor as they were before the batch in flight, which a
resume collects again, bit for bit. What goes wrong in a batch surfaces where it is asked for.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import Algorithm, rollout
from penspin_style.algo.registry import algorithm_names, find_algorithm, make_algorithm
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.system import ranks
from penspin_style.train.environment import interface

_APART = 2**31 + 11
"""From a run's seed to its actor's, modulo 2**32."""
_Collected = tuple[TensorDict, TensorDict]


@dataclasses.dataclass
class _Flight:
    """A batch that the actor collects."""

    env: dict[str, Any]
    """The environment's state before it,"""
    actor: dict[str, Any]
    """and the actor's."""
    future: Future[_Collected] | None = None
    """None after a resume: it is yet to be collected."""


class Collection:
    """The batches of a run, one after another.

    actor: a copy of the algorithm, which collects ahead; None to collect in turns.
    """

    def __init__(self, algo: Algorithm, actor: Algorithm | None = None) -> None:
        self._algo, self._actor = algo, actor
        self._batch: TensorDict | None = None  # the last one,
        self._spare: TensorDict | None = None  # and with an actor the one before: written over
        self._root: TensorDict | None = None  # where the next one begins; None: where `env` is
        self._flight: _Flight | None = None
        self._ended = 0.0  # when the last one was there
        self.learned = 0.0
        """Seconds that the last block of `ahead` took,"""
        self.overlap = 0.0
        """of them, those in which a batch was collected as well."""
        self._pool = ThreadPoolExecutor(
            1, "actor", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )

    @classmethod
    def make(cls, cfg: TrainConfig, algo: Algorithm, env: Env | None) -> "Collection":
        """Return the collection that a configuration asks for.

        Raises:
            ValueError: it asks to collect ahead, and nothing is collected, or on a GPU.
        """
        if not cfg.overlap:
            return cls(algo)
        if env is None or not algo.collects:
            raise ValueError(
                f"overlap=true: algo={cfg.algo.name} as configured collects nothing; leave it out"
            )
        if env.device.type != "cpu":
            raise ValueError(
                f"overlap=true: on device={env.device} simulation and learning take turns; leave "
                "it out, or use device=cpu"
            )
        seed = (cfg.seed + _APART) % 2**32
        actor = make_algorithm(cfg, interface(env), device=env.device, seed=seed)
        return cls(algo, actor)

    @property
    def is_ahead(self) -> bool:
        """Whether there is an actor."""
        return self._actor is not None

    def next(self, env: Env | None) -> TensorDict | None:
        """Return transitions [horizon, num_envs], valid until the second next call; None for none.

        Raises:
            Exception: whatever went wrong where they were collected.
        """
        if env is None:
            return None
        flight, self._flight = self._flight, None
        if flight is None:
            collected = self._collect(env, self._algo)
        elif flight.future is None:
            assert self._actor is not None
            collected = self._collect(env, self._actor)
        else:
            collected = flight.future.result()
        last, (self._batch, self._root) = self._batch, collected
        self._spare = self._batch if self._actor is None else last
        return self._batch

    @contextlib.contextmanager
    def ahead(self, env: Env | None) -> Iterator[None]:
        """Collect the next batch while in the block, if there is an actor; wait for it at the end.

        Whether an actor can act alone yet, the algorithm says: `can_lag`.
        """
        flight = self._launch(env)
        began = time.perf_counter()
        try:
            yield
        finally:
            ended = time.perf_counter()
            self.learned, self.overlap = ended - began, 0.0
            if flight is not None:
                wait([flight])
                self.overlap = max(0.0, min(ended, self._ended) - began)

    def _launch(self, env: Env | None) -> Future[_Collected] | None:
        """Begin to collect the next batch; None where that cannot be done ahead."""
        actor: Any = self._actor
        learner: Any = self._algo
        if actor is None or env is None or not learner.can_lag:
            return None
        state = learner.state_dict()
        read = {key: state[key] for key in learner.acts_by if key in state}
        if "iteration" in read:  # what goes by it goes by that of the batch
            read["iteration"] += 1
        self._act_as({**self._acting(), **read})
        self._flight = flight = _Flight(env.state_dict(), self._acting())
        flight.future = self._pool.submit(self._collect, env, actor)
        return flight.future

    def _collect(self, env: Env, who: Algorithm) -> _Collected:
        root = env.current() if self._root is None else self._root
        try:
            return rollout(env, who, root, self._spare)
        finally:
            self._ended = time.perf_counter()

    def drop(self, env: Env | None) -> None:
        """Forget the batch in flight, as if it had never begun, and go on from where `env` is."""
        flight, self._flight, self._root = self._flight, None, None
        if flight is not None and flight.future is not None and env is not None:
            env.load_state_dict(flight.env)
            self._act_as(flight.actor)

    # State.

    def env_state(self, env: Env | None) -> dict[str, Any]:
        """Return the state of the environment before the next batch."""
        if self._flight is not None:
            return self._flight.env
        return {} if env is None else env.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return the actor's state before the next batch, and whether that is in flight."""
        if self._actor is None:
            return {}
        if self._flight is None:
            return {"in_flight": False, "actor": self._acting()}
        return {"in_flight": True, "actor": self._flight.actor}

    def load_state_dict(self, state: dict[str, Any], env: Env | None) -> None:
        """Continue from `state_dict`, with the environment as `env_state` said.

        state: of a run in turns, empty.
        """
        self._flight, self._root = None, None
        if self._actor is not None and env is not None and state:
            self._act_as(state["actor"])
            if state["in_flight"]:
                self._flight = _Flight(env.state_dict(), self._acting())

    def _act_as(self, state: dict[str, Any]) -> None:
        actor: Any = self._actor
        acting = self._acting()
        rest = {key: value for key, value in actor.state_dict().items() if key not in acting}
        actor.load_state_dict({**rest, **state})

    def _acting(self) -> dict[str, Any]:
        """Return what of the actor is not as in any other copy of the algorithm."""
        actor: Any = self._actor
        kept = (*actor.acts_by, *actor.rank_state)
        return {key: value for key, value in actor.state_dict().items() if key in kept}


def check(cfg: TrainConfig) -> None:
    """Check that what is collected ahead can be, if it is asked for.

    Raises:
        ValueError: the algorithm cannot, or there are several processes.
    """
    if not cfg.overlap:
        return
    if not _can(cfg.algo.name):
        able = ", ".join(name for name in algorithm_names() if _can(name))
        raise ValueError(
            f"overlap=true: algo={cfg.algo.name} collects and learns in turns; leave it out, or "
            f"choose among {able}"
        )
    if cfg.launcher != "local":
        raise ValueError(
            f"overlap=true is for one process; with launcher={cfg.launcher} say "
            "rollout.pipeline_stage_num=2 instead"
        )
    if ranks.size() > 1:
        raise ValueError(
            f"overlap=true is for one process, and torchrun has started {ranks.size()}; leave one "
            "of them out"
        )


def _can(algo: str) -> bool:
    return bool(getattr(find_algorithm(algo), "acts_by", ()))
