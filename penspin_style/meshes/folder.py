"""An object that is ready for MuJoCo, as a folder.

<folder>/
    object.json   {"format": 1, "name", "licence", "source", "mass": kg, "inertia": [3] kg m^2,
                  "size": [3] m, "volume": m^3, "visual": "visual.obj",
                  "collision": ["hull_00.obj", ...]}
    visual.obj    what is seen
    hull_00.obj   convex parts that touch other bodies
    ...           other files, as the report of a conversion

Metres. The origin is the centre of mass, the axes are the principal axes of inertia, right-handed;
`inertia` is about them, `size` is the extents of visual.obj, `volume` is of the solid that was
scanned. The meshes have no materials.
"""

import json
import math
import pathlib
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style import storage
from penspin_style.meshes.mesh import Mesh, MeshFileError, solid
from penspin_style.meshes.wavefront import format_obj, parse_obj

OBJECT = "object.json"
FORMAT = 1
MAX_HULLS = 64
_MAX_JSON = 2**20  # bytes
_MAX_OBJ = 2**25  # bytes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEYS = ("format", "name", "licence", "source", "mass", "inertia", "size", "volume")
_FILES = ("visual", "collision")
_SLACK = 1.05
"""Decimation, rounding, and hulls that reach beyond the solid."""


class ObjectError(ValueError):
    """A folder holds no object that can be trusted."""


@dataclass(frozen=True, eq=False)
class Object:
    """See the module's docstring."""

    folder: pathlib.Path
    name: str
    licence: str
    source: str
    mass: float
    """kg"""
    inertia: tuple[float, float, float]
    """kg m^2, principal"""
    size: tuple[float, float, float]
    """m, extents of the visual mesh"""
    volume: float
    """m^3"""
    visual: pathlib.Path
    visual_mesh: Mesh
    collision: tuple[pathlib.Path, ...]
    collision_meshes: tuple[Mesh, ...]


def read_object(path: pathlib.Path | str) -> Object:
    """Return the object of a folder after checking every number and file.

    Raises:
        ObjectError: names the folder, what is wrong and what would be right.
    """
    folder = pathlib.Path(path)
    try:
        return _read(folder)
    except (OSError, ValueError) as error:
        raise ObjectError(f"{folder} is no object: {error}") from error


