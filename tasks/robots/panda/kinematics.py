"""Closed-form kinematics of the Panda's arm: where its hand is, and which joints bring it there.

The inverse keeps the last joint and follows He and Liu (2021, "Analytical Inverse Kinematics for
Franka Emika Panda: a Geometrical Solver for 7-DOF Manipulators with Unconventional Design"): wrist
and elbow follow from the pose and the last joint up to four combinations of signs. Frames are those
of the arm's modified Denavit-Hartenberg table, metres and radians.
"""

import math

import torch
from torch import Tensor

from tasks.robots.panda.description import LOWER, TCP_DISTANCE, UPPER

SHOULDER = 0.333  # m, height of joint 2
UPPER_ARM, FOREARM = 0.316, 0.384  # m, shoulder to elbow, elbow to wrist, along the links
ELBOW, WRIST = 0.0825, 0.088  # m, how far joints 4 and 7 are beside them
HAND = 0.107  # m, from joint 7 to the hand
FLANGE = -math.pi / 4  # rad, by which the hand is turned about joint 7
TOOL = HAND + TCP_DISTANCE
_TWIST = (0.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0)  # quarter turns about x, before each joint
_ALONG = (0.0, 0.0, 0.0, ELBOW, -ELBOW, 0.0, WRIST)  # m in x, before each joint
_AFTER = (SHOULDER, 0.0, UPPER_ARM, 0.0, FOREARM, 0.0, TOOL)  # m in z, of each joint's own axis


def forward(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tool centre point (n, 3) m and the hand's rotation (n, 3, 3) of joints (n, 7)."""
    position = torch.zeros(len(q), 3, dtype=q.dtype, device=q.device)
    turn = torch.eye(3, dtype=q.dtype, device=q.device).expand(len(q), 3, 3)
    for i, (twist, along, after) in enumerate(zip(_TWIST, _ALONG, _AFTER, strict=True)):
        position = position + along * turn[:, :, 0]
        y, z = turn[:, :, 1], turn[:, :, 2]
        if twist:  # a quarter turn about x
            y, z = twist * z, -twist * y
        turn = _turned(torch.stack((turn[:, :, 0], y, z), dim=2), q[:, i])
        position = position + after * z
    return position, _turned(turn, torch.full_like(q[:, 0], FLANGE))


def inverse(position: Tensor, rotation: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Return the joints (n, 7) nearest to `near` that reach a pose, and whether there are any.

    The last joint stays where `near` has it. Where the pose is out of reach, or of the joints'
    limits, the joints are `near`, and the second answer, (n,) bool, is False.

    position: of the tool centre point, (n, 3) m. rotation: of the hand, (n, 3, 3).
    """
    frame = _turned(rotation, -FLANGE - near[:, 6])
    x6, y6, z6 = frame[:, :, 0], -frame[:, :, 2], frame[:, :, 1]
    back = TOOL * frame[:, :, 2] + WRIST * x6 - position  # from the wrist to the shoulder
    back[:, 2] += SHOULDER
    q4, x, z = _elbow(back.norm(dim=1))
    c, s = q4.cos(), q4.sin()
    # the forearm is square to the axis of joint 6, and meets the line to the shoulder as in x, z
    a, b = (back * x6).sum(dim=1), (back * y6).sum(dim=1)
    turn, phase = torch.asin((c * z - s * x) / torch.hypot(a, b)), torch.atan2(b, a)
    found = []
    for q6 in (turn - phase, math.pi - turn - phase):
        forearm = q6.sin()[:, None] * x6 + q6.cos()[:, None] * y6
        y3 = -torch.linalg.cross(back, forearm) / (c * x + s * z)[:, None]
        side = torch.linalg.cross(y3, back)
        reach = (x.square() + z.square())[:, None]
        x3 = (x[:, None] * back + z[:, None] * side) / reach
        z3 = (z[:, None] * back - x[:, None] * side) / reach
        x4 = c[:, None] * x3 + s[:, None] * z3
        q5 = torch.atan2((z6 * x4).sum(dim=1), -(z6 * y3).sum(dim=1))
        q6 = torch.remainder(q6 + math.pi / 2, 2 * math.pi) - math.pi / 2
        for sign in (1.0, -1.0):
            q1 = torch.atan2(sign * z3[:, 1], sign * z3[:, 0])
            q2 = sign * torch.acos(z3[:, 2].clamp(-1.0, 1.0))
            q3 = torch.atan2(sign * y3[:, 2], -sign * x3[:, 2])
            found.append(torch.stack((q1, q2, q3, q4, q5, q6, near[:, 6]), dim=1))
    return _nearest(torch.stack(found), near)


def _elbow(reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return joint 4 (n,) rad, and x and z in frame 3 of the way from wrist to shoulder, m.

    reach: from shoulder to wrist, (n,) m; NaN follows where that is too far or too near.
    """
    upper, fore = math.hypot(UPPER_ARM, ELBOW), math.hypot(FOREARM, ELBOW)
    bend = torch.acos((upper**2 + fore**2 - reach.square()) / (2 * upper * fore))
    q4 = bend + math.atan2(FOREARM, ELBOW) + math.atan2(UPPER_ARM, ELBOW) - 2 * math.pi
    c, s = q4.cos(), q4.sin()
    return q4, ELBOW * (c - 1.0) + FOREARM * s, ELBOW * s - FOREARM * c - UPPER_ARM


def _nearest(found: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row (n, 7) of found (4, n, 7) that is nearest, and whether one is legal."""
    low, high = near.new_tensor(LOWER[:7]), near.new_tensor(UPPER[:7])
    legal = ((found >= low) & (found <= high)).all(dim=2)  # of NaN nothing is legal
    far = (found - near).abs().amax(dim=2).masked_fill(~legal, torch.inf)
    best = far.argmin(dim=0)
    chosen = found[best, torch.arange(len(near), device=near.device)]
    exists = legal.any(dim=0)
    return torch.where(exists[:, None], chosen, near), exists


def _turned(rotation: Tensor, angle: Tensor) -> Tensor:
    """Return rotations (n, 3, 3) turned about their own z by angles (n,) rad."""
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    x, y, z = rotation.unbind(2)
    return torch.stack((c * x + s * y, c * y - s * x, z), dim=2)
