"""Files as scanners, exporters and bad disks leave them: each a function that returns its bytes."""

import io
import struct
import zipfile

import numpy as np

from penspin_style.meshes.mesh import Mesh
from penspin_style.meshes.wavefront import format_obj
from tests.support.shapes import box, lathe, merged, sphere, torus

BOX = box(cuts=4)
"""40 x 30 x 50 mm: 60 cm3, in 192 faces of equal area on each side."""
CORNERS = BOX.triangles


def stl(triangles, *, count=None, header=b""):
    """Binary STL of (n, 3, 3); count: what the header says, if that is another number."""
    rows = np.zeros(len(triangles), [("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")])
    rows["v"] = triangles
    said = len(triangles) if count is None else count
    return header.ljust(80, b"\0") + struct.pack("<I", said) + rows.tobytes()


def ascii_stl(triangles):
    lines = ["solid scan"]
    for triangle in np.asarray(triangles).tolist():
        lines += ["facet normal 0 0 0", " outer loop"]
        lines += [f"  vertex {x!r} {y!r} {z!r}" for x, y, z in triangle]
        lines += [" endloop", "endfacet"]
    return ("\n".join([*lines, "endsolid scan"]) + "\n").encode()


def ply(mesh, *, order="<", faces=True, vertices=None, normals=None):
    """Binary PLY; vertices: how many the header says, if that is another number."""
    kind = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    said = len(mesh.vertices) if vertices is None else vertices
    lines = ["ply", f"format {kind} 1.0", "comment a scan", f"element vertex {said}"]
    lines += [f"property float {name}" for name in "xyz"]
    rows = mesh.vertices
    if normals is not None:
        lines += [f"property float n{name}" for name in "xyz"]
        rows = np.concatenate([rows, normals], axis=1)
    body = rows.astype(order + "f4").tobytes()
    if faces:
        lines += [f"element face {len(mesh.faces)}", "property list uchar int vertex_indices"]
        table = np.zeros(len(mesh.faces), [("n", "u1"), ("v", order + "i4", 3)])
        table["n"], table["v"] = 3, mesh.faces
        body += table.tobytes()
    return ("\n".join([*lines, "end_header"]) + "\n").encode() + body


