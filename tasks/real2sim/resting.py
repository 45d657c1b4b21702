"""How an object lies on a table, and where a parallel gripper takes it from above.

Both are found once for each object, from the vertices of its convex parts: no simulation, no draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from penspin_style.meshes.mesh import Mesh

FINGER = 0.0085  # m, half the width of a finger's pad, and half its height
PAD_BELOW = 0.004  # m, of the pads' middle below the tool centre point
LOWEST = 0.014  # m, of the tool centre point above the table
PALM = 0.024  # m, that the tool centre point may be below the object's top; the palm is at 0.03
_OFFSETS = (-0.01, -0.005, 0.0, 0.005, 0.01)  # m along the fingers' width
_ANGLES = np.deg2rad(np.arange(-90, 90, 5))
_SLIP = 6e-3  # m, by which the hand may miss along the fingers' width
_NEAR = 1e-3  # m, from where a pad touches
_SAME = 2e-4  # m, from where it touches first
_EDGE = 5e-3  # m, of a pad's lower edge, which squeezes what widens below it downwards
_MISS = 3e-3  # m, by which the hand may miss in height
_SLOPE = 0.05  # sine of an angle, that is as good as upright
_GRID = 6  # points along an edge
_LIKELY = 0.2  # of the largest share with which a side comes to lie below


@dataclass(frozen=True)
class Rest:
    """An object at rest, turned about the vertical so that the gripper closes along y."""

    quat: tuple[float, float, float, float]
    """w, x, y, z of its body."""
    height: float
    """m, of its origin above the table."""
    top: float
    """m, of its highest point above the table."""
    grasp: tuple[float, float, float]
    """m, from its origin to the middle between the pads, in the world's axes."""
    width: float
    """m, between the pads."""


class _Grasp(NamedTuple):
    """A way to close on an object at rest."""

    angle: float
    """rad about z by which the object is to be turned back, so that y is narrow."""
    point: tuple[float, float, float]
    """m, from its origin."""
    width: float
    """m."""
    slope: float
    """Of what a pad's lower edge touches, the sine of how much it looks up: it slips out below."""


def rest(hulls: Sequence[Mesh], scale: float = 1.0) -> Rest:
    """Return how the union of convex parts rests when its origin is its centre of mass.

    Of the sides on which it is about as likely to come to lie, it lies on the lowest in its own
    frame: a mug stands with its opening up.

    Raises:
        ValueError: it can rest on no side, or there is nothing to close on.
    """
    vertices = scale * np.concatenate([hull.vertices for hull in hulls])
    down, height = _side(vertices)
    turn = _to_down(down)
    spots, normals = (np.concatenate(parts) for parts in zip(*map(_spots, hulls), strict=True))
    top = float((vertices @ turn.T)[:, 2].max()) + height
    spots, normals = scale * spots @ turn.T, normals @ turn.T
    lowest = max(LOWEST, height, top - PALM)
    tools = np.arange(lowest - _MISS, max(top, lowest) + 2 * _MISS, _MISS / 2) - height
    grasp = _surest([_grasp(spots, normals, tool) for tool in tools.tolist()])
    matrix = _about_z(-grasp.angle) @ turn
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, matrix.ravel())
    w, x, y, z = quat.tolist()
    return Rest((w, x, y, z), height, top, grasp.point, grasp.width)


