"""Objects as folders: what is written is read back, and nothing else is believed."""

import json

import numpy as np
import pytest

from penspin_style.meshes.folder import ObjectError, read_object, write_object
from penspin_style.meshes.mesh import Mesh, principal_frame, solid
from tests.support.shapes import box

SIZE = (0.04, 0.03, 0.05)
MASS = 0.06
INERTIA = tuple(MASS * (sum(s * s for s in SIZE) - s * s) / 12.0 for s in SIZE)


def write(path, **changes):
    facts = {"name": "box", "licence": "CC0-1.0", "source": "made here", "mass": MASS}
    facts |= {"inertia": INERTIA, "volume": 6e-5, "visual": box(SIZE)}
    return write_object(path, **{**facts, "collision": [box(SIZE)], **changes})


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path / "box", others={"report.json": b"{}"})
    found = read_object(tmp_path / "box")
    assert (found.name, found.licence, found.source) == ("box", "CC0-1.0", "made here")
    assert found.mass == MASS
    np.testing.assert_allclose(found.inertia, INERTIA, rtol=1e-12)
    np.testing.assert_allclose(found.size, SIZE, rtol=1e-9)
    assert found.visual == tmp_path / "box" / "visual.obj"
    assert [path.name for path in found.collision] == ["hull_00.obj"]
    assert solid(found.visual_mesh).volume == pytest.approx(6e-5, rel=1e-9)
    names = ["hull_00.obj", "object.json", "report.json", "visual.obj"]
    assert sorted(path.name for path in (tmp_path / "box").iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def test_a_folder_that_is_there_is_replaced_only_if_asked_and_an_object(tmp_path):
    write(tmp_path / "box")
    with pytest.raises(FileExistsError):
        write(tmp_path / "box", mass=0.05)
    write(tmp_path / "box", mass=0.061, replace=True)
    assert read_object(tmp_path / "box").mass == 0.061
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="holds no object"):
        write(tmp_path / "mine", replace=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mass": 0.0}, "mass must be above 0"),
        ({"mass": float("nan")}, "no finite number"),
        ({"name": "../box"}, "the name '../box'"),
        ({"licence": " "}, "licence must be a text"),
        ({"inertia": (1e-5, 1e-5, 3e-5)}, "one exceeds the others' sum"),
        ({"inertia": tuple(1000.0 * x for x in INERTIA)}, "is the mesh in metres"),
        ({"volume": 1e-3}, "more than its box has"),
        ({"collision": []}, "list of 1 to 64 files"),
        ({"collision": [Mesh(box(SIZE).vertices + 1.0, box(SIZE).faces)]}, "share one frame"),
        ({"collision": [Mesh(box(SIZE).vertices, box(SIZE).faces[:, ::-1])]}, "turned inwards"),
    ],
)
def test_values_that_are_no_object_are_refused_and_leave_nothing(tmp_path, changes, complaint):
    with pytest.raises(ObjectError, match=complaint):
        write(tmp_path / "box", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ({"format": 2}, "format 2 is not 1"),
        ({"visual": "../visual.obj"}, "not the name of an .obj file in the folder"),
        ({"visual": "gone.obj"}, "No such file"),
        ({"size": [0.04, 0.03, 0.06]}, "but visual.obj has"),
        ({"inertia": [1e-5, 1e-5]}, "list of 3 numbers"),
        ({"colour": "red"}, "the key 'colour' is unknown"),
        ({"mass": None}, "the key 'mass' is missing"),
        ({"mass": True}, "mass must be above 0"),
    ],
)
def test_an_edited_folder_is_refused_with_the_key(tmp_path, edit, complaint):
    write(tmp_path / "box")
    path = tmp_path / "box" / "object.json"
    facts = json.loads(path.read_text()) | edit
    path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
    with pytest.raises(ObjectError, match=complaint):
        read_object(tmp_path / "box")


def test_a_mesh_cut_short_is_refused(tmp_path):
    write(tmp_path / "box")
    path = tmp_path / "box" / "hull_00.obj"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[3:]))
    with pytest.raises(ObjectError, match=r"hull_00\.obj: a face names vertex 8"):
        read_object(tmp_path / "box")


def test_mass_properties_are_those_of_a_box_wherever_it_is():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    moved = Mesh(box(SIZE).vertices @ turn.T + (3.0, -2.0, 1.0), box(SIZE).faces)
    body = solid(moved)
    assert body.volume == pytest.approx(6e-5, rel=1e-9)
    np.testing.assert_allclose(body.centre, (3.0, -2.0, 1.0), atol=1e-12)
    frame = principal_frame(body)
    np.testing.assert_allclose(np.sort(frame.moments) * 1000.0, np.sort(INERTIA), rtol=1e-9)
    assert np.linalg.det(frame.rotation) == pytest.approx(1.0)
    back = solid(moved.moved(frame.rotation, frame.offset))
    np.testing.assert_allclose(back.inertia, np.diag(frame.moments), atol=1e-12)


def test_axes_that_are_free_stay_where_the_mesh_has_them():
    for size in ((0.05, 0.05, 0.05), (0.05, 0.05, 0.1), (0.1, 0.05, 0.05)):
        rough = box(size).vertices * (1.0 + 1e-6 * np.random.default_rng(1).normal(size=(8, 3)))
        frame = principal_frame(solid(Mesh(rough, box(size).faces)))
        np.testing.assert_allclose(frame.rotation, np.eye(3), atol=1e-5)
