"""The Panda in tasks/robots against a reference compiled from the published model."""

import json
import pathlib

import mujoco
import numpy as np
import pytest

from tasks.robots.panda import description

HERE = pathlib.Path(__file__).parent
PANDA = HERE.parents[2] / "tasks" / "robots" / "panda" / "panda.xml"
TABLE = json.loads((HERE / "panda_reference.json").read_text())
SURROUNDINGS = {"single_cube": "scene_state", "single_cube_camera": "scene_vision"}
STATES = [
    pytest.param(scene, row["keyframe"], id=row["keyframe"])
    for scene, rows in TABLE["reference"].items()
    for row in rows
]
BODIES = [row["name"] for row in TABLE["bodies"]]
GEOM_FIELDS = ["pos", "size", "group", "contype", "conaffinity", "condim", "friction"]
GEOM_FIELDS += ["solref", "solimp", "priority", "margin", "gap"]

# The table keeps seven significant digits, of the inputs as well as of the results.
ROUNDING = {"rtol": 5.1e-7, "atol": 1e-12}
UNIT_ROUNDING = {"rtol": 0.0, "atol": 2e-7}
POSITION_ROUNDING = {"rtol": 0.0, "atol": 1e-7}
DYNAMICS_ROUNDING = {"rtol": 5.1e-7, "atol": 5e-9}

MUTATIONS = {
    "link3.mass": lambda spec: setattr(spec.body("link3"), "mass", 3.2287),
    "link5.inertia": lambda spec: spec.body("link5").inertia.__setitem__(2, 0.00804),
    "joint4.range": lambda spec: spec.joint("joint4").range.__setitem__(0, -3.07),
    "joint6.damping": lambda spec: spec.joint("joint6").damping.__setitem__(0, 2.1),
    "actuator2.gainprm": lambda spec: spec.actuator("actuator2").gainprm.__setitem__(0, 999),
    "actuator7.joint": lambda spec: setattr(spec.actuator("actuator7"), "target", "joint6"),
    "hand_capsule.size": lambda spec: spec.geom("hand_capsule").size.__setitem__(0, 0.041),
    "left_finger_pad.conaffinity": lambda spec: setattr(
        spec.geom("left_finger_pad"), "conaffinity", 1
    ),
    "gripper.pos": lambda spec: spec.site("gripper").pos.__setitem__(2, 0.101),
    "excludes": lambda spec: spec.delete(spec.excludes[0]),
    "equalities": lambda spec: spec.delete(spec.equalities[0]),
}


def panda_spec():
    return mujoco.MjSpec.from_file(str(PANDA))


def without_visuals(spec):
    for geom in list(spec.geoms):
        if geom.group == 2:
            spec.delete(geom)
    return spec


def add_geom(body, row):
    kind = getattr(mujoco.mjtGeom, f"mjGEOM_{row['type'].upper()}")
    fields = {name: row[name] for name in GEOM_FIELDS}
    return body.add_geom(name=row["name"], type=kind, quat=row["quat"], mass=0, **fields)


def scene_spec(scene, robot=None):
    """The reference scene around `robot`: floor, box, camera, target and keyframes."""
    spec = panda_spec() if robot is None else robot
    surroundings = TABLE[SURROUNDINGS[scene]]
    for row in surroundings["collision_geoms"]:
        add_geom(spec.worldbody, row)
    for row in surroundings["cameras"]:
        spec.worldbody.add_camera(
            name=row["name"], pos=row["pos"], quat=row["quat"], fovy=row["fovy_deg"]
        )
    (row,) = TABLE["objects"]["box"]["bodies"]
    box = spec.worldbody.add_body(name="box", pos=row["pos"], quat=row["quat"])
    box.mass, box.ipos, box.inertia = row["mass"], row["ipos"], row["diaginertia"]
    box.explicitinertial = True
    box.add_freejoint()
    add_geom(box, TABLE["objects"]["box"]["collision_geoms"][0])
    spec.worldbody.add_body(name="mocap_target", mocap=True)
    for row in TABLE["scenes"][scene]["keyframes"]:
        spec.add_key(name=row["name"], qpos=row["qpos"], ctrl=row["ctrl"])
    return spec


def unlike(label, measured, expected, rounding):
    measured = np.atleast_1d(np.asarray(measured, dtype=float))
    expected = np.atleast_1d(np.asarray(expected, dtype=float))
    same = measured.shape == expected.shape and np.allclose(measured, expected, **rounding)
    return [] if same else [label]


def unlike_quat(label, measured, expected):
    sign = -1.0 if np.dot(measured, expected) < 0 else 1.0
    return unlike(label, sign * np.asarray(measured), expected, UNIT_ROUNDING)


