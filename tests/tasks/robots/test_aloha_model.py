"""ALOHA in tasks/robots against a reference compiled from the published model."""

import json
import pathlib

import mujoco
import numpy as np
import pytest

from tasks.robots.aloha import description
from tasks.robots.aloha import model as aloha
from tasks.robots.aloha.keyframes import KEYFRAMES, add_keyframes

TABLE = json.loads(pathlib.Path(__file__).with_name("aloha_reference.json").read_text())
SCENES = {"pick": "pick", "insertion": "peg_insertion_pr76", "handover": "handover"}
STATES = [
    pytest.param(scene, row, id=f"{scene}-{row['keyframe']}")
    for scene, theirs in SCENES.items()
    for row in TABLE["reference"][theirs]
]
RENAMED = {
    "left/gripper_base geom": "left_palm",
    "right/gripper_base geom": "right_palm",
    "left/left_finger joint": "left_gripper",
    "right/left_finger joint": "right_gripper",
    "socket-B geom": "socket_bottom",
    "socket-T geom": "socket_top",
    "socket-L geom": "socket_right",
    "socket-R geom": "socket_left",
    "socket-W geom": "socket_back",
    "red_peg geom": "peg",
    "socket_grip_here site": "socket_grip",
    "peg_grip_here site": "peg_grip",
    "box_grip_here site": "box_grip",
    "box_end_2 site": "box_end",
}
GEOM_FIELDS = ("pos", "size", "contype", "conaffinity", "condim", "friction", "solref", "solimp")
GEOM_FIELDS += ("priority", "margin", "gap")
# The table keeps seven significant digits, of the inputs as well as of the results.
ROUNDING = {"rtol": 5.1e-7, "atol": 1e-12}
UNIT_ROUNDING = {"rtol": 0.0, "atol": 2e-7}
POSITION_ROUNDING = {"rtol": 0.0, "atol": 1e-7}
DYNAMICS_ROUNDING = {"rtol": 5.1e-7, "atol": 4e-6}


def ours(name, kind=""):
    """Our name of what the table calls `name`."""
    return RENAMED.get(f"{name} {kind}", name.replace("/", "_"))


def world(scene, *, sides=None, published_finger=True):
    spec = aloha.scene(
        sides or (("left",) if scene == "pick" else description.SIDES),
        published_finger=published_finger,
    )
    if scene == "pick":
        aloha.add_pick_box(spec)
    elif scene == "handover":
        aloha.add_handover_box(spec)
    elif scene == "insertion":
        aloha.add_socket(spec)
        aloha.add_peg(spec)
        aloha.exclude_other_hand(spec, "left", "peg")
        aloha.exclude_other_hand(spec, "right", "socket")
    return spec


def alike(label, measured, expected, rounding=ROUNDING):
    measured = np.atleast_1d(np.asarray(measured, float))
    np.testing.assert_allclose(measured, np.atleast_1d(expected), err_msg=label, **rounding)


def alike_quat(label, measured, expected):
    sign = -1.0 if np.dot(measured, expected) < 0 else 1.0
    alike(label, sign * np.asarray(measured), expected, UNIT_ROUNDING)


def kind_of(enum, number, prefix):
    return enum(int(number)).name.removeprefix(prefix).lower()


@pytest.fixture(scope="module")
def models():
    found = {}
    for scene in SCENES:
        spec = world(scene)
        add_keyframes(spec, scene)
        found[scene] = spec.compile()
    return found


@pytest.fixture(scope="module")
def model(models):
    return models["insertion"]


def check_bodies(model, rows):
    for row in rows:
        body = model.body(ours(row["name"]))
        assert model.body(body.parentid[0]).name == ours(row["parent"])
        for name in ("pos", "ipos", "mass"):
            if name != "pos" or row["parent"] != "world" or "base_link" in row["name"]:
                alike(f"{row['name']}.{name}", getattr(body, name), row[name])
        alike(f"{row['name']}.inertia", body.inertia, row["diaginertia"])
        alike(f"{row['name']}.subtree", body.subtreemass, row["subtree_mass"])
        alike_quat(f"{row['name']}.quat", body.quat, row["quat"])
        if np.ptp(row["diaginertia"]) > 1e-9:
            alike_quat(f"{row['name']}.iquat", body.iquat, row["iquat"])


