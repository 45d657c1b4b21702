"""A scene of a Panda, a table and objects at rest: `penspin real2sim scene`.

    <folder>/
        scene.xml      MJCF that loads in plain MuJoCo, with a keyframe `home`
        assets/        the meshes
        poses.json     where the objects rest; see poses.py

The table's top is z = 0 and the arm's base stands on it, as in the tasks, whose floor it is. Each
object is a free body of its name with the mass and inertia of its folder; its convex parts collide
(group 3), its visual mesh is drawn (group 2). Contact of the arm is limited to its hand and finger
pads, as in the tasks.

The objects are let down where they are to stand, settle, and are then simulated for two seconds
more: a scene is written only if nothing moves in it.
"""

import math
import pathlib
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from penspin_style import storage
from penspin_style.meshes.folder import OBJECT, Object, read_object
from penspin_style.meshes.wavefront import format_obj
from tasks.real2sim.poses import POSES, Pose, poses_text
from tasks.robots.panda import model as panda
from tasks.robots.panda.description import FINGER_OPEN, HOME

HOME_KEY = "home"
ASSETS = "assets"
TABLE = ((0.35, 0.0), (0.55, 0.75), 0.04)
"""m: middle and half sizes of the table's top in x and y, its thickness."""
FLOOR = -0.75  # m
AREA = ((0.30, 0.70), (-0.35, 0.35))
"""m, x and y: where objects without a pose are put, in reach and out of each other's way."""
GAP = 0.03  # m between the objects there
DROP = 0.0005  # m above the table from where they are let down
DEEPEST = 0.005
"""m that an object of a given pose may overlap with something; it is lifted out of the table."""
SETTLE, STEADY = 20.0, 2.0  # s
DRAG = 8.0  # 1/s on the objects' velocities while they settle
NUDGE = 0.5
"""rad/s about two axes with which an object is let down, lest an egg stays on its tip."""
TOLERANCE, TURN_TOLERANCE = 0.001, math.radians(1.0)
"""m and rad that an object, or a joint of the arm, may move in two seconds."""


class SceneError(ValueError):
    """The objects make no scene at rest."""


@dataclass(frozen=True)
class Scene:
    """What was written."""

    file: pathlib.Path
    poses: dict[str, Pose]
    moved: dict[str, float]
    """m by which each object moved while it settled, from its given pose or its place"""
    drift: dict[str, float]
    """m that each object moves within two seconds of the written scene"""


