"""Scenes of a Panda, a table and objects: they load in plain MuJoCo, and nothing moves in them."""

import dataclasses
import json
import math
import shutil

import mujoco
import numpy as np
import pytest

from penspin_style.meshes.folder import read_object
from tasks.real2sim import scene as scenes
from tasks.real2sim.poses import Pose, PosesError, poses_text, read_camera, read_poses
from tasks.real2sim.scene import SceneError, find_objects, write_scene
from tasks.real2sim.shipped import OBJECTS
from tasks.robots.panda.description import HOME


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A scene of every object that is shipped."""
    file = tmp_path_factory.mktemp("scenes") / "all" / "scene.xml"
    return write_scene(file, find_objects(OBJECTS)[0])


def _load(file, key=scenes.HOME_KEY):
    model = mujoco.MjModel.from_xml_path(str(file))
    data = mujoco.MjData(model)
    if key:
        mujoco.mj_resetDataKeyframe(model, data, model.key(key).id)
    mujoco.mj_forward(model, data)
    return model, data


def _copy(tmp_path, *names):
    for name in names:
        shutil.copytree(OBJECTS / name, tmp_path / "objects" / name)
    return tmp_path / "objects"


def _objects(*names):
    return [read_object(OBJECTS / name) for name in names]


@pytest.mark.parametrize("key", [scenes.HOME_KEY, None])
def test_nothing_moves_in_two_seconds_from_the_keyframe_or_from_where_a_viewer_begins(written, key):
    model, data = _load(written.file, key)
    before = {name: data.body(name).xpos.copy() for name in written.poses}
    turned = {name: data.body(name).xquat.copy() for name in written.poses}
    arm = data.qpos[: len(HOME)].copy()
    while data.time < 2.0:
        mujoco.mj_step(model, data)
    for name in written.poses:
        assert math.dist(data.body(name).xpos, before[name]) < 0.001, name
        turn = np.zeros(3)
        mujoco.mju_subQuat(turn, data.body(name).xquat, turned[name])
        assert np.linalg.norm(turn) < math.radians(1.0), name
    assert not data.warning.number.any()
    if key:
        np.testing.assert_allclose(arm, HOME, atol=1e-5)
        np.testing.assert_allclose(data.qpos[: len(HOME)], HOME, atol=0.001)


def test_no_object_is_deeper_in_anything_than_a_fifth_of_a_millimetre(written):
    model, data = _load(written.file)
    touching = {model.body(int(model.geom_bodyid[g])).name for c in data.contact for g in c.geom}
    assert touching == {"world", *written.poses}  # each on the table, none on the arm
    assert min(c.dist for c in data.contact) > -0.0002
    pairs = {tuple(model.geom(int(g)).name.split("_hull")[0] for g in c.geom) for c in data.contact}
    assert all("table" in pair for pair in pairs)


def test_objects_keep_the_mass_and_inertia_of_their_folders(written):
    model, _ = _load(written.file)
    for name in written.poses:
        item = read_object(OBJECTS / name)
        body = model.body(name)
        assert body.mass[0] == pytest.approx(item.mass, rel=1e-5)
        np.testing.assert_allclose(body.ipos, 0, atol=1e-9)
        axes = np.zeros(9)
        mujoco.mju_quat2Mat(axes, body.iquat)
        turned = axes.reshape(3, 3) @ np.diag(body.inertia) @ axes.reshape(3, 3).T
        np.testing.assert_allclose(turned, np.diag(item.inertia), atol=1e-5 * max(item.inertia))


def test_a_mesh_lies_where_its_file_says_although_mujoco_centres_it(written):
    model, data = _load(written.file)
    item = read_object(OBJECTS / "mug")
    geom = model.geom("mug_visual")
    mesh = int(geom.dataid[0])
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[first : first + count]
    here = data.geom("mug_visual").xpos + vertices @ data.geom("mug_visual").xmat.reshape(3, 3).T
    body = data.body("mug")
    wanted = body.xpos + item.visual_mesh.vertices @ body.xmat.reshape(3, 3).T
    np.testing.assert_allclose(np.sort(here, axis=0), np.sort(wanted, axis=0), atol=1e-5)


def test_the_folder_is_whole_in_itself_and_loads_elsewhere(written, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(written.file.parent, moved)
    model, _ = _load(moved / "scene.xml")
    assert model.nbody == 12 + len(written.poses)
    assert str(OBJECTS) not in (moved / "scene.xml").read_text()
    read = read_poses(moved)
    assert read.keys() == written.poses.keys()
    for name, pose in written.poses.items():
        assert read[name].position == pytest.approx(pose.position, abs=1e-9)


def test_the_poses_of_a_scene_make_it_again(written, tmp_path):
    again = write_scene(tmp_path / "s" / "scene.xml", find_objects(OBJECTS)[0], written.poses)
    for name, pose in written.poses.items():
        assert math.dist(again.poses[name].position, pose.position) < 0.001, name


def test_a_pose_in_the_table_is_lifted_out_and_one_far_in_it_is_refused(tmp_path):
    file = tmp_path / "s" / "scene.xml"
    shallow = write_scene(file, _objects("box"), {"box": Pose((0.5, 0.1, 0.012))})
    assert shallow.poses["box"].position == pytest.approx((0.5, 0.1, 0.015), abs=0.0005)
    with pytest.raises(SceneError, match=r"box overlaps with table by 1[0-9]\.\d mm; correct its"):
        write_scene(file, _objects("box"), {"box": Pose((0.5, 0.1, 0.0))})
    assert file.exists()  # the scene before is as it was


def test_objects_in_each_other_or_in_the_arm_are_refused(tmp_path):
    file = tmp_path / "s" / "scene.xml"
    stacked = {"box": Pose((0.5, 0.1, 0.015)), "cylinder": Pose((0.51, 0.1, 0.03))}
    with pytest.raises(SceneError, match=r"(box|cylinder) overlaps with (box|cylinder) by"):
        write_scene(file, _objects("box", "cylinder"), stacked)
    spec = scenes.build([], {}, tmp_path).compile()
    data = mujoco.MjData(spec)
    mujoco.mj_resetDataKeyframe(spec, data, 0)
    mujoco.mj_forward(spec, data)
    hand = tuple(data.body("hand").xpos.tolist())
    with pytest.raises(SceneError, match="box overlaps with hand by"):
        write_scene(file, _objects("box"), {"box": Pose(hand)})
    assert not file.parent.exists() and not list(tmp_path.glob(".*"))


def test_an_object_beside_the_table_is_refused(tmp_path):
    with pytest.raises(SceneError, match="box fell off the table"):
        write_scene(tmp_path / "s" / "a.xml", _objects("box"), {"box": Pose((1.2, 0.0, 0.1))})


def test_a_pose_of_no_object_is_refused_and_objects_without_one_are_left_out(tmp_path):
    file = tmp_path / "s" / "a.xml"
    with pytest.raises(SceneError, match="a pose of 'teapot', but no such object; there are box"):
        write_scene(file, _objects("box"), {"teapot": Pose((0.5, 0.0, 0.1))})
    some = write_scene(file, _objects("box", "bowl"), {"bowl": Pose((0.5, 0.0, 0.02))})
    assert list(some.poses) == ["bowl"]


def test_a_bottle_that_lies_still_lies_and_one_in_the_air_says_how_far_it_fell(tmp_path):
    lying = Pose((0.5, 0.0, 0.1), (math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0))
    fell = write_scene(tmp_path / "s" / "a.xml", _objects("bottle"), {"bottle": lying})
    assert fell.poses["bottle"].position[2] == pytest.approx(0.0165, abs=0.0015)
    assert fell.moved["bottle"] > 0.08


def test_more_objects_than_the_table_holds_are_refused(tmp_path):
    item = read_object(OBJECTS / "box")
    many = [dataclasses.replace(item, name=f"box{index}") for index in range(60)]
    with pytest.raises(SceneError, match=r"60 objects do not fit on 0\.4 x 0\.7 m of table"):
        write_scene(tmp_path / "s" / "a.xml", many)


@pytest.mark.parametrize("name", ["hand", "joint1", "world"])
def test_an_object_with_the_name_of_a_part_of_the_robot_is_refused(tmp_path, name):
    box = dataclasses.replace(read_object(OBJECTS / "box"), name=name)
    with pytest.raises(SceneError, match=f"a part of the robot is called {name}, too"):
        write_scene(tmp_path / "s" / "a.xml", [box])
    assert not list(tmp_path.iterdir())


def test_meshes_that_mujoco_refuses_are_no_scene(tmp_path):
    flat = read_object(OBJECTS / "box")
    thin = dataclasses.replace(flat.visual_mesh, vertices=flat.visual_mesh.vertices * [1, 1, 0])
    flat = dataclasses.replace(flat, collision_meshes=(thin,))
    with pytest.raises(SceneError, match="MuJoCo takes these objects for no model: "):
        write_scene(tmp_path / "s" / "a.xml", [flat])


def test_rows_are_filled_evenly_in_the_middle_of_the_table():
    poses = scenes.place(_objects("box", "cylinder", "egg"))
    ys = [pose.position[1] for pose in poses.values()]
    assert sorted(ys) == ys
    assert abs(np.mean([min(ys), max(ys)])) < 0.01
    assert {round(pose.position[0], 3) for pose in poses.values()} == {0.5}


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which is no part of a scene"):
        write_scene(tmp_path / "scene.xml", _objects("box"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_assets_of_something_else_are_not_replaced(tmp_path):
    (assets := tmp_path / "assets").mkdir()
    (assets / "mine.obj").write_text("v 0 0 0")
    with pytest.raises(
        FileExistsError, match=r"holds assets, which is no part of a scene scene\.xml"
    ):
        write_scene(tmp_path / "scene.xml", _objects("box"))
    assert (assets / "mine.obj").exists()
    written = write_scene(tmp_path / "s" / "scene.xml", _objects("box"))
    (written.file.parent / "assets" / "wood.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds assets/wood\.png, which is no part"):
        write_scene(written.file, _objects("box"))
    assert (written.file.parent / "assets" / "wood.png").exists()


def test_a_row_that_is_full_is_not_overfilled():
    box = read_object(OBJECTS / "box")  # 4 cm along y, 7 with its gap
    for count in range(1, 51):  # five rows of ten fit
        poses = scenes.place([dataclasses.replace(box, name=f"box{i}") for i in range(count)])
        assert max(abs(pose.position[1]) for pose in poses.values()) <= 0.33


def test_folders_without_objects_and_objects_of_one_name_are_named(tmp_path):
    with pytest.raises(SceneError, match="there is no such folder"):
        find_objects(tmp_path / "none")
    with pytest.raises(SceneError, match="holds no object"):
        find_objects(tmp_path)
    folder = _copy(tmp_path, "box", "bowl")
    (folder / "scans").mkdir()
    objects, left = find_objects(folder)
    assert [item.name for item in objects] == ["bowl", "box"] and left == ["scans"]
    assert [item.name for item in find_objects(folder / "box")[0]] == ["box"]
    shutil.copytree(folder / "box", folder / "crate")
    with pytest.raises(SceneError, match="two objects have the name box"):
        find_objects(folder)


# Poses.


def _write(folder, name, value):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def _one(**changes):
    pose = {"object": "box", "position": [0.5, 0, 0.1], "quaternion": [1, 0, 0, 0], **changes}
    return {"format": 1, "frame": "base", "poses": [pose]}


def test_poses_in_a_cameras_frame_are_taken_to_the_base(tmp_path):
    # a camera 1 m above (0.5, 0, 0) that looks down: its x along the base's x, its y to the right
    _write(
        tmp_path, "camera.json", {"format": 1, "position": [0.5, 0, 1], "quaternion": [0, 1, 0, 0]}
    )
    _write(tmp_path, "poses.json", _one(position=[0.1, 0.2, 0.95]) | {"frame": "camera"})
    box = read_poses(tmp_path)["box"]
    assert box.position == pytest.approx((0.6, -0.2, 0.05))
    assert box.quaternion == pytest.approx((0, 1, 0, 0))
    assert read_camera(tmp_path).position == (0.5, 0.0, 1.0)
    (tmp_path / "camera.json").unlink()
    with pytest.raises(PosesError, match=r"camera\.json: there is no such file"):
        read_poses(tmp_path)


def test_poses_survive_being_written(tmp_path):
    poses = {"box": Pose((0.5, -0.1, 0.2), (0.6, 0.0, 0.8, 0.0)), "egg": Pose((0.1, 0.2, 0.3))}
    assert read_poses(_write(tmp_path, "poses.json", poses_text(poses))) == poses
    assert read_poses(tmp_path / "poses.json") == poses


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{", "poses.json: "),
        ("[]", "must hold a JSON object with the keys format, frame, poses"),
        ({**_one(), "extra": 1}, "must hold a JSON object with the keys"),
        ({**_one(), "format": 2}, "format 2 is not 1"),
        ({**_one(), "format": True}, "format True is not 1"),
        ({**_one(), "frame": "world"}, "frame must be base or camera, not 'world'"),
        ({**_one(), "poses": []}, "a list of at least one pose"),
        ({**_one(), "poses": [7]}, r"poses\[0\] must have the keys object, position and quat"),
        (_one(object=3), r"poses\[0\]\.object must be an object's name, not 3"),
        (_one(position=[1, 2]), r"position must be a list of 3 finite numbers"),
        (_one(position=[1, 2, "x"]), r"position must be a list of 3 finite numbers"),
        (_one(position=[500, 0, 15]), "is more than 10 m away; is it in metres"),
        (_one(position=[10**400, 0, 0]), "position must be a list of 3 finite numbers"),
        (_one(quaternion=[0, 0, 0, 0]), "quaternion must have length 1, w first; it has 0"),
        (_one(quaternion=[1, 0, 0]), "quaternion must be a list of 4 finite numbers"),
        ({**_one(), "poses": _one()["poses"] * 2}, "box has a pose already"),
        ('{"format": 1, "frame": "base", "poses": NaN}', "NaN"),
    ],
)
def test_poses_that_cannot_be_used_are_named(tmp_path, value, says):
    with pytest.raises(PosesError, match=says) as caught:
        read_poses(_write(tmp_path, "poses.json", value))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
