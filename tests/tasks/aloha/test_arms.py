"""What ALOHA's tasks share, against NumPy and MuJoCo's own contacts, on both engines."""

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.sim.sim import make_sim
from tasks.aloha import arms
from tasks.robots.aloha import description
from tasks.robots.aloha import model as aloha
from tasks.robots.aloha.keyframes import KEYFRAMES

STATE = mujoco.mjtState.mjSTATE_INTEGRATION
PICKED = KEYFRAMES["handover"]["picked"]


@pytest.fixture(scope="module")
def model():
    spec = aloha.scene()
    aloha.add_handover_box(spec)
    for side in description.SIDES:
        arms.add_touch_sensors(spec, side, "box")
        arms.table_contact(side).add_to(spec)
    return spec.compile()


def holding(model, engine="mujoco", num_envs=4, squeeze=(0.0, 0.003, 0.006, 0.012)):
    """Left hands that hold the box, each squeezing a bit less than the one before, after 0.2 s."""
    sim = make_sim(model, num_envs, "cpu", engine=engine, nconmax=40, njmax=160)
    qpos, ctrl = (torch.tensor(part).repeat(num_envs, 1) for part in PICKED)
    ctrl[:, 6] = 0.002 + torch.tensor(squeeze)
    sim.data.qpos.copy_(qpos.to(sim.data.qpos))
    sim.data.ctrl.copy_(ctrl.to(sim.data.ctrl))
    sim.forward()
    sim.step(40)
    return sim


def finger_forces(model, row, side):
    """World forces of a hand's fingers on the box, summed over the contact list, (2, 3) N."""
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, row, STATE)
    mujoco.mj_forward(model, data)
    box, total, wrench = model.geom("box").id, np.zeros((2, 3)), np.zeros(6)
    for i, contact in enumerate(data.contact):
        names = [model.geom(int(geom)).name for geom in contact.geom]
        for k, finger in enumerate(arms.FINGERS):
            ours = [n for n in names if n.startswith(f"{side}_{finger}_finger_")]
            if ours and box in contact.geom:
                mujoco.mj_contactForce(model, data, i, wrench)
                force = contact.frame.reshape(3, 3).T @ wrench[:3]
                # MuJoCo's is that of the first geom on the second
                total[k] += force if contact.geom[1] == box else -force
    across = data.site(f"{side}_right_finger").xpos - data.site(f"{side}_left_finger").xpos
    return total, across / np.linalg.norm(across)


def test_finger_forces_are_the_sums_over_the_contact_list(model):
    sim = holding(model)
    left, right = arms.both(sim, "box")
    sensed = left.forces().numpy()
    for row, found in zip(sim.get_state().numpy(), sensed, strict=True):
        expected, _ = finger_forces(model, row, "left")
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(sensed).max() > 1.0
    assert not right.forces().any()
    assert left.touches().all() and not right.touches().any()


def test_a_grasp_is_two_fingers_that_press_towards_each_other(model):
    sim = holding(model)
    left, right = arms.both(sim, "box")
    for least in (0.2, 1.0, 2.0, 2.5, 9.0):
        expected = []
        for row in sim.get_state().numpy():
            forces, across = finger_forces(model, row, "left")
            size = np.linalg.norm(forces, axis=1)
            towards = forces @ across * [1, -1]
            expected.append(
                bool((size > least).all() and (towards > np.cos(75 / 57.29578) * size).all())
            )
        assert left.grasps(sim, least).tolist() == expected
        assert not right.grasps(sim, least).any()
    assert left.grasps(sim, 0.2).all() and not left.grasps(sim, 9.0).any()


def test_a_grasp_is_felt_alike_on_both_engines(model):
    pytest.importorskip("mujoco_warp")
    exact, warp = (holding(model, engine) for engine in ("mujoco", "warp"))
    forces = [arms.Arm(sim, "left", "box").forces() for sim in (exact, warp)]
    np.testing.assert_allclose(forces[1], forces[0], atol=0.05)  # N
    for least in (0.2, 9.0):
        held = [arms.Arm(sim, "left", "box").grasps(sim, least) for sim in (exact, warp)]
        assert torch.equal(*held)


