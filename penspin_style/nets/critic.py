"""The value of what is observed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from penspin_style.nets.mlp import mlp
from penspin_style.nets.normalizer import Normalizer


class ValueFunction(nn.Module):
    """A perceptron from one observation group to the expected return."""

    def __init__(
        self,
        in_key: str,
        size: int,
        *,
        hidden: Sequence[int],
        activation: str,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.in_key = in_key
        self.normalizer = Normalizer(size)
        self.net = mlp(size, hidden, 1, activation=activation, rng=rng)

    def forward(self, observation: Tensor) -> Tensor:
        """Return values (..., 1)."""
        return self.net(self.normalizer(observation))
