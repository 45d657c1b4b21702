"""Reconstruct the closed surface that points lie on.

Normals come from each point's neighbours and get a common side along the shortest tree between
them (H. Hoppe and others, Surface reconstruction from unorganized points, 1992). They are the
gradient of what is 1 inside and 0 outside, which a Poisson equation finds on a grid by Fourier
transforms (M. Kazhdan, Reconstruction of solid models from oriented point sets, 2005); marching
cubes cut it where the points are. A gap of the cloud, as the side that it stood on, is closed with
what is smoothest, and said.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style.meshes import edit, topology
from penspin_style.meshes.files import Cloud
from penspin_style.meshes.finding import MAX_HOLE, UNITS, Finding, unit_finding
from penspin_style.meshes.libraries import need
from penspin_style.meshes.mesh import Mesh, solid

_FEWEST = 100  # points
_MOST = 20_000  # points that are used
_NEIGHBOURS = 12
_FINEST = 96  # cells along the longest side
_MARGIN = 0.3  # share of the longest side around the points
_ISOLATED = 6.0
"""Distance to its neighbours over the median's of a point that is no part of the surface."""
_FLAT = 1e-3
"""Thickness over length of points in a plane."""
_AWAY = 1.5
"""Distance from the surface, in cells, that nineteen of twenty points must keep."""
_GAP = 4.0
"""Distance to the nearest point, in spacings, beyond which the surface is a guess."""
_SEEN = 0.005  # share of the surface beyond which a guess is said
_REACH = 1.5  # cells beyond what counts as taken, to where a point's side is looked up
_CLEAR = 0.5
"""Share of points whose side must be clear for the air to decide."""
_RIM = 6.0  # cells
_ROUNDS = 10
_ADVICE = "scan all sides of it, or give a mesh"


@dataclass
class Reconstructed:
    """A closed surface through points, or why there is none."""

    mesh: Mesh | None
    """In the cloud's own unit."""
    findings: list[Finding]
    steps: list[str]


def reconstruct(
    cloud: Cloud, *, unit: str | None = None, max_gap: float = MAX_HOLE
) -> Reconstructed:
    """Return the closed surface that the points lie on, and what is odd about them.

    unit: key of `UNITS`; None takes the file's numbers for metres; max_gap: share of the surface
    that may have no points near.
    """
    found = Reconstructed(None, [], [])
    points, normals = _cleaned(cloud, found)
    if len(points) < _FEWEST:
        what = f"{len(points)} points, at least {_FEWEST}"
        return _refused(found, "too few points", what, "scan it more finely")
    size = float(np.ptp(points, axis=0).max())
    if (odd := unit_finding(size * UNITS[unit or "m"], unit)) is not None:
        found.findings.append(odd)
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if spread[2] < _FLAT * spread[0]:
        what = f"all points lie within {spread[2] / spread[0]:.1g} of their extent of a plane"
        return _refused(found, "flat", what, _ADVICE)
    tree = need("scipy.spatial").cKDTree(points)
    distances, near = tree.query(points, k=_NEIGHBOURS)
    spacing = float(np.median(distances[:, 1:5]))
    if normals is None:
        normals = _outwards(points, _normals(points[near]), near, spacing)
    cell = max(0.7 * spacing, size / _FINEST)
    area = np.pi * distances[:, -1] ** 2 / _NEIGHBOURS
    mesh = _surface(points, normals * area[:, None], cell)
    if mesh is None:
        return _refused(found, "open surface", "the points bound no volume", _ADVICE)
    found.steps.append(
        f"reconstructed {len(mesh.faces)} faces from {len(points)} points, to about "
        f"{cell * UNITS[unit or 'm'] * 1000:.2g} mm"
    )
    _check_fit(found, mesh, points, cell=cell, spacing=spacing, max_gap=max_gap)
    found.mesh = mesh
    return found


def _refused(found: Reconstructed, kind: str, what: str, remedy: str) -> Reconstructed:
    found.findings.append(Finding("fault", kind, what, "takes no clouds of points", remedy))
    return found


def _cleaned(cloud: Cloud, found: Reconstructed) -> tuple[np.ndarray, np.ndarray | None]:
    """Return points and normals without what is not finite, repeats, or is far from all others."""
    good = np.all(np.abs(cloud.points) <= edit.FARTHEST, axis=1)
    if cloud.normals is not None:
        good &= np.linalg.norm(cloud.normals, axis=1) > 0.5
    if not good.all():
        what = f"{int((~good).sum())} points are NaN, infinite or beyond {edit.FARTHEST:g}"
        _left_out(found, "not finite", what)
    index = np.flatnonzero(good)
    if len(index) > _NEIGHBOURS:
        index = index[_kept(cloud.points[index], found)]
    normals = None
    if cloud.normals is not None:
        normals = cloud.normals[index]
        normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return cloud.points[index], normals