def unlike_fields(name, measured, expected):
    """Labels of the fields of `measured` that differ from the pair in `expected`."""
    found = []
    for field, value in measured.items():
        label = f"{name}.{field}"
        if isinstance(value, str):
            found += [] if value == expected[field] else [label]
        elif field in ("quat", "iquat"):
            found += unlike_quat(label, value, expected[field])
        else:
            found += unlike(label, value, expected[field], ROUNDING)
    return found


def body_differences(model):
    found = []
    for row in TABLE["bodies"]:
        body = model.body(row["name"])
        measured = {key: getattr(body, key) for key in ("pos", "quat", "ipos", "iquat", "mass")}
        measured["parent"] = model.body(body.parentid[0]).name
        measured["inertia"] = body.inertia
        measured["subtreemass"] = body.subtreemass
        expected = row | {"inertia": row["diaginertia"], "subtreemass": row["subtree_mass"]}
        found += unlike_fields(row["name"], measured, expected)
    return found


def joint_differences(model):
    found = []
    for row in TABLE["joints"]:
        joint = model.joint(row["name"])
        views = "axis pos limited range damping armature frictionloss stiffness qposadr dofadr"
        measured = {key: getattr(joint, key) for key in [*views.split(), "qpos0"]}
        measured["type"] = mujoco.mjtJoint(int(joint.type[0])).name.removeprefix("mjJNT_").lower()
        measured["body"] = model.body(joint.bodyid[0]).name
        measured["actfrclimited"] = model.jnt_actfrclimited[joint.id]
        measured["actuatorfrcrange"] = model.jnt_actfrcrange[joint.id]
        measured["solref_limit"] = joint.solref
        measured["solimp_limit"] = joint.solimp
        found += unlike_fields(row["name"], measured, row)
    return found


def actuator_differences(model):
    found = []
    for row in TABLE["actuators"]:
        actuator = model.actuator(row["name"])
        views = ("ctrllimited", "ctrlrange", "forcelimited", "forcerange", "gear", "gainprm")
        measured = {key: getattr(actuator, key) for key in views}
        measured["joint"] = model.joint(actuator.trnid[0]).name
        measured["biasprm"] = actuator.biasprm
        expected = row | {
            "gear": [row["gear"], 0, 0, 0, 0, 0],
            "gainprm": [row["kp"], *[0] * 9],
            "biasprm": [*row["bias"], *[0] * 7],
        }
        found += unlike_fields(row["name"], measured, expected)
    return found


def geom_differences(model):
    found = []
    for row in TABLE["collision_geoms"]:
        geom = model.geom(row["name"])
        measured = {key: getattr(geom, key) for key in [*GEOM_FIELDS, "quat"]}
        measured["type"] = mujoco.mjtGeom(int(geom.type[0])).name.removeprefix("mjGEOM_").lower()
        measured["body"] = model.body(geom.bodyid[0]).name
        found += unlike_fields(row["name"], measured, row)
    robot = [model.body(name).id for name in BODIES]
    contact = (model.geom_contype > 0) | (model.geom_conaffinity > 0)
    colliding = np.flatnonzero(np.isin(model.geom_bodyid, robot) & contact)
    names = sorted(model.geom(index).name for index in colliding)
    expected = sorted(row["name"] for row in TABLE["collision_geoms"])
    return found + ([] if names == expected else ["colliding geoms"])


def bond_differences(model):
    """Differences of the site, the contact exclusions and the finger equality."""
    found = []
    for row in TABLE["sites"]:
        site = model.site(row["name"])
        measured = {"pos": site.pos, "quat": site.quat, "group": model.site_group[site.id]}
        measured["body"] = model.body(site.bodyid[0]).name
        found += unlike_fields(row["name"], measured, row)
    excludes = [
        [model.body(int(code) >> 16).name, model.body(int(code) & 0xFFFF).name]
        for code in model.exclude_signature
    ]
    found += [] if excludes == TABLE["contact_excludes"] else ["excludes"]
    if model.neq != len(TABLE["equalities"]):
        return [*found, "equalities"]
    for index, row in enumerate(TABLE["equalities"]):
        measured = {
            "joint1": model.joint(model.eq_obj1id[index]).name,
            "joint2": model.joint(model.eq_obj2id[index]).name,
            "polycoef": model.eq_data[index, :5],
            "solref": model.eq_solref[index],
            "solimp": model.eq_solimp[index],
        }
        found += unlike_fields("equality", measured, row)
    return found


def model_differences(model):
    return [
        *body_differences(model),
        *joint_differences(model),
        *actuator_differences(model),
        *geom_differences(model),
        *bond_differences(model),
    ]


def forward(model, keyframe):
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key(keyframe).id)
    mujoco.mj_forward(model, data)
    return data


