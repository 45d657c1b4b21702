"""ALOHA's numpy kinematics, which a robot's computer runs without MuJoCo, against MuJoCo's."""

import mujoco
import numpy as np
import pytest

from tasks.robots.aloha import description
from tasks.robots.aloha import model as aloha
from tasks.robots.aloha.keyframes import KEYFRAMES

LOW, HIGH = np.array(description.LOWER), np.array(description.UPPER)


@pytest.fixture(scope="module")
def model():
    return aloha.scene().compile()


def middles(model, channels):
    """The middles between the fingertips by MuJoCo, (2, 3)."""
    data = mujoco.MjData(model)
    for name, value in zip(description.JOINTS, channels, strict=True):
        data.joint(name).qpos = value
        if name.endswith("_gripper"):
            data.joint(name.replace("gripper", "right_finger")).qpos = value
    mujoco.mj_kinematics(model, data)
    return np.array(
        [
            np.mean([data.site(f"{side}_{f}_fingertip").xpos for f in ("left", "right")], axis=0)
            for side in description.SIDES
        ]
    )


def test_fingertips_are_mujocos_to_a_millionth_of_a_metre_wherever_the_arms_are(model):
    channels = np.random.default_rng(0).uniform(LOW, HIGH, (300, 14))
    theirs = np.array([middles(model, row) for row in channels])
    np.testing.assert_allclose(description.fingertips(channels), theirs, rtol=0, atol=1e-9)
    assert np.ptp(theirs, axis=0).min() > 0.5  # they go everywhere


def test_one_arm_alone_is_the_left_one(model):
    arm = np.random.default_rng(1).uniform(LOW, HIGH)[:7]
    np.testing.assert_array_equal(
        description.fingertips(arm), description.fingertips(np.tile(arm, 2))[:1]
    )
    for bad in (np.zeros(8), np.zeros((3, 13)), np.array(0.0)):
        with pytest.raises(ValueError, match=r"channels must be \(\.\.\., 7\) or \(\.\.\., 14\)"):
            description.fingertips(bad)


def joints_of(qpos):
    """The channels of a keyframe's sixteen arm positions: one finger of each hand is left out."""
    return np.delete(np.array(qpos[:16]), [7, 15])


def test_the_hands_have_switched_once_both_were_above_17_cm_and_stay_so(model):
    """The switch is that of the tasks: by both fingertips' middles, latched."""
    low = joints_of(KEYFRAMES["insertion"]["preinsert"][0])  # objects at 12 to 15 cm
    high = low.copy()
    high[[1, 8]] -= 0.4  # shoulders back
    one = np.concatenate((high[:7], low[7:]))
    heights = [middles(model, row)[:, 2] for row in (low, one, high)]
    assert (heights[0] < 0.17).all() and (heights[2] > 0.17).all()
    assert heights[1][0] > 0.17 > heights[1][1]
    said = False
    for channels, expected in ((low, False), (one, False), (high, True), (low, True)):
        said = description.has_switched(channels, said)
        assert said is expected


def test_the_switch_is_at_17_cm_exactly(model):
    """Bring the shoulders to the height by bisection on MuJoCo's own kinematics."""
    channels = np.array(description.HOME)
    lower, upper = -0.9, 0.0
    for _ in range(60):
        channels[[1, 8]] = middle = 0.5 * (lower + upper)
        lower, upper = (middle, upper) if middles(model, channels)[0, 2] > 0.17 else (lower, middle)
    for shoulder, expected in ((upper + 1e-6, False), (lower - 1e-6, True)):
        channels[[1, 8]] = shoulder
        assert abs(middles(model, channels)[0, 2] - 0.17) < 1e-5
        assert description.has_switched(channels) is expected


def test_proprioception_is_joints_both_fingers_and_what_is_missing_to_the_targets():
    channels = np.linspace(-0.5, 0.5, 14)
    targets = channels + 0.01 * np.arange(14)
    seen = description.proprioception(channels, targets, switched=True)
    assert {name: value.shape for name, value in seen.items()} == {
        f.name: f.shape for f in description.PROPRIOCEPTION
    }
    assert all(value.dtype == np.float32 for value in seen.values())
    np.testing.assert_allclose(seen["right_qpos"], [*channels[7:], channels[13]], rtol=1e-6)
    np.testing.assert_allclose(seen["left_command_error"], 0.01 * np.arange(7), atol=1e-7)
    np.testing.assert_allclose(seen["right_command_error"], 0.01 * np.arange(7, 14), atol=1e-7)
    late = -0.01 * np.array([*range(7, 14), 13])
    np.testing.assert_allclose(seen["right_tracking_error"], late, atol=1e-7)
    np.testing.assert_allclose(seen["fingertips"], description.fingertips(channels), atol=1e-7)
    assert seen["has_switched"].tolist() == [1.0]
