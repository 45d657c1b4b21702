"""Where a control loop gets its actions: a policy in this process, or one behind a server.

A server may die, freeze or lag; the loop must not. A thread of its own talks to it, and the loop
waits for the answer to its newest observation no longer than its control step allows. An answer
that comes later is dropped: an action is executed in the step whose observation it was computed
from, or never.

History lives on the robot's side (`real.observer`), which goes on observing while no action comes.
So a lost connection loses none of it, and a new connection changes nothing for a policy that reads
inputs; one that remembers by itself begins anew with the connection.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from penspin_style.deploy.bundle import Bundle
from penspin_style.features import PolicyCard

RESET = "__reset__"
RETRY = 0.1
"""Seconds between two attempts to connect."""


class LinkError(RuntimeError):
    """There is no policy to ask: not reachable, or another than the one that began."""


class Policy(Protocol):
    """What a control loop asks for actions."""

    card: PolicyCard

    def reset(self) -> None:
        """Begin an episode."""

    def ask(self, inputs: Mapping[str, np.ndarray], deadline: float) -> np.ndarray | None:
        """Return the action (naction,) for these inputs; None if it is not there in time.

        deadline: s, monotonic; infinity to wait as long as it takes.
        """

    def counts(self) -> dict[str, int]:
        """Return what went wrong since the last reset, by name."""
        ...

    def close(self) -> None:
        """Let go of whatever it holds."""


class Local:
    """A policy in this process."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.card = bundle, bundle.card

    def reset(self) -> None:
        """Do nothing: it remembers nothing."""

    def ask(self, inputs: Mapping[str, np.ndarray], deadline: float) -> np.ndarray | None:
        """Return the action; it is late only if the computer is."""
        action = self.bundle(inputs)
        return action if time.monotonic() < deadline else None

    def counts(self) -> dict[str, int]:
        """Return nothing: nothing can be lost."""
        return {}

    def close(self) -> None:
        """Do nothing."""