def _left_out(found: Reconstructed, kind: str, what: str) -> None:
    remedy = "they are left out of the surface"
    found.findings.append(Finding("note", kind, what, "takes no clouds of points", remedy))
    found.steps.append(f"left out {what}")


def _kept(points: np.ndarray, found: Reconstructed) -> np.ndarray:
    """Return the rows of points that are used."""
    _, first = np.unique(points, axis=0, return_index=True)
    rows = np.sort(first)
    tree = need("scipy.spatial").cKDTree(points[rows])
    near = tree.query(points[rows], k=min(6, len(rows)))[0][:, 1:].mean(axis=1)
    alone = near > _ISOLATED * np.median(near)
    if alone.any():
        what = f"{int(alone.sum())} points are far from all others"
        _left_out(found, "outliers", what)
        rows = rows[~alone]
    if len(rows) <= _MOST:
        return rows
    size = float(np.ptp(points[rows], axis=0).max())
    cells = np.sqrt(_MOST / 6.0)
    while True:  # one point a cell, so that density is even
        key = np.floor((points[rows] - points[rows].min(axis=0)) * (cells / size))
        _, first = np.unique(key, axis=0, return_index=True)
        if len(first) <= _MOST:
            return rows[np.sort(first)]
        cells *= 0.9


def _normals(neighbours: np.ndarray) -> np.ndarray:
    """Return the direction (n, 3) in which neighbours (n, k, 3) spread least, of either sense."""
    spread = neighbours - neighbours.mean(axis=1, keepdims=True)
    return np.linalg.eigh(np.einsum("nki,nkj->nij", spread, spread))[1][:, :, 0]


def _outwards(
    points: np.ndarray, normals: np.ndarray, near: np.ndarray, spacing: float
) -> np.ndarray:
    """Return the normals, turned outwards.

    Where the air is says it, as far as that is clear. Where a gap lets the air in, neighbours
    share a sense along the shortest tree between them, from the point farthest from the middle.
    """
    sparse, graph = need("scipy.sparse"), need("scipy.sparse.csgraph")
    count, k = near.shape
    a, b = np.repeat(np.arange(count), k - 1), near[:, 1:].ravel()
    alike = np.einsum("ij,ij->i", normals[a], normals[b])
    # zero would be no link
    links = sparse.coo_matrix((1.001 - np.abs(alike), (a, b)), shape=(count, count)).tocsr()
    tree = graph.minimum_spanning_tree(links.maximum(links.T))
    normals = normals * _sense(points, normals, tree)[:, None]
    votes = _air(points, normals, spacing)
    if np.abs(votes).mean() < _CLEAR:  # the air comes in through a gap
        return normals
    alike = np.einsum("ni,nki->nk", normals, normals[near])
    side = votes
    for _ in range(_ROUNDS):  # neighbours settle what is unclear, or wrong
        side = np.sign((alike * side[near]).sum(axis=1))
    return normals * np.where(side < 0.0, -1.0, 1.0)[:, None]


def _sense(points: np.ndarray, normals: np.ndarray, tree: Any) -> np.ndarray:
    """Return 1 or -1 (n,) along a tree, outwards at the point farthest from the middle."""
    graph = need("scipy.sparse.csgraph")
    _, label = graph.connected_components(tree, directed=False)
    sense = np.ones(len(points))
    away = points - points.mean(axis=0)
    distance = np.linalg.norm(away, axis=1)
    for number in range(label.max() + 1):
        rows = np.flatnonzero(label == number)
        start = rows[np.argmax(distance[rows])]
        order, before = graph.breadth_first_order(tree, start, directed=False)
        sense[start] = 1.0 if normals[start] @ away[start] >= 0.0 else -1.0
        dots = np.einsum("ij,ij->i", normals[order[1:]], normals[before[order[1:]]])
        for point, parent, dot in zip(order[1:], before[order[1:]], dots, strict=True):
            sense[point] = sense[parent] if dot >= 0.0 else -sense[parent]
    return sense


def _air(points: np.ndarray, normals: np.ndarray, spacing: float) -> np.ndarray:
    """Return 1 (n,) where a normal points into the air, -1 where its back does, else 0.

    The air is what cells that are far from all points connect with the rim of a grid.
    """
    image = need("scipy.ndimage")
    cell = max(spacing, float(np.ptp(points, axis=0).max()) / _FINEST)
    low = points.min(axis=0) - _RIM * cell
    shape = np.ceil((points.max(axis=0) + _RIM * cell - low) / cell).astype(np.int64) + 1
    taken = np.zeros(shape, dtype=bool)
    taken[tuple(np.rint((points - low) / cell).astype(np.int64).T)] = True
    votes = np.zeros(len(points))
    for cells in (1, 2, 3):  # more closes wider gaps, but thin walls as well
        taken = image.binary_dilation(taken, image.generate_binary_structure(3, 2))
        label, _ = image.label(~taken)
        air = label == label[0, 0, 0]
        reach = (cells + _REACH) * cell * normals
        ahead, behind = (
            air[tuple(np.rint((points + side * reach - low) / cell).astype(np.int64).T)]
            for side in (1.0, -1.0)
        )
        found = ahead.astype(np.float64) - behind
        if np.abs(found).mean() > np.abs(votes).mean():
            votes = found
    return votes