def find_objects(folder: pathlib.Path) -> tuple[list[Object], list[str]]:
    """Return the objects of a folder, or the one that it is, and the entries left out.

    Raises:
        SceneError: there is none, or two have one name.
        ObjectError: one of them cannot be trusted.
    """
    if not folder.is_dir():
        raise SceneError(f"{folder}: there is no such folder")
    if (folder / OBJECT).is_file():
        return [read_object(folder)], []
    entries = sorted(f for f in folder.iterdir() if f.is_dir())
    found = [read_object(entry) for entry in entries if (entry / OBJECT).exists()]
    if not found:
        raise SceneError(f"{folder} holds no object: a folder with {OBJECT} in it for each")
    names = [item.name for item in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SceneError(f"{folder}: two objects have the name {twice[0]}; rename one")
    return found, [entry.name for entry in entries if not (entry / OBJECT).exists()]


def write_scene(
    file: pathlib.Path, objects: Sequence[Object], poses: Mapping[str, Pose] | None = None
) -> Scene:
    """Write a scene into the folder of `file`, complete or not at all; a scene there is replaced.

    poses: in the robot's base frame; with it only the objects that it names are in the scene.

    Raises:
        SceneError: a pose of no object; objects that overlap, do not fit or do not come to rest.
        FileExistsError: the folder holds something else.
        OSError: it cannot be written.
    """
    file = file.absolute()
    folder = file.parent
    _check_replaceable(folder, file.name)
    start = place(objects) if poses is None else _given(objects, poses)
    shown = [item for item in objects if item.name in start]
    storage.make_folder(folder.parent)
    stage = folder.parent / f"{storage.STAGE}{uuid.uuid4().hex}"
    try:
        _write_meshes(stage / ASSETS, shown)
        model = _compile(build(shown, start, stage / ASSETS))
        rest = settle(model, start, lift=poses is not None)
        spec = build(shown, rest, stage / ASSETS)
        _compile(spec)
        spec.modelfiledir, spec.meshdir = str(stage), ASSETS
        storage.write_file(stage / file.name, spec.to_xml().encode())
        storage.write_file(stage / POSES, poses_text(rest).encode())
        drift = drifts(mujoco.MjModel.from_xml_path(str(stage / file.name)), list(rest))
        storage.replace(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    moved = {name: math.dist(start[name].position, rest[name].position) for name in rest}
    return Scene(file, rest, moved, drift)


def build(
    objects: Sequence[Object], poses: Mapping[str, Pose], assets: pathlib.Path
) -> mujoco.MjSpec:
    """Return the world with each object at its pose; assets: folder of the meshes.

    Raises:
        SceneError: an object has the name of a part of the robot.
    """
    spec = panda.scene(gravcomp=True)
    spec.modelname = "panda_table_objects"
    spec.meshdir = str(assets)
    _add_table(spec)
    taken = {part.name for part in (*spec.bodies, *spec.joints)}
    if clash := [item.name for item in objects if item.name in taken]:
        raise SceneError(f"a part of the robot is called {clash[0]}, too; rename the object")
    for index, item in enumerate(objects):
        _add_object(spec, item, poses[item.name], _colour(index))
    row = [*HOME, FINGER_OPEN]
    for item in objects:
        row += [*poses[item.name].position, *poses[item.name].quaternion]
    spec.add_key(name=HOME_KEY, qpos=row, ctrl=HOME)
    return spec


def place(objects: Sequence[Object]) -> dict[str, Pose]:
    """Return poses upright on the table, in rows with gaps, in the middle of `AREA`.

    Raises:
        SceneError: they do not fit.
    """
    (x_start, x_end), (y_start, y_end) = AREA
    length, span = x_end - x_start + 1e-9, y_end - y_start + 1e-9  # rounding aside
    # high ones last: far from the arm
    cells = [(o, np.array(o.size[:2]) + GAP) for o in sorted(objects, key=lambda o: o.size[2])]
    for count in range(1, len(cells) + 1):
        rows = _rows(cells, count)
        depths = [max(cell[0] for _, cell in row) for row in rows]
        widths = [sum(cell[1] for _, cell in row) for row in rows]
        if max(widths) <= span:
            break
    if sum(depths) > length or max(widths) > span:
        raise SceneError(
            f"{len(objects)} objects do not fit on {length:.2g} x {span:.2g} m of table; take "
            "fewer or smaller ones, or give --poses"
        )
    poses: dict[str, Pose] = {}
    x = 0.5 * (x_start + x_end - sum(depths))
    for row, depth, width in zip(rows, depths, widths, strict=True):
        y = 0.5 * (y_start + y_end - width)
        for item, cell in row:
            low, high = (f(item.visual_mesh.vertices, axis=0) for f in (np.min, np.max))
            at = np.array([x + depth / 2, y + cell[1] / 2]) - 0.5 * (low + high)[:2]
            poses[item.name] = Pose((float(at[0]), float(at[1]), DROP - float(low[2])))
            y += cell[1]
        x += depth
    return poses


def _rows(
    cells: list[tuple[Object, np.ndarray]], count: int
) -> list[list[tuple[Object, np.ndarray]]]:
    """Return cells in rows of about equal width."""
    total, before = sum(cell[1] for _, cell in cells), 0.0
    rows: list[list[tuple[Object, np.ndarray]]] = [[] for _ in range(count)]
    for item, cell in cells:
        rows[int(count * (before + cell[1] / 2) / total)].append((item, cell))
        before += cell[1]
    return [row for row in rows if row]


def settle(
    model: mujoco.MjModel, poses: Mapping[str, Pose], *, lift: bool = False
) -> dict[str, Pose]:
    """Return where the objects of a scene rest if they are let down where the model has them.

    lift: first raise what overlaps with the table by no more than `DEEPEST`.

    Raises:
        SceneError: names the object that overlaps or does not come to rest.
    """
    data = _home(model)
    names = list(poses)
    for name, other, depth in _overlaps(model, data, names):
        if depth > DEEPEST or not lift:
            raise SceneError(
                f"{name} overlaps with {other} by {1000 * depth:.1f} mm; correct its pose"
            )
        data.joint(name).qpos[2] += depth + DROP
    dofs = np.concatenate([np.arange(6) + model.joint(name).dofadr[0] for name in names])
    inertia = [(*[model.body(n).mass[0]] * 3, *model.body(n).inertia) for n in names]
    model.dof_damping[dofs] = DRAG * np.concatenate(inertia)
    for name in names:
        data.joint(name).qvel[3:5] = NUDGE
    while moving := _moving(model, data, names, STEADY / 4, 0.1):
        if data.time > SETTLE:
            raise SceneError(f"{moving[0]} does not come to rest on the table")
    found = {}
    for name in names:
        x, y, z, w, i, j, k = data.joint(name).qpos.tolist()
        if z < 0.0:
            raise SceneError(f"{name} fell off the table; correct its pose")
        found[name] = Pose((x, y, z), (w, i, j, k))
    return found


def drifts(model: mujoco.MjModel, names: Sequence[str]) -> dict[str, float]:
    """Return how far each object moves in two seconds from the keyframe, m.

    Raises:
        SceneError: one moves or turns by more than the tolerance, or the arm does.
    """
    data = _home(model)
    before = data.qpos.copy()
    if moving := _moving(model, data, names, STEADY, 1.0):
        raise SceneError(
            f"{moving[0]} does not rest: it moves by more than {1000 * TOLERANCE:g} mm or "
            f"{math.degrees(TURN_TOLERANCE):g} degree in {STEADY:g} s"
        )
    arm = np.abs(data.qpos - before)[: len(HOME)].max()
    if arm > TOLERANCE:
        raise SceneError(f"the arm does not rest: a joint moves by {arm:.4f} rad; is it touched?")
    places = {name: model.joint(name).qposadr[0] for name in names}
    return {n: math.dist(data.qpos[at : at + 3], before[at : at + 3]) for n, at in places.items()}


def _moving(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    names: Sequence[str],
    duration: float,
    share: float,
) -> list[str]:
    """Simulate; return the objects that have moved by more than a share of the tolerances."""
    before = {name: data.joint(name).qpos.copy() for name in names}
    end = data.time + duration
    while data.time < end:
        mujoco.mj_step(model, data)
        if data.warning.number.any():
            return [_fastest(data, names)]
    found = []
    for name, old in before.items():
        new, turn = data.joint(name).qpos, np.zeros(3)
        mujoco.mju_subQuat(turn, new[3:], old[3:])
        moved = math.dist(new[:3], old[:3])
        if moved > share * TOLERANCE or np.linalg.norm(turn) > share * TURN_TOLERANCE:
            found.append(name)
    return found


def _check_replaceable(folder: pathlib.Path, name: str) -> None:
    """Refuse a folder that holds anything but a scene.

    Raises:
        FileExistsError: names what it holds.
    """
    if not folder.exists():
        return
    there = {f.name for f in folder.iterdir()}
    odd = sorted(there - {name, ASSETS, POSES})
    if ASSETS in there:
        odd += sorted(
            f"{ASSETS}/{f.name}" for f in (folder / ASSETS).iterdir() if f.suffix != ".obj"
        )
        odd += [ASSETS] * (name not in there or POSES not in there)
    if odd:
        raise FileExistsError(
            f"{folder} holds {odd[0]}, which is no part of a scene {name}: a scene has a folder of "
            f"its own, as NEW/{name}"
        )


def _given(objects: Sequence[Object], poses: Mapping[str, Pose]) -> dict[str, Pose]:
    known = {item.name for item in objects}
    if unknown := sorted(set(poses) - known):
        raise SceneError(
            f"there is a pose of {unknown[0]!r}, but no such object; there are "
            f"{', '.join(sorted(known))}"
        )
    return dict(poses)


def _write_meshes(folder: pathlib.Path, objects: Sequence[Object]) -> None:
    folder.mkdir(parents=True)
    for item in objects:
        meshes = [("visual", item.visual_mesh)]
        meshes += [(f"hull_{i:02d}", hull) for i, hull in enumerate(item.collision_meshes)]
        for name, mesh in meshes:
            storage.write_file(folder / f"{item.name}_{name}.obj", format_obj(mesh))


def _add_table(spec: mujoco.MjSpec) -> None:
    (x, y), (half_x, half_y), thickness = TABLE
    spec.geom("floor").pos = [0, 0, FLOOR]
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[x, y, -thickness / 2],
        size=[half_x, half_y, thickness / 2],
        rgba=[0.70, 0.56, 0.42, 1],
    )
    height = -FLOOR - thickness
    for side_x in (-1, 1):
        for side_y in (-1, 1):
            at = (x + side_x * (half_x - 0.05), y + side_y * (half_y - 0.05))
            spec.worldbody.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=[*at, FLOOR + height / 2],
                size=[0.03, 0.03, height / 2],
                rgba=[0.45, 0.36, 0.28, 1],
                contype=0,
                conaffinity=0,
            )


