"""The shapes of a model, as triangles by body and colour, for viewers that draw elsewhere."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import mujoco
import numpy as np

_GROUPS = 3
"""Geoms of groups below are drawn, as MuJoCo's own viewer does."""
INFINITE = 5.0
"""Half size at which a plane without one is drawn, m."""


class Shape(NamedTuple):
    """Triangles that move with one body."""

    body: int
    color: tuple[int, int, int]
    opacity: float
    vertices: np.ndarray
    """(nvert, 3) in the body's frame, m."""
    faces: np.ndarray
    """(nface, 3) into the vertices."""
    is_floor: bool
    """Whether it is level and without end: the same for worlds that stand side by side."""


def shapes(model: mujoco.MjModel) -> list[Shape]:
    """Return what of a model is seen; the geoms of a body and of one colour are joined.

    Drawn are planes, spheres, capsules, ellipsoids, cylinders, boxes and meshes; height fields are
    not. What a randomisation changes of the shapes of single environments is not seen either.
    """
    parts: dict[tuple[int, tuple[int, ...], bool], list[tuple[np.ndarray, np.ndarray]]] = {}
    for geom in range(model.ngeom):
        rgba = np.clip(np.round(255 * _color(model, geom)), 0, 255).astype(int)
        made = _triangles(model, geom) if model.geom_group[geom] < _GROUPS and rgba[3] else None
        if made is None:
            continue
        turn = np.empty(9)
        mujoco.mju_quat2Mat(turn, model.geom_quat[geom])
        vertices = made[0] @ turn.reshape(3, 3).T + model.geom_pos[geom]
        body = int(model.geom_bodyid[geom])
        is_floor = body == 0 and _is_endless(model, geom) and abs(turn[8]) > 1.0 - 1e-6
        key = body, tuple(rgba.tolist()), is_floor
        parts.setdefault(key, []).append((vertices, made[1]))
    return [_joined(*key, members) for key, members in parts.items()]


def _is_endless(model: mujoco.MjModel, geom: int) -> bool:
    is_plane = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE
    return bool(is_plane and (model.geom_size[geom, :2] <= 0).all())


def _joined(
    body: int,
    rgba: tuple[int, ...],
    is_floor: bool,
    members: list[tuple[np.ndarray, np.ndarray]],
) -> Shape:
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in members)])
    faces = [faces + start for (_, faces), start in zip(members, starts, strict=False)]
    vertices = np.concatenate([vertices for vertices, _ in members]).astype(np.float32)
    red, green, blue, alpha = rgba
    joined = np.concatenate(faces).astype(np.uint32)
    return Shape(body, (red, green, blue), alpha / 255, vertices, joined, is_floor)


def _color(model: mujoco.MjModel, geom: int) -> np.ndarray:
    material = model.geom_matid[geom]
    return model.mat_rgba[material] if material >= 0 else model.geom_rgba[geom]


def _triangles(model: mujoco.MjModel, geom: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a geom's (vertices, faces) in its own frame, None for a kind that is not drawn."""
    kind, size = mujoco.mjtGeom(int(model.geom_type[geom])), model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        face, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        return model.mesh_vert[first : first + count], model.mesh_face[face : face + faces]
    if kind == mujoco.mjtGeom.mjGEOM_PLANE:
        half = np.where(size[:2] > 0, size[:2], INFINITE)
        corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [*half, 1]
        return corners, np.array([[0, 1, 2], [0, 2, 3]])
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return _box(size)
    profile = dict(_profiles(size)).get(kind)
    return None if profile is None else _turned(*profile)


def _box(half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            u, v = np.roll(np.eye(3), -axis, axis=0)[1:]
            normal = sign * np.eye(3)[axis]
            u, v = (u, v) if np.dot(np.cross(u, v), normal) > 0 else (v, u)
            start = len(vertices)
            vertices += [normal - u - v, normal + u - v, normal + u + v, normal - u + v]
            faces += [[start, start + 1, start + 2], [start, start + 2, start + 3]]
    return np.array(vertices) * half, np.array(faces)


def _profiles(size: np.ndarray) -> Iterator[tuple[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Yield the kinds that are turned about z: kind -> (radii, heights, scale of x, y, z)."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 13)
    ball = np.cos(angles), np.sin(angles)
    one = np.ones(3)
    yield mujoco.mjtGeom.mjGEOM_SPHERE, (*ball, size[0] * one)
    yield mujoco.mjtGeom.mjGEOM_ELLIPSOID, (*ball, size)
    radius, half = size[0], size[1]
    middle = len(angles) // 2
    radii = radius * np.insert(ball[0], middle, 1.0)
    heights = radius * np.insert(ball[1], middle, 0.0)
    heights += np.where(np.arange(len(radii)) > middle, half, -half)
    yield mujoco.mjtGeom.mjGEOM_CAPSULE, (radii, heights, one)
    # each edge twice, so that a smooth shading keeps it sharp
    rim = np.array([0.0, radius, radius, radius, radius, 0.0])
    yield mujoco.mjtGeom.mjGEOM_CYLINDER, (rim, half * np.array([-1, -1, -1, 1, 1, 1.0]), one)


def _turned(
    radii: np.ndarray, heights: np.ndarray, scale: np.ndarray, sides: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Return the surface that a profile sweeps about the z axis."""
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    circle = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    rings = [np.column_stack((r * circle, np.full(sides, z))) for r, z in zip(radii, heights)]  # noqa: B905
    faces = []
    for ring in range(len(rings) - 1):
        for i in range(sides):
            a, b = ring * sides + i, ring * sides + (i + 1) % sides
            faces += [[a, b, b + sides], [a, b + sides, a + sides]]
    return np.concatenate(rings) * scale, np.array(faces)
