"""The meshes of the MuJoCo Menagerie as an optional skin for the Panda."""

import dataclasses
import importlib
import os
import pathlib

import mujoco

MODEL_NAME = "franka_emika_panda"
MODEL_FILES = ("panda.xml", "mjx_panda.xml")
ROOT_VARIABLE = "MENAGERIE_ROOT"
VISUAL_GROUP = 2
MESH_FIELDS = ("scale", "refpos", "refquat", "inertia", "maxhullvert", "smoothnormal")
GEOM_FIELDS = ("pos", "quat")
MATERIAL_FIELDS = ("rgba", "specular", "shininess", "reflectance", "emission")


class SkinNotFoundError(FileNotFoundError):
    """Say that no folder with the Menagerie's Panda was found."""


class SkinFormatError(ValueError):
    """Say that a folder holds no usable skin for the robot."""


@dataclasses.dataclass(frozen=True)
class Shell:
    """Hold one visual mesh of the source model and the body that wears it."""

    body: str
    geom: mujoco.MjsGeom
    mesh: mujoco.MjsMesh
    file: pathlib.Path

    @property
    def name(self) -> str:
        """Return the mesh's name in the skinned model."""
        return f"skin_{self.geom.meshname}"


def attach_skin(spec: mujoco.MjSpec, folder: pathlib.Path | None = None, prefix: str = "") -> int:
    """Replace the drawn primitives of the Panda in `spec` by the Menagerie's visual meshes.

    Only geoms without mass and contact change, so the physics stays bit for bit the same. The
    spec refers to the mesh files where they are; it is left untouched when an error is raised.

    Args:
        spec: a scene that contains the Panda; changed in place, before it is compiled.
        folder: the Menagerie's franka_emika_panda folder; None looks for one, see `find_skin`.
        prefix: what the scene put before the robot's body names when it attached the robot.

    Returns:
        The number of mesh geoms added.

    Raises:
        SkinNotFoundError: there is no such folder.
        SkinFormatError: the folder's model or meshes cannot be used, or do not fit the robot.
    """
    folder = find_skin(folder)
    source = _read_model(folder)
    shells = _visual_shells(source, folder)
    _require_readable(shells, folder)
    covered = _require_cover(spec, source, shells, prefix)
    for name in covered:
        for geom in [geom for geom in spec.body(name).geoms if _is_drawn(geom)]:
            spec.delete(geom)
    for shell in shells:
        _wear(spec, source, shell, prefix)
    return len(shells)


def find_skin(folder: pathlib.Path | None = None) -> pathlib.Path:
    """Return the folder with the Menagerie's Panda.

    Looks at `folder` alone when it is given (the model's folder, or a Menagerie checkout that
    contains it), else at the checkout named by MENAGERIE_ROOT if that is set, else in the cache
    of the `mujoco-menagerie` package. Nothing is downloaded.

    Raises:
        SkinNotFoundError: the place to look at holds no such model.
    """
    looked: list[str] = []
    root = os.environ.get(ROOT_VARIABLE)
    if folder is not None:
        candidates = [folder, folder / MODEL_NAME]
    elif root:
        candidates = [pathlib.Path(root) / MODEL_NAME]
    else:
        looked.append(f"{ROOT_VARIABLE} (not set)")
        cached, note = _cached_model()
        candidates = [cached] if cached else []
        looked += [note] if note else []
    for candidate in candidates:
        if any((candidate / name).is_file() for name in MODEL_FILES):
            return candidate.resolve()
        looked.append(str(candidate))
    raise SkinNotFoundError(
        f"no skin for the Panda: found neither {' nor '.join(MODEL_FILES)} in "
        f"{'; '.join(looked)}. Point {ROOT_VARIABLE} at a checkout of mujoco_menagerie, or run "
        f"`pip install mujoco-menagerie` and "
        f"`python -c \"import mujoco_menagerie as m; m.prefetch(['{MODEL_NAME}'])\"`"
    )


def _cached_model() -> tuple[pathlib.Path | None, str]:
    """Return the package's cached model, or None and why there is none."""
    try:
        menagerie = importlib.import_module("mujoco_menagerie")
    except ImportError:
        return None, "the mujoco-menagerie package (not installed)"
    cache = menagerie.Cache()
    robot = menagerie.get(MODEL_NAME)
    path = pathlib.Path(cache.model_path(robot))
    if cache.is_cached(robot):
        return path, ""
    return None, f"{path} (nothing downloaded yet)"


