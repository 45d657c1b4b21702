"""The Allegro hand in tasks/robots against published numbers and hand sums."""

import itertools
import re

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.sim.sim import make_sim
from tasks.robots.allegro import description
from tasks.robots.allegro import model as allegro
from tests.support.allegro_hand import (
    HORA_LOWER,
    HORA_UPPER,
    assert_rounded,
    assert_same_turn,
    colliding,
    grasp,
    random_joints,
)

# name: pos, quat, mass, ipos, iquat, diaginertia; seven digits. The three fingers are alike but
# for where they start.
BASE = (
    *(0.007232016, (-0.0007781272, -1.028674e-05, 0.008282493)),
    (0.6841326, 0.6859359, -0.1753746, 0.175209),
    (7.653767e-07, 6.888429e-07, 3.550457e-07),
)
FINGER = {
    "proximal": (
        *((0, 0, 0.0164), (1, 0, 0, 0), 0.02727612, (2.752331e-08, -9.059554e-05, 0.02699977)),
        (1.0, -3.062309e-06, -2.892041e-07, 5.68994e-06),
        (1.186236e-05, 1.127681e-05, 2.265869e-06),
    ),
    "medial": (
        *((0, 0, 0.054), (1, 0, 0, 0), 0.01846375, (-0.0001928816, -7.790416e-05, 0.02258601)),
        (0.999903, -0.0002870054, 0.01392348, 0.0001700846),
        (4.287327e-06, 3.635642e-06, 1.67367e-06),
    ),
    "distal": (
        *((0, 0, 0.0384), (1, 0, 0, 0), 0.007512312, (-0.0005208061, -3.324991e-06, 0.00725129)),
        (0.6877524, 0.6877181, 0.1644522, -0.1643043),
        (7.963795e-07, 7.281658e-07, 3.777521e-07),
    ),
    "tip": (
        *((0, 0, 0), (1, 0, 0, 0), 0.006844521, (7.276306e-12, -1.156028e-07, 0.02540276)),
        (1.0, -4.876283e-05, 0.0, 0.0),
        (4.558231e-07, 4.558136e-07, 4.495588e-07),
    ),
}
BODIES = {
    "ff_base": ((0, 0.0435, -0.001542), (0.9990482, -0.04361941, 0, 0), *BASE),
    "mf_base": ((0, 0, 0.0007), (1, 0, 0, 0), *BASE),
    "rf_base": ((0, -0.0435, -0.001542), (0.9990482, 0.04361941, 0, 0), *BASE),
    **{f"{f}_{part}": row for f in ("ff", "mf", "rf") for part, row in FINGER.items()},
    "th_base": (
        *((-0.0182, 0.019333, -0.045987), (0.4777141, -0.5213341, -0.5213341, -0.4777141)),
        *(0.03825814, (-0.01791513, 0.00802441, 0.01231414)),
        (0.7009027, 0.0591414, -0.06316528, 0.7079885),
        (1.075321e-05, 9.165586e-06, 7.109078e-06),
    ),
    "th_proximal": (
        *((-0.027, 0.005, 0.0399), (1, 0, 0, 0)),
        *(0.007219312, (-0.0007820269, -1.024942e-05, 0.008104545)),
        (0.6839185, 0.6857196, -0.1762166, 0.1760452),
        (7.637486e-07, 6.873999e-07, 3.539315e-07),
    ),
    "th_medial": (
        *((0, 0, 0.0177), (1, 0, 0, 0), 0.02249647, (-0.0001643363, 1.714816e-05, 0.02111192)),
        (0.9999598, 3.035102e-05, -0.00896424, 0.0001131817),
        (7.527637e-06, 6.583326e-06, 2.141064e-06),
    ),
    "th_distal": (
        *((0, 0, 0.0514), (1, 0, 0, 0), 0.0163345, (0.0, 3.677057e-06, 0.01307503)),
        (0.9999981, 0.001945439, 0.0, 0.0),
        (2.913777e-06, 2.590203e-06, 1.356517e-06),
    ),
    "th_tip": (
        *((0, 0, 0), (1, 0, 0, 0), 0.006844521, (7.276311e-12, -1.156028e-07, 0.04100276)),
        (1.0, -4.876283e-05, 0.0, 0.0),
        (4.558231e-07, 4.558136e-07, 4.495588e-07),
    ),
}
PALM = (
    *(0.3513565, (-0.008985615, -0.003957097, -0.04026927)),
    (0.4717978, 0.8816922, 0.003048069, -0.004061147),
    (0.0004476967, 0.0003006711, 0.0002435452),
)
BOXES = {  # pos and half sizes
    "palm": ((-0.0093, 0, -0.0475), (0.0204, 0.0565, 0.0475)),
    **{f"{f}_base": ((0, 0, 0.0082), (0.0098, 0.01375, 0.0082)) for f in ("ff", "mf", "rf")},
    **{f"{f}_proximal": ((0, 0, 0.027), (0.0098, 0.01375, 0.027)) for f in ("ff", "mf", "rf")},
    **{f"{f}_medial": ((0, 0, 0.0192), (0.0098, 0.01375, 0.0192)) for f in ("ff", "mf", "rf")},
    **{f"{f}_distal": ((0, 0, 0.008), (0.0098, 0.01375, 0.008)) for f in ("ff", "mf", "rf")},
    "th_base": ((-0.0179, 0.009, 0.0145), (0.0179, 0.017, 0.02275)),
    "th_proximal": ((0, 0, 0.00885), (0.0098, 0.01375, 0.00885)),
    "th_medial": ((0, 0, 0.0257), (0.0098, 0.01375, 0.0257)),
    "th_distal": ((0, 0, 0.0157), (0.0098, 0.01375, 0.0157)),
}
# The published model at zero, its palm in the origin with this attitude.
REFERENCE_PALM = (0.0, 0.7071068, 0.0, 0.7071068)
REFERENCE_POSES = {
    "ff_base": ((-0.001542, -0.0435, 0), (0.03084358, 0.7064338, -0.03084358, 0.7064338)),
    "ff_tip": ((0.106844, -0.05298255, 0), (0.03084358, 0.7064338, -0.03084358, 0.7064338)),
    "mf_tip": ((0.1095, 0, 0), (0, 0.7071068, 0, 0.7071068)),
    "rf_tip": ((0.106844, 0.05298255, 0), (-0.03084358, 0.7064338, 0.03084358, 0.7064338)),
    "th_base": ((-0.045987, -0.019333, -0.0182), (0.7064338, 0.7064338, -0.030844, -0.030844)),
    "th_tip": ((-0.08238436, -0.125565, -0.0132), (0.7064338, 0.7064338, -0.030844, -0.030844)),
}
REFERENCE_INERTIA = (
    *(5.847176e-06, 0.0003135152, 5.740939e-05, 5.647383e-06) * 3,
    *(0.0005838422, 4.65909e-06, 0.0001460003, 1.734568e-05),
)
REFERENCE_BIAS = (
    *(3.933478e-05, 0.03635026, 0.01173932, 0.002240052) * 3,
    *(0.05502574, -9.165172e-05, 0.0, 0.0),
)
EXCLUDES = [("palm", f"{f}_base") for f in allegro.FINGERS] + [("palm", "th_proximal")]