def mass_matrix_diagonal(model, data):
    full = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, full)
    return np.diag(full).copy()


def state_differences(model, scene, keyframe):
    (row,) = [row for row in TABLE["reference"][scene] if row["keyframe"] == keyframe]
    data = forward(model, keyframe)
    found = []
    for name, pose in row["sites"].items():
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, data.site(name).xmat)
        found += unlike(f"site {name}.pos", data.site(name).xpos, pose["pos"], POSITION_ROUNDING)
        found += unlike_quat(f"site {name}.quat", quat, pose["quat"])
    for name, pose in row["bodies"].items():
        found += unlike(f"body {name}.pos", data.body(name).xpos, pose["pos"], POSITION_ROUNDING)
        found += unlike_quat(f"body {name}.quat", data.body(name).xquat, pose["quat"])
    for name, pose in row["cameras"].items():
        found += unlike(f"cam {name}.pos", data.camera(name).xpos, pose["pos"], POSITION_ROUNDING)
    diagonal = mass_matrix_diagonal(model, data)
    found += unlike("mass matrix", diagonal, row["mass_matrix_diag"], DYNAMICS_ROUNDING)
    found += unlike("bias force", data.qfrc_bias, row["qfrc_bias"], DYNAMICS_ROUNDING)
    return found + ([] if data.ncon == row["ncon"] else ["ncon"])


@pytest.fixture(scope="module")
def models():
    return {scene: scene_spec(scene).compile() for scene in SURROUNDINGS}


def test_every_value_of_the_table_equals_the_compiled_model():
    assert model_differences(panda_spec().compile()) == []
    assert len(BODIES) == 11
    assert len(TABLE["joints"]) == 9
    assert len(TABLE["actuators"]) == 8


@pytest.mark.parametrize("scene", SURROUNDINGS)
def test_sizes_and_options_match_the_reference_scene(models, scene):
    model = models[scene]
    sizes = TABLE["scenes"][scene]["sizes"]
    option = TABLE["scenes"][scene]["option"]
    for name in ("nq", "nv", "nu", "nbody", "nmocap", "ncam"):
        assert getattr(model, name) == sizes[name], name
    assert mujoco.mjtIntegrator(model.opt.integrator).name == option["integrator"]
    assert mujoco.mjtSolver(model.opt.solver).name == option["solver"]
    assert mujoco.mjtCone(model.opt.cone).name == option["cone"]
    for name in ("timestep", "iterations", "ls_iterations", "impratio", "disableflags"):
        assert getattr(model.opt, name) == option[name], name
    assert model.opt.tolerance == option["tolerance"]
    np.testing.assert_array_equal(model.opt.gravity, option["gravity"])


@pytest.mark.parametrize(("scene", "keyframe"), STATES)
def test_poses_masses_and_forces_match_the_reference_at_every_keyframe(models, scene, keyframe):
    assert state_differences(models[scene], scene, keyframe) == []


def test_the_reference_covers_all_five_keyframes():
    names = [state.values[1] for state in STATES]
    assert names == ["home", "pickup", "pickup1", "low_home", "picked"]
    for rows in TABLE["reference"].values():
        for row in rows:
            assert len(row["mass_matrix_diag"]) == len(row["qfrc_bias"]) == 15
            assert "gripper" in row["sites"]


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_body_moved_by_a_millimetre_is_reported(name, axis):
    robot = panda_spec()
    robot.body(name).pos[axis] += 1e-3
    model = scene_spec("single_cube", robot).compile()
    assert model_differences(model) == [f"{name}.pos"]
    assert state_differences(model, "single_cube", "home") != []


@pytest.mark.parametrize("label", MUTATIONS)
def test_a_changed_value_is_reported_by_its_name(label):
    robot = panda_spec()
    MUTATIONS[label](robot)
    assert label in model_differences(robot.compile())


@pytest.mark.parametrize(
    ("label", "quantity"), [("link3.mass", "bias force"), ("link5.inertia", "mass matrix")]
)
def test_a_changed_inertia_shows_in_the_dynamics(label, quantity):
    robot = panda_spec()
    MUTATIONS[label](robot)
    model = scene_spec("single_cube", robot).compile()
    assert quantity in state_differences(model, "single_cube", "pickup")


def test_visuals_number_at_most_forty_two_and_cannot_touch():
    spec = panda_spec()
    visuals = [geom for geom in spec.geoms if geom.group == 2]
    assert 0 < len(visuals) <= 42
    assert {geom.parent.name for geom in visuals} == set(BODIES)
    for geom in visuals:
        assert geom.contype == geom.conaffinity == 0
        assert geom.mass == 0
        assert geom.material.startswith("panda_")
    assert sum(geom.group == 3 for geom in spec.geoms) == 3
    assert {int(geom.group) for geom in spec.geoms} == {2, 3}


