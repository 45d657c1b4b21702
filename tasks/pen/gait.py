"""How a hand stands while it spins a pen by letting go and grasping again, as tensor functions.

A cylinder that is rolled about its axis, or swapped end for end, is the same to a hand. What is
here does not change with either: `line_features` of an axis, offsets of fingertips from the pen's
line, the natural grasp of the angle at which the pen lies, 0 to 180 degrees.

In half a turn every finger must pass under the pen once; which side of it each stands on at which
angle is `_SIDES`, from the cached grasps. The posture's cost is that with which planning finds the
gait (`algo/search`); as a bonus that is never negative it gives no reason to end an episode.
"""

import functools
import pathlib

import torch
from torch import Tensor

from penspin_style import rotation
from penspin_style.env.start_bank import read_bank
from tasks.pen import grasps

MIDDLE = (-0.01, -0.01, 0.62)
"""Where the pen's centre is held, m."""
TIP_RADIUS = 0.012
"""Radius of a fingertip, m."""
STRAY = 0.3
"""Radians from the natural grasp that a joint may be without the cost of straying."""
_WEIGHTS = {"height": 0.6, "tilt": 0.4, "offset": 0.3, "posture": 0.3, "stray": 1.0}
_BANK = pathlib.Path(__file__).parents[1] / "assets" / "gait_starts"
CYCLE = (0, 2, 3, 4, 0)
"""Published grasps at 0, 45, 90, 135 and 180 degrees."""
_ANGLES = (0, 8, 32, 45, 88, 98, 116, 135, 148, 174, 180)
_SIDES = (  # mm from the pen's line to its left, of index, middle, ring, thumb, at these angles
    (-22, -22, 22, 22, 22, 22, 22, 22, 22, 22, 22),
    (-23, -23, -23, -23, -22, -22, -22, -22, -20, 22, 23),
    (-20, -20, -20, -22, -50, -50, -50, -45, -30, 18, 20),
    (22, 22, 22, 22, 17, 16, -18, -23, -23, -22, -22),
)
_TOLERANCE = 0.045
"""Metres beside its place from which a finger counts as on the wrong side."""


def angle(axis: Tensor) -> Tensor:
    """Return the directions of lines (n, 3) seen from above, rad in [0, pi)."""
    return torch.atan2(axis[:, 1], axis[:, 0]).remainder(torch.pi).clamp(max=torch.pi - 1e-6)


def line_features(axis: Tensor) -> Tensor:
    """Return the direction of lines (n, 3), the same for both of its signs, (n, 5)."""
    x, y, z = axis.unbind(dim=1)
    return torch.stack((x * x - y * y, 2 * x * y, 4 * z * x, 4 * z * y, 4 * z * z), dim=1)


def natural_joints(yaw: Tensor) -> Tensor:
    """Return joints (n, 16) rad for pens at yaw (n,) rad: published grasps, interpolated."""
    table = _postures(yaw.device)
    place = yaw.remainder(torch.pi) * (4.0 / torch.pi)
    lower = place.long().clamp(max=3)
    return torch.lerp(table[lower], table[lower + 1], (place - lower)[:, None])


def posture_cost(qpos: Tensor, centre: Tensor, axis: Tensor) -> Tensor:
    """Return how far hand and pen are from holding it well, (n,), 0 at best.

    qpos: (n, 16) rad; centre: (n, 3) m; axis: (n, 3) unit vectors.
    """
    terms = posture_terms(qpos, centre, axis)
    total = torch.zeros_like(centre[:, 0])
    for name, weight in _WEIGHTS.items():
        total = total + weight * terms[name]
    return 0.3 * total


def posture_terms(qpos: Tensor, centre: Tensor, axis: Tensor) -> dict[str, Tensor]:
    """Return of what `posture_cost` is made, without weights, (n,) each."""
    off = centre - centre.new_tensor(MIDDLE)
    joints = qpos - natural_joints(angle(axis))
    return {
        "height": (off[:, 2] / 0.01).square(),
        "tilt": (axis[:, 2] / 0.15).square(),
        "offset": (off[:, :2] / 0.015).square().sum(dim=1),
        "posture": joints.square().sum(dim=1),
        "stray": (joints.abs() - STRAY).clamp(min=0.0).square().sum(dim=1),
    }


def side_error(tips: Tensor, centre: Tensor, axis: Tensor) -> Tensor:
    """Return how far the fingertips (n, 4, 3) m are from their sides of the pen, (n,) in [0, 1]."""
    yaw = torch.atan2(axis[:, 1], axis[:, 0])
    sign = torch.where(yaw.remainder(2 * torch.pi) < torch.pi, 1.0, -1.0)
    left = torch.stack((-axis[:, 1], axis[:, 0]), dim=1) * sign[:, None]
    left = left / left.norm(dim=1, keepdim=True).clamp(min=1e-6)
    beside = ((tips[:, :, :2] - centre[:, None, :2]) * left[:, None]).sum(dim=2)
    degrees = (angle(axis) * (180.0 / torch.pi)).round().long()
    wanted = _places(axis.device)[degrees]
    return ((beside - wanted).abs() / _TOLERANCE).clamp(max=1.0).mean(dim=1)


def tip_features(tips: Tensor, centre: Tensor, axis: Tensor, radius: Tensor) -> dict[str, Tensor]:
    """Return where the fingertips are, seen from the pen, each (n, ...) m.

    tips: (n, 4, 3); centre, axis: (n, 3); radius: (n,).
    """
    offset = tips - centre[:, None]
    along = (offset * axis[:, None]).sum(dim=2, keepdim=True)
    across = offset - along * axis[:, None]
    gap = across.norm(dim=2) - radius[:, None] - TIP_RADIUS
    return {
        "tip_offset": offset,
        "tip_across": across,
        "tip_gap": gap.clamp(-0.01, 0.02),
        "tip_along": along[..., 0].abs(),
    }


def balanced_odds(rows: Tensor) -> Tensor:
    """Return running sums of odds with which grasps (scales, n, 23) lie at all angles alike.

    Returns: (scales, n), the last column 1. Angles count in bins of 15 degrees; one with hardly any
    grasps counts for nothing.
    """
    axes = rotation.z_axis(rows[..., 19:].reshape(-1, 4))
    bins = (angle(axes) * (12 / torch.pi)).long().reshape(rows.shape[:2])
    counts = torch.stack([row.bincount(minlength=12) for row in bins])
    mine = counts.gather(1, bins)
    odds = torch.where(mine > 20, 1.0 / mine, 0.0)
    return (odds / odds.sum(dim=1, keepdim=True)).cumsum(dim=1)


def bank() -> Tensor:
    """Return states along searched gaits that hold while nothing moves, at rest, (n, 61).

    Rows are those of `PenTask.start_state`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    return read_bank(_BANK)


@functools.cache
def _postures(device: torch.device) -> Tensor:
    return grasps.canonical()[list(CYCLE), :16].to(device)


@functools.cache
def _places(device: torch.device) -> Tensor:
    """Return the sides for every degree, (181, 4) m."""
    known, sides = torch.tensor(_ANGLES, dtype=torch.float32), torch.tensor(_SIDES) / 1e3
    degrees = torch.arange(181, dtype=torch.float32)
    upper = torch.searchsorted(known, degrees).clamp(min=1)
    lower = upper - 1
    share = (degrees - known[lower]) / (known[upper] - known[lower])
    return torch.lerp(sides[:, lower], sides[:, upper], share).t().contiguous().to(device)
