"""The distributions that training draws actions from."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MIN_STD = 0.05
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)


class Gaussian(NamedTuple):
    """Independent normals over the action's numbers."""

    loc: Tensor
    scale: Tensor

    def action(self, drawn: Tensor) -> Tensor:
        """Return what is done where `drawn` (..., naction) was drawn: the same."""
        return drawn

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density of what was drawn, (..., naction), (...,)."""
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


class TanhNormal(Gaussian):
    """Independent normals over u, of which the action is tanh(u).

    What is kept of a step is u: tanh(u) near 1 does not tell it. `log_prob` and `kl` are those of
    u: ratios of densities, and divergences, are the same for tanh(u).
    """

    def action(self, drawn: Tensor) -> Tensor:
        """Return tanh(u), (..., naction)."""
        return torch.tanh(drawn)

    def entropy(self) -> Tensor:
        """Return the entropy of tanh(u) in nats, (...,), by Gauss-Hermite quadrature."""
        nodes = torch.as_tensor(_NODES, dtype=self.loc.dtype, device=self.loc.device)
        weights = torch.as_tensor(_WEIGHTS, dtype=self.loc.dtype, device=self.loc.device)
        slopes = log_slope(self.loc[..., None] + self.scale[..., None] * nodes)
        expected = (slopes * weights).sum(dim=-1) / weights.sum()
        return super().entropy() + expected.sum(dim=-1)


def log_slope(u: Tensor) -> Tensor:
    """Return log(1 - tanh(u)^2), the logarithm of the slope of tanh, without its cancellation."""
    return 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u))


def deviation(raw: Tensor, least: float = MIN_STD) -> Tensor:
    """Return least + softplus(raw): positive whatever the optimiser does."""
    return least + functional.softplus(raw)


def raw_deviation(std: float, least: float = MIN_STD) -> float:
    """Return what `deviation` makes this standard deviation of, or the least above its floor."""
    return math.log(math.expm1(max(std - least, 1e-4)))
