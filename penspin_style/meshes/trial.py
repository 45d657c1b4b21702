"""Drop an object in plain MuJoCo: the last check of what a conversion made."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style.meshes.folder import Object

_CLEARANCE = 0.01  # m above the floor
_TIMESTEP, _STEPS = 0.002, 1000


@dataclass(frozen=True)
class Trial:
    """What became of it after two seconds."""

    mass: float
    """kg, of the compiled body"""
    height: float
    """m, of the centre of mass above the floor"""
    lowest: float
    """m, of the collision geometry's lowest vertex; below 0 it is sunk in"""
    speed: float
    """m/s; a ball may still roll"""

    def facts(self) -> dict[str, float]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def object_spec(found: Object) -> Any:
    """Return an `mjSpec` of a floor and the object, which falls freely above it.

    Collision geometry is in group 3, what is seen in group 2.
    """
    import mujoco

    spec = mujoco.MjSpec()
    spec.option.timestep = _TIMESTEP
    spec.worldbody.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1.0, 1.0, 0.1], pos=[0.0, 0.0, 0.0]
    )
    low = min(float(mesh.vertices[:, 2].min()) for mesh in found.collision_meshes)
    body = spec.worldbody.add_body(name="object", pos=[0.0, 0.0, _CLEARANCE - low])
    body.add_freejoint()
    body.explicitinertial = True
    body.mass, body.inertia = found.mass, list(found.inertia)
    body.ipos, body.iquat = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]  # else the body's own pose
    files = [found.visual, *found.collision]
    meshes = [found.visual_mesh, *found.collision_meshes]
    for i, (file, mesh) in enumerate(zip(files, meshes, strict=True)):
        spec.add_mesh(
            name=file.stem,
            uservert=mesh.vertices.ravel().tolist(),
            userface=mesh.faces.ravel().tolist(),
        )
        body.add_geom(
            name=file.stem,
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=file.stem,
            group=3 if i else 2,
            contype=int(i > 0),
            conaffinity=int(i > 0),
            mass=0.0,
        )
    return spec


def drop(found: Object) -> Trial:
    """Return what becomes of the object in two seconds.

    Raises:
        ValueError: MuJoCo refuses it, it diverges, falls through the floor, or weighs otherwise.
    """
    import mujoco

    model = object_spec(found).compile()
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, _STEPS)
    body = model.body("object").id
    turn = data.xmat[body].reshape(3, 3)
    place = data.xpos[body]
    hulls = np.concatenate([mesh.vertices for mesh in found.collision_meshes])
    trial = Trial(
        mass=float(model.body_mass[body]),
        height=float(data.xipos[body][2]),
        lowest=float((hulls @ turn.T + place)[:, 2].min()),
        speed=float(np.linalg.norm(data.qvel[:3])),
    )
    if not np.isfinite(data.qpos).all() or data.warning.number.any():
        raise ValueError("it diverges in MuJoCo when dropped from 1 cm")
    if not -0.2 * min(found.size) < trial.lowest:
        raise ValueError(f"it sinks {-trial.lowest:.3g} m into the floor in MuJoCo")
    if not np.isclose(trial.mass, found.mass, rtol=1e-6):
        raise ValueError(f"MuJoCo finds {trial.mass:g} kg, not {found.mass:g}")
    return trial
