"""Triangle meshes as two arrays, and the mass properties of the solid that a closed one bounds."""

from dataclasses import dataclass

import numpy as np

from penspin_style.system.terminal import one_line

_ALIKE = 1e-3
"""Share by which two principal moments may differ and still count as one, as a cylinder's do."""


class MeshFileError(ValueError):
    """A file holds no mesh, or not the one that it claims to hold."""


def numbers(texts: list[bytes]) -> np.ndarray:
    """Return what a file spells as float64, one dimension.

    Raises:
        MeshFileError: one of them is no number.
    """
    try:
        return np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError as error:
        raise MeshFileError(f"a value is no number ({one_line(error)})") from error


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles that share vertices."""

    vertices: np.ndarray
    """(nvert, 3) float64, metres unless said otherwise"""
    faces: np.ndarray
    """(nface, 3) int64, rows of `vertices`, counter-clockwise seen from outside"""

    @property
    def triangles(self) -> np.ndarray:
        """Return the corners, (nface, 3, 3)."""
        return self.vertices[self.faces]

    @property
    def size(self) -> np.ndarray:
        """Return the extents (3,) of the vertices that faces use; zeros without faces."""
        if not len(self.faces):
            return np.zeros(3)
        corners = self.triangles.reshape(-1, 3)
        return corners.max(axis=0) - corners.min(axis=0)

    def moved(self, rotation: np.ndarray, offset: np.ndarray) -> "Mesh":
        """Return the mesh with vertices (vertex - offset) @ rotation; rotation (3, 3)."""
        return Mesh((self.vertices - offset) @ rotation, self.faces)


def shared(corners: np.ndarray) -> Mesh:
    """Return triangles (n, 3, 3) with vertices of the same bytes made one; -0 is 0."""
    rows = np.ascontiguousarray(corners.reshape(-1, 3) + 0.0)
    keys = rows.view([("", np.float64)] * 3).reshape(-1).view("V24")
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    return Mesh(rows[first], index.reshape(-1, 3).astype(np.int64))


@dataclass(frozen=True, eq=False)
class Solid:
    """What a closed mesh bounds, at density 1 kg/m^3."""

    volume: float
    """m^3; negative if the faces look inwards"""
    centre: np.ndarray
    """(3,) centre of mass, m"""
    inertia: np.ndarray
    """(3, 3) about the centre of mass, kg m^2"""


@dataclass(frozen=True, eq=False)
class Frame:
    """Centre of mass and principal axes in the frame that a mesh came in."""

    offset: np.ndarray
    """(3,) centre of mass"""
    rotation: np.ndarray
    """(3, 3), the axes as columns, right-handed; as near to the mesh's own as they can be"""
    moments: np.ndarray
    """(3,) about these axes, at density 1"""


def solid(mesh: Mesh) -> Solid:
    """Return exact mass properties: a sum over the tetrahedra from one point to each face.

    Source: F. Tonon, Explicit exact formulas for the 3-D tetrahedron inertia tensor, 2004, in
    terms of second moments.
    """
    middle = mesh.vertices.mean(axis=0) if len(mesh.vertices) else np.zeros(3)
    corners = mesh.triangles - middle
    volumes = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6.0
    volume = float(volumes.sum())
    sums = corners.sum(axis=1)
    if volume == 0.0:
        return Solid(0.0, middle, np.zeros((3, 3)))
    centre = (volumes[:, None] * sums).sum(axis=0) / (4.0 * volume)
    # the integral of x x^T over a tetrahedron with one corner in the origin
    second = np.einsum("i,ij,ik->jk", volumes, sums, sums)
    second = (second + np.einsum("i,inj,ink->jk", volumes, corners, corners)) / 20.0
    second -= volume * np.outer(centre, centre)
    return Solid(volume, middle + centre, np.trace(second) * np.eye(3) - second)


def principal_frame(body: Solid) -> Frame:
    """Return the frame in which the inertia is diagonal.

    Where moments are alike, as a ball's or a cylinder's, any axes of their plane are principal:
    those nearest to the mesh's own are taken, not what rounding makes of them.
    """
    moments, axes = np.linalg.eigh(body.inertia)
    alike = np.diff(moments) <= _ALIKE * moments[2]
    if alike.all():
        axes = np.eye(3)
    elif alike.any():
        single = axes[:, 2 if alike[0] else 0]
        own = int(np.argmax(np.abs(single)))
        others = [axis for axis in range(3) if axis != own]
        plane = np.eye(3) - np.outer(single, single)
        left, _, right = np.linalg.svd(plane[:, others], full_matrices=False)
        axes = np.empty((3, 3))
        axes[:, own], axes[:, others] = single, left @ right
    axes = _nearest(axes)
    return Frame(body.centre, axes, np.diag(axes.T @ body.inertia @ axes).copy())


def _nearest(axes: np.ndarray) -> np.ndarray:
    """Return the axes in the order and with the signs nearest to identity, right-handed."""
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    order = max(orders, key=lambda o: np.abs(np.diag(axes[:, list(o)])).sum())
    axes = axes[:, list(order)]
    axes = axes * np.where(np.diag(axes) < 0.0, -1.0, 1.0)
    if np.linalg.det(axes) < 0.0:
        axes[:, int(np.argmin(np.diag(axes)))] *= -1.0
    return axes
