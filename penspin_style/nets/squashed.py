"""A perceptron whose action is squashed by tanh: of SAC and DDPG, and of PPO and GRPO if asked.

A stochastic one draws u from a normal distribution whose deviation follows from the observation
too, and acts tanh(u). Algorithms read its second head each in their own way: off policy as the
logarithm of the deviation (`distribution`), on policy through a softplus (`SquashedPolicy.normal`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penspin_style.features import PolicyCard
from penspin_style.nets.gaussian import TanhNormal, deviation, log_slope, raw_deviation
from penspin_style.nets.mlp import mlp
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.policy import Policy

NAME = "squashed"
LOG_STD = (-5.0, 1.0)
"""Least and largest logarithm of the deviation of u, off policy."""
MIN_STD = 1e-3
"""Least deviation of u, on policy."""
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)

Noise = Callable[[Tensor], Tensor]
"""From a tensor to standard normal noise of its shape."""


class Squashed:
    """The distribution of tanh(u), u normal; as TorchRL's losses want one.

    loc, scale: of u, (..., naction).
    """

    def __init__(self, loc: Tensor, scale: Tensor, noise: Noise) -> None:
        self.loc, self.scale, self._noise = loc, scale, noise

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Return actions (..., naction) and their log density (...,), of the same draw."""
        noise = self._noise(self.loc.expand(*sample_shape, *self.loc.shape))
        u = self.loc + self.scale * noise
        log_normal = -0.5 * noise**2 - torch.log(self.scale) - _LOG_SQRT_2PI
        return torch.tanh(u), (log_normal - log_slope(u)).sum(dim=-1)


def distribution(head: Tensor, noise: Noise) -> Squashed:
    """Return the distribution that a network's output (..., 2 * naction) stands for."""
    loc, raw = head.chunk(2, dim=-1)
    low, high = LOG_STD
    # smooth at both ends, so that its gradient never vanishes
    log_std = low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)
    return Squashed(loc, log_std.exp(), noise)


class SquashedPolicy(Policy):
    """A perceptron on one observation group.

    in_key: the group. Its vector is normalised here, so callers pass it raw.
    stochastic: whether the network has a second head, for the deviation.
    init_std: deviation of u that `normal` begins with; None for what the head's zero stands for.
    """

    def __init__(
        self,
        in_key: str,
        size: int,
        naction: int,
        *,
        hidden: Sequence[int],
        activation: str,
        stochastic: bool,
        rng: torch.Generator,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.in_key, self.in_keys, self.naction = in_key, (in_key,), naction
        self.normalizer = Normalizer(size)
        outputs = 2 * naction if stochastic else naction
        self.net = mlp(size, hidden, outputs, activation=activation, out_gain=0.01, rng=rng)
        if init_std is not None:
            last = self.net[-1]
            assert stochastic and isinstance(last, nn.Linear)
            nn.init.constant_(last.bias[naction:], raw_deviation(init_std, MIN_STD))
        self._network = {
            "hidden": list(hidden),
            "activation": activation,
            "stochastic": stochastic,
        }

    def act(self, observation: Tensor) -> Tensor:  # type: ignore[override]
        """Return the action (..., naction) in [-1, 1] of raw observations (..., size)."""
        return torch.tanh(self.net(self.normalizer(observation))[..., : self.naction])

    def normal(self, observation: Tensor) -> TanhNormal:
        """Return the distribution that a training on policy draws from, of raw observations."""
        loc, raw = self.net(self.normalizer(observation)).chunk(2, dim=-1)
        return TanhNormal(loc, deviation(raw, MIN_STD))

    def forward(self, observation: Tensor) -> Tensor:
        """Return what `act` does."""
        return self.act(observation)

    @classmethod
    def from_card(cls, card: PolicyCard, network: dict[str, Any]) -> "SquashedPolicy":
        """Build the perceptron that a card describes."""
        key = network["in_key"]
        size = {i.name: i.size for i in card.inputs}[key]
        shape = {name: network[name] for name in ("hidden", "activation", "stochastic")}
        return cls(key, size, len(card.actions), rng=torch.Generator(), **shape)

    def describe(self) -> dict[str, Any]:
        """Return what `load_policy` needs to build the module again, as JSON values."""
        return {"kind": NAME, "in_key": self.in_key, **self._network}


POLICY = SquashedPolicy
