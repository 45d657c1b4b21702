"""The objects that a configuration lists: read from their folders, at rest, in every size asked."""

import functools
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco

from penspin_style.meshes.folder import Object, read_object
from penspin_style.sim.variants import Shape
from tasks.real2sim.resting import Rest, rest
from tasks.real2sim.shipped import OBJECTS


@dataclass(frozen=True)
class Variant:
    """An object in one size."""

    object: Object
    scale: float
    rest: Rest

    @property
    def name(self) -> str:
        """Return the name of its shape in the model."""
        return f"{self.object.name}_{self.scale:g}"

    @property
    def size(self) -> tuple[float, float, float]:
        """Return its extents along its own axes, m."""
        x, y, z = (self.scale * side for side in self.object.size)
        return x, y, z


def catalogue(objects: Sequence[str], scales: Sequence[float]) -> tuple[Variant, ...]:
    """Return every object in every size, those of one object together.

    objects: names of objects that come with the package, or folders.

    Raises:
        ValueError: none is listed, two have one name, or one is no object that can rest.
    """
    if not objects:
        raise ValueError("task.objects must list at least one object")
    found = [_find(name) for name in objects]
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ValueError(f"task.objects must have different names, got {names}")
    return tuple(_variant(each, scale) for each in found for scale in scales)


def _find(name: str) -> Object:
    """Return an object by the name of a shipped one, else by its folder."""
    shipped = sorted(path.parent.name for path in OBJECTS.glob("*/object.json"))
    if name in shipped:
        return _read(OBJECTS / name, 0)
    folder = pathlib.Path(name).expanduser().absolute()
    file = folder / "object.json"
    if not file.is_file():
        raise ValueError(
            f"task.objects: {name!r} is neither a shipped object ({', '.join(shipped)}) nor a "
            "folder with an object.json, as `penspin real2sim convert` writes it"
        )
    return _read(folder, max(each.stat().st_mtime_ns for each in folder.iterdir()))


@functools.lru_cache(maxsize=256)
def _read(folder: pathlib.Path, changed: int) -> Object:
    """Read once what is asked for by many environments; changed: ns, the files' last change."""
    return read_object(folder)


@functools.lru_cache(maxsize=1024)
def _variant(found: Object, scale: float) -> Variant:
    try:
        return Variant(found, scale, rest(found.collision_meshes, scale))
    except ValueError as error:
        raise ValueError(f"task.objects: {found.folder} cannot be used: {error}") from error


def add_meshes(spec: mujoco.MjSpec, variants: Sequence[Variant]) -> list[Shape]:
    """Add the meshes of every variant to a world; return the shapes made of them."""
    shapes = []
    for variant in variants:
        found, scale, name = variant.object, variant.scale, variant.name
        hulls = []
        for i, mesh in enumerate((found.visual_mesh, *found.collision_meshes)):
            added = spec.add_mesh(name=f"{name}_{i}")
            added.uservert = (scale * mesh.vertices).ravel().tolist()
            added.userface = mesh.faces.ravel().tolist()
            if i == 0:  # what is drawn need not be closed
                added.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
            else:
                hulls.append(added.name)
        # of the same density
        x, y, z = (moment * scale**5 for moment in found.inertia)
        shapes.append(Shape(name, found.mass * scale**3, (x, y, z), f"{name}_0", tuple(hulls)))
    return shapes