def _add_object(spec: mujoco.MjSpec, item: Object, pose: Pose, rgba: list[float]) -> None:
    body = spec.worldbody.add_body(name=item.name, pos=pose.position, quat=pose.quaternion)
    body.add_freejoint(name=item.name)
    body.explicitinertial = True
    body.mass, body.inertia, body.ipos = item.mass, item.inertia, [0, 0, 0]
    look: dict[str, Any] = {"group": 2, "contype": 0, "conaffinity": 0, "rgba": rgba}
    touch = {"group": 3, "contype": 3, "conaffinity": 1, "condim": 6, "solref": [0.01, 1]}
    touch["friction"] = [1, 0.005, 0.002]
    for name in ("visual", *(f"hull_{i:02d}" for i in range(len(item.collision)))):
        mesh = spec.add_mesh(name=f"{item.name}_{name}", file=f"{item.name}_{name}.obj")
        # the body's mass is given; what is seen may be open, so that it bounds no volume
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        body.add_geom(
            name=f"{item.name}_{name}",
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=f"{item.name}_{name}",
            mass=0,
            **(look if name == "visual" else touch),
        )


def _colour(index: int) -> list[float]:
    """Return a colour far from those of the indices before."""
    turns = np.radians(137.5 * index + np.array([0.0, 120.0, 240.0]))
    return [*(0.55 + 0.35 * np.cos(turns)).tolist(), 1.0]


