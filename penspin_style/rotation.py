"""Batched rotations in pure torch. Quaternions are (w, x, y, z), MuJoCo's order, unit length."""

import torch
from torch import Tensor


def multiply(p: Tensor, q: Tensor) -> Tensor:
    """Return the Hamilton product p q: first rotate by q, then by p. (..., 4)."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        (
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ),
        dim=-1,
    )


def conjugate(q: Tensor) -> Tensor:
    """Return the inverse rotation of a unit quaternion. (..., 4)."""
    return torch.cat((q[..., :1], -q[..., 1:]), dim=-1)


def rotate(q: Tensor, v: Tensor) -> Tensor:
    """Rotate vectors v (..., 3) by unit quaternions q (..., 4)."""
    w, u = q[..., :1], q[..., 1:]
    t = 2.0 * torch.linalg.cross(u, v)
    return v + w * t + torch.linalg.cross(u, t)


def from_axis_angle(axis: Tensor, angle: Tensor) -> Tensor:
    """Return the quaternion that turns by angle (...,) rad about the unit axis (..., 3)."""
    half = 0.5 * angle.unsqueeze(-1)
    return torch.cat((torch.cos(half), torch.sin(half) * axis), dim=-1)


def matrix_from_axis_angle(axis: Tensor, angle: Tensor) -> Tensor:
    """Return the matrices (..., 3, 3) that turn by angle (...,) rad about the unit axis (..., 3).

    Rodrigues' formula, for many small turns: a quarter of the operations that quaternions take.
    """
    sine, cosine = angle.sin()[..., None, None], angle.cos()[..., None, None]
    eye = torch.eye(3, dtype=axis.dtype, device=axis.device)
    outer = axis[..., :, None] * axis[..., None, :]
    across = torch.linalg.cross(eye.expand_as(outer), axis[..., None, :])
    return cosine * eye + sine * across + (1.0 - cosine) * outer


def to_matrix(q: Tensor) -> Tensor:
    """Return rotation matrices (..., 3, 3) of unit quaternions (..., 4)."""
    w, x, y, z = q.unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def z_axis(q: Tensor) -> Tensor:
    """Return where unit quaternions (..., 4) turn z: the third column of `to_matrix`, (..., 3)."""
    w, x, y, z = q.unbind(-1)
    return torch.stack((2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)), dim=-1)


def to_rotation_vector(q: Tensor) -> Tensor:
    """Return angle (at most pi) times the axis of unit quaternions, (..., 3) rad."""
    q = torch.where(q[..., :1] < 0, -q, q)
    w, u = q[..., 0], q[..., 1:]
    sine = u.norm(dim=-1)
    # near zero the angle is twice the sine of its half
    factor = torch.where(sine > 1e-6, 2.0 * torch.atan2(sine, w) / sine.clamp(min=1e-6), 2.0)
    return factor.unsqueeze(-1) * u


def rotation_vector(matrix: Tensor) -> Tensor:
    """Return sin(angle) times the axis of rotation matrices, (..., 3).

    This is the rotation error that a resolved-rate controller drives to zero: exact in direction,
    and monotonic up to 90 degrees.
    """
    return 0.5 * torch.stack(
        (
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ),
        dim=-1,
    )


def random_unit_vector(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw directions uniformly on the sphere, (*shape, 3)."""
    v = torch.randn(*shape, 3, generator=rng, device=rng.device)
    return v / v.norm(dim=-1, keepdim=True)