def ascii_ply(mesh):
    lines = ["ply", "format ascii 1.0", f"element vertex {len(mesh.vertices)}"]
    lines += ["property double x", "property double y", "property double z"]
    lines += [f"element face {len(mesh.faces)}", "property list uchar int vertex_index"]
    lines += ["end_header"]
    lines += [f"{x!r} {y!r} {z!r}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"3 {a} {b} {c}" for a, b, c in mesh.faces.tolist()]
    return "\n".join(lines).encode()


def changed(index, value):
    """The box's triangles with one corner elsewhere."""
    triangles = CORNERS.copy()
    triangles[index] = value
    return triangles


def flipped(share):
    triangles = CORNERS.copy()
    which = np.random.default_rng(0).random(len(triangles)) < share
    triangles[which] = triangles[which][:, ::-1]
    return triangles


def ball(radius=0.01, at=(0.0, 0.0, 0.0), *, rings=12):
    return sphere(radius, rings=rings, around=2 * rings).triangles + np.array(at)


def blobs(count):
    """Balls of 2 mm all over."""
    places = np.random.default_rng(0).normal(0.0, 0.02, (count, 3))
    return both(*(ball(0.002, place, rings=5) for place in places))


def both(*triangles):
    return np.concatenate(triangles)


def without_side():
    """The box without the squares of its top."""
    return CORNERS[~(CORNERS[:, :, 2] > 0.0249).all(axis=1)]


def moebius():
    """A band with one side, 20 mm wide."""
    a = np.linspace(0.0, 2 * np.pi, 81)[:-1]
    edges = []
    for side in (-0.01, 0.01):
        radius = 0.04 + side * np.cos(a / 2)
        edges.append(np.stack([radius * np.cos(a), radius * np.sin(a), side * np.sin(a / 2)], 1))
    low, high = edges
    ends = np.concatenate([low[1:], high[:1]]), np.concatenate([high[1:], low[:1]])
    return both(np.stack([low, ends[0], ends[1]], 1), np.stack([low, ends[1], high], 1))


def crossing():
    """A closed tube along a figure of eight: it runs through itself once."""
    across = np.linspace(0.0, 2 * np.pi, 16, endpoint=False)
    t = np.linspace(0.0, 2 * np.pi, 96, endpoint=False)
    path = np.stack([0.06 * np.sin(t), 0.03 * np.sin(2 * t), np.zeros_like(t)], 1)
    along = np.stack([0.06 * np.cos(t), 0.06 * np.cos(2 * t), np.zeros_like(t)], 1)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.cross(along, [0.0, 0.0, 1.0])
    rings = path[:, None] + 0.012 * (
        np.cos(across)[None, :, None] * side[:, None]
        + np.sin(across)[None, :, None] * np.array([0.0, 0.0, 1.0])
    )
    model = torus(around=96, across=16)
    return Mesh(rings.reshape(-1, 3), model.faces)


def links():
    """Two rings of a chain: apart, but their boxes overlap."""
    ring = torus(0.02, 0.004).triangles
    return both(ring, ring[:, ::-1][:, :, [0, 2, 1]] + np.array([0.02, 0.0, 0.0]))


def stacked():
    """A box on a box: they touch, and share no vertex."""
    return both(CORNERS, box().triangles * 0.999 + np.array([0.0, 0.0, 0.04998]))


def handle():
    """A ring of 2.66 cm3, half of it within the side of the box."""
    return torus(0.015, 0.003).triangles[:, ::-1][:, :, [0, 2, 1]] + np.array([0.02, 0.0, 0.0])


def thin_cup():
    """A cup with a wall of 0.5 mm, of 40,000 faces."""
    outer = [(0.03, z) for z in np.linspace(0.0, 0.09, 100)]
    inner = [(0.0295, z) for z in np.linspace(0.09, 0.0005, 100)]
    return lathe(outer + inner, around=100).triangles


def fin():
    """A face that hangs at an edge of the box and ends in the air."""
    a, b, _ = CORNERS[0]
    return both(CORNERS, np.array([[a, b, a - np.array([0.02, 0.0, 0.02])]]))


def cracked():
    """Each side of the box 0.2 micrometres off the next: too little to see."""
    return CORNERS + np.repeat(np.arange(6), 32)[:, None, None] * 2e-8


def polygons():
    """The box of quads and one hexagon, numbered from the end, with normals and materials."""
    corners = box().vertices
    lines = ["mtllib missing.mtl", "o scan"]
    lines += [f"v {x} {y} {z} 0.5 0.5 0.5" for x, y, z in corners.tolist()]
    lines += ["vt 0 0", "vn 0 0 1", "usemtl red", "s off"]
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    lines += ["f " + " ".join(f"{i - 8}/1/1" for i in side) for side in sides]
    return "\n".join(lines).encode()


def sampled(mesh, count, *, seed=0, noise=0.0):
    """Points of a surface, evenly by area."""
    rng = np.random.default_rng(seed)
    a, b, c = mesh.triangles.transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    row = rng.choice(len(area), count, p=area / area.sum())
    u = rng.random((count, 2))
    u = np.where(u.sum(axis=1, keepdims=True) > 1.0, 1.0 - u, u)
    points = a[row] + u[:, :1] * (b - a)[row] + u[:, 1:] * (c - a)[row]
    return points + rng.normal(0.0, noise, points.shape)


def xyz(points):
    return "\n".join(" ".join(f"{x:.9g}" for x in row) for row in points.tolist()).encode()


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def zip_bomb():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", bytes(2**28))
    return content.getvalue()


def cloud(points, *, order="<"):
    return ply(Mesh(points, np.zeros((0, 3), int)), order=order, faces=False)


def halved(points):
    return points[points[:, 2] > 0.0]


def unmerged():
    """An OBJ file in which each triangle has vertices of its own."""
    return format_obj(Mesh(CORNERS.reshape(-1, 3), np.arange(3 * len(CORNERS)).reshape(-1, 3)))


def touching():
    """Two boxes that share an edge."""
    whole = both(box().triangles, box().triangles + np.array([0.04, 0.03, 0.0]))
    return merged(whole.reshape(-1, 3), np.arange(72).reshape(-1, 3))


def internal_wall():
    """A box with a wall across it: an edge of three faces all around."""
    half = box((0.04, 0.03, 0.025)).triangles
    up = np.array([0.0, 0.0, 0.0125])
    low, high = half - up, half + up
    return both(low, high[~(np.abs(high[:, :, 2]) < 1e-9).all(axis=1)])
