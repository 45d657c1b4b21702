"""Changes of a mesh, each for itself, and what asks for them."""

from typing import Any

import numpy as np

from penspin_style.meshes import topology
from penspin_style.meshes.libraries import need
from penspin_style.meshes.mesh import Mesh, shared, solid

FARTHEST = 1e6
"""A coordinate beyond it is no place, and its square spoils every sum."""
_OUTLIER_GAP = 1.5
"""Without its outliers a mesh is this many times smaller."""
_MAX_OUTLIERS = 100
_SAMPLES = 3000
_SAMPLED_FACES = (3000, 20_000)
_TOUCHING = 1e-3
"""Gap over length between parts that are one body."""
_FLAT = 1e-5
"""Thickness over length of what has none."""


def bad_vertices(mesh: Mesh) -> np.ndarray:
    """Return which vertices (nvert,) are NaN, infinite or beyond `FARTHEST`."""
    return np.any(~(np.abs(mesh.vertices) <= FARTHEST), axis=1)


def used(mesh: Mesh) -> Mesh:
    """Return the mesh without vertices that no face uses."""
    rows, faces = np.unique(mesh.faces, return_inverse=True)
    return Mesh(mesh.vertices[rows], faces.reshape(-1, 3))


def degenerate(mesh: Mesh) -> np.ndarray:
    """Return which faces (nface,) name a vertex twice."""
    a, b, c = mesh.faces.T
    return (a == b) | (b == c) | (c == a)


def duplicates(mesh: Mesh) -> np.ndarray:
    """Return which faces (nface,) have the three vertices of an earlier one."""
    rows = np.sort(mesh.faces, axis=1)
    _, first = np.unique(rows, axis=0, return_index=True)
    again = np.ones(len(rows), dtype=bool)
    again[first] = False
    return again


def welded(mesh: Mesh, distance: float = 0.0) -> Mesh:
    """Return the mesh with vertices within `distance` of each other made one, the first."""
    if distance <= 0.0:
        return shared(mesh.triangles)
    tree = need("scipy.spatial").cKDTree(mesh.vertices)
    pairs = tree.query_pairs(distance, output_type="ndarray")
    number = topology.connected(pairs[:, 0], pairs[:, 1], len(mesh.vertices))
    _, first = np.unique(number, return_index=True)
    return Mesh(mesh.vertices[first], number[mesh.faces])


def outliers(mesh: Mesh) -> np.ndarray:
    """Return vertices (k,) far from all others and of few faces, as a glitch of a scan is."""
    count = min(max(3, len(mesh.vertices) // 1000), len(mesh.vertices) // 20, _MAX_OUTLIERS)
    far = np.linalg.norm(mesh.vertices - np.median(mesh.vertices, axis=0), axis=1)
    order = np.argsort(-far)
    uses = np.bincount(mesh.faces.ravel(), minlength=len(mesh.vertices))[order[:count]].cumsum()
    near = mesh.vertices[order[count:]]
    # extents of what is left without the first 0, 1, ... count
    inwards = mesh.vertices[order[:count]][::-1]
    low = np.minimum.accumulate(np.concatenate([near.min(axis=0)[None], inwards]))[::-1]
    high = np.maximum.accumulate(np.concatenate([near.max(axis=0)[None], inwards]))[::-1]
    size = (high - low).max(axis=1)
    number = np.arange(1, count + 1)
    found = np.flatnonzero((size[0] > _OUTLIER_GAP * size[1:]) & (uses <= 8 * number))
    return order[: found[0] + 1] if len(found) else order[:0]


def convex_hull(points: np.ndarray) -> Any:
    """Return SciPy's hull of points (n, 3): `volume`, `simplices`, `equations`.

    Raises:
        ValueError: they lie in a plane.
    """
    spatial = need("scipy.spatial")
    try:
        return spatial.ConvexHull(points)
    except spatial.QhullError as error:
        raise ValueError(f"{len(points)} points have no hull: they lie in a plane") from error


def decimated(mesh: Mesh, faces: int) -> Mesh:
    """Return the mesh with about that many faces, by quadric edge collapse."""
    if len(mesh.faces) <= faces:
        return mesh
    simplify = need("fast_simplification").simplify
    vertices, rows = simplify(
        mesh.vertices, mesh.faces.astype(np.int32), target_count=faces, agg=5.0
    )
    fewer = Mesh(np.asarray(vertices, np.float64), np.asarray(rows, np.int64))
    return used(Mesh(fewer.vertices, fewer.faces[~degenerate(fewer)]))


def patch_area(mesh: Mesh, loops: list[np.ndarray]) -> float:
    """Return the area of fans from the middle of each loop."""
    total = 0.0
    for loop in loops:
        ring = mesh.vertices[loop]
        spokes = ring - ring.mean(axis=0)
        total += float(np.linalg.norm(np.cross(spokes, np.roll(spokes, -1, axis=0)), axis=1).sum())
    return total / 2.0


def counted_twice(mesh: Mesh) -> float:
    """Return the share of the volume around which the surface goes other than once, by samples."""
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    points = np.random.default_rng(0).uniform(low, high, size=(_SAMPLES, 3))
    share = 0.0
    # few faces may make thin walls cross: what they say is asked of more
    for faces in _SAMPLED_FACES:
        times = np.rint(topology.winding(decimated(mesh, faces), points))
        inside = times != 0
        share = float((times[inside] != 1).mean()) if inside.any() else 0.0
        if share == 0.0 or len(mesh.faces) <= faces:
            break
    return share


def is_flat(mesh: Mesh) -> bool:
    """Tell whether all vertices lie in a plane."""
    vertices = mesh.vertices - mesh.vertices.mean(axis=0)
    spread = np.linalg.svd(vertices, compute_uv=False)
    return len(spread) < 3 or spread[2] < _FLAT * spread[0]


def part_solid(mesh: Mesh, faces: np.ndarray) -> Any:
    """Return a part, of the faces (nface,), as Manifold's solid, outwards; None if it is none."""
    library = need("manifold3d")
    part = used(Mesh(mesh.vertices, mesh.faces[faces]))
    rows = part.faces if solid(part).volume > 0.0 else part.faces[:, ::-1]
    made = library.Manifold(
        library.Mesh64(
            np.ascontiguousarray(part.vertices), np.ascontiguousarray(rows.astype(np.uint64))
        )
    )
    return made if made.status() == library.Error.NoError else None


def bodies(mesh: Mesh, part: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return for each part of `numbers` which body (k,) it belongs to: those that touch are one.

    part: (nface,) the part of each face. Where a part is not closed its box speaks for it.
    """
    corners = [mesh.triangles[part == number].reshape(-1, 3) for number in numbers]
    low, high = (np.array([end(c, axis=0) for c in corners]) for end in (np.min, np.max))
    near = _TOUCHING * float(mesh.size.max())
    below = np.all(low[:, None] <= high[None] + near, axis=2)
    touch = np.asarray(below & below.T)
    solids = [part_solid(mesh, part == number) for number in numbers]
    for i, j in np.argwhere(np.triu(touch, 1)):
        if solids[i] is not None and solids[j] is not None:
            touch[i, j] = solids[i].min_gap(solids[j], 2.0 * near) <= near
    rows, columns = np.nonzero(np.triu(touch))
    return topology.connected(rows, columns, len(numbers))
