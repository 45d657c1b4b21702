"""A perceptron with a normal distribution around its action.

In training the environment clips what is drawn outside [-1, 1], and the log-probability is that of
what was drawn.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penspin_style.features import PolicyCard
from penspin_style.nets.gaussian import MIN_STD, Gaussian, deviation, raw_deviation
from penspin_style.nets.mlp import mlp
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.policy import Policy

NAME = "gaussian"


class GaussianPolicy(Policy):
    """A perceptron on one observation group.

    in_key: the group. Its vector is normalised here, so callers pass it raw.
    clip: how many deviations from its mean the network sees at most; None for any number.
    """

    min_std = MIN_STD

    def __init__(
        self,
        in_key: str,
        size: int,
        naction: int,
        *,
        hidden: Sequence[int],
        activation: str,
        init_std: float,
        rng: torch.Generator,
        clip: float | None = Normalizer.clip,
    ) -> None:
        super().__init__()
        self.in_key = in_key
        self.in_keys = (in_key,)
        self.naction = naction
        self.normalizer = Normalizer(size)
        self.normalizer.clip = math.inf if clip is None else clip
        self.net = mlp(size, hidden, naction, activation=activation, out_gain=0.01, rng=rng)
        self._network: dict[str, Any] = {"hidden": list(hidden), "activation": activation}
        if clip != Normalizer.clip:
            self._network["clip"] = clip
        self.raw_std = nn.Parameter(torch.full((naction,), raw_deviation(init_std)))

    def act(self, observation: Tensor) -> Tensor:  # type: ignore[override]
        """Return the mean action (..., naction) in [-1, 1] of raw observations (..., size)."""
        return torch.tanh(self.net(self.normalizer(observation)))

    def forward(self, observation: Tensor) -> Gaussian:
        """Return the distribution that training draws from."""
        loc = self.act(observation)
        return Gaussian(loc, deviation(self.raw_std).expand_as(loc))

    @classmethod
    def from_card(cls, card: PolicyCard, network: dict[str, Any]) -> "GaussianPolicy":
        """Build the perceptron that a card describes."""
        key = network["in_key"]
        size = {i.name: i.size for i in card.inputs}[key]
        shape = {k: network[k] for k in ("hidden", "activation", "clip") if k in network}
        rng = torch.Generator()
        return cls(key, size, len(card.actions), init_std=1.0, rng=rng, **shape)

    def describe(self) -> dict[str, Any]:
        """Return what `load_policy` needs to build the module again, as JSON values."""
        return {"kind": NAME, "in_key": self.in_key, **self._network}


POLICY = GaussianPolicy
