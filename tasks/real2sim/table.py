"""The world of the Real2Sim task: a Panda at a table, one object, and a mark where it is wanted.

The table's top is at height 0 and is a plane: convex meshes rest on a plane as surely as on a box,
and faster. Whoever leaves it is stopped by the task, not by its edge.
"""

from collections.abc import Sequence

import mujoco
import numpy as np

from penspin_style.sim.variants import add_shapes
from tasks.real2sim.catalogue import Variant, add_meshes
from tasks.robots.panda import model as panda
from tasks.robots.scenery import look_at

TABLE = ((0.02, 0.9), (-0.5, 0.5))
"""m, lower and upper ends of its top along x and y, in the frame of the arm's base."""
_HEIGHT = 0.4  # m, of its top above the floor
_THICK = 0.03  # m
_WOOD = (0.72, 0.60, 0.46, 1.0)
_METAL = (0.45, 0.47, 0.50, 1.0)


def world(variants: Sequence[Variant], *, tolerance: float, skin: bool = False) -> mujoco.MjSpec:
    """Return the world with the cameras `view`, `front` and `wrist`.

    tolerance: m, radius of the mark.
    """
    spec = panda.scene(gravcomp=True, skin=skin)
    floor = spec.geom("floor")
    floor.pos, floor.contype, floor.conaffinity = [0, 0, -_HEIGHT], 0, 0
    _add_table(spec)
    body = spec.worldbody.add_body(name="object", pos=[0.5, 0.0, 0.1])
    body.add_freejoint(name="object")
    # its own friction and softness hold whatever it touches
    hull = {"priority": 1, "contype": 2, "conaffinity": 1, "condim": 4, "solref": [0.02, 1]}
    hull |= {"friction": [1.0, 0.01, 1e-4], "solimp": [0.95, 0.99, 0.001, 0.5, 2]}
    colour = {"rgba": [0.85, 0.35, 0.2, 1.0]}
    add_shapes(spec, body, add_meshes(spec, variants), hull=hull, visual=colour)
    goal = spec.worldbody.add_body(name="goal", mocap=True, pos=[0.5, 0.2, 0.02])
    goal.add_geom(
        name="goal",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[tolerance, 0, 0],
        rgba=[0.2, 0.7, 0.3, 0.35],
        contype=0,
        conaffinity=0,
        mass=0,
    )
    eye, focus = np.array([1.15, 0.0, 0.65]), np.array([0.48, 0.0, 0.03])
    axes = look_at(eye, focus)
    spec.worldbody.add_camera(name="front", pos=eye, xyaxes=axes, fovy=38.0)
    # beside the hand, fingers in view
    wrist = {"pos": [0.075, 0.0, 0.03], "xyaxes": [0, 1, 0, 0.94, 0, 0.34], "fovy": 62.0}
    spec.body("hand").add_camera(name="wrist", **wrist)
    view, focus = np.array([1.35, -0.85, 0.75]), np.array([0.38, 0.0, 0.16])
    camera = spec.camera("view")
    camera.pos = view
    camera.alt.xyaxes = look_at(view, focus)
    # five, which do for a cube, leave hulls between two fingers unsolved: they are shot away
    spec.option.iterations, spec.option.ls_iterations = 20, 16
    # what lies parked must not move the planes between which cameras see
    spec.stat.extent, spec.stat.center = 1.5, [0.4, 0.0, 0.2]
    return spec


def _add_table(spec: mujoco.MjSpec) -> None:
    spec.add_material(name="table", rgba=_WOOD, reflectance=0.0)
    (x0, x1), (y0, y1) = TABLE
    middle, half = [0.5 * (x0 + x1), 0.5 * (y0 + y1)], [0.5 * (x1 - x0), 0.5 * (y1 - y0)]
    box, shown = mujoco.mjtGeom.mjGEOM_BOX, {"contype": 0, "conaffinity": 0, "mass": 0}
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[*middle, 0],
        size=[*half, 0.05],
        material="table",
        contype=1,
        conaffinity=1,
    )
    board = [*half, 0.5 * _THICK - 5e-4]
    spec.worldbody.add_geom(
        name="board", type=box, pos=[*middle, -0.5 * _THICK], size=board, material="table", **shown
    )
    for i, (x, y) in enumerate((x, y) for x in (x0 + 0.14, x1 - 0.04) for y in (-0.46, 0.46)):
        leg = [0.02, 0.02, 0.5 * (_HEIGHT - _THICK)]
        at = [x, y, -_THICK - leg[2]]
        spec.worldbody.add_geom(name=f"leg_{i}", type=box, pos=at, size=leg, rgba=_METAL, **shown)
    base = [0.1, 0.1, 0.5 * _HEIGHT]
    at = [-0.04, 0, -base[2]]
    spec.worldbody.add_geom(name="pedestal", type=box, pos=at, size=base, rgba=_METAL, **shown)