def test_fingers_on_the_table_are_felt(model):
    sim = make_sim(model, 2, "cpu")
    sim.data.qpos[1, 1] = 1.2  # the left arm leans on the table
    sim.data.qpos[1, 2] = 0.1
    sim.data.qpos[:, 16:19] = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)
    sim.forward()
    touched = [arms.table_contact(side).view(sim).touching.tolist() for side in description.SIDES]
    assert touched[0][0] == [False] * 4 and any(touched[0][1][:2]) and any(touched[0][1][2:])
    assert touched[1] == [[False] * 4] * 2


def test_an_arm_that_may_grasp_nothing_says_so(model):
    with pytest.raises(ValueError, match=r"Arm\('left'\): name the body that it may grasp"):
        arms.Arm(make_sim(model, 1, "cpu"), "left").touches()


def test_an_arm_sees_the_world_from_its_base(model):
    sim = make_sim(model, 3, "cpu")
    generator = np.random.default_rng(0)
    sim.data.qpos[:, :16] += torch.as_tensor(0.3 * generator.normal(size=(3, 16)))
    sim.forward()
    for arm in arms.both(sim):
        base = model.body(f"{arm.side}_base_link")
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, base.quat)
        rotation = rotation.reshape(3, 3)
        point = arm.position(sim).numpy()
        np.testing.assert_allclose(
            arm.to_base(arm.position(sim)), (point - base.pos) @ rotation, atol=1e-6
        )
        np.testing.assert_allclose(arm.from_base(arm.to_base(arm.position(sim))), point, atol=1e-6)
        np.testing.assert_allclose(
            arm.matrix_to_base(arm.matrix(sim)), rotation.T @ arm.matrix(sim).numpy(), atol=1e-6
        )
        speed = torch.tensor([[1.0, 2.0, 3.0]] * 3)
        np.testing.assert_allclose(arm.vector_to_base(speed), speed.numpy() @ rotation, atol=1e-6)


def test_the_same_joints_look_the_same_to_both_arms(model):
    sim = make_sim(model, 2, "cpu")
    joints = torch.tensor([0.3, -0.4, 1.2, 0.2, -0.5, 0.4, 0.02, 0.02], dtype=torch.float64)
    sim.data.qpos[:, :8], sim.data.qpos[:, 8:16] = joints, joints
    sim.forward()
    left, right = arms.both(sim)
    for arm in (left, right):
        assert torch.equal(sim.data.qpos[:, arm.qpos], joints.expand(2, -1))
        assert arm.ctrl == slice(0, 7) if arm is left else arm.ctrl == slice(7, 14)
    np.testing.assert_allclose(
        left.to_base(left.tips(sim)), right.to_base(right.tips(sim)), atol=1e-6
    )
    np.testing.assert_allclose(
        left.matrix_to_base(left.matrix(sim)), right.matrix_to_base(right.matrix(sim)), atol=1e-6
    )
    tips = [sim.data.site_xpos[:, model.site(f"left_{f}_fingertip").id] for f in arms.FINGERS]
    np.testing.assert_allclose(left.tips(sim), (tips[0] + tips[1]) / 2, atol=1e-7)


def test_targets_add_to_the_last_ones_and_stop_at_the_channels_limits():
    channels = description.actions(("left",), scale=0.01, gripper_scale=0.001)
    targets = arms.Targets(channels, torch.device("cpu"))
    ctrl = torch.tensor([[0.0, 1.25, 0.0, 0.0, 0.0, 0.0, 0.0025]])
    action = torch.tensor([[1.0, 1.0, -0.5, 0.0, 0.0, 0.0, -1.0]])
    expected = [0.01, 1.25664, -0.005, 0.0, 0.0, 0.0, 0.002]
    np.testing.assert_allclose(targets.move(ctrl, action)[0], expected, atol=1e-7)