def _side(vertices: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the unit vector to the side on which the vertices rest, and how far that is, m."""
    faces = _hull_faces(vertices)
    normals = np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0])
    area = np.linalg.norm(normals, axis=1)
    faces, normals = faces[area > 1e-12], normals[area > 1e-12] / area[area > 1e-12, None]
    far = (normals * faces[:, 0]).sum(axis=1)
    share, holds = _solid_angles(faces), _holds(faces, normals)
    sides: list[tuple[float, np.ndarray, float]] = []  # share, normal, distance
    left = np.ones(len(faces), dtype=bool)
    while left.any():
        first = int(np.argmax(left))
        same = left & (normals @ normals[first] > 1.0 - 1e-5)
        left &= ~same
        if holds[same].any():
            sides.append((float(share[same].sum()), normals[first], float(far[first])))
    if not sides:
        raise ValueError("its centre of mass is above none of its sides; is the origin in it?")
    most = max(share for share, _, _ in sides)
    likely = [(normal, far) for share, normal, far in sides if share > _LIKELY * most]
    return min(likely, key=lambda side: float(side[0][2]))


def _hull_faces(vertices: np.ndarray) -> np.ndarray:
    """Return the triangles of the convex hull, (n, 3, 3), counter-clockwise from outside."""
    spec = mujoco.MjSpec()
    spec.add_mesh(name="hull").uservert = vertices.ravel().tolist()
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="hull")
    model = spec.compile()
    # numvert, numface, an edge list of each vertex, the vertices' numbers, edges, faces
    graph = model.mesh_graph[int(model.mesh_graphadr[0]) :]
    count, faces = int(graph[0]), int(graph[1])
    start = 2 + 2 * count + count + 3 * faces
    ids = graph[start : start + 3 * faces].reshape(faces, 3)
    # where they were before MuJoCo turned them into the mesh's own frame
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, model.mesh_quat[0])
    return (model.mesh_vert @ matrix.reshape(3, 3).T + model.mesh_pos[0])[ids]


def _solid_angles(faces: np.ndarray) -> np.ndarray:
    """Return how large triangles (n, 3, 3) look from the origin (van Oosterom, Strackee 1983)."""
    a, b, c = faces.transpose(1, 0, 2)
    x, y, z = (np.linalg.norm(v, axis=1) for v in (a, b, c))
    over = np.abs((a * np.cross(b, c)).sum(axis=1))
    under = x * y * z + (a * b).sum(axis=1) * z + (b * c).sum(axis=1) * x + (c * a).sum(axis=1) * y
    return 2.0 * np.arctan2(over, under)


def _holds(faces: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return which triangles the origin is above, (n,) bool: a body lying on one stays there."""
    foot = normals * (normals * faces[:, 0]).sum(axis=1)[:, None]
    following = np.roll(faces, -1, axis=1)
    turns = np.cross(following - faces, foot[:, None] - faces)
    return ((turns * normals[:, None]).sum(axis=2) >= -1e-9).all(axis=1)


def _to_down(side: np.ndarray) -> np.ndarray:
    """Return the shortest rotation (3, 3) of a unit vector to straight down."""
    down = np.array([0.0, 0.0, -1.0])
    axis, cosine = np.cross(side, down), float(side @ down)
    if cosine < -1.0 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    return np.eye(3) + cross + cross @ cross / (1.0 + cosine)


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _spots(hull: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Return points on the surface of a mesh, a grid on each triangle, and its normals there."""
    i, j = np.meshgrid(np.arange(_GRID + 1), np.arange(_GRID + 1))
    inside = i + j <= _GRID
    u, v = i[inside] / _GRID, j[inside] / _GRID
    weights = np.stack((1.0 - u - v, u, v), axis=1)
    triangles = hull.vertices[hull.faces]
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(min=1e-15)
    spots = np.einsum("ki,nij->nkj", weights, triangles).reshape(-1, 3)
    return spots, normals.repeat(len(weights), axis=0)


def _surest(grasps: Sequence[_Grasp | None]) -> _Grasp:
    """Return the lowest grasp that nothing slips out of, even where the hand misses in height.

    grasps: at heights `_MISS` / 2 apart; the first two and the last two are neighbours alone.

    Raises:
        ValueError: there is nothing to close on.
    """
    slopes = [1.0 if found is None else found.slope for found in grasps]
    kept = [
        (max(_SLOPE, *slopes[i : i + 5]), i, found)
        for i, found in enumerate(grasps[2:-2])
        if found is not None
    ]
    if not kept:
        raise ValueError("there is nothing between the pads where the gripper would close")
    return min(kept)[2]


def _grasp(spots: np.ndarray, normals: np.ndarray, tool: float) -> _Grasp | None:
    """Return how to close on an object where it is narrow; None where there is nothing.

    spots, normals: (n, 3), m and 1, of the object at rest, from its origin; tool: m, height of the
    tool there.
    """
    above = spots[:, 2] - tool + PAD_BELOW
    level = np.abs(above) < FINGER
    at_edge = above[level] < _EDGE - FINGER
    best: tuple[float, _Grasp] | None = None
    for angle in _ANGLES.tolist():
        turn = _about_z(-angle).T
        turned, normal = spots[level] @ turn, normals[level] @ turn
        for x in _OFFSETS:
            between = np.flatnonzero(np.abs(turned[:, 0] - x) < FINGER + _SLIP)
            if not len(between):
                continue
            y, flat = turned[between, 1], np.abs(normal[between, 1])
            low, high = float(y.min()), float(y.max())
            oblique = sum(1.0 - flat[np.abs(y - end) < _NEAR].max() for end in (low, high))
            # narrow, between flat sides, near the centre of mass, as the object's own axes lie
            cost = high - low + 0.05 * oblique + 0.5 * abs(x) + 1e-3 * abs(angle)
            if best is None or cost < best[0] - 1e-9:
                ends = [between[np.abs(y - end) < _SAME] for end in (low, high)]
                slope = max(normal[end, 2].min() * at_edge[end].all() for end in ends)
                middle = (x, 0.5 * (low + high), tool)
                best = cost, _Grasp(angle, middle, high - low, float(slope))
    return best and best[1]