@pytest.mark.parametrize("keyframe", ["home", "pickup"])
def test_removing_the_visuals_leaves_the_motion_bit_identical(models, keyframe):
    full = models["single_cube"]
    bare = scene_spec("single_cube", without_visuals(panda_spec())).compile()
    assert full.ngeom - bare.ngeom > 30
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat", "dof_invweight0"):
        np.testing.assert_array_equal(getattr(full, name), getattr(bare, name), err_msg=name)
    states = []
    for model in (full, bare):
        data = forward(model, keyframe)
        data.ctrl[:] = data.ctrl + 0.01
        start = data.qpos.copy()
        mujoco.mj_step(model, data)
        assert np.abs(data.qpos - start).max() > 0
        first = data.qpos.copy()
        mujoco.mj_step(model, data, 40)
        states.append(np.concatenate([first, data.qpos, data.qvel]))
    np.testing.assert_array_equal(states[0], states[1])


def test_the_fingers_hold_the_box_and_nothing_else_of_the_arm_collides(models):
    model = models["single_cube_camera"]
    data = forward(model, "picked")
    mujoco.mj_step(model, data, 100)
    pads = {model.geom("left_finger_pad").id, model.geom("right_finger_pad").id}
    touching = {int(geom) for pair in data.contact.geom for geom in pair}
    assert touching == pads | {model.geom("box").id}
    offset = data.body("box").xpos - data.site("gripper").xpos
    assert np.linalg.norm(offset) < 5e-3
    assert data.body("box").xpos[2] > 0.06


def test_attached_to_a_scene_the_robot_keeps_its_dynamics():
    scene = mujoco.MjSpec()
    # Attaching keeps the parent's options and warns where the child's differ.
    for name in ("timestep", "integrator", "iterations", "ls_iterations", "disableflags"):
        setattr(scene.option, name, getattr(panda_spec().option, name))
    frame = scene.worldbody.add_frame(pos=[0.0, 0.0, 0.0])
    scene.attach(panda_spec(), prefix="arm/", frame=frame)
    attached = scene.compile()
    alone = panda_spec().compile()
    assert attached.body("arm/hand").mass[0] == 0.73
    for name in ("body_mass", "body_inertia", "body_pos", "dof_damping", "actuator_gainprm"):
        np.testing.assert_array_equal(getattr(attached, name), getattr(alone, name), err_msg=name)
    for name in ("geom_conaffinity", "jnt_range", "eq_data", "exclude_signature"):
        np.testing.assert_array_equal(getattr(attached, name), getattr(alone, name), err_msg=name)


def test_warp_accepts_the_model():
    warp = pytest.importorskip("warp")
    mujoco_warp = pytest.importorskip("mujoco_warp")
    model = panda_spec().compile()
    with warp.ScopedDevice("cpu"):
        on_device = mujoco_warp.put_model(model)
    np.testing.assert_allclose(on_device.body_mass.numpy()[0], model.body_mass, rtol=1e-6)


# The description, which drivers read, says what the model does.


def test_the_description_is_the_models():
    model = panda_spec().compile()
    driven = [model.joint(int(j)).name for j in model.actuator_trnid[:, 0]]
    assert driven == list(description.JOINTS) and description.JOINTS[:7] == description.ARM
    assert driven[7] == description.FINGER and model.nu == 8
    ranges = np.stack((description.LOWER, description.UPPER), axis=1)
    np.testing.assert_array_equal([model.joint(name).range for name in driven], ranges)
    np.testing.assert_array_equal(model.actuator_ctrlrange, ranges)


def test_the_tool_is_3_4_mm_behind_the_makers_end_effector():
    model = panda_spec().compile()
    np.testing.assert_array_equal(model.site(description.TCP).pos, [0, 0, description.TCP_DISTANCE])
    assert model.body(int(model.site(description.TCP).bodyid[0])).name == "hand"
    assert description.TOOL == -0.0034


def test_at_home_the_open_hand_points_down_in_the_middle_of_its_workspace():
    model = panda_spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:8], data.qpos[8] = description.HOME, description.FINGER_OPEN
    mujoco.mj_kinematics(model, data)
    tool = data.site(description.TCP)
    low, high = np.transpose(description.WORKSPACE)
    assert (low < tool.xpos).all() and (tool.xpos < high).all()
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, tool.xmat)
    # the angle between the two, which q and -q leave as it is
    assert 2 * np.arccos(min(1.0, abs(quat @ description.DOWN))) < 0.01
    pads = [data.geom(f"{side}_finger_pad").xpos for side in ("left", "right")]
    gap = np.abs(pads[0] - pads[1])
    assert gap.argmax() == 1  # along the world's y