def check_geoms(model, rows):
    for row in rows:
        geom = model.geom(ours(row["name"], "geom"))
        assert kind_of(mujoco.mjtGeom, geom.type[0], "mjGEOM_") == row["type"]
        assert model.body(geom.bodyid[0]).name == ours(row["body"])
        for name in GEOM_FIELDS:
            rounding = POSITION_ROUNDING if name in ("pos", "size") else ROUNDING
            alike(f"{row['name']}.{name}", getattr(geom, name), row[name], rounding)
        alike_quat(f"{row['name']}.quat", geom.quat, row["quat"])


def test_the_bodies_are_the_tables(model):
    check_bodies(model, TABLE["bodies"])
    assert len(TABLE["bodies"]) == 20
    arm = model.body("left_base_link").subtreemass[0]
    assert arm == pytest.approx(4.258505, abs=1e-6)


def test_the_joints_are_the_tables(model):
    for row in TABLE["joints"]:
        joint = model.joint(ours(row["name"], "joint"))
        assert model.body(joint.bodyid[0]).name == ours(row["body"])
        assert kind_of(mujoco.mjtJoint, joint.type[0], "mjJNT_") == row["type"]
        for name in ("axis", "pos", "limited", "range", "damping", "armature", "frictionloss"):
            alike(f"{row['name']}.{name}", getattr(joint, name), row[name])
        for name in ("stiffness", "qposadr", "dofadr", "qpos0"):
            alike(f"{row['name']}.{name}", getattr(joint, name), row[name])
        alike(f"{row['name']}.solref", joint.solref, row["solref_limit"])
        assert bool(model.jnt_actfrclimited[joint.id]) == row["actfrclimited"]
        alike(f"{row['name']}.force", model.jnt_actfrcrange[joint.id], row["actuatorfrcrange"])
    assert len(TABLE["joints"]) == 16


def test_the_actuators_are_the_tables(model):
    assert model.nu == len(TABLE["actuators"]) == 14
    for i, row in enumerate(TABLE["actuators"]):
        actuator = model.actuator(i)
        assert actuator.name == ours(row["name"])
        assert model.joint(actuator.trnid[0]).name == ours(row["joint"], "joint")
        alike("gain", actuator.gainprm[:3], [row["kp"], 0, 0])
        alike("bias", actuator.biasprm[:3], row["bias"])
        alike("range", actuator.ctrlrange, row["ctrlrange"])
        assert bool(actuator.ctrllimited[0]) == row["ctrllimited"]
        assert bool(actuator.forcelimited[0]) == row["forcelimited"]


def test_what_collides_is_the_tables(models):
    for scene in SCENES:
        check_geoms(models[scene], TABLE["scene"]["collision_geoms"])
    check_geoms(models["insertion"], TABLE["collision_geoms"])
    contact = [
        models["insertion"].geom(i).name
        for i in range(models["insertion"].ngeom)
        if models["insertion"].geom_contype[i] or models["insertion"].geom_conaffinity[i]
    ]
    table = [*TABLE["collision_geoms"], *TABLE["scene"]["collision_geoms"]]
    table += TABLE["objects"]["socket"]["collision_geoms"]
    table += TABLE["objects"]["peg"]["collision_geoms"]
    assert sorted(contact) == sorted(ours(row["name"], "geom") for row in table)


@pytest.mark.parametrize(
    ("scene", "thing"),
    [
        ("insertion", "socket"),
        ("insertion", "peg"),
        ("pick", "pick_box"),
        ("handover", "handover_box"),
    ],
)
def test_the_objects_are_the_tables(models, scene, thing):
    rows = TABLE["objects"][thing]
    check_bodies(models[scene], rows["bodies"])
    check_geoms(models[scene], rows["collision_geoms"])
    for row in rows["sites"]:
        site = models[scene].site(ours(row["name"], "site"))
        alike(row["name"], site.pos, row["pos"])