# --- frames, masses, limits ---


@pytest.mark.parametrize("name", BODIES)
def test_a_body_has_the_published_frame_and_inertia(model, name):
    pos, quat, mass, ipos, iquat, inertia = BODIES[name]
    body = model.body(name)
    assert_rounded(body.pos, pos)
    assert_same_turn(body.quat, np.array(quat), "quat")
    assert body.mass[0] == pytest.approx(mass, rel=5.1e-7)
    assert_rounded(body.ipos, ipos)
    assert_same_turn(body.iquat, np.array(iquat), "iquat")
    assert_rounded(body.inertia, inertia)
    assert model.body_gravcomp[body.id] == 1


def test_the_palm_lies_face_up_at_half_a_metre_with_its_fingers_to_minus_y(model, data):
    mass, ipos, _, inertia = PALM
    palm = model.body("palm")
    assert palm.mass[0] == pytest.approx(mass, rel=5.1e-7)
    assert_rounded(palm.ipos, ipos)
    assert_rounded(palm.inertia, inertia)
    mujoco.mj_kinematics(model, data)
    np.testing.assert_array_equal(data.body("palm").xpos, [0, 0, 0.5])
    turn = data.body("palm").xmat.reshape(3, 3)
    np.testing.assert_allclose(turn[:, 0], [0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(turn[:, 1], [-1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(turn[:, 2], [0, -1, 0], atol=1e-15)


def test_at_zero_poses_inertia_and_weight_equal_the_published_models(model):
    spec = allegro.scene()
    spec.body("palm").pos, spec.body("palm").quat = [0, 0, 0], REFERENCE_PALM
    alone = spec.compile()
    data = mujoco.MjData(alone)
    mujoco.mj_forward(alone, data)
    for name, (pos, quat) in REFERENCE_POSES.items():
        np.testing.assert_allclose(data.body(name).xpos, pos, rtol=0, atol=1e-7, err_msg=name)
        assert_same_turn(data.body(name).xquat, np.array(quat), name)
    full = np.zeros((16, 16))
    mujoco.mj_fullM(alone, data, full)
    armature = 0.001  # the published model has none
    np.testing.assert_allclose(np.diag(full) - armature, REFERENCE_INERTIA, rtol=5.1e-7, atol=5e-9)
    np.testing.assert_allclose(data.qfrc_bias, REFERENCE_BIAS, rtol=5.1e-7, atol=5e-9)


def test_the_hand_feels_no_gravity_and_the_pen_does(model, data):
    data.qpos[:16] = random_joints(np.random.default_rng(0), 1)[0]
    data.qpos[18] = 2.0
    mujoco.mj_forward(model, data)
    assert np.abs(data.qfrc_bias[:16]).max() > 0.01
    np.testing.assert_allclose(data.qfrc_gravcomp[:16], data.qfrc_bias[:16], atol=1e-12)
    np.testing.assert_allclose(data.qacc[16:19], [0, 0, -9.81], atol=1e-9)


def test_joints_carry_penspins_limits_armature_and_friction(model):
    np.testing.assert_array_equal(allegro.to_hora(np.array(description.LOWER)), HORA_LOWER)
    np.testing.assert_array_equal(allegro.to_hora(np.array(description.UPPER)), HORA_UPPER)
    for i, name in enumerate(allegro.JOINTS):
        joint = model.joint(name)
        assert (joint.id, joint.qposadr[0], joint.dofadr[0]) == (i, i, i)
        assert tuple(joint.range) == (description.LOWER[i], description.UPPER[i])
        assert joint.limited
        assert (joint.armature, joint.frictionloss, joint.damping) == (0.001, 0.01, 0)
        axis = [[0, 0, 1], *[[0, 1, 0]] * 3] * 3 + [[-1, 0, 0], [0, 0, 1], *[[0, 1, 0]] * 2]
        np.testing.assert_array_equal(joint.axis, axis[i])


# --- motors ---


def test_a_motor_pulls_by_hookes_law_less_damping_up_to_its_limit(model, data):
    assert [model.actuator(i).name for i in range(model.nu)] == list(allegro.JOINTS)
    assert [model.joint(j).name for j in model.actuator_trnid[:, 0]] == list(allegro.JOINTS)
    data.qpos[18] = 2.0
    data.qpos[:16], data.qvel[:16], data.ctrl[:16] = 0.4, 0.5, 0.6
    data.ctrl[3], data.ctrl[4], data.qvel[7] = 0.7, -1.0, -10.0
    mujoco.mj_forward(model, data)
    # 3 (0.6 - 0.4) - 0.1 * 0.5; 3 (0.7 - 0.4) - 0.05 = 0.85; 3 (-1.4) - 0.05; 0.6 + 0.1 * 10
    expected = np.full(16, 0.55)
    expected[3], expected[4], expected[7] = 0.7, -0.7, 0.7
    np.testing.assert_allclose(data.actuator_force, expected, atol=1e-12)
    np.testing.assert_allclose(data.qfrc_actuator[:16], expected, atol=1e-12)


def test_a_target_outside_the_limits_is_not_clipped(model, data):
    np.testing.assert_array_equal(
        model.actuator_ctrlrange, np.stack((description.LOWER, description.UPPER), axis=1)
    )
    data.qpos[18] = 2.0
    data.qpos[:16] = description.UPPER
    data.ctrl[:] = np.array(description.UPPER) + 0.02  # noise on the target of a joint at its stop
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.actuator_force, 3 * 0.02, atol=1e-12)


def test_the_constants_are_the_models(model):
    assert (model.actuator_gainprm[:, 0] == description.KP).all()
    assert (model.actuator_biasprm[:, 1:3] == [-description.KP, -description.KD]).all()
    limit = description.TORQUE_LIMIT
    assert (model.actuator_forcerange == [-limit, limit]).all()


# --- orders ---


def test_orders_move_whole_fingers_and_keep_the_joints_inside_them():
    mujoco_order = [f"{finger}{i}" for finger in ("ff", "mf", "rf", "th") for i in range(4)]
    hora = [f"{finger}{i}" for finger in ("ff", "th", "mf", "rf") for i in range(4)]
    assert allegro.to_hora(np.array(mujoco_order)).tolist() == hora
    assert allegro.from_hora(np.array(hora)).tolist() == mujoco_order


@pytest.mark.parametrize("shape", [(16,), (5, 16), (16, 16), (2, 3, 16)])
def test_orders_permute_the_joints_and_never_the_batch(shape):
    size = int(np.prod(shape))
    x = torch.arange(size).reshape(shape)
    expected = torch.stack([x[..., i] for i in (0, 1, 2, 3, *range(12, 16), *range(4, 12))], dim=-1)
    assert torch.equal(allegro.to_hora(x), expected)
    assert torch.equal(allegro.from_hora(allegro.to_hora(x)), x)
    assert torch.equal(allegro.to_hora(allegro.from_hora(x)), x)
    np.testing.assert_array_equal(allegro.to_hora(x.numpy()), expected.numpy())


@pytest.mark.parametrize("shape", [(), (15,), (16, 4), (16, 32)])
def test_another_number_of_joints_is_refused(shape):
    for convert in (allegro.to_hora, allegro.from_hora):
        with pytest.raises(ValueError, match="last axis"):
            convert(torch.zeros(shape))
        with pytest.raises(ValueError, match="last axis"):
            convert(np.zeros(shape))


# --- contact ---


def test_the_links_are_the_published_boxes_and_the_tips_are_spheres(model):
    names = {f"hand_{body}" for body in (*BOXES, *allegro.TIPS)}
    assert sorted(colliding(model)) == sorted(names)
    for body, (pos, size) in BOXES.items():
        geom = model.geom(f"hand_{body}")
        assert geom.type == mujoco.mjtGeom.mjGEOM_BOX
        assert model.body(geom.bodyid[0]).name == body
        np.testing.assert_allclose(geom.pos, pos, atol=1e-12)
        np.testing.assert_allclose(geom.size, size, atol=1e-12)
    for tip, height in zip(allegro.TIPS, (0.0267, 0.0267, 0.0267, 0.0423), strict=True):
        geom = model.geom(f"hand_{tip}")
        assert geom.type == mujoco.mjtGeom.mjGEOM_SPHERE
        assert model.body(geom.bodyid[0]).name == tip
        assert geom.size[0] == 0.012
        for place in (geom, model.site(tip)):
            np.testing.assert_allclose(place.pos, [0, 0, height], atol=1e-12)
    for name in names:
        geom = model.geom(name)
        assert (geom.condim[0], *geom.friction) == (3, 1, 0.005, 0.0001)


def test_one_expression_names_the_geoms_that_collide_and_no_shell(model):
    hand = [
        i for i in range(model.ngeom) if model.body(model.geom_bodyid[i]).name in ["palm", *BODIES]
    ]
    for i in hand:
        geom = model.geom(i)
        assert geom.name
        collides = bool(geom.contype[0] | geom.conaffinity[0])
        assert bool(re.fullmatch("hand_.*", geom.name)) == collides
        assert bool(re.fullmatch("shell_.*", geom.name)) != collides
        assert geom.group[0] == (3 if collides else 2)


def test_the_pen_meets_every_geom_of_the_hand_and_the_hand_only_its_ends(model):
    def meet(one, other):
        a, b = model.geom(one), model.geom(other)
        return bool(a.contype[0] & b.conaffinity[0] or b.contype[0] & a.conaffinity[0])

    hand = colliding(model)
    assert len(hand) == 21
    assert all(meet("pen", name) for name in hand)
    ends = [f"hand_{f}_{part}" for f in allegro.FINGERS for part in ("distal", "tip")]
    pairs = {p for p in itertools.combinations(ends, 2) if p[0][:7] != p[1][:7]}
    assert len(pairs) == 24
    found = {frozenset(p) for p in itertools.combinations(hand, 2) if meet(*p)}
    assert found == {frozenset(pair) for pair in pairs}
    for one, other in EXCLUDES:  # what the published model rules out by name
        assert not meet(f"hand_{one}", f"hand_{other}")


def test_wherever_the_fingers_go_only_different_ones_touch(model, data):
    data.qpos[18] = 2.0
    pairs = set()
    for joints in random_joints(np.random.default_rng(1), 400):
        data.qpos[:16] = joints
        mujoco.mj_fwdPosition(model, data)
        names = [[model.geom(int(i)).name for i in pair] for pair in data.contact.geom]
        pairs |= {frozenset(name[5:7] for name in pair) for pair in names}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(allegro.FINGERS, 2)}


# --- the pen ---


def test_the_pen_is_a_solid_cylinder_with_the_given_mass(model):
    pen = model.body("pen")
    geom = model.geom("pen")
    assert pen.mass[0] == 0.015
    # m r^2 / 2, and m (3 r^2 + l^2) / 12 with l = 136 mm
    along, across = 0.015 * 0.0114**2 / 2, 0.015 * (3 * 0.0114**2 + 0.136**2) / 12
    np.testing.assert_allclose(pen.inertia, [across, across, along], rtol=1e-12)
    np.testing.assert_array_equal(pen.iquat, [1, 0, 0, 0])
    assert geom.type == mujoco.mjtGeom.mjGEOM_CYLINDER
    np.testing.assert_array_equal(geom.size[:2], [0.0114, 0.068])
    assert model.joint("pen").type == mujoco.mjtJoint.mjJNT_FREE
    assert model.geom("pen_band").contype == model.geom("pen_band").conaffinity == 0


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_the_pens_centre_of_mass_may_differ_between_environments(model, engine):
    assert model.body_simple[model.body("pen").id] == 0
    sim = make_sim(model, 2, engine=engine, per_env=("body_ipos",))
    pen = model.body("pen").id
    sim.params.body_ipos[1, pen] += 0.001
    moved = sim.params.body_ipos[1, pen] - sim.params.body_ipos[0, pen]
    np.testing.assert_allclose(moved.numpy(), 0.001, atol=1e-9)


# --- the scene ---


def test_hand_and_pen_stand_in_the_images(model, data):
    grasp(model, data, "thumb | index + middle + ring")
    shown = [
        data.body("pen").xpos + data.body("pen").xmat.reshape(3, 3) @ [0, 0, s * 0.068]
        for s in (-1, 1)
    ]
    shown += [data.site(tip).xpos for tip in allegro.TIPS] + [data.body("palm").xpos]
    for name in ("view", "top"):
        camera = data.camera(name)
        half = np.tan(np.radians(model.camera(name).fovy[0]) / 2)
        for point in shown:
            x, y, z = camera.xmat.reshape(3, 3).T @ (point - camera.xpos)
            assert z < 0
            assert max(abs(x), abs(y)) / -z < 0.95 * half
