"""Where a control loop gets its actions: a policy in this process, or one behind a server.

A server may die, freeze or lag; the loop must not. It waits for the answer to its newest
observation no longer than its control step allows, and an answer that comes later is dropped: an
action is executed in the step whose observation it was computed from, or never.

History lives on the robot's side (`real.observer`), which goes on observing while no action comes.
So a lost connection loses none of it, and a new connection changes nothing for a policy that reads
inputs; one that remembers by itself begins anew with the connection.
"""

import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from penspin_style.deploy.bundle import Bundle
from penspin_style.features import PolicyCard
from real.client import ClientError, PolicyClient, PolicyError, Timeout, Unreachable
from real.robot import RobotError

PATIENCE = 10.0
"""Seconds that a loop without deadlines waits for a server."""
_LONGEST = 3600.0
"""Seconds that a client takes for one request."""


class LinkError(RobotError):
    """There is no policy to ask: nobody answers, or not as it should be."""


class Policy(Protocol):
    """What a control loop asks for actions."""

    @property
    def card(self) -> PolicyCard:
        """What it needs and means."""
        ...

    def reset(self) -> None:
        """Begin an episode."""

    def ask(self, inputs: Mapping[str, np.ndarray], deadline: float) -> np.ndarray | None:
        """Return the action (naction,) for these inputs; None if it is not there in time.

        deadline: s, monotonic; infinity where time stands still meanwhile.
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
        self.reset()

    def reset(self) -> None:
        """Begin to count; the policy itself remembers nothing."""
        self.late = 0

    def ask(self, inputs: Mapping[str, np.ndarray], deadline: float) -> np.ndarray | None:
        """Return the action; it is late only if the computer is."""
        action = self.bundle(inputs)
        if time.monotonic() < deadline:
            return action
        self.late += 1
        return None

    def counts(self) -> dict[str, int]:
        """Return the steps without an action."""
        return {"unanswered": self.late}

    def close(self) -> None:
        """Do nothing."""


class Remote:
    """A policy behind a server; `client` connects again by itself.

    last_error: why the last step had no action.
    """

    def __init__(self, client: PolicyClient, *, patience: float = PATIENCE) -> None:
        """Take a client that has connected.

        Raises:
            LinkError: the server does not say what its policy needs and means.
        """
        if client.card is None:
            raise LinkError(
                "the server sends no policy card, without which its actions mean nothing; serve "
                "the policy with `penspin serve`"
            )
        self.client, self.card, self.patience = client, client.card, patience
        self.last_error = ""
        self._connections = client.connections
        self.unanswered = 0

    def reset(self) -> None:
        """Begin an episode: the next request says so."""
        self.client.reset()
        self._connections = self.client.connections
        self.unanswered = 0

    def ask(self, inputs: Mapping[str, np.ndarray], deadline: float) -> np.ndarray | None:
        """Return the action for these inputs; None if it is not there in time.

        Of a reply with several actions the first one is for now; the next step asks again.

        Raises:
            LinkError: the server refuses us or the observation, has another policy now, or, where
                there is no deadline, nobody answers for `patience` seconds.
        """
        endless = deadline == float("inf")
        until = time.monotonic() + self.patience if endless else deadline
        while (left := until - time.monotonic()) > 0:
            try:
                return self.client.infer(inputs, timeout=min(left, _LONGEST))["actions"][0]
            except (Timeout, Unreachable) as error:
                self.last_error = str(error)
            except ClientError as error:
                self.last_error = str(error)
                if not (isinstance(error, PolicyError) and error.code == "policy"):
                    raise LinkError(f"no more actions: {error}") from error
                if endless:  # the same observation would meet the same fault again
                    raise LinkError(f"the policy failed: {error}") from error
            if not endless:
                break
        self.unanswered += 1
        if endless:
            raise LinkError(
                f"the policy server has not answered for {self.patience:g} s ({self.last_error})"
            )
        return None

    def counts(self) -> dict[str, int]:
        """Return the steps without an action, and the connections that had to be opened again."""
        return {
            "unanswered": self.unanswered,
            "reconnects": self.client.connections - self._connections,
        }

    def close(self) -> None:
        """Hang up."""
        self.client.close()