def _surface(points: np.ndarray, flux: np.ndarray, cell: float) -> Mesh | None:
    """Return the surface through points whose normals times areas are `flux` (n, 3)."""
    fft, image = need("scipy.fft"), need("scipy.ndimage")
    low = points.min(axis=0)
    size = np.ptp(points, axis=0)
    margin = _MARGIN * float(size.max())
    shape = tuple(fft.next_fast_len(int(n)) for n in np.ceil((size + 2 * margin) / cell))
    origin = low + size / 2.0 - (np.array(shape) - 1) * cell / 2.0
    at = (points - origin) / cell
    field = _splat(at, flux / cell**3, shape)
    # the gradient of what is 1 inside points inwards
    waves = np.meshgrid(
        *(2 * np.pi * np.fft.fftfreq(n) / cell for n in shape[:2]),
        2 * np.pi * np.fft.rfftfreq(shape[2]) / cell,
        indexing="ij",
        sparse=True,
    )
    square = waves[0] ** 2 + waves[1] ** 2 + waves[2] ** 2
    square[0, 0, 0] = 1.0
    total = sum(1j * wave * fft.rfftn(part) for wave, part in zip(waves, field, strict=True))
    total *= np.exp(-0.5 * square * (0.7 * cell) ** 2) / square
    total[0, 0, 0] = 0.0
    inside = fft.irfftn(total, shape)
    level = float(np.mean(image.map_coordinates(inside, at.T, order=1)))
    rim = max(float(face.max()) for face in (inside[0], inside[:, 0], inside[:, :, 0]))
    if not level > rim:
        return None
    vertices, faces, _, _ = need("skimage.measure").marching_cubes(inside, level)
    mesh = Mesh(vertices.astype(np.float64) * cell + origin, faces.astype(np.int64))
    return _largest(mesh)


def _splat(at: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a grid (3, *shape) to which values (n, 3) at cells (n, 3) are given linearly."""
    corner = np.floor(at).astype(np.int64)
    part = at - corner
    grid = np.zeros((3, int(np.prod(shape))))
    for offset in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(offset, part, 1.0 - part), axis=1)
        row = np.ravel_multi_index((corner + offset).T, shape)
        for axis in range(3):
            grid[axis] += np.bincount(
                row, weights=weight * values[:, axis], minlength=grid.shape[1]
            )
    return grid.reshape(3, *shape)


def _largest(mesh: Mesh) -> Mesh | None:
    """Return the part of most volume, outwards."""
    mesh = edit.used(Mesh(mesh.vertices, mesh.faces[~edit.degenerate(mesh)]))
    if not len(mesh.faces):
        return None
    part = topology.parts(mesh, topology.edges(mesh))
    volumes = np.abs(topology.part_volumes(mesh, part))
    mesh = edit.used(Mesh(mesh.vertices, mesh.faces[part == int(volumes.argmax())]))
    return mesh if solid(mesh).volume > 0.0 else Mesh(mesh.vertices, mesh.faces[:, ::-1])


def _check_fit(
    found: Reconstructed,
    mesh: Mesh,
    points: np.ndarray,
    *,
    cell: float,
    spacing: float,
    max_gap: float,
) -> None:
    """Say where surface and points part: points apart from it, surface apart from points."""
    trees = need("scipy.spatial").cKDTree
    middles = mesh.triangles.mean(axis=1)
    away = np.quantile(trees(middles).query(points)[0], 0.95)
    if away > _AWAY * cell:
        what = f"one of twenty points is {away / cell:.2g} cells and more from the surface"
        _refused(found, "no surface", what, _ADVICE)
    guessed = trees(points).query(middles)[0] > _GAP * max(spacing, cell)
    share = float(topology.areas(mesh)[guessed].sum() / topology.areas(mesh).sum())
    what = f"{share:.1%} of the surface has no points near: a smooth guess closes it"
    if share > max_gap:
        _refused(found, "gap", what, f"{_ADVICE}; --max-hole allows it")
    elif share > _SEEN:
        remedy = "scan that side, too, if its shape matters"
        found.findings.append(Finding("note", "gap", what, "", remedy))
