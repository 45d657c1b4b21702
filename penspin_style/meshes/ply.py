"""PLY files, ASCII and binary of both byte orders: vertices, normals and polygons."""

import re
from dataclasses import dataclass, field

import numpy as np

from penspin_style.meshes.mesh import MeshFileError, numbers
from penspin_style.system.terminal import one_line

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_CORNERS = ("vertex_indices", "vertex_index")
_MAX_HEADER = 2**16  # bytes
_FARTHEST_ROW = 2**53


@dataclass
class _Element:
    name: str
    count: int
    scalars: list[tuple[str, str]] = field(default_factory=list)
    """Names and types of its numbers."""
    lists: list[tuple[str, str, str]] = field(default_factory=list)
    """Names of its lists, types of their lengths and of what they hold."""


def parse_ply(content: bytes) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return vertices (n, 3), triangles (m, 3) or None, normals of vertices (n, 3) or None.

    Polygons are cut into fans. None of triangles means that the header counts no faces.

    Raises:
        MeshFileError: not PLY, or not as many elements as the header says.
    """
    order, elements, start = _header(content)
    body = _Ascii(content[start:]) if not order else _Binary(content, start, order)
    columns: dict[str, np.ndarray] = {}
    faces: np.ndarray | None = None
    for element in elements:
        if element.name == "face" and element.count:
            faces = body.faces(element)
        elif element.lists and element.count:
            raise MeshFileError(f"the element {element.name!r} has lists; only faces may")
        else:
            rows = body.rows(element)
            if element.name == "vertex":
                columns = rows
    body.check_end()
    if not all(name in columns for name in "xyz"):
        raise MeshFileError("its vertices have no x, y and z")
    vertices = np.stack([columns[name] for name in "xyz"], axis=1).astype(np.float64)
    normals = None
    if all(name in columns for name in ("nx", "ny", "nz")):
        normals = np.stack([columns[name] for name in ("nx", "ny", "nz")], axis=1)
    if faces is not None and len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
        worst = faces.max() if faces.max() >= len(vertices) else faces.min()
        raise MeshFileError(f"a face names vertex {worst}, but the file has {len(vertices)}")
    return vertices, faces, normals


def _header(content: bytes) -> tuple[str, list[_Element], int]:
    """Return the byte order (empty for ASCII), the elements, and where their values begin."""
    end = re.search(rb"\bend_header[ \t]*\r?\n", content[:_MAX_HEADER])
    if not content.startswith(b"ply") or end is None:
        raise MeshFileError("it has no PLY header")
    order, elements = None, []
    for line in content[: end.start()].decode("latin-1").splitlines()[1:]:
        words = line.split()
        try:
            if words[:1] == ["format"]:
                order = _ORDERS[words[1]]
            elif words[:1] == ["element"]:
                elements.append(_Element(words[1], int(words[2])))
                if elements[-1].count < 0:
                    raise ValueError("a negative number of elements")
            elif words[:2] == ["property", "list"]:
                elements[-1].lists.append((words[4], _TYPES[words[2]], _TYPES[words[3]]))
            elif words[:1] == ["property"]:
                elements[-1].scalars.append((words[2], _TYPES[words[1]]))
        except (LookupError, ValueError) as error:
            raise MeshFileError(f"its header has the line {one_line(line)!r}") from error
    for element in elements:
        names = [name for name, _ in element.scalars] + [name for name, _, _ in element.lists]
        if len(set(names)) < len(names):
            raise MeshFileError(f"its element {element.name!r} has a property twice: {names}")
    if order is None:
        raise MeshFileError("its header names no format")
    names = [element.name for element in elements]
    if names.count("vertex") != 1 or names.count("face") > 1:
        raise MeshFileError(f"its header has the elements {names}, not one of vertices")
    return order, elements, end.end()


def _fans(polygons: list[np.ndarray]) -> np.ndarray:
    fans = [
        np.stack([np.full(len(p) - 2, p[0]), p[1:-1], p[2:]], axis=1)
        for p in polygons
        if len(p) > 2
    ]
    return np.concatenate(fans) if fans else np.zeros((0, 3), dtype=np.int64)


def _corners_of(element: _Element) -> int:
    """Return which of a face's lists holds its corners."""
    for i, (name, _, _) in enumerate(element.lists):
        if name in _CORNERS:
            return i
    raise MeshFileError(f"its faces have no list called {' or '.join(_CORNERS)}")