def test_sites_and_cameras_are_the_tables(model):
    for row in TABLE["sites"]:
        site = model.site(ours(row["name"]))
        assert model.body(site.bodyid[0]).name == ours(row["body"])
        alike(row["name"], site.pos, row["pos"])
        alike_quat(row["name"], site.quat, row["quat"])
    for row in TABLE["cameras"] + TABLE["scene"]["cameras"]:
        camera = model.camera(row["name"])
        assert model.body(camera.bodyid[0]).name == ours(row["body"])
        alike(row["name"], camera.pos, row["pos"])
        alike_quat(row["name"], camera.quat, row["quat"])
        alike(row["name"], camera.fovy, row["fovy_deg"])


def test_the_fingers_of_a_hand_move_together(model):
    assert model.neq == len(TABLE["equalities"])
    for i, row in enumerate(TABLE["equalities"]):
        assert model.joint(model.eq_obj1id[i]).name == ours(row["joint1"], "joint")
        assert model.joint(model.eq_obj2id[i]).name == ours(row["joint2"], "joint")
        alike("polynomial", model.eq_data[i, :5], row["polycoef"])
        alike("solref", model.eq_solref[i], row["solref"])


@pytest.mark.parametrize("scene", SCENES)
def test_sizes_options_and_excludes_are_the_tables(models, scene):
    model, row = models[scene], TABLE["scenes"][SCENES[scene]]
    for name in ("nq", "nv", "nu"):
        assert getattr(model, name) == row["sizes"][name], name
    assert model.nbody == row["sizes"]["nbody"] - row["sizes"]["nmocap"]  # the tasks add targets
    option = row["option"]
    assert mujoco.mjtIntegrator(model.opt.integrator).name == option["integrator"]
    assert mujoco.mjtSolver(model.opt.solver).name == option["solver"]
    assert mujoco.mjtCone(model.opt.cone).name == option["cone"]
    for name in ("timestep", "iterations", "ls_iterations", "impratio", "disableflags"):
        assert getattr(model.opt, name) == option[name], name
    pairs = {
        frozenset((model.body(int(code) >> 16).name, model.body(int(code) & 0xFFFF).name))
        for code in model.exclude_signature
    }
    assert pairs == {frozenset(map(ours, pair)) for pair in row["contact_excludes"]}


@pytest.mark.parametrize("scene", SCENES)
def test_keyframes_are_the_tables_with_grippers_in_their_range(models, scene):
    rows = TABLE["scenes"][SCENES[scene]]["keyframes"]
    assert [row["name"] for row in rows] == list(KEYFRAMES[scene])
    limits = models[scene].actuator_ctrlrange
    for row in rows:
        key = models[scene].key(row["name"])
        alike(row["name"], key.qpos, row["qpos"])
        alike(row["name"], key.ctrl, np.clip(row["ctrl"], *limits.T))


def state_of(model, keyframe):
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key(keyframe).id)
    mujoco.mj_forward(model, data)
    return data


@pytest.mark.parametrize(("scene", "row"), STATES)
def test_poses_masses_forces_and_contacts_match_at_every_keyframe(models, scene, row):
    model = models[scene]
    data = state_of(model, row["keyframe"])
    quat = np.empty(4)
    for name, pose in row["sites"].items():
        site = data.site(ours(name, "site"))
        mujoco.mju_mat2Quat(quat, site.xmat)
        alike(name, site.xpos, pose["pos"], POSITION_ROUNDING)
        alike_quat(name, quat, pose["quat"])
    for name, pose in row["bodies"].items():
        alike(name, data.body(ours(name)).xpos, pose["pos"], POSITION_ROUNDING)
        alike_quat(name, data.body(ours(name)).xquat, pose["quat"])
    for name, pose in row["cameras"].items():
        if name in ("wrist_cam_left", "wrist_cam_right", "overhead_cam"):
            alike(name, data.camera(name).xpos, pose["pos"], POSITION_ROUNDING)
    full = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, full)
    alike("mass matrix", full.diagonal(), row["mass_matrix_diag"], DYNAMICS_ROUNDING)
    alike("bias force", data.qfrc_bias, row["qfrc_bias"], DYNAMICS_ROUNDING)
    assert data.ncon == row["ncon"]


