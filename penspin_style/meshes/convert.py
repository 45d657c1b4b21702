"""Make an object of a mesh without faults: mass, inertia, what is seen, what is touched."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penspin_style.meshes import edit
from penspin_style.meshes.decompose import DecompositionError, HullOptions, decompose
from penspin_style.meshes.folder import Object, write_object
from penspin_style.meshes.libraries import need
from penspin_style.meshes.mesh import Mesh, principal_frame, solid
from penspin_style.meshes.repair import Repaired
from penspin_style.meshes.trial import drop

REPORT, SHEET = "report.json", "sheet.png"
_CHANGED = 0.02
"""Share by which decimation may change what is seen."""


class ConversionError(ValueError):
    """A mesh without faults makes no object that can be trusted."""


@dataclass(frozen=True)
class BodyOptions:
    """What a mesh does not say of its body. Of density and mass one is given."""

    density: float | None = None
    """kg/m^3"""
    mass: float | None = None
    """kg"""
    faces: int = 5000
    """Of the visual mesh, at most."""
    licence: str = "not stated"
    source: str = ""
    """Where it is from; default the name of the file."""


@dataclass(frozen=True, eq=False)
class Converted:
    """An object and what it was made of."""

    object: Object
    report: dict[str, Any]


def object_name(path: pathlib.Path) -> str:
    """Return the name of the object that a file becomes: letters, digits, _ . - of its own."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem).strip("_.-")[:64]
    return name or "object"


def convert(
    repaired: Repaired,
    file: pathlib.Path,
    folder: pathlib.Path,
    *,
    body: BodyOptions,
    hulls: HullOptions,
    cache: pathlib.Path | None,
    draw: Callable[[Object], bytes | None] = lambda _: None,
    replace: bool = False,
) -> Converted:
    """Write the folder of an object, complete or not at all.

    repaired: of `file`, without faults; draw: returns a contact sheet as PNG, or None; replace: put
    it in the place of an object that is there.

    Raises:
        ConversionError: faults are left, it could not be split, or MuJoCo does not bear it.
        FileExistsError: the folder is there already, and is not to be replaced or no object.
        OSError: it cannot be written.
    """
    if repaired.left:
        raise ConversionError(f"it has faults: {repaired.left[0].kind}")
    whole = solid(repaired.after.mesh)
    frame = principal_frame(whole)
    mass = body.mass if body.mass is not None else (body.density or 0.0) * whole.volume
    mesh = repaired.after.mesh.moved(frame.rotation, frame.offset)
    try:
        parts, cached = decompose(mesh, hulls, cache)
    except DecompositionError as error:
        raise ConversionError(str(error)) from error
    collision = _collision_facts(mesh, parts, whole.volume)
    report = {
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        **repaired.facts(),
        "mass": mass,
        "density": mass / whole.volume,
        # a point of the file, in metres, lies at (point - offset) @ rotation
        "frame": {"offset": frame.offset.tolist(), "rotation": frame.rotation.tolist()},
        "collision": {**dataclasses.asdict(hulls), **collision, "cached": cached},
    }
    facts = {
        "name": object_name(file),
        "licence": body.licence,
        "source": body.source or file.name,
        "mass": mass,
        "inertia": (frame.moments * (mass / whole.volume)).tolist(),
        "volume": whole.volume,
        "visual": _visual(mesh, body.faces),
        "collision": parts,
    }
    planned = _planned(facts, folder)
    try:
        report["trial"] = drop(planned).facts()
    except ValueError as error:
        raise ConversionError(str(error)) from error
    others = {REPORT: (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()}
    if (sheet := draw(planned)) is not None:
        others[SHEET] = sheet
    made = write_object(folder, **facts, others=others, replace=replace)
    return Converted(made, report)


def _planned(facts: dict[str, Any], folder: pathlib.Path) -> Object:
    """Return the object as it will be read, before anything is written."""
    visual, parts = facts["visual"], facts["collision"]
    return Object(
        folder=folder,
        name=facts["name"],
        licence=facts["licence"],
        source=facts["source"],
        mass=facts["mass"],
        inertia=tuple(facts["inertia"]),
        size=tuple(visual.size.tolist()),
        volume=facts["volume"],
        visual=folder / "visual.obj",
        visual_mesh=visual,
        collision=tuple(folder / f"hull_{i:02d}.obj" for i in range(len(parts))),
        collision_meshes=tuple(parts),
    )


def _visual(mesh: Mesh, faces: int) -> Mesh:
    """Return what is seen: fewer faces, as long as that does not change the shape."""
    fewer = edit.decimated(mesh, faces)
    while abs(solid(fewer).volume / solid(mesh).volume - 1.0) > _CHANGED:
        faces *= 2
        fewer = edit.decimated(mesh, faces)
    return fewer


def _collision_facts(mesh: Mesh, parts: list[Mesh], volume: float) -> dict[str, Any]:
    """Return how the parts differ from the mesh: volume of their union, and what sticks out."""
    library = need("manifold3d")
    solids = [library.Manifold.hull_points(part.vertices) for part in parts]
    union = library.Manifold.batch_boolean(solids, library.OpType.Add).volume()
    planes = [edit.convex_hull(part.vertices).equations for part in parts]
    points = edit.decimated(mesh, 5000).vertices
    outside = [(points @ p[:, :3].T + p[:, 3]).max(axis=1) for p in planes]
    nearest = outside[0]
    for distance in outside[1:]:
        nearest = nearest.clip(max=distance)
    return {
        "parts": len(parts),
        "volume_ratio": float(union / volume),
        "uncovered": float(max(nearest.max(), 0.0)),
    }
