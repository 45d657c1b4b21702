"""Shapes that reward terms are made of: pure tensor -> tensor, values in [0, 1]."""

import math

import torch
from torch import Tensor


def near(distance: Tensor, scale: float) -> Tensor:
    """Return 1 - tanh(scale * distance): 1 at zero distance, falling smoothly. scale in 1/m."""
    return 1.0 - torch.tanh(scale * distance)


def progress(value: Tensor, start: float, goal: float) -> Tensor:
    """Return how far value has come from start (0) to goal (1), clipped."""
    return ((value - start) / (goal - start)).clamp(0.0, 1.0)


def tolerance(
    x: Tensor, low: float, high: float, margin: float, value_at_margin: float = 0.1
) -> Tensor:
    """Return 1 inside [low, high], falling like a gaussian to value_at_margin at `margin`."""
    outside = torch.clamp(torch.maximum(low - x, x - high), min=0.0)
    if margin == 0.0:
        return (outside == 0.0).to(x.dtype)
    rate = math.sqrt(-2.0 * math.log(value_at_margin))
    return torch.exp(-0.5 * (outside / margin * rate) ** 2)