@pytest.mark.parametrize(
    ("part", "field", "at", "by"),
    [
        ("left_upper_forearm_link", "pos", 0, 1e-3),
        ("right_wrist_link", "pos", 2, 1e-3),
        ("left_gripper_link", "subtree", None, 1e-3),
    ],
)
def test_a_changed_body_is_noticed(part, field, at, by):
    spec = world("insertion")
    body = spec.body(part)
    if at is None:
        body.mass += by
    else:
        body.pos[at] += by
    with pytest.raises(AssertionError, match=field):
        check_bodies(spec.compile(), TABLE["bodies"])


# What upstream has otherwise.


def test_the_fingers_of_a_hand_mirror_each_other_unless_the_published_slip_is_asked_for():
    model = world("pick", published_finger=False).compile()
    published = world("pick").compile()
    for edge in ("top", "bottom"):
        left = model.geom(f"left_left_finger_{edge}")
        right = model.geom(f"left_right_finger_{edge}")
        np.testing.assert_allclose(left.pos * [1, -1, 1], right.pos, atol=1e-12)
        np.testing.assert_allclose(left.size, right.size, atol=1e-12)
        np.testing.assert_allclose(left.quat * [1, -1, 1, 1], right.quat, atol=1e-12)
    slipped = published.geom("left_right_finger_bottom")
    assert slipped.size[1] == pytest.approx(0.05288005, abs=1e-8)
    assert model.geom("left_right_finger_bottom").size[1] == pytest.approx(0.0340655, abs=1e-7)
    differ = np.flatnonzero((model.geom_pos != published.geom_pos).any(axis=1))
    assert [model.geom(int(i)).name for i in differ] == ["left_right_finger_bottom"]


# One arm and two.


def test_one_arm_moves_as_it_does_beside_the_other():
    states = []
    ctrl = np.array([0.3, -0.2, 1.2, 0.4, -0.5, 0.3, 0.01])
    for sides in (("left",), ("right",), description.SIDES):
        model = aloha.scene(sides).compile()
        data = mujoco.MjData(model)
        data.ctrl[:] = np.tile(ctrl, len(sides))
        mujoco.mj_step(model, data, 100)
        states.append((data.qpos.copy(), data.qvel.copy()))
        assert len(data.qpos) == 8 * len(sides)
    (left, right, both) = states
    for alone, together in zip(left, both, strict=True):
        np.testing.assert_allclose(together[:8], alone, rtol=0, atol=1e-10)
    for alone, together in zip(right, both, strict=True):
        np.testing.assert_allclose(together[8:], alone, rtol=0, atol=1e-10)
    # the same in their own bases: gravity is vertical and the bases are turned about it
    np.testing.assert_allclose(both[0][:8], both[0][8:], rtol=0, atol=1e-10)
    assert np.abs(both[0][:6]).max() > 0.3


def test_the_visuals_weigh_and_touch_nothing():
    spec = aloha.scene()
    visuals = [geom for geom in spec.geoms if geom.group == 2 and geom.name != "table"]
    assert len(visuals) > 100
    for geom in visuals:
        assert geom.contype == geom.conaffinity == 0
        if geom.parent.name != "world":
            assert geom.mass == 0


def test_nothing_of_an_arm_stands_before_its_wrist_camera():
    model = world("pick").compile()
    data = state_of_home(model)
    camera = data.camera("wrist_cam_left")
    ahead = -camera.xmat.reshape(3, 3)[:, 2]
    groups = np.array([1, 1, 1, 0, 0, 0], np.uint8)
    geom = np.zeros(1, np.int32)
    far = mujoco.mj_ray(model, data, camera.xpos, ahead, groups, 1, -1, geom)
    assert far > 0.1 and not model.geom(int(geom[0])).name.startswith("left_")