def _whole(words: list[bytes]) -> np.ndarray:
    values = numbers(words)
    odd = ~(np.abs(values) < _FARTHEST_ROW) | (values != np.rint(values))
    if odd.any():
        raise MeshFileError(f"a face has {values[odd][0]:g} for a whole number")
    return values.astype(np.int64)


class _Ascii:
    def __init__(self, text: bytes) -> None:
        self._words = text.split()
        self._at = 0

    def rows(self, element: _Element) -> dict[str, np.ndarray]:
        width = len(element.scalars)
        words = self._take(element, element.count * width)
        values = numbers(words).reshape(-1, width) if width else np.zeros((0, 0))
        return {name: values[:, i] for i, (name, _) in enumerate(element.scalars)}

    def faces(self, element: _Element) -> np.ndarray:
        if element.scalars or len(element.lists) != 1:
            raise MeshFileError("faces of ASCII files may have their corners alone")
        _corners_of(element)
        left = self._words[self._at :]
        if len(left) == 4 * element.count and set(left[::4]) == {b"3"}:
            self._at = len(self._words)
            return _whole(left).reshape(-1, 4)[:, 1:]
        polygons = []
        for _ in range(element.count):
            count = int(_whole(self._take(element, 1))[0])
            polygons.append(_whole(self._take(element, max(count, 0))))
        return _fans(polygons)

    def check_end(self) -> None:
        if self._at < len(self._words):
            left = len(self._words) - self._at
            raise MeshFileError(f"{left} values are beyond what its header counts")

    def _take(self, element: _Element, count: int) -> list[bytes]:
        words = self._words[self._at : self._at + count]
        if len(words) < count:
            raise MeshFileError(
                f"its header says {element.count} of {element.name!r}, but it ends before"
            )
        self._at += count
        return words


class _Binary:
    def __init__(self, content: bytes, start: int, order: str) -> None:
        self._content, self._at, self._order = content, start, order

    def rows(self, element: _Element) -> dict[str, np.ndarray]:
        kind = np.dtype([(name, self._order + code) for name, code in element.scalars])
        rows = self._take(element, kind, element.count)
        return {name: rows[name].astype(np.float64) for name, _ in element.scalars}

    def faces(self, element: _Element) -> np.ndarray:
        which = _corners_of(element)
        if not element.scalars and len(element.lists) == 1:
            _, length, code = element.lists[0]
            kind = np.dtype([("n", self._order + length), ("rows", self._order + code, 3)])
            if len(self._content) - self._at == kind.itemsize * element.count:
                rows = np.frombuffer(self._content, kind, element.count, self._at)
                if (rows["n"] == 3).all():
                    self._at = len(self._content)
                    return rows["rows"].astype(np.int64)
        if element.scalars:
            raise MeshFileError("faces of binary files may have lists alone")
        polygons = []
        for _ in range(element.count):
            for i, (_, length, code) in enumerate(element.lists):
                count = int(self._take(element, np.dtype(self._order + length), 1)[0])
                rows = self._take(element, np.dtype(self._order + code), max(count, 0))
                if i == which:
                    polygons.append(rows.astype(np.int64))
        return _fans(polygons)

    def check_end(self) -> None:
        if self._at < len(self._content):
            left = len(self._content) - self._at
            raise MeshFileError(f"{left} bytes are beyond what its header counts")

    def _take(self, element: _Element, kind: np.dtype, count: int) -> np.ndarray:
        size = kind.itemsize * count
        if len(self._content) - self._at < size:
            raise MeshFileError(
                f"its header says {element.count} of {element.name!r}, but it ends before"
            )
        rows = np.frombuffer(self._content, kind, count, self._at)
        self._at += size
        return rows
