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
from typing import Any

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

    The body gets the geoms `BODY_hull_0` and so on, as many as the richest shape has, and
    `BODY_visual`. The shapes are the bodies `BODY/NAME`, under the floor.

    hull, visual: further attributes of the geoms that collide and of the one that is drawn.

    Raises:
        ValueError: no shapes, two of one name, or one without a hull.
    """
    names = [shape.name for shape in shapes]
    if not shapes or len(set(names)) < len(names) or not all(shape.hulls for shape in shapes):
        raise ValueError(
            f"shapes must have names of their own and hulls, got "
            f"{[(shape.name, len(shape.hulls)) for shape in shapes]}"
        )
    slots = max(len(shape.hulls) for shape in shapes)
    if any(len(shape.hulls) < slots for shape in shapes):
        speck = spec.add_mesh(name=f"{body.name}_{NOTHING}")
        speck.uservert = (_SPECK * (np.eye(4, 3) - 0.25)).ravel().tolist()
        speck.userface = [0, 1, 2, 0, 3, 1, 0, 2, 3, 1, 3, 2]
    for shape in shapes:
        parked = spec.worldbody.add_body(name=f"{body.name}/{shape.name}", pos=_PARKED)
        meshes = [*shape.hulls, *[f"{body.name}_{NOTHING}"] * (slots - len(shape.hulls))]
        apart = {"group": _HIDDEN, "conaffinity": 0}
        targets = [(parked, "", {"contype": _NOBODY, **apart}, {"contype": 0, **apart})]
        if shape is shapes[0]:
            shown = {"contype": 0, "conaffinity": 0, "group": 2, **(visual or {})}
            targets.append((body, body.name, {"group": _HIDDEN, **(hull or {})}, shown))
        for target, prefix, hull_settings, visual_settings in targets:
            _set_inertia(target, shape)
            for i, mesh in enumerate(meshes):
                _add_mesh(target, f"{prefix}_hull_{i}" if prefix else "", mesh, hull_settings)
            _add_mesh(target, f"{prefix}_visual" if prefix else "", shape.visual, visual_settings)


def _set_inertia(body: Any, shape: Shape) -> None:
    body.mass, body.inertia, body.explicitinertial = shape.mass, shape.inertia, True
    body.ipos, body.iquat = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]


def _add_mesh(body: Any, name: str, mesh: str, settings: Mapping[str, Any]) -> None:
    kind = mujoco.mjtGeom.mjGEOM_MESH
    named = {"name": name} if name else {}
    body.add_geom(**named, type=kind, meshname=mesh, mass=0, **settings)


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
        model = sim.model
        live = model.body(body).id
        parked = np.array([model.body(f"{body}/{name}").id for name in names])
        count = int(model.body_geomnum[live])
        start = int(model.body_geomadr[live])
        slots = model.body_geomadr[parked][:, None] + np.arange(count)  # (shapes, geoms)
        self.count = len(names)
        self._rows: list[tuple[Tensor, Tensor]] = []  # (the simulation's, (shapes, ...) values)
        for name in FIELDS:
            field = sim.params[name]
            if name in MESH_FIELDS:
                values, target = getattr(model, name)[slots], field[:, start : start + count]
                if name == "geom_pos":
                    values = _hide_specks(model, slots, values)
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


def _hide_specks(model: mujoco.MjModel, slots: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Return positions of geoms (shapes, geoms, 3) in which hulls that are nothing lie in hull 0.

    MuJoCo has a mesh's frame in its middle, which is within it if it is convex.
    """
    names = [model.mesh(i).name for i in range(model.nmesh)]
    speck = np.array([name.endswith(f"_{NOTHING}") for name in names])
    return np.where(speck[model.geom_dataid[slots]][..., None], pos[:, :1], pos)