def state_of_home(model):
    data = mujoco.MjData(model)
    data.qpos[:8] = (*description.ARM_HOME, description.GRIPPER_OPEN)
    mujoco.mj_forward(model, data)
    return data


def test_the_fingertips_cross_below_3_7_mm():
    model = world("pick").compile()
    data = mujoco.MjData(model)
    for q in (0.0, 0.002, 0.02, 0.037):
        data.qpos[6:8] = q
        mujoco.mj_kinematics(model, data)
        tips = [data.site(f"left_{side}_fingertip").xpos for side in description.SIDES]
        assert np.linalg.norm(tips[0] - tips[1]) == pytest.approx(abs(2 * q - 0.0074), abs=1e-4)


# The description, which drivers read, says what the model does.


def test_the_description_is_the_models(model):
    driven = [model.joint(int(j)).name for j in model.actuator_trnid[:, 0]]
    assert driven == list(description.JOINTS)
    ranges = np.stack((description.LOWER, description.UPPER), axis=1)
    np.testing.assert_array_equal(model.actuator_ctrlrange, ranges)
    arms = [i for i in range(14) if i % 7 != 6]
    np.testing.assert_array_equal(model.jnt_range[model.actuator_trnid[arms, 0]], ranges[arms])
    assert model.joint("right_gripper").range[1] == description.FINGER_TRAVEL
    for side, (pos, yaw) in description.BASES.items():
        base = model.body(f"{side}_base_link")
        np.testing.assert_allclose(base.pos, pos, atol=1e-12)
        np.testing.assert_allclose(base.quat, [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)], atol=1e-12)


def test_joints_take_gains_from_the_model(model):
    joints = aloha.joints(model)
    assert [joint.name for joint in joints] == list(description.JOINTS)
    assert [joint.stiffness for joint in joints[7:]] == [43, 265, 227, 78, 37, 10.4, 365]
    assert joints[6].unit == "m" and joints[1].unit == "rad"
    assert joints[9].default == 1.5
    one = aloha.joints(world("pick").compile(), description.ARM_HOME)
    assert [joint.name for joint in one] == list(description.JOINTS[:7])


def test_actions_move_targets_by_a_scale_and_grippers_by_their_own():
    assert [a.scale for a in description.actions()] == [0.02] * 14
    one = description.actions(("right",), scale=0.01, gripper_scale=0.001)
    assert [a.scale for a in one] == [0.01] * 6 + [0.001]
    assert one[6].name == "right_gripper" and one[6].unit == "m" and one[6].low == 0.002
    raised = description.actions(lower={"left_gripper": 0.01})
    assert (raised[6].low, raised[13].low) == (0.01, 0.002)
    with pytest.raises(ValueError, match=r"no channels \['left_claw'\]"):
        description.actions(lower={"left_claw": 0.01})


def test_grippers_are_normalized_and_back():
    rows = np.array([*description.LOWER[:13], 0.0195])
    found = description.normalize(rows)
    np.testing.assert_allclose(found[[6, 13]], [0.0, 0.5])
    np.testing.assert_array_equal(found[:6], rows[:6])
    np.testing.assert_allclose(description.denormalize(found), rows, atol=1e-15)
    assert description.normalize(np.zeros((3, 7))).shape == (3, 7)
    assert description.gripper_position(1.0) == description.GRIPPER_OPEN
    with pytest.raises(ValueError, match=r"must be \(..., 7\) or \(..., 14\), got \(8,\)"):
        description.normalize(np.zeros(8))


def test_warp_accepts_the_model(model):
    warp = pytest.importorskip("warp")
    mujoco_warp = pytest.importorskip("mujoco_warp")
    with warp.ScopedDevice("cpu"):
        on_device = mujoco_warp.put_model(model)
    np.testing.assert_allclose(on_device.body_mass.numpy()[0], model.body_mass, rtol=1e-6)
