"""The Allegro hand in PenSpin's grasps, where its fingertips are and what they feel."""

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.sim.sim import make_sim
from tasks.robots.allegro import model as allegro
from tasks.robots.allegro.description import LOWER, UPPER
from tests.support.allegro_hand import AWAY, GRASPS, PEN_RADIUS, grasp, random_joints, tip_gaps

# --- PenSpin's grasps: attitude, order and limits at once ---


@pytest.mark.parametrize("name", GRASPS)
def test_a_published_grasp_brings_the_tips_to_the_pen(model, data, name):
    grasp(model, data, name)
    near = np.array([True, True, name not in AWAY, True])
    gaps = tip_gaps(model, data)
    assert (np.abs(gaps[near]) < 0.005).all(), gaps
    assert (gaps[~near] > 0.02).all(), gaps
    assert (np.array(LOWER) <= data.qpos[:16]).all()
    assert (data.qpos[:16] <= np.array(UPPER)).all()


@pytest.mark.parametrize("name", GRASPS)
def test_in_a_published_grasp_the_hand_does_not_touch_itself(model, data, name):
    grasp(model, data, name)
    pen = model.geom("pen").id
    assert all(pen in pair for pair in data.contact.geom)


def test_without_the_change_of_order_the_tips_miss_the_pen(model, data):
    for name, (hora, _) in GRASPS.items():
        grasp(model, data, name, joints=hora)
        assert (np.abs(tip_gaps(model, data)) > 0.01).sum() >= 2, name


# --- fingertips ---


def test_fingertips_from_joints_equal_the_engines(model, data):
    joints = random_joints(np.random.default_rng(2), 200)
    expected = np.empty((200, 4, 3))
    for i, row in enumerate(joints):
        data.qpos[:16] = row
        mujoco.mj_kinematics(model, data)
        expected[i] = [data.site(tip).xpos for tip in allegro.TIPS]
    double = torch.from_numpy(joints)
    np.testing.assert_allclose(allegro.fingertips(double).numpy(), expected, atol=1e-12)
    single = allegro.fingertips(double.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, atol=1e-6)
    batched = allegro.fingertips(double.reshape(10, 20, 16))
    assert torch.equal(batched, allegro.fingertips(double).reshape(10, 20, 4, 3))
    assert torch.allclose(allegro.fingertips(double[3]), batched[0, 3], atol=1e-14)
    assert allegro.fingertips(double[:0]).shape == (0, 4, 3)


def test_the_straight_middle_finger_ends_at_the_sum_of_its_links():
    tips = allegro.fingertips(torch.zeros(16, dtype=torch.float64))
    reach = 0.0007 + 0.0164 + 0.054 + 0.0384 + 0.0267
    assert tips[1].tolist() == pytest.approx([0, -reach, 0.5])


