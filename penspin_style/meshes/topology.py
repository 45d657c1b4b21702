"""What a list of triangles says about its surface: edges, parts, holes, which side is outside.

The surface bounds a solid, whose volume and inertia are defined, when each edge is passed as often
in one direction as in the other. All is vectorised over edges: a scan has half a million.
"""

from dataclasses import dataclass

import numpy as np

from penspin_style.meshes.libraries import need
from penspin_style.meshes.mesh import Mesh

_PAIRS = 20_000  # points times faces at a time: what stays in the cache
_NOTHING = 1e-9
"""Volume over area^1.5 of what has no sense of outside, as a folded sheet."""


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges without direction, and the faces at them."""

    ends: np.ndarray
    """(nedge, 2), the smaller vertex first"""
    of_face: np.ndarray
    """(nface, 3), rows of `ends`"""
    forward: np.ndarray
    """(nface, 3) bool: the face passes the edge from its first end to its second"""
    count: np.ndarray
    """(nedge,) faces at the edge"""
    balance: np.ndarray
    """(nedge,) how much more often it is passed forward than backward; 0 all over if closed"""

    @property
    def open(self) -> np.ndarray:
        """Return which edges (nedge,) have one face: they border a hole."""
        return self.count == 1

    @property
    def inconsistent(self) -> np.ndarray:
        """Return which edges (nedge,) have two faces that pass them in the same direction."""
        return (self.count == 2) & (self.balance != 0)

    @property
    def is_closed(self) -> bool:
        """Tell whether the surface bounds a solid."""
        return len(self.count) > 0 and not self.balance.any()


def edges(mesh: Mesh) -> Edges:
    """Return the edges of a mesh whose faces have three different vertices."""
    starts, ends = mesh.faces, np.roll(mesh.faces, -1, axis=1)
    forward = starts < ends
    key = np.minimum(starts, ends) * len(mesh.vertices) + np.maximum(starts, ends)
    unique, index, count = np.unique(key, return_inverse=True, return_counts=True)
    index = index.reshape(key.shape)
    sign = np.where(forward, 1, -1)
    balance = np.bincount(index.ravel(), weights=sign.ravel(), minlength=len(unique))
    pairs = np.stack(np.divmod(unique, max(len(mesh.vertices), 1)), axis=1)
    return Edges(pairs, index, forward, count, balance.astype(np.int64))


def parts(mesh: Mesh, at: Edges, *, across: np.ndarray | None = None) -> np.ndarray:
    """Return the number (nface,) of the connected part that each face belongs to.

    across: (nedge,) edges that connect; default all.
    """
    count = len(mesh.faces)
    face = np.repeat(np.arange(count), 3)
    edge = at.of_face.ravel()
    if across is not None:
        face, edge = face[across[edge]], edge[across[edge]]
    return connected(face, edge + count, count + len(at.count))[:count]


def connected(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Return the number (count,) of the connected part of each node, from 0 on."""
    sparse, graph = need("scipy.sparse"), need("scipy.sparse.csgraph")
    links = sparse.coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    return graph.connected_components(links, directed=False)[1]


