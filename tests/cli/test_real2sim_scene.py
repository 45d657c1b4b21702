"""`penspin real2sim scene` on the command line."""

import json
import shutil

import mujoco
import pytest

from penspin_style.__main__ import main
from tasks.real2sim.poses import read_poses
from tasks.real2sim.shipped import OBJECTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of two objects in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("mug", "box"):
        shutil.copytree(OBJECTS / name, tmp_path / "mine" / name)
    return tmp_path / "mine"


def test_a_scene_goes_to_outputs_unless_it_is_told_where(folder, capsys):
    assert main(["real2sim", "scene", "mine"]) == 0
    said = capsys.readouterr()
    assert "python -m mujoco.viewer --mjcf=outputs/scenes/mine/scene.xml" in said.out
    assert said.err == ""
    assert mujoco.MjModel.from_xml_path("outputs/scenes/mine/scene.xml").nkey == 1
    assert main(["real2sim", "scene", "mine", "--out", "a/b/c.xml"]) == 0
    assert mujoco.MjModel.from_xml_path("a/b/c.xml").body("mug").id > 0


def test_json_says_where_objects_rest_and_how_much_they_move(folder, capsys):
    (folder / "scans").mkdir()
    assert main(["real2sim", "scene", "mine", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == "penspin: left out, no objects: scans\n"
    found = json.loads(said.out)
    assert found["scene"] == "outputs/scenes/mine/scene.xml"
    assert list(found["objects"]) == ["box", "mug"]
    assert found["objects"]["box"]["position"][2] == pytest.approx(0.015, abs=1e-4)
    assert found["objects"]["mug"]["drift"] < 0.001


def test_poses_are_read_from_a_scene(folder, capsys):
    assert main(["real2sim", "scene", "mine"]) == 0
    poses = "outputs/scenes/mine/poses.json"
    assert main(["real2sim", "scene", "mine", "--poses", poses, "--out", "x/s.xml"]) == 0
    first, second = read_poses(poses), read_poses("x/poses.json")
    assert list(first) == list(second) == ["box", "mug"]
    for name, pose in first.items():
        assert second[name].position == pytest.approx(pose.position, abs=5e-4)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], 3, "nowhere: there is no such folder"),
        (["mine", "--poses", "p.json"], 3, "p.json: there is no such file"),
        (["mine", "--out", "scene.txt"], 2, "--out scene.txt: the file must end in .xml"),
        (["mine", "--out", "scene.xml"], 2, "holds mine, which is no part of a scene"),
    ],
)
def test_what_makes_no_scene_is_said_in_one_line(folder, capsys, words, code, says):
    assert main(["real2sim", "scene", *words]) == code
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and says in said.err
    assert sorted(f.name for f in folder.parent.iterdir()) == ["mine"]


def test_a_damaged_object_is_data_that_cannot_be_trusted(folder, capsys):
    (folder / "mug" / "hull_03.obj").write_text("v 0 0 0\n")
    assert main(["real2sim", "scene", "mine"]) == 3
    assert "mine/mug is no object: hull_03.obj" in capsys.readouterr().err
