"""Pens: solid cylinders along their own z. Pure tensor functions of sizes and directions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RADIUS = 0.04  # m, of a pen of scale 1
RATIOS = (5.0, 5.5, 6.0, 6.5)  # length over diameter


def inertia(mass: Tensor, radius: Tensor, half_length: Tensor) -> Tensor:
    """Return the principal moments of solid cylinders, (n, 3) kg·m², of (n,) kg and m."""
    across = mass * (radius**2 / 4.0 + half_length**2 / 3.0)
    return torch.stack((across, across, 0.5 * mass * radius**2), dim=1)


def vertical_extent(size: Tensor, axis: Tensor) -> Tensor:
    """Return the heights that cylinders span, (n,) m.

    size: (n, 2 or more) m, radius and half length; axis: (n, 3) unit vectors.
    """
    up = axis[:, 2].abs().clamp(max=1.0)
    return 2.0 * (size[:, 1] * up + size[:, 0] * (1.0 - up.square()).sqrt())


def turns(before: Tensor, now: Tensor) -> Tensor:
    """Return the turns about +z that axes (n, 3) made, signed, (n,).

    Rolling about the own axis and tumbling over count nothing.
    """
    cross = torch.linalg.cross(before, now)
    sine = cross.norm(dim=1)
    angle = torch.atan2(sine, (before * now).sum(dim=1))
    return angle * cross[:, 2] / sine.clamp(min=1e-9) / (2.0 * math.pi)


def distance(points: Tensor, centre: Tensor, axis: Tensor, size: Tensor) -> Tensor:
    """Return how far points (n, k, 3) are from solid cylinders, (n, k) m; 0 inside.

    centre: (n, 3) m; axis: (n, 3) unit vectors; size: (n, 2 or more) m, radius and half length.
    """
    away = points - centre[:, None]
    along = (away * axis[:, None]).sum(dim=2)
    across = (away - along[..., None] * axis[:, None]).norm(dim=2)
    beyond = (along.abs() - size[:, 1:2]).clamp(min=0.0)
    return torch.hypot(beyond, (across - size[:, :1]).clamp(min=0.0))


def surface_points(
    device: torch.device, counts: Sequence[int] = (15, 15, 70), seed: int = 0
) -> Tensor:
    """Return points of a cylinder of radius 1 along z in [-1, 1]: top, bottom, side. (n, 3)."""
    rng = torch.Generator().manual_seed(seed)
    top, bottom, side = counts
    radius = torch.cat((torch.rand(top + bottom, generator=rng).sqrt(), torch.ones(side)))
    angle = 2.0 * math.pi * torch.rand(sum(counts), generator=rng)
    height = 2.0 * torch.rand(side, generator=rng) - 1.0
    z = torch.cat((torch.ones(top), -torch.ones(bottom), height))
    points = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle), z), dim=1)
    return points.to(device)
