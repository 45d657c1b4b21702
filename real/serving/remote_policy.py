"""A policy behind a server, under the contract of `penspin_style.deploy.policy`.

A server may die, freeze or lag; the control loop must not. `act` waits for the answer to its newest
observation until `deadline`, and an answer that comes later is dropped: an action is executed in
the step whose observation it was computed from, or never.

History lives on the robot's side (`penspin_style.deploy.history`), which goes on observing while no
action comes. So a lost connection loses none of it, and a new connection changes nothing for a
policy that reads inputs; one that remembers by itself begins anew with the connection.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from penspin_style.deploy.policy import NoActionError
from real.robot import RobotError
from real.serving.client import ClientError, PolicyClient, PolicyError, Timeout, Unreachable

PATIENCE = 10.0
"""Seconds to wait for a server where there is no deadline."""
NEVER = float("inf")
_LONGEST = 3600.0
"""Seconds that a client takes for one request."""


class PolicyLostError(RobotError):
    """There is no policy to ask: nobody answers, or not as it should be."""


class RemotePolicy:
    """A policy behind a server; `client` connects again by itself.

    deadline: s, monotonic, by which `act` answers; infinity where time stands still meanwhile.
    """

    def __init__(self, client: PolicyClient, *, patience: float = PATIENCE) -> None:
        """Take a client that has connected.

        Raises:
            PolicyLostError: the server does not say what its policy needs and means.
        """
        if client.card is None:
            raise PolicyLostError(
                "the server sends no policy card, without which its actions mean nothing; serve "
                "the policy with `penspin serve`"
            )
        self.client, self.card, self.patience = client, client.card, patience
        self.deadline = NEVER
        self._connections = client.connections

    @property
    def horizon(self) -> int:
        """Actions of a reply, as the server says."""
        return self.client.metadata.get("horizon", 1)

    @property
    def reconnects(self) -> int:
        """Connections that had to be opened again since the last reset."""
        return self.client.connections - self._connections

    def reset(self) -> None:
        """Begin an episode: the next request says so."""
        self.client.reset()
        self._connections = self.client.connections

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action (naction,), or with a horizon above 1 (horizon, naction).

        Raises:
            NoActionError: it is not there by the deadline.
            PolicyLostError: the server refuses us or the observation, has another policy now, or,
                where there is no deadline, nobody answers for `patience` seconds.
        """
        endless = self.deadline == NEVER
        until = time.monotonic() + self.patience if endless else self.deadline
        why = "no time was left"
        while (left := until - time.monotonic()) > 0:
            try:
                reply = self.client.infer(observation, timeout=min(left, _LONGEST))
                actions: np.ndarray = reply["actions"]
                return actions[0] if self.horizon == 1 else actions
            except (Timeout, Unreachable) as error:
                why = str(error)
            except ClientError as error:
                why = str(error)
                if not (isinstance(error, PolicyError) and error.code == "policy"):
                    raise PolicyLostError(f"no more actions: {error}") from error
                if endless:  # the same observation would meet the same fault again
                    raise PolicyLostError(f"the policy failed: {error}") from error
            if not endless:
                raise NoActionError(why)
        if endless:
            raise PolicyLostError(
                f"the policy server has not answered for {self.patience:g} s ({why})"
            )
        raise NoActionError(why)

    def close(self) -> None:
        """Hang up."""
        self.client.close()
