"""Shapes that differ between worlds: which of several meshes a body has, world by world.

    shapes = (Shape("mug", 0.2, (2e-4, 2e-4, 1e-4), "mug_visual", ("mug_0", "mug_1")), ...)
    add_shapes(spec, spec.body("object"), shapes, hull={"friction": [1, 0.01, 0.001]})
    sim = make_sim(spec.compile(), 256, per_env=FIELDS)
    variants = Variants(sim, "object", [shape.name for shape in shapes])
    variants.write(which, mask)   # which: (num_envs,) long, into the shapes
    sim.set_const(mask)

Both engines find a geom's mesh by a number that may differ between worlds, and nothing more: all
else that follows from a mesh (its frame, its bounds, the body's mass) is per world too and must be
written with it. MuJoCo compiles these values: every shape lies as a body of its own, parked, in the
same model, and `Variants` copies that body's rows onto the one that moves. The parked hulls are
told that they collide, or MuJoCo would not compile them, with a kind of geom that there is none of.

`set_const` comes after every `write`: the tree of bounds in which MuJoCo C looks for the hulls of a
body follows in it alone. Without it a larger shape falls through what it should rest on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from penspin_style.sim.sim import MESH_FIELDS, Sim

FIELDS = (*MESH_FIELDS, "body_mass", "body_inertia", "body_ipos", "body_iquat")
"""What `Variants` writes, for `make_sim(per_env=...)`."""
NOTHING = "nothing"
"""Mesh that takes the place of a hull that a shape does not have."""
_SPECK = 5e-4  # m, its size: it lies within another hull, where nothing reaches it
_PARKED = (0.0, 0.0, -1.0)  # m
_NOBODY = 1 << 30  # a bit of contype that no geom's conaffinity has
_HIDDEN = 3  # the group of geoms that are not drawn


@dataclass(frozen=True)
class Shape:
    """A rigid object in the frame of its principal axes, its centre of mass the origin."""

    name: str
    mass: float
    """kg"""
    inertia: tuple[float, float, float]
    """Principal moments, kg·m²."""
    visual: str
    """Mesh of the spec that is drawn."""
    hulls: tuple[str, ...]
    """Convex meshes of the spec that collide, at least one."""


def add_shapes(
    spec: mujoco.MjSpec,
    body: Any,
    shapes: Sequence[Shape],
    *,
    hull: Mapping[str, Any] | None = None,
    visual: Mapping[str, Any] | None = None,
) -> None:
    """Give a body the first shape, with room for all others, and park every shape in the model.

    So far the body has a name and its joints. It gets the geoms `BODY_hull_0` and so on, as many as
    the richest shape has, and `BODY_visual`. Shapes are parked as the bodies `BODY/NAME`.

    hull, visual: further attributes of the geoms that collide and of the one that is drawn.

    Raises:
        ValueError: no shapes, two of one name, or one without a hull.
    """
    names = [shape.name for shape in shapes]
    if not shapes or len({*names, NOTHING}) <= len(names) or not all(s.hulls for s in shapes):
        raise ValueError(
            f"shapes must have hulls and names of their own, none {NOTHING!r}, got "
            f"{[(shape.name, len(shape.hulls)) for shape in shapes]}"
        )
    speck = spec.add_mesh(name=f"{body.name}_{NOTHING}")
    speck.uservert = (_SPECK * (np.eye(4, 3) - 0.25)).ravel().tolist()
    speck.userface = [0, 1, 2, 0, 3, 1, 0, 2, 3, 1, 3, 2]
    slots = max(len(shape.hulls) for shape in shapes)
    meshes = [*shapes[0].hulls, *[speck.name] * (slots - len(shapes[0].hulls))]
    _set_inertia(body, shapes[0])
    for i, mesh in enumerate(meshes):
        _add_mesh(body, mesh, {"name": f"{body.name}_hull_{i}", "group": _HIDDEN, **(hull or {})})
    shown = {"name": f"{body.name}_visual", "group": 2, "contype": 0, "conaffinity": 0}
    _add_mesh(body, shapes[0].visual, {**shown, **(visual or {})})
    for shape in shapes:
        parked = _park(spec, f"{body.name}/{shape.name}", shape.hulls)
        _add_mesh(parked, shape.visual, {"group": _HIDDEN, "contype": 0, "conaffinity": 0})
        _set_inertia(parked, shape)
    _park(spec, f"{body.name}/{NOTHING}", [speck.name])


def _park(spec: mujoco.MjSpec, name: str, meshes: Sequence[str]) -> Any:
    parked = spec.worldbody.add_body(name=name, pos=_PARKED)
    for mesh in meshes:
        _add_mesh(parked, mesh, {"group": _HIDDEN, "contype": _NOBODY, "conaffinity": 0})
    return parked


def _set_inertia(body: Any, shape: Shape) -> None:
    body.mass, body.inertia, body.explicitinertial = shape.mass, shape.inertia, True
    body.ipos, body.iquat = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]


def _add_mesh(body: Any, mesh: str, settings: Mapping[str, Any]) -> None:
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh, mass=0, **settings)


class Variants:
    """The shapes of one body in a simulation."""

    def __init__(self, sim: Sim, body: str, names: Sequence[str]) -> None:
        """Look up what MuJoCo compiled.

        names: of the shapes that `add_shapes` gave the body, in the order of `write`'s numbers.

        Raises:
            ValueError: the simulation has not all of `FIELDS` per environment.
        """
        if missing := [name for name in FIELDS if name not in sim.params]:
            raise ValueError(f"make_sim needs per_env to hold {', '.join(missing)} too")
        model, live = sim.model, sim.model.body(body).id
        parked = np.array([model.body(f"{body}/{name}").id for name in names])
        count, start = int(model.body_geomnum[live]), int(model.body_geomadr[live])
        slots = _slots(model, parked, model.body(f"{body}/{NOTHING}").id, count)
        self.count = len(names)
        self._rows: list[tuple[Tensor, Tensor]] = []  # (the simulation's, (shapes, ...) values)
        for name in FIELDS:
            field = sim.params[name]
            if name in MESH_FIELDS:
                # what is not there lies in the middle of the first hull, which is within it
                source = np.where(slots.absent, slots.geoms[:, :1], slots.geoms)
                geoms = source if name == "geom_pos" else slots.geoms
                values, target = getattr(model, name)[geoms], field[:, start : start + count]
            else:
                values, target = getattr(model, name)[parked], field[:, live]
            table = torch.as_tensor(values, dtype=field.dtype, device=sim.device)
            self._rows.append((target, table.reshape(self.count, *target.shape[1:])))

    def write(self, which: Tensor, mask: Tensor) -> None:
        """Give the masked worlds their shapes; `Sim.set_const` must follow.

        which: (num_envs,) long, into the names; mask: (num_envs,) bool.
        """
        for target, table in self._rows:
            where = mask.view(-1, *(1 for _ in target.shape[1:]))
            target.copy_(torch.where(where, table[which], target))


class _Slots(NamedTuple):
    """From which geoms each shape's rows come, (shapes, geoms of the body)."""

    geoms: np.ndarray
    absent: np.ndarray


def _slots(model: mujoco.MjModel, parked: np.ndarray, nothing: int, count: int) -> _Slots:
    """Return the geoms of parked bodies in the order of the live one's: hulls, specks, visual."""
    speck = int(model.body_geomadr[nothing])
    geoms = np.full((len(parked), count), speck)
    for row, body in zip(geoms, parked, strict=True):
        first, number = int(model.body_geomadr[body]), int(model.body_geomnum[body])
        row[: number - 1] = np.arange(first, first + number - 1)
        row[-1] = first + number - 1
    return _Slots(geoms, geoms == speck)