def write_object(
    path: pathlib.Path | str,
    *,
    name: str,
    licence: str,
    source: str,
    mass: float,
    inertia: Sequence[float],
    volume: float,
    visual: Mesh,
    collision: Sequence[Mesh],
    others: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> Object:
    """Write a folder, complete or not at all, and return it as read back.

    visual, collision: metres, in the principal frame (`mesh.principal_frame`); others: content of
    further files by name; replace: put it in the place of an object that is there.

    Raises:
        ObjectError: the values are no object.
        FileExistsError: the folder is there already, or is to be replaced and holds no object.
        OSError: it cannot be written.
    """
    folder = pathlib.Path(path)
    if folder.exists() and not (replace and (folder / OBJECT).is_file()):
        raise FileExistsError(f"{folder} exists already" + " and holds no object" * replace)
    hulls = {f"hull_{i:02d}.obj": hull for i, hull in enumerate(collision)}
    facts = {"format": FORMAT, "name": name, "licence": licence, "source": source, "mass": mass}
    facts |= {"inertia": [float(x) for x in inertia], "size": visual.size.tolist()}
    facts |= {"volume": volume, "visual": "visual.obj", "collision": list(hulls)}
    meshes = {"visual.obj": visual, **hulls}
    contents = {**(others or {}), **{file: format_obj(mesh) for file, mesh in meshes.items()}}
    storage.make_folder(folder.absolute().parent)
    stage = folder.absolute().parent / f"{storage.STAGE}{uuid.uuid4().hex}"
    try:
        stage.mkdir()
        for file, content in contents.items():
            storage.write_file(stage / file, content)
        storage.write_file(stage / OBJECT, (json.dumps(facts, indent=1) + "\n").encode())
        try:
            _read(stage)
        except ValueError as error:
            raise ObjectError(f"{name!r} is no object: {error}") from error
        if folder.exists():
            storage.replace(stage, folder)
        else:
            storage.rename(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return read_object(folder)


def _read(folder: pathlib.Path) -> Object:
    facts = storage.parse_json(storage.read_file(folder / OBJECT, _MAX_JSON))
    if not isinstance(facts, dict):
        raise ValueError(f"{OBJECT} holds no JSON object")
    odd = sorted(set(facts) ^ {*_KEYS, *_FILES})
    if odd:
        what = "unknown" if odd[0] in facts else "missing"
        raise ValueError(f"{OBJECT}: the key {odd[0]!r} is {what}")
    if facts["format"] != FORMAT or isinstance(facts["format"], bool):
        raise ValueError(f"{OBJECT}: format {facts['format']!r} is not {FORMAT}")
    for key in ("name", "licence", "source"):
        if not isinstance(facts[key], str) or not facts[key].strip():
            raise ValueError(f"{OBJECT}: {key} must be a text, not {facts[key]!r}")
    if not _NAME.fullmatch(facts["name"]):
        raise ValueError(
            f"{OBJECT}: the name {facts['name']!r} must be of up to 64 letters, digits, _ . -"
        )
    mass, volume = (_numbers(facts, key, 1)[0] for key in ("mass", "volume"))
    inertia, size = (_numbers(facts, key, 3) for key in ("inertia", "size"))
    visual = _file(folder, facts["visual"])
    hulls = facts["collision"]
    if not isinstance(hulls, list) or not 1 <= len(hulls) <= MAX_HULLS:
        raise ValueError(f"{OBJECT}: collision must be a list of 1 to {MAX_HULLS} files")
    collision = tuple(_file(folder, hull) for hull in hulls)
    meshes = tuple(_mesh(file) for file in (visual, *collision))
    _check_size(meshes[0], size, volume)
    _check_inertia(meshes[0], mass, inertia)
    _check_hulls(meshes[0], dict(zip(hulls, meshes[1:], strict=True)))
    return Object(
        folder=folder,
        name=facts["name"],
        licence=facts["licence"],
        source=facts["source"],
        mass=mass,
        inertia=inertia,  # type: ignore[arg-type]
        size=size,  # type: ignore[arg-type]
        volume=volume,
        visual=visual,
        visual_mesh=meshes[0],
        collision=collision,
        collision_meshes=meshes[1:],
    )


def _numbers(facts: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    values = facts[key] if count > 1 else [facts[key]]
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{OBJECT}: {key} must be a list of {count} numbers, not {values!r}")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0.0 < value < math.inf:
            raise ValueError(f"{OBJECT}: {key} must be above 0 and finite, not {value!r}")
    return tuple(float(value) for value in values)


def _file(folder: pathlib.Path, name: Any) -> pathlib.Path:
    """Return the path of a file that must lie in the folder itself."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not name.endswith(".obj"):
        raise ValueError(f"{OBJECT}: {name!r} is not the name of an .obj file in the folder")
    return folder / name


def _mesh(path: pathlib.Path) -> Mesh:
    try:
        mesh = parse_obj(storage.read_file(path, _MAX_OBJ))
    except MeshFileError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not np.isfinite(mesh.vertices).all():
        raise ValueError(f"{path.name}: a vertex is not finite")
    if len(mesh.faces) < 4:
        raise ValueError(f"{path.name} has {len(mesh.faces)} faces; a solid has at least 4")
    return mesh


def _check_size(visual: Mesh, size: Sequence[float], volume: float) -> None:
    if not np.allclose(visual.size, size, rtol=1e-3):
        found = [round(x, 6) for x in visual.size.tolist()]
        raise ValueError(f"{OBJECT}: size is {list(size)}, but visual.obj has {found} m")
    box = math.prod(size)
    if volume > _SLACK * box:
        raise ValueError(f"{OBJECT}: volume {volume:g} m^3 is more than its box has, {box:g}")


def _check_inertia(visual: Mesh, mass: float, inertia: Sequence[float]) -> None:
    """Refuse moments that no body of this mass can have within these bounds."""
    low, high = sorted(inertia)[:2], max(inertia)
    if high > sum(low) * (1.0 + 1e-6):
        raise ValueError(f"{OBJECT}: of inertia {list(inertia)} one exceeds the others' sum")
    squares = np.max(visual.vertices**2, axis=0)
    most = mass * (squares.sum() - squares)
    for axis, (moment, bound) in enumerate(zip(inertia, most, strict=True)):
        if moment > _SLACK * bound:
            raise ValueError(
                f"{OBJECT}: inertia[{axis}] {moment:g} kg m^2 is more than {mass:g} kg within "
                f"visual.obj can have about the origin, {bound:g}; is the mesh in metres, about "
                "its centre of mass?"
            )


def _check_hulls(visual: Mesh, hulls: Mapping[str, Mesh]) -> None:
    low, high = visual.vertices.min(axis=0), visual.vertices.max(axis=0)
    room = 0.25 * float(np.max(high - low))
    for name, hull in hulls.items():
        if not solid(hull).volume > 0.0:
            raise ValueError(f"{name} bounds no volume; are its faces turned inwards?")
        if (hull.vertices < low - room).any() or (hull.vertices > high + room).any():
            raise ValueError(f"{name} lies outside visual.obj; they must share one frame")
