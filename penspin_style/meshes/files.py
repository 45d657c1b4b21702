"""What a scanner or a modelling program wrote: meshes of STL, OBJ and PLY, clouds of points.

Counts of a header are checked against the bytes that are there before anything is read, nothing is
executed, and nothing is mended: a vertex that is NaN arrives as NaN.
"""

import io
import pathlib
import re
import zipfile
from dataclasses import dataclass

import numpy as np

from penspin_style import storage
from penspin_style.meshes.mesh import Mesh, MeshFileError, numbers, shared
from penspin_style.meshes.ply import parse_ply
from penspin_style.meshes.wavefront import parse_obj
from penspin_style.system.terminal import one_line

SUFFIXES = (".stl", ".obj", ".ply", ".npz", ".xyz")
MAX_FILE = 2**25
"""Bytes of a file."""
MAX_ROWS = 500_000
"""Faces, or points: more than MuJoCo takes, and what is repaired within ten seconds."""
_FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEADER = 84  # bytes: a text of 80, and the number of faces
_OTHERS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"glTF": "a glTF file",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"ply": "a PLY file",
}
_LESS = "decimate it in the program that wrote it"
_POINTS = ("points", "xyz", "vertices")


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of a surface."""

    points: np.ndarray
    """(n, 3) float64"""
    normals: np.ndarray | None = None
    """(n, 3), outwards, or None if the file has none"""


def read_scan(path: pathlib.Path) -> Mesh | Cloud:
    """Return a file's mesh, or its cloud: a PLY file without faces, .npz, .xyz.

    Vertices of an STL file that are at one place exactly are made one: the format knows no other
    way to say that triangles touch.

    Raises:
        MeshFileError: names the file, what is wrong in it and where.
        OSError: it is missing, unreadable, or larger than `MAX_FILE`.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise MeshFileError(f"{path}: {suffix or 'no suffix'} is none of {' '.join(SUFFIXES)}")
    if path.is_file() and path.stat().st_size > MAX_FILE:
        raise MeshFileError(f"{path} has {path.stat().st_size} bytes, at most {MAX_FILE}; {_LESS}")
    content = storage.read_file(path, MAX_FILE)
    parse = {
        ".stl": parse_stl,
        ".obj": parse_obj,
        ".ply": _ply,
        ".npz": _npz,
        ".xyz": _xyz,
    }[suffix]
    try:
        if not content:
            raise MeshFileError("it is empty")
        start = content.lstrip()[:16]
        for magic, kind in _OTHERS.items():
            expected = suffix == {b"ply": ".ply", b"PK\x03\x04": ".npz"}.get(magic)
            if start.startswith(magic) and not expected:
                raise MeshFileError(f"it is {kind} called {suffix}")
        # a NaN that signals, a number that overflows: the check says it
        with np.errstate(invalid="ignore", over="ignore"):
            scan = parse(content)
        if isinstance(scan, Mesh) and not len(scan.faces):
            raise MeshFileError(f"it holds no faces; {len(scan.vertices)} vertices")
        if isinstance(scan, Cloud) and not len(scan.points):
            raise MeshFileError("it holds no points")
        rows = len(scan.faces if isinstance(scan, Mesh) else scan.points)
        if rows > MAX_ROWS:
            what = "faces" if isinstance(scan, Mesh) else "points"
            raise MeshFileError(f"it has {rows} {what}, at most {MAX_ROWS}; {_LESS}")
    except MeshFileError as error:
        raise MeshFileError(f"{path}: {error}") from error
    return scan


def parse_stl(content: bytes) -> Mesh:
    """Return the mesh of a binary or an ASCII file, vertices at one place made one.

    A file is binary if its size says so: headers of binary files may begin with `solid`, too.

    Raises:
        MeshFileError: cut short, of another size than its header says, no STL.
    """
    count = int.from_bytes(content[_HEADER - 4 : _HEADER], "little")
    size = _HEADER + count * _FACE.itemsize
    if len(content) >= _HEADER and len(content) == size:
        corners = np.frombuffer(content, _FACE, count, _HEADER)["corners"].astype(np.float64)
    elif content.lstrip()[:5].lower() == b"solid" and b"vertex" in content:
        corners = _ascii_corners(content)
    elif len(content) < _HEADER:
        raise MeshFileError(f"{len(content)} bytes are no STL file, which has at least {_HEADER}")
    else:
        raise MeshFileError(
            f"its header says {count} faces, which are {size} bytes, but it has {len(content)}: "
            "cut short, damaged, or no STL file"
        )
    return shared(corners)


def _ascii_corners(content: bytes) -> np.ndarray:
    text = content.lower()
    rows = re.findall(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", text)
    facets = len(re.findall(rb"\bfacet\s+normal\b", text))
    if len(rows) != 3 * facets or text.count(b"endfacet") != facets:
        raise MeshFileError(f"{facets} facets with {len(rows)} vertices: cut short or damaged")
    if not text.rstrip().rsplit(b"\n", 1)[-1].strip().startswith(b"endsolid"):
        raise MeshFileError(f"no endsolid after {facets} facets: cut short")
    return numbers([word for row in rows for word in row]).reshape(-1, 3, 3)


def _ply(content: bytes) -> Mesh | Cloud:
    vertices, faces, normals = parse_ply(content)
    return Cloud(vertices, normals) if faces is None else Mesh(vertices, faces)


def _npz(content: bytes) -> Cloud:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > MAX_FILE:
            raise MeshFileError(f"it unpacks to {size} bytes; at most {MAX_FILE}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            name = next((name for name in _POINTS if name in arrays), None)
            if name is None:
                raise MeshFileError(f"it holds {list(arrays)}, none of {list(_POINTS)}")
            points = np.asarray(arrays[name])
            normals = np.asarray(arrays["normals"]) if "normals" in arrays else None
    except MeshFileError:
        raise
    except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise MeshFileError(f"it is no readable .npz file ({one_line(error)})") from error
    return _cloud(points, normals)


def _xyz(content: bytes) -> Cloud:
    rows = [line.split(b"#", 1)[0].replace(b",", b" ").split() for line in content.splitlines()]
    rows = [(number, row) for number, row in enumerate(rows, start=1) if row]
    columns = len(rows[0][1]) if rows else 3
    if columns not in (3, 6):
        raise MeshFileError(f"line {rows[0][0]} has {columns} columns, not x y z or with a normal")
    odd = next((number for number, row in rows if len(row) != columns), None)
    if odd is not None:
        raise MeshFileError(f"line {odd} has another number of columns than the first, {columns}")
    values = numbers([word for _, row in rows for word in row]).reshape(-1, columns)
    return _cloud(values[:, :3], values[:, 3:] if columns == 6 else None)


def _cloud(points: np.ndarray, normals: np.ndarray | None) -> Cloud:
    for what, rows in (("points", points), ("normals", normals)):
        if rows is None:
            continue
        if rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "fiu":
            raise MeshFileError(f"{what} are {rows.dtype} {rows.shape}, not numbers (n, 3)")
        if len(rows) != len(points):
            raise MeshFileError(f"{len(rows)} {what} for {len(points)} points")
    if normals is not None:
        lengths = np.linalg.norm(normals.astype(np.float64), axis=1)
        if len(lengths) and abs(np.median(lengths) - 1.0) > 0.1:
            raise MeshFileError(
                f"normals have the length {np.median(lengths):.3g}, not 1: are they colours?"
            )
    return Cloud(points.astype(np.float64), normals)