def test_fingertips_can_be_differentiated():
    joints = torch.full((16,), 0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(allegro.fingertips, (joints,))


def test_fingertips_refuse_other_joints():
    with pytest.raises(ValueError, match=r"\(\.\.\., 16\)"):
        allegro.fingertips(torch.zeros(4, 23))


# --- touch ---

BALL = 0.003
DEPTH = 3e-4


@pytest.fixture(scope="module")
def ball_model():
    spec = allegro.scene()
    ball = spec.worldbody.add_body(name="ball", pos=[0, 0, 2])
    ball.add_freejoint(name="ball")
    ball.add_geom(name="ball", size=[BALL, 0, 0], mass=0.1)
    spec.option.gravity = [0, 0, 0]  # or the ball falls off the undersides
    return spec.compile()


def outside(model, data, channel):
    """Where a small ball is pressed on a channel's patch, in the world."""
    site = model.site(channel)
    frame = data.body(int(site.bodyid[0]))
    turn, origin = frame.xmat.reshape(3, 3), frame.xpos
    if "_tip_" in channel:
        centre = model.site(channel[6:12]).pos
        across = site.pos - centre
        return origin + turn @ (centre + across / np.linalg.norm(across) * (0.012 + BALL - DEPTH))
    surface = 0.0111 if channel == "touch_palm" else 0.0098
    return origin + turn @ [surface + BALL - DEPTH, site.pos[1], site.pos[2]]


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_a_ball_on_one_patch_is_felt_there_and_nowhere_else(ball_model, engine):
    joints = np.zeros(16)
    joints[12] = 0.5
    data = mujoco.MjData(ball_model)
    data.qpos[:16] = joints
    mujoco.mj_kinematics(ball_model, data)
    places = np.stack([outside(ball_model, data, channel) for channel in allegro.TACTILE])
    sim = make_sim(ball_model, len(allegro.TACTILE), engine=engine)
    sim.data.qpos[:, :16] = torch.as_tensor(joints).to(sim.data.qpos)
    sim.data.qpos[:, 16:19] = torch.as_tensor(places).to(sim.data.qpos)
    sim.data.ctrl[:] = sim.data.qpos[:, :16]
    sim.step()
    felt = (sim.data.sensordata > 0.01).numpy()
    wrong = [
        (c, np.array(allegro.TACTILE)[row].tolist())
        for c, row in zip(allegro.TACTILE, felt, strict=True)
    ]
    assert wrong == [(channel, [channel]) for channel in allegro.TACTILE]


def test_touch_has_32_channels_links_first_then_tips_in_the_order_of_the_fingers(model):
    assert [model.sensor(i).name for i in range(model.nsensor)] == list(allegro.TACTILE)
    assert [model.site(i).name for i in model.sensor_objid] == list(allegro.TACTILE)
    assert (model.sensor_type == mujoco.mjtSensor.mjSENS_TOUCH).all()
    assert len(allegro.TACTILE) == 32
    assert [name for name in allegro.TACTILE if "_tip_" not in name][-1] == "touch_palm"
    tips = [name[6:12] for name in allegro.TACTILE if "_tip_" in name]
    assert tips == [tip for tip in allegro.TIPS for _ in range(5)]


def test_the_patches_of_a_tip_lie_where_the_sensors_are(model):
    sine, cosine = 0.0108 * np.sin(0.6), 0.0108 * np.cos(0.6)
    places = {
        "top": (0, 0, 0.0108),
        "front": (sine, 0, cosine),
        "back": (-sine, 0, cosine),
        "left": (0, sine, cosine),
        "right": (0, -sine, cosine),
    }
    for tip in allegro.TIPS:
        for side, place in places.items():
            site = model.site(f"touch_{tip}_{side}")
            across = site.pos - model.site(tip).pos
            np.testing.assert_allclose(across, place, atol=1e-7)
            turn = np.empty(9)
            mujoco.mju_quat2Mat(turn, site.quat)  # its thickness, z, points away from the centre
            np.testing.assert_allclose(turn.reshape(3, 3)[:, 2], across / 0.0108, atol=1e-5)
            np.testing.assert_allclose(2 * site.size, [0.008, 0.008, 0.003])


@pytest.mark.parametrize("channel", allegro.TACTILE[:11])
def test_a_pen_across_a_link_is_felt_though_the_contacts_lie_at_the_links_edges(
    model, data, channel
):
    data.qpos[12] = 0.5
    mujoco.mj_kinematics(model, data)
    site = model.site(channel)
    frame = data.body(int(site.bodyid[0]))
    turn = frame.xmat.reshape(3, 3).copy()
    lying = np.stack((turn[:, 0], -turn[:, 2], turn[:, 1]), axis=1)  # the pen's axis along y
    data.qpos[16:19] = frame.xpos + turn @ [0.0098 + PEN_RADIUS - DEPTH, 0, site.pos[2]]
    mujoco.mju_mat2Quat(data.qpos[19:], lying.ravel())
    mujoco.mj_forward(model, data)
    assert data.sensor(channel).data[0] > 0.01
