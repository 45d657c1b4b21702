"""The objects of tasks/real2sim/objects: made by the script, small, graspable, exactly convex."""

import itertools
import pathlib
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from penspin_style.meshes.folder import read_object
from penspin_style.meshes.mesh import solid
from tasks.real2sim.shipped import HELD_OUT, OBJECTS, TRAINING

SCRIPT = pathlib.Path(__file__).parents[3] / "scripts" / "make_objects.py"
NAMES = (*TRAINING, *HELD_OUT)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_object_is_for_training_or_held_out() -> None:
    assert sorted(NAMES) == sorted(f.name for f in OBJECTS.iterdir() if f.is_dir())
    assert len(NAMES) == 10


def test_the_script_makes_the_bytes_that_are_shipped(tmp_path: pathlib.Path) -> None:
    for _ in range(2):  # the second time over the first
        assert _run(str(tmp_path)).returncode == 0
    made = {f.relative_to(tmp_path): f.read_bytes() for f in tmp_path.glob("*/*")}
    shipped = {f.relative_to(OBJECTS): f.read_bytes() for f in OBJECTS.glob("*/*")}
    assert made.keys() == shipped.keys()
    assert not [str(name) for name in made if made[name] != shipped[name]]


def test_the_script_refuses_names_that_it_does_not_know(tmp_path: pathlib.Path) -> None:
    done = _run(str(tmp_path), "teapot")
    assert done.returncode == 2
    assert "there is no object 'teapot'; there are box, cylinder" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_script_does_not_replace_what_is_no_object(tmp_path: pathlib.Path) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "letter.txt").write_text("mine")
    done = _run(str(tmp_path), "box")
    assert done.returncode == 2
    assert "make_objects: " in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "box" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("name", NAMES)
def test_an_object_is_small_graspable_and_light_on_disk(name: str) -> None:
    shown = read_object(OBJECTS / name)
    assert shown.name == name
    assert shown.licence == "Apache-2.0"
    assert 0.02 <= min(shown.size) <= 0.06  # the hand opens 8 cm
    assert max(shown.size) <= 0.075
    assert 0.02 < shown.mass < 0.1
    assert len(shown.collision) <= 8
    assert sum(f.stat().st_size for f in (OBJECTS / name).iterdir()) < 100_000


@pytest.mark.parametrize("name", NAMES)
def test_its_parts_are_convex_and_together_are_what_is_seen(name: str) -> None:
    shown = read_object(OBJECTS / name)
    for part in shown.collision_meshes:
        normals = np.cross(*(np.diff(part.triangles, axis=1).transpose(1, 0, 2)))
        offsets = part.vertices[None] - part.triangles[:, :1]
        heights = np.einsum("ijk,ik->ij", offsets, normals)
        heights /= np.linalg.norm(normals, axis=1)[:, None]
        assert heights.max() < 1e-6  # m above a face's plane
    total = sum(solid(part).volume for part in shown.collision_meshes)
    assert total == pytest.approx(solid(shown.visual_mesh).volume, rel=1e-4)
    assert total == pytest.approx(shown.volume, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_its_surface_is_closed(name: str) -> None:
    shown = read_object(OBJECTS / name)
    for mesh in (shown.visual_mesh, *shown.collision_meshes):
        edges = [
            edge for face in mesh.faces.tolist() for edge in itertools.pairwise([*face, face[0]])
        ]
        assert len(edges) == len(set(edges))
        assert {(b, a) for a, b in edges} == set(edges)
        assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices)


@pytest.mark.parametrize("name", NAMES)
def test_mujoco_finds_the_same_mass_and_inertia(name: str) -> None:
    shown = read_object(OBJECTS / name)
    spec = mujoco.MjSpec()
    mesh = spec.add_mesh(name="it", file=str(shown.visual))
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_EXACT
    body = spec.worldbody.add_body()
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="it", mass=shown.mass)
    model = spec.compile()
    np.testing.assert_allclose(model.body_ipos[1], 0, atol=1e-6)
    np.testing.assert_allclose(sorted(model.body_inertia[1]), sorted(shown.inertia), rtol=1e-4)
    # the axes of object.json are these moments' axes, whatever order MuJoCo keeps them in
    axes = np.zeros(9)
    mujoco.mju_quat2Mat(axes, model.body_iquat[1])
    axes = axes.reshape(3, 3)
    tensor = axes @ np.diag(model.body_inertia[1]) @ axes.T
    np.testing.assert_allclose(tensor, np.diag(shown.inertia), atol=0.005 * max(shown.inertia))
