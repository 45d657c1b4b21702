"""OBJ files: vertices and polygons; texture, normals, materials and groups are left out."""

from collections.abc import Iterator

import numpy as np

from penspin_style.meshes.mesh import Mesh, MeshFileError, numbers
from penspin_style.system.terminal import one_line


def parse_obj(content: bytes) -> Mesh:
    """Return a file's mesh, polygons cut into fans of triangles.

    Raises:
        MeshFileError: names the line that is no vertex or no face, or whose index is out of range.
    """
    words_of_vertices: list[bytes] = []
    count = 0
    faces: list[tuple[int, int, int]] = []
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if words[0] == b"v":
            if len(words) < 4:
                raise MeshFileError(f"line {number} is a vertex of {len(words) - 1} numbers, not 3")
            words_of_vertices += words[1:4]
            count += 1
        elif words[0] == b"f":
            faces += _fan(words[1:], count, number)
    array = numbers(words_of_vertices).reshape(-1, 3)
    mesh = Mesh(array, np.array(faces, dtype=np.int64).reshape(-1, 3))
    if mesh.faces.size and (mesh.faces.min() < 0 or mesh.faces.max() >= len(array)):
        row = mesh.faces[((mesh.faces < 0) | (mesh.faces >= len(array))).any(axis=1)][0]
        raise MeshFileError(
            f"a face names vertex {int(row.max()) + 1}, but the file has {len(array)}"
        )
    return mesh


def _fan(corners: list[bytes], before: int, number: int) -> Iterator[tuple[int, int, int]]:
    """Yield a polygon's triangles as rows; before: vertices above it, which negative ones count."""
    if len(corners) < 3:
        raise MeshFileError(f"line {number} is a face of {len(corners)} corners")
    rows = []
    for corner in corners:
        try:
            index = int(corner.split(b"/", 1)[0])
        except ValueError:
            raise MeshFileError(f"line {number}: {one_line(corner)} is no vertex") from None
        if index == 0 or before + index < 0 > index:
            raise MeshFileError(f"line {number} names vertex {index}; the first one is 1")
        rows.append(index - 1 if index > 0 else before + index)
    for i in range(1, len(rows) - 1):
        yield rows[0], rows[i], rows[i + 1]


def format_obj(mesh: Mesh) -> bytes:
    """Return a mesh as the text of a file, to 9 digits."""
    lines = [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (mesh.faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()
