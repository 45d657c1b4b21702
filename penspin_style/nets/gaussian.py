"""The distribution that training draws actions from."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MIN_STD = 0.05
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class Gaussian(NamedTuple):
    """Independent normals over the action's numbers."""

    loc: Tensor
    scale: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density of actions (..., naction), (...,)."""
        z = (action - self.loc) / self.scale
        return (-0.5 * z**2 - torch.log(self.scale) - _LOG_SQRT_2PI).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, (...,)."""
        return (0.5 + _LOG_SQRT_2PI + torch.log(self.scale)).expand_as(self.loc).sum(dim=-1)

    def kl(self, other: "Gaussian") -> Tensor:
        """Return KL(self || other), (...,), exactly."""
        ratio = (self.scale / other.scale) ** 2
        shift = ((self.loc - other.loc) / other.scale) ** 2
        return 0.5 * (ratio + shift - 1.0 - torch.log(ratio)).sum(dim=-1)


def deviation(raw: Tensor) -> Tensor:
    """Return MIN_STD + softplus(raw): positive whatever the optimiser does."""
    return MIN_STD + functional.softplus(raw)


def raw_deviation(std: float) -> float:
    """Return what `deviation` makes this standard deviation of, or the least above its floor."""
    return math.log(math.expm1(max(std - MIN_STD, 1e-4)))