def _compile(spec: mujoco.MjSpec) -> mujoco.MjModel:
    try:
        return spec.compile()
    except ValueError as error:
        raise SceneError(f"MuJoCo takes these objects for no model: {error}") from error


def _home(model: mujoco.MjModel) -> mujoco.MjData:
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key(HOME_KEY).id)
    mujoco.mj_forward(model, data)
    return data


def _overlaps(
    model: mujoco.MjModel, data: mujoco.MjData, names: Sequence[str]
) -> list[tuple[str, str, float]]:
    """Return (object, what it is in, m) of each object's deepest overlap."""
    deepest: dict[str, tuple[str, float]] = {}
    for contact in data.contact:
        bodies = [model.body(int(model.geom_bodyid[g])).name for g in contact.geom]
        geoms = [model.geom(int(g)).name for g in contact.geom]
        for side in (0, 1):
            name, other = bodies[side], bodies[1 - side]
            other = geoms[1 - side] if other == "world" else other
            if name in names and -contact.dist > deepest.get(name, ("", 0.0))[1]:
                deepest[name] = (other, -float(contact.dist))
    return [(name, *found) for name, found in deepest.items()]


def _fastest(data: mujoco.MjData, names: Sequence[str]) -> str:
    return max(names, key=lambda name: float(np.abs(data.joint(name).qvel).max()))
