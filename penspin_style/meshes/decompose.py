"""Split a closed mesh into few convex parts, which are what MuJoCo touches.

CoACD (X. Wei and others, Approximate convex decomposition for 3D meshes with collision-aware
concavity, 2022) runs in a process of its own with bounds on time and memory: a mesh that keeps it
busy for good, or that it cannot bear, costs one object and not the caller. The parts are cached
under what they are made of: the mesh, the settings, the version.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import resource
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from penspin_style import storage
from penspin_style.meshes import edit
from penspin_style.meshes.libraries import need
from penspin_style.meshes.mesh import Mesh, solid
from penspin_style.system.terminal import one_line

# -P: no module of the current folder, which may hold files of others
_CHILD = (sys.executable, "-P", "-m", "penspin_style.meshes.decompose")
_ROOT = str(pathlib.Path(__file__).parents[2])
_PATIENCE = 300.0  # s
_MEMORY = 8 * 2**30  # bytes of address space
_CONVEX = 1.01
"""Hull over mesh volume below which the hull is the one part."""
_FACES = 10_000
"""To which a mesh is decimated before it is split: time grows with them, parts do not."""
_MAX_CACHED = 2**24  # bytes


class DecompositionError(ValueError):
    """A mesh could not be split."""


@dataclass(frozen=True)
class HullOptions:
    """How finely to split."""

    hulls: int = 8
    """At most; beyond 8 physics slows down: to half with 32."""
    vertices: int = 64
    """Of a part, at most; of a single one three times as many."""
    threshold: float = 0.05
    """Concavity that a part may have, as share of the mesh's size; smaller is finer."""
    seed: int = 0


def decompose(
    mesh: Mesh, options: HullOptions, cache: pathlib.Path | None = None
) -> tuple[list[Mesh], bool]:
    """Return convex parts of a closed mesh, and whether they come from the cache.

    cache: folder; None computes them anew.

    Raises:
        DecompositionError: it took too long, too much memory, or failed.
    """
    if convex_hull_volume(mesh) <= _CONVEX * solid(mesh).volume:
        return [convex(mesh.vertices, 3 * options.vertices)], False
    file = None if cache is None else cache / f"{_key(mesh, options)}.npz"
    if file is not None and (points := _cached(file)) is not None:
        return _convex(points, options), True
    points = _split(edit.decimated(mesh, _FACES), options)
    if file is not None:
        storage.make_folder(file.parent)
        storage.write_file(file, _packed(points))
    return _convex(points, options), False


def _convex(points: list[np.ndarray], options: HullOptions) -> list[Mesh]:
    try:
        return [convex(part, options.vertices) for part in points]
    except ValueError as error:
        raise DecompositionError(f"a part is flat: {error}") from error


def cache_folder() -> pathlib.Path:
    """Return where parts are cached unless said otherwise."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "penspin_style" / "hulls"


def convex_hull_volume(mesh: Mesh) -> float:
    """Return the volume of a mesh's convex hull; of a fine mesh, of one with fewer faces."""
    points = edit.decimated(mesh, 2 * _FACES).vertices
    return float(edit.convex_hull(points).volume)


def convex(points: np.ndarray, vertices: int) -> Mesh:
    """Return the hull of points (n, 3), of at most so many vertices, at least 6.

    Fewer lie within the hull: the point farthest outside is added until they are so many.
    """
    hull = _hull(points)
    if len(hull.vertices) <= vertices:
        return hull
    points = hull.vertices
    ends = np.concatenate([points.argmin(axis=0), points.argmax(axis=0)])
    chosen = list(dict.fromkeys(ends.tolist()))
    if len(chosen) < 4 or edit.is_flat(Mesh(points[chosen], hull.faces)):
        chosen = list(range(0, len(points), max(1, len(points) // 16)))
    while len(chosen) < vertices:
        planes = edit.convex_hull(points[chosen]).equations
        outside = (points @ planes[:, :3].T + planes[:, 3]).max(axis=1)
        chosen.append(int(outside.argmax()))
    return _hull(points[chosen])


def _hull(points: np.ndarray) -> Mesh:
    found = edit.convex_hull(points)
    faces = found.simplices.astype(np.int64)
    a, b, c = points[faces].transpose(1, 0, 2)
    inwards = np.einsum("ij,ij->i", np.cross(b - a, c - a), found.equations[:, :3]) < 0.0
    return edit.used(Mesh(points, np.where(inwards[:, None], faces[:, ::-1], faces)))


def _key(mesh: Mesh, options: HullOptions) -> str:
    settings = {**dataclasses.asdict(options), "faces": _FACES, "coacd": version("coacd")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(mesh.vertices.tobytes())
    digest.update(mesh.faces.tobytes())
    return digest.hexdigest()


def _packed(parts: list[np.ndarray]) -> bytes:
    content = io.BytesIO()
    np.savez(content, points=np.concatenate(parts), counts=[len(part) for part in parts])
    return content.getvalue()


def _unpacked(content: bytes) -> list[np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        points, counts = arrays["points"], arrays["counts"]
    whole = counts.ndim == 1 and len(counts) > 0 and int(counts.min()) >= 4
    if not whole or points.shape != (int(counts.sum()), 3) or not np.isfinite(points).all():
        raise ValueError("no convex parts")
    return np.split(points, np.cumsum(counts)[:-1])


def _cached(file: pathlib.Path) -> list[np.ndarray] | None:
    """Return what the cache holds; None if it holds nothing, or nothing whole."""
    try:
        return _unpacked(storage.read_file(file, _MAX_CACHED))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _split(mesh: Mesh, options: HullOptions) -> list[np.ndarray]:
    """Return the points of each part, by a child process."""
    need("coacd")
    content = io.BytesIO()
    settings = json.dumps(dataclasses.asdict(options))
    np.savez(content, vertices=mesh.vertices, faces=mesh.faces, settings=settings)
    try:
        done = subprocess.run(
            _CHILD,
            input=content.getvalue(),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": _ROOT},
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DecompositionError(f"splitting it takes more than {_PATIENCE:g} s") from error
    if done.returncode == 0:
        return _unpacked(done.stdout)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    why = one_line(said[-1]) if said else f"it ended with {done.returncode}"
    raise DecompositionError(f"splitting it failed: {why[:200]}")


def _run(content: bytes) -> bytes:
    """Return the parts of what `_split` sent."""
    coacd: Any = need("coacd")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        mesh = coacd.Mesh(arrays["vertices"], arrays["faces"])
        options = HullOptions(**json.loads(str(arrays["settings"])))
    coacd.set_log_level("error")
    parts = coacd.run_coacd(
        mesh,
        threshold=options.threshold,
        max_convex_hull=options.hulls,
        preprocess_mode="auto",
        mcts_iterations=60,
        mcts_nodes=10,
        resolution=1000,
        seed=options.seed,
    )
    return _packed([np.asarray(vertices, np.float64) for vertices, _ in parts])


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # what the library prints must not mix with the answer
    _answer = os.dup(1)
    os.dup2(2, 1)
    with open(_answer, "wb") as _out:
        _out.write(_run(sys.stdin.buffer.read()))