def _read_model(folder: pathlib.Path) -> mujoco.MjSpec:
    """Parse the folder's model.

    Raises:
        SkinFormatError: MuJoCo cannot parse it.
    """
    file = next(folder / name for name in MODEL_FILES if (folder / name).is_file())
    try:
        return mujoco.MjSpec.from_file(str(file))
    except (ValueError, mujoco.FatalError) as error:
        raise SkinFormatError(f"cannot read the skin's model {file}: {error}") from error


def _visual_shells(source: mujoco.MjSpec, folder: pathlib.Path) -> list[Shell]:
    """Return the visual meshes of `source`.

    Raises:
        SkinFormatError: there are none, or a mesh or its file is missing.
    """
    meshes = {mesh.name or pathlib.Path(mesh.file).stem: mesh for mesh in source.meshes}
    shells = []
    for geom in source.geoms:
        if geom.type != mujoco.mjtGeom.mjGEOM_MESH or geom.group != VISUAL_GROUP:
            continue
        mesh = meshes.get(geom.meshname)
        if mesh is None:
            raise SkinFormatError(f"the skin in {folder} names a mesh {geom.meshname} it lacks")
        file = folder / source.meshdir / mesh.file
        if not file.is_file():
            raise SkinFormatError(
                f"the skin in {folder} is incomplete: {file} is missing; restore the folder"
            )
        shells.append(Shell(geom.parent.name, geom, mesh, file))
    if not shells:
        raise SkinFormatError(f"the model in {folder} has no visual meshes in group {VISUAL_GROUP}")
    return shells


def _require_readable(shells: list[Shell], folder: pathlib.Path) -> None:
    """Compile the meshes alone, so that a bad file shows here and with its folder's name.

    Raises:
        SkinFormatError: MuJoCo cannot compile them.
    """
    probe = mujoco.MjSpec()
    for shell in shells:
        if probe.mesh(shell.name) is None:
            _add_mesh(probe, shell)
            probe.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=shell.name)
    try:
        probe.compile()
    except (ValueError, mujoco.FatalError) as error:
        raise SkinFormatError(
            f"a mesh of the skin in {folder} is damaged: {error}; restore the folder"
        ) from error


def _require_cover(
    spec: mujoco.MjSpec, source: mujoco.MjSpec, shells: list[Shell], prefix: str
) -> list[str]:
    """Return the bodies of `spec` that the shells cover.

    Raises:
        SkinFormatError: a shell has no body in `spec`, one of the robot's drawn bodies would get
            none, or `spec` wears a skin already.
    """
    covered = sorted({prefix + shell.body for shell in shells})
    missing = [name for name in covered if spec.body(name) is None]
    if missing:
        raise SkinFormatError(f"the scene lacks the skin's bodies {', '.join(missing)}")
    if any(spec.mesh(prefix + shell.name) is not None for shell in shells):
        raise SkinFormatError("the robot wears this skin already")
    robot = [spec.body(prefix + body.name) for body in source.bodies]
    drawn = {body.name for body in robot if body and any(map(_is_drawn, body.geoms))}
    bare = sorted(drawn - {*covered, "world"})
    if bare:
        raise SkinFormatError(f"the skin has no meshes for {', '.join(bare)}")
    return covered


def _is_drawn(geom: mujoco.MjsGeom) -> bool:
    """Tell whether a geom is there for the eye only."""
    return geom.group == VISUAL_GROUP and geom.contype == 0 and geom.conaffinity == 0


def _add_mesh(spec: mujoco.MjSpec, shell: Shell, prefix: str = "") -> None:
    """Add a shell's mesh asset, read from where its file is."""
    fields = {name: getattr(shell.mesh, name) for name in MESH_FIELDS}
    spec.add_mesh(name=prefix + shell.name, file=str(shell.file), **fields)


def _wear(spec: mujoco.MjSpec, source: mujoco.MjSpec, shell: Shell, prefix: str) -> None:
    """Add a shell to its body, with its mesh and material where they are not there yet."""
    if spec.mesh(prefix + shell.name) is None:
        _add_mesh(spec, shell, prefix)
    look: dict[str, object] = {"rgba": shell.geom.rgba}
    material = source.material(shell.geom.material) if shell.geom.material else None
    if material is not None:
        name = f"{prefix}skin_{material.name}"
        if spec.material(name) is None:
            fields = {field: getattr(material, field) for field in MATERIAL_FIELDS}
            spec.add_material(name=name, **fields)
        look["material"] = name
    look |= {name: getattr(shell.geom, name) for name in GEOM_FIELDS}
    spec.body(prefix + shell.body).add_geom(
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=prefix + shell.name,
        group=VISUAL_GROUP,
        contype=0,
        conaffinity=0,
        mass=0,
        **look,
    )