def face_pairs(at: Edges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the faces (k,), (k,) at each edge of exactly two, and whether they agree (k,)."""
    two = at.count == 2
    face = np.repeat(np.arange(len(at.of_face)), 3)
    edge = at.of_face.ravel()
    order = np.argsort(edge, kind="stable")
    order = order[two[edge[order]]]
    return face[order[::2]], face[order[1::2]], at.balance[edge[order[::2]]] == 0


@dataclass(frozen=True, eq=False)
class Orientation:
    """Which faces to turn so that all look outwards."""

    turned: np.ndarray
    """(nface,) bool"""
    one_sided: bool
    """A part has no sides, as a Möbius band."""


def orientation(mesh: Mesh) -> Orientation:
    """Return what makes neighbours agree and parts look outwards, at the fewest turns.

    Each face is two nodes, as it is and turned; neighbours link the nodes that agree. A part with
    two sides falls into two halves, mirror images, of which the one with fewer turned faces is
    taken; a part that lies within another keeps its sense relative to that, so cavities stay.
    """
    at = edges(mesh)
    count = len(mesh.faces)
    first, second, agree = face_pairs(at)
    a = np.concatenate([first, first + count])
    b = np.concatenate([second + count * ~agree, second + count * agree])
    half = connected(a, b, 2 * count)
    turns = np.bincount(half[count:], minlength=half.max() + 1)
    one_sided = bool((half[:count] == half[count:]).any())
    as_is, mirrored = turns[half[:count]], turns[half[count:]]
    turned = (as_is > mirrored) | ((as_is == mirrored) & (half[:count] > half[count:]))
    fixed = Mesh(mesh.vertices, _turned(mesh.faces, turned))
    part = parts(fixed, at)
    inwards = _looks_inwards(fixed, part)
    return Orientation(turned ^ inwards[part], one_sided)


def _turned(faces: np.ndarray, which: np.ndarray) -> np.ndarray:
    return np.where(which[:, None], faces[:, ::-1], faces)


def turned(mesh: Mesh, which: np.ndarray) -> Mesh:
    """Return the mesh with the faces `which` (nface,) turned over."""
    return Mesh(mesh.vertices, _turned(mesh.faces, which))


def _looks_inwards(mesh: Mesh, part: np.ndarray) -> np.ndarray:
    """Return which parts (npart,) to turn: outer ones that look inwards, with all within them."""
    volumes = part_volumes(mesh, part)
    volumes[np.abs(volumes) < _NOTHING * part_areas(mesh, part) ** 1.5] = 0.0
    within = enclosing(mesh, part)
    inwards = np.zeros(len(volumes), dtype=bool)
    for number in range(len(volumes)):
        outer = number
        while within[outer] >= 0:
            outer = within[outer]
        inwards[number] = volumes[outer] < 0.0
    return inwards


def part_volumes(mesh: Mesh, part: np.ndarray) -> np.ndarray:
    """Return the signed volume (npart,) of each part, an open one's about its own middle."""
    corners = mesh.triangles
    number = np.bincount(part)
    middle = np.stack(
        [np.bincount(part, weights=corners[:, :, k].mean(axis=1)) / number for k in range(3)],
        axis=1,
    )
    corners = corners - middle[part][:, None]
    volumes = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6.0
    return np.bincount(part, weights=volumes)


def part_areas(mesh: Mesh, part: np.ndarray) -> np.ndarray:
    """Return the area (npart,) of each part."""
    return np.bincount(part, weights=areas(mesh))


def areas(mesh: Mesh) -> np.ndarray:
    """Return the area (nface,) of each face."""
    a, b, c = mesh.triangles.transpose(1, 0, 2)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2.0


def enclosing(mesh: Mesh, part: np.ndarray) -> np.ndarray:
    """Return for each part (npart,) the smallest other that has its first vertex inside, or -1."""
    count = int(part.max()) + 1
    within = np.full(count, -1)
    if count == 1 or count > 64:
        return within
    sizes = np.abs(part_volumes(mesh, part))
    first = np.array([mesh.faces[part == number][0, 0] for number in range(count)])
    for outer in np.argsort(-sizes):
        shell = Mesh(mesh.vertices, mesh.faces[part == outer])
        inside = np.abs(winding(shell, mesh.vertices[first])) > 0.5
        inside[outer] = False
        within[inside & (sizes < sizes[outer])] = outer
    return within


def winding(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Return how often (n,) the surface goes around points (n, 3): 1 within, 0 outside.

    Source: A. Van Oosterom and J. Strackee, The solid angle of a plane triangle, 1983.
    """
    corners = np.ascontiguousarray(mesh.triangles.transpose(1, 2, 0))
    found = np.empty(len(points))
    rows = max(1, _PAIRS // max(len(mesh.faces), 1))
    for start in range(0, len(points), rows):
        here = points[start : start + rows].T[:, :, None]
        a, b, c = (corner[:, None] - here for corner in corners)
        la, lb, lc = (np.sqrt(_dot(x, x)) for x in (a, b, c))
        above = a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2])
        above += a[2] * (b[0] * c[1] - b[1] * c[0])
        below = la * lb * lc + _dot(a, b) * lc + _dot(b, c) * la + _dot(c, a) * lb
        found[start : start + rows] = np.arctan2(above, below).sum(axis=1) / (2.0 * np.pi)
    return found


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def holes(mesh: Mesh, at: Edges) -> list[np.ndarray]:
    """Return the holes of a mesh whose faces agree, each as its vertices in a loop.

    A face that fills a hole passes an open edge against the face that is there.
    """
    rows, corner = np.nonzero(at.open[at.of_face])
    start = mesh.faces[rows, corner]
    end = mesh.faces[rows, (corner + 1) % 3]
    follow: dict[int, list[int]] = {}
    for a, b in zip(end.tolist(), start.tolist(), strict=True):
        follow.setdefault(a, []).append(b)
    loops = []
    for first in follow:
        while follow[first]:
            loop, here = [first], follow[first].pop()
            while here != first and follow.get(here):
                loop.append(here)
                here = follow[here].pop()
            loops.append(np.array(loop))
    return loops
