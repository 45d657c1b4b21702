"""What a policy server says to one client: who it is, and the policy's answers to its requests.

A policy that is not asked as its card says (`real.serving.aloha`) has an `expected` and a `hello`
of its own.

No network here. `Episode.answer` turns the bytes of a request into those of the reply; the server
runs it on a `Worker`, beside the loop that serves.
"""

import asyncio
import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from penspin_style.deploy.bundle import ObservationError
from penspin_style.deploy.policy import Policy, fork, horizon_of
from penspin_style.features import PolicyCard
from real.serving import wire

_LEAST_FRAME = 64 * 2**10
"""Bytes; for clients that say a little more than they must."""
_MAX_UNKNOWN, _MAX_NAME = 8, 64


def hello(policy: Policy) -> dict[str, Any]:
    """Return what a client is told first: plain texts, numbers, lists and maps."""
    card = policy.card
    said = {
        "server": "penspin_style",
        "protocol": {"format": 1, "reset": wire.RESET, "sequence": wire.SEQUENCE},
        "task": card.task,
        "control_dt": card.control_dt,
        "horizon": horizon_of(policy),
        "action": {
            key: [getattr(channel, key) for channel in card.actions]
            for key in ("name", "unit", "mode", "scale", "low", "high")
        },
        "reset_pose": [joint.default for joint in card.joints],
        "sha256": getattr(policy, "sha256", ""),
        "card": json.loads(card.to_json()),
    }
    own = getattr(policy, "hello", None)
    return said if own is None else own(said)


class Requests(Protocol):
    """What requests may hold.

    max_frame: bytes that one can need.
    """

    max_frame: int

    def check(self, observation: Mapping[str, Any]) -> None:
        """Refuse what is no observation, or costs more than one does.

        Raises:
            ObservationError: says why.
        """
        ...


def expected_of(policy: Policy) -> Requests:
    """Return what requests to a policy may hold: its own word, or what its card says."""
    own = getattr(policy, "expected", None)
    return Expected(policy.card) if own is None else own


class Expected:
    """What a request may hold by the policy's card: looked at before anything is computed of it.

    max_frame: bytes that a request can need.
    """

    def __init__(self, card: PolicyCard) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}
        for group in card.inputs:
            self._add(group.name, group.tensor[1])
            for f in group.features:
                self._add(f.name, f.shape if f.history == 1 else (f.history, *f.shape), (f.size,))
        # a number of a list takes 9 bytes, a name with what surrounds an array 100 or so
        numbers = sum(
            f.size * (1 if f.dtype == "uint8" else 9) for i in card.inputs for f in i.features
        )
        names = sum(256 + len(name.encode()) for name in self._shapes)
        self.max_frame = max(_LEAST_FRAME, numbers + names + 4096)

    def check(self, observation: Mapping[str, Any]) -> None:
        """Refuse what costs the policy more than one observation does.

        Raises:
            ObservationError: a batch, another shape, or names by the dozen that it does not read.
        """
        unknown = [name for name in observation if name not in self._shapes]
        if len(unknown) > _MAX_UNKNOWN or any(len(name) > _MAX_NAME for name in unknown):
            raise ObservationError(
                f"the policy does not read {unknown[0][:_MAX_NAME]!r} and {len(unknown) - 1} "
                f"others; leave them out (legal: {', '.join(self._shapes)})"
            )
        for name, legal in self._shapes.items():
            if name not in observation:
                continue
            try:
                shape = np.shape(observation[name])
            except ValueError as error:
                raise ObservationError(f"{name!r}: not an array ({error})") from error
            if shape in legal:
                continue
            if shape[1:] in legal and shape[0] > 0:
                raise ObservationError(
                    f"the observation is a batch of {shape[0]}; send one, without a batch axis"
                )
            raise ObservationError(
                f"{name!r}: got {shape}; the policy reads {' or '.join(map(str, legal))}"
            )

    def _add(self, name: str, *shapes: tuple[int, ...]) -> None:
        known = self._shapes.setdefault(name, [])
        known += [shape for shape in dict.fromkeys(shapes) if shape not in known]


class Episode:
    """One client's requests, from its connection, or its last reset, on.

    total: s that the last request took with all it needed, its sending included; None before.
    """

    def __init__(self, policy: Policy, expected: Requests) -> None:
        self._served, self._expected = policy, expected
        self.policy: Policy | None = None
        """This client's own, from its first request on."""
        self.total: float | None = None

    def answer(self, frame: bytes) -> bytes:
        """Return the reply to one request.

        Raises:
            WireError, ObservationError: the client's fault.
            Exception: whatever the policy raises.
        """
        observation = wire.unpack(frame)
        reset = observation.pop(wire.RESET, False)
        if type(reset) is not bool:
            raise wire.WireError(f"{wire.RESET!r} must be true or false")
        sequence = observation.pop(wire.SEQUENCE, None)
        if sequence is not None and not (type(sequence) is int and sequence >= 0):
            raise wire.WireError(f"{wire.SEQUENCE!r} must be a whole number of at least 0")
        self._expected.check(observation)
        policy = self._begin() if reset or self.policy is None else self.policy
        began = time.perf_counter()
        actions = self._shaped(np.asarray(policy.act(observation)))
        timing = {"infer_ms": 1e3 * (time.perf_counter() - began)}
        if self.total is not None:
            timing["prev_total_ms"] = 1e3 * self.total
        reply: dict[str, Any] = {"actions": actions, "server_timing": timing}
        if sequence is not None:
            reply[wire.SEQUENCE] = sequence
        return wire.pack(reply)

    def _begin(self) -> Policy:
        policy = self.policy or fork(self._served)
        policy.reset()
        self.policy = policy
        return policy

    def _shaped(self, actions: np.ndarray) -> np.ndarray:
        """Return actions as (horizon, naction) float32."""
        horizon, naction = horizon_of(self._served), len(self._served.card.actions)
        if horizon == 1 and actions.shape == (naction,):
            actions = actions[None]
        if actions.shape == (horizon, naction):
            return actions.astype(np.float32, copy=False)
        raise ValueError(f"the policy answers {actions.shape}, not {(horizon, naction)}")


class Worker:
    """One thread that computes, in the order in which it is asked.

    It never keeps a process from ending, as a thread of an executor would.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._work, name="policy-worker", daemon=True).start()

    def stop(self) -> None:
        """End the thread once it has done what it was asked before."""
        self._jobs.put(None)

    async def run(self, work: Callable[[], bytes]) -> bytes:
        """Return what the work returns, or raise what it raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[bytes, BaseException | None]] = loop.create_future()

        def job() -> None:
            # whatever it is: without an answer the client and the next job would wait for ever
            try:
                result = work(), None
            except BaseException as error:
                result = b"", error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(lambda: future.done() or future.set_result(result))

        self._jobs.put(job)
        reply, error = await future
        if error is not None:
            raise error if isinstance(error, Exception) else RuntimeError(repr(error))
        return reply

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