class Client(Protocol):
    """A connection to a server, as `real.client.PolicyClient`."""

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return the reply; raise if none comes."""
        ...

    def close(self) -> None:
        """Hang up."""


class Remote:
    """A policy behind a server.

    reconnects: connections after the first; last_error: why the last one was lost.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[Client, PolicyCard]],
        failures: tuple[type[Exception], ...],
        *,
        patience: float = 10.0,
    ) -> None:
        """Connect once and start the thread.

        connect: opens a connection and reads the card; raises one of `failures` if it cannot.
        failures: errors of a connection, which are mended by another one.
        patience: seconds to wait for the server, now and in fast time.

        Raises:
            LinkError: nobody answers.
        """
        self._connect, self._failures, self.patience = connect, failures, patience
        self._changed = threading.Condition()
        self._request: tuple[int, dict[str, Any]] | None = None
        self._answer: tuple[int, np.ndarray] | None = None
        self._fatal: Exception | None = None
        self._asked = self._taken = self._given_up = 0
        self._closed = self._begins = False
        self.reconnects = self.late = self.unanswered = 0
        self.last_error = ""
        self.connected_at = 0.0  # s, monotonic
        self._client, self.card = self._first()
        self._identity = identity(self.card)
        self._thread = threading.Thread(target=self._serve, name="policy-link", daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Begin an episode: the next request says so, and what comes for older ones is dropped."""
        with self._changed:
            self._begins = True
            self._request = None
            self.reconnects = self.late = self.unanswered = 0

    def ask(self, inputs: Mapping[str, np.ndarray], deadline: float) -> np.ndarray | None:
        """Return the action for these inputs; None if it is not there in time.

        Raises:
            LinkError: the server now has another policy; or, where there is no deadline, nobody
                answers for `patience` seconds.
        """
        endless = deadline == float("inf")
        until = time.monotonic() + self.patience if endless else deadline
        with self._changed:
            self._asked += 1
            # an array that the loop writes into next must not change on its way
            self._request = (self._asked, {k: np.array(v) for k, v in inputs.items()})
            self._changed.notify_all()
            while self._answer is None or self._answer[0] != self._asked:
                self._check()
                left = until - time.monotonic()
                if left <= 0:
                    self.unanswered += 1
                    self._given_up = self._asked
                    if endless:
                        raise LinkError(
                            f"the policy server has not answered for {self.patience:g} s"
                            f"{self._why()}"
                        )
                    return None
                self._changed.wait(left)
            return self._answer[1]

    def counts(self) -> dict[str, int]:
        """Return steps without an answer, answers that came late, and new connections."""
        return {
            "unanswered": self.unanswered,
            "late_answers": self.late,
            "reconnects": self.reconnects,
        }

    def close(self) -> None:
        """Hang up and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=self.patience)

    def _first(self) -> tuple[Client, PolicyCard]:
        until = time.monotonic() + self.patience
        while True:
            try:
                found = self._connect()
                self.connected_at = time.monotonic()
                return found
            except self._failures as error:
                self.last_error = str(error)
                if time.monotonic() + RETRY > until:
                    raise LinkError(f"no policy server answers{self._why()}") from error
            time.sleep(RETRY)

    def _serve(self) -> None:
        """Send the newest request and post its answer, for ever; the thread's work."""
        try:
            while (request := self._next()) is not None:
                number, observation = request
                try:
                    if self._client is None:
                        self._again()
                        continue  # the request may be old by now
                    reply = self._client.infer(observation)
                except self._failures as error:
                    self._hang_up(str(error))
                    with self._changed:
                        self._taken -= 1  # if no newer request comes, this one goes out again
                    continue
                self._post(number, first_action(reply, len(self.card.actions)))
        except Exception as error:  # the loop must hear of it, whatever it is
            with self._changed:
                self._fatal = error
                self._changed.notify_all()
        self._hang_up("")

    def _next(self) -> tuple[int, dict[str, Any]] | None:
        """Return the newest request that was not taken; None to end."""
        with self._changed:
            while not self._closed:
                if self._client is None:
                    return 0, {}
                if self._request is not None and self._request[0] > self._taken:
                    self._taken, observation = self._request
                    if self._begins:
                        observation[RESET] = True
                        self._begins = False
                    return self._taken, observation
                self._changed.wait()
            return None

    def _again(self) -> None:
        """Connect anew."""
        try:
            client, card = self._connect()
        except self._failures as error:
            self.last_error = str(error)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, RETRY)
            return
        if identity(card) != self._identity:
            client.close()
            raise LinkError(
                f"the server has another policy now ({card.task}, run {card.run!r}) than the one "
                f"that began ({self.card.task}, run {self.card.run!r}); begin a new roll-out"
            )
        self._client = client
        with self._changed:
            self.connected_at = time.monotonic()
            self.reconnects += 1

    def _hang_up(self, why: str) -> None:
        client, self._client = self._client, None
        self.last_error = why or self.last_error
        if client is not None:
            with contextlib.suppress(*self._failures):  # it may be broken already
                client.close()

    def _post(self, number: int, action: np.ndarray) -> None:
        with self._changed:
            if number == self._asked != self._given_up:
                self._answer = (number, action)
                self._changed.notify_all()
            else:
                self.late += 1

    def _check(self) -> None:
        if self._fatal is not None:
            raise self._fatal

    def _why(self) -> str:
        return f" ({self.last_error})" if self.last_error else ""


def identity(card: PolicyCard) -> str:
    """Return what tells a policy from another: its card's checksum."""
    return hashlib.sha256(card.to_json().encode()).hexdigest()


def first_action(reply: Mapping[str, Any], naction: int) -> np.ndarray:
    """Return the first of the actions (horizon, naction) in a reply: the one for now.

    Raises:
        LinkError: the reply has none of that shape, or not finite ones.
    """
    actions = np.asarray(reply.get("actions"))
    if actions.ndim != 2 or actions.shape[1] != naction or not len(actions):
        raise LinkError(
            f"the server answers `actions` of shape {actions.shape}, the card has {naction} actions"
        )
    if actions.dtype.kind != "f" or not np.isfinite(actions[0]).all():
        raise LinkError("the server answers actions that are no finite numbers")
    return actions[0].astype(np.float32)
