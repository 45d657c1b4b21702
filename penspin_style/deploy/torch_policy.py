"""A network in torch as a policy at run time, on the CPU."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from penspin_style.features import PolicyCard
from penspin_style.nets.act import build
from penspin_style.nets.policy import read_policy


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


def load_act(path: pathlib.Path) -> TorchPolicy:
    """Return the ACT of a run folder or policy folder, on the CPU.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = path / "policy" if (path / "policy").is_dir() else path
    card, weights, _ = read_policy(folder)
    if card.network.get("kind") != "act":
        raise ValueError(f"{path} is a policy of the kind {card.network.get('kind')!r}, no ACT")
    try:
        network = build(card)
        network.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: card and weights do not fit: {error!r}") from error
    return TorchPolicy(network, card)
