"""Closed triangle meshes whose volume and inertia are known by formula, without a library."""

import numpy as np

from penspin_style.meshes.mesh import Mesh


def box(size=(0.04, 0.03, 0.05), *, cuts=1):
    """A box about the origin; each side is a grid of cuts x cuts squares."""
    steps = np.linspace(-0.5, 0.5, cuts + 1)
    u, v = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    vertices, faces = [], []
    for axis in range(3):
        for side in (-1, 1):
            corners = np.empty((u.size, 3))
            corners[:, axis] = 0.5 * side
            corners[:, (axis + 1) % 3], corners[:, (axis + 2) % 3] = u, v
            start = sum(map(len, vertices))
            vertices.append(corners)
            faces += [face[::side] for face in _grid(cuts + 1, cuts + 1, start)]
    return merged(np.concatenate(vertices) * size, np.array(faces))


def torus(radius=0.03, tube=0.01, *, around=64, across=32):
    """A torus about the z axis."""
    a = np.linspace(0.0, 2 * np.pi, around, endpoint=False)[:, None]
    b = np.linspace(0.0, 2 * np.pi, across, endpoint=False)[None]
    ring = radius + tube * np.cos(b)
    points = [
        ring * np.cos(a),
        ring * np.sin(a),
        np.broadcast_to(tube * np.sin(b), (around, across)),
    ]
    i, j = (x.ravel() for x in np.meshgrid(range(around), range(across), indexing="ij"))
    i1, j1 = (i + 1) % around, (j + 1) % across
    quads = np.stack([i * across + j, i1 * across + j, i1 * across + j1, i * across + j1], axis=1)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return Mesh(np.stack(points, axis=-1).reshape(-1, 3), faces)


def lathe(profile, *, around=64):
    """A closed solid of revolution about the z axis; profile: (r, z) from below to above, r > 0."""
    profile = np.asarray(profile, float)
    a = np.linspace(0.0, 2 * np.pi, around, endpoint=False)
    rings = [
        np.stack([r * np.cos(a), r * np.sin(a), np.full(around, z)], axis=1) for r, z in profile
    ]
    low, high = len(profile) * around, len(profile) * around + 1
    vertices = np.concatenate([*rings, [[0, 0, profile[0, 1]], [0, 0, profile[-1, 1]]]])
    i, faces = np.arange(around), []
    j = (i + 1) % around
    for k in range(len(profile) - 1):
        a0, a1, b0, b1 = k * around + i, k * around + j, (k + 1) * around + i, (k + 1) * around + j
        faces += [np.stack([a0, a1, b1], axis=1), np.stack([a0, b1, b0], axis=1)]
    top = (len(profile) - 1) * around
    faces.append(np.stack([np.full(around, low), j, i], axis=1))
    faces.append(np.stack([np.full(around, high), top + i, top + j], axis=1))
    return Mesh(vertices, np.concatenate(faces))


def cylinder(radius=0.02, height=0.08, *, around=128):
    """A cylinder about the z axis."""
    return lathe([(radius, -height / 2), (radius, height / 2)], around=around)


def sphere(radius=0.03, *, rings=48, around=96):
    """A ball about the origin."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)[1:-1]
    profile = [(radius * np.cos(a), radius * np.sin(a)) for a in angle]
    mesh = lathe(profile, around=around)
    mesh.vertices[-2:, 2] = (-radius, radius)
    return mesh


def merged(vertices, faces):
    """The mesh with vertices at one place made one."""
    places, index = np.unique(np.round(vertices, 12), axis=0, return_inverse=True)
    return Mesh(places, index.reshape(-1)[faces])


def _grid(rows, columns, start):
    for i in range(rows - 1):
        for j in range(columns - 1):
            a = start + i * columns + j
            yield [a, a + columns, a + columns + 1]
            yield [a, a + columns + 1, a + 1]
