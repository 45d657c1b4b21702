"""A network in torch as a policy at run time, on the CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from penspin_style.features import PolicyCard


class TorchPolicy:
    """A network whose `act` takes the card's inputs as tensors; see `penspin_style.deploy.policy`.

    It remembers nothing. One with a `horizon` answers chunks (n, horizon, naction).
    """

    def __init__(self, network: Any, card: PolicyCard) -> None:
        self.network, self.card = network.eval(), card
        self.horizon: int = getattr(network, "horizon", 1)

    def reset(self) -> None:
        """Do nothing: there is nothing to forget."""

    @torch.no_grad()
    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action (naction,) float32, (horizon, naction), or n of them for n rows."""
        given = [
            torch.from_numpy(np.ascontiguousarray(observation[i.name])) for i in self.card.inputs
        ]
        first = self.card.inputs[0]
        is_batch = given[0].dim() > len(first.tensor[1])
        actions = self.network.act(*(given if is_batch else (value[None] for value in given)))
        if actions.dim() == 3 and self.horizon == 1:
            actions = actions[:, 0]
        return actions.numpy() if is_batch else actions[0].numpy()
