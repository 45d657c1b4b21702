"""What a search for pen spinning shuns, and where it may send fingers: the natural grasps.

Half a turn passes four published grasps and ends in the first one again, for a pen has two ends
that look alike. Fingers near the natural grasp of the pen's present yaw stay untangled and can go
on; without that a search comes to a dead end within a turn.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim
from tasks.pen import shapes
from tasks.pen.gait import TIP_RADIUS, natural_joints, posture_terms

if TYPE_CHECKING:  # two of whose methods stand here
    from tasks.pen.spin import PenTask

FINGERS = tuple(tuple(range(i, i + 4)) for i in range(0, 16, 4))
"""The actions of each."""
FASTEST = 1.2  # rad/s about +z that cost nothing
APART = 0.022  # m, between index, middle and ring, along x
BEHIND = 0.02  # m, of the thumb behind index and middle, along y
LEVER = 0.012  # m from the pen's middle at which it must be supported, on both sides
LEAD = 1.0  # rad, the furthest yaw ahead whose grasp is proposed


def terms(self: "PenTask[Any]", sim: Sim, *, still: bool) -> dict[str, Tensor]:
    """Return how far pen and fingers are from where they can go on, (num_envs,) each."""
    return cost_terms(
        pen=self.pen,
        axis=self.pen_mat[:, :, 2],
        size=self.size(sim),
        tips=self.tips[:, self.tip_ids],
        joints=self.qpos.float(),
        target=self.memory["target"],
        velocity=(self.pen - self.memory["last_pos"]) / self.cfg.control_dt,
        angvel=self._angvel(),
        still=still,
    )


def propose(self: "PenTask[Any]", sim: Sim, steps: Tensor, rng: torch.Generator) -> Tensor:
    """Return actions towards the natural grasp of a yaw a little ahead, (num_envs, 16)."""
    axis, target = self.pen_mat[:, :, 2], self.memory["target"]
    lead = LEAD * torch.rand(len(axis), generator=rng, device=axis.device)
    away = natural_joints(yaw(axis) + lead) - target
    return (away / (self.cfg.action_scale * steps)[:, None]).clamp(-1.0, 1.0)


def yaw(axis: Tensor) -> Tensor:
    """Return the direction of axes (n, 3) about +z, (n,) rad."""
    return torch.atan2(axis[:, 1], axis[:, 0])


def cost_terms(
    *,
    pen: Tensor,
    axis: Tensor,
    size: Tensor,
    tips: Tensor,
    joints: Tensor,
    target: Tensor,
    velocity: Tensor,
    angvel: Tensor,
    still: bool,
) -> dict[str, Tensor]:
    """Return the terms of the cost, (n,) each.

    pen: (n, 3) m, its centre; axis: (n, 3); size: (n, 2 or more) m, radius and half length.
    tips: (n, 4, 3) m, index, middle, ring, thumb; joints, target: (n, 16) rad.
    velocity, angvel: (n, 3) m/s, rad/s, of the pen over the control step.
    """
    gap = shapes.distance(tips, pen, axis, size) - TIP_RADIUS
    speed = velocity.square().sum(dim=1)
    terms = {
        **posture_terms(joints, pen, axis),
        "speed": speed / 0.1**2,
        "over_speed": (angvel[:, 2] - FASTEST).clamp(min=0.0),
        "gap": _gap(gap),
        "support": _support(gap, ((tips - pen[:, None]) * axis[:, None]).sum(dim=2)),
        "thumb": gap[:, 3].clamp(0.0, 0.06) / 0.01,
        "tangle": _tangle(tips),
        "effort": ((target - joints) / 0.05).square().clamp(max=16.0).sum(dim=1),
        "drift": torch.zeros_like(speed),
    }
    if still:
        turning = angvel.square().sum(dim=1).clamp(max=10.0)
        terms["drift"] = speed / 0.05**2 + turning
    return terms


def _gap(gap: Tensor) -> Tensor:
    """Return the distances of the fingertips from the pen, those of the nearest counting most."""
    near = gap.clamp(0.0, 0.03).sort(dim=1).values
    return (near * near.new_tensor((1.0, 1.0, 0.7, 0.1))).sum(dim=1) / 0.01


def _support(gap: Tensor, along: Tensor) -> Tensor:
    """Return how much a pen lacks fingers on both sides of its middle."""
    place = torch.where(gap < 0.004, along, 0.0)
    lacks = (LEVER - place.amax(dim=1)).clamp(min=0.0) + (LEVER + place.amin(dim=1)).clamp(min=0.0)
    return lacks / 0.01


def _tangle(tips: Tensor) -> Tensor:
    """Return by how much fingertips are nearer to each other than they should be."""
    front = torch.maximum(tips[:, 0, 1], tips[:, 1, 1])
    room = torch.stack(
        (
            tips[:, 1, 0] - tips[:, 0, 0] - APART,
            tips[:, 2, 0] - tips[:, 1, 0] - APART,
            tips[:, 3, 1] - front - BEHIND,
        ),
        dim=1,
    )
    return ((-room).clamp(0.0, 0.04) / 0.01).sum(dim=1)
