"""The Panda's closed-form kinematics against MuJoCo's."""

import mujoco
import numpy as np
import pytest
import torch

from tasks.robots.panda import kinematics
from tasks.robots.panda import model as panda
from tasks.robots.panda.description import LOWER, UPPER


@pytest.fixture(scope="module")
def poses():
    """Joints over their whole ranges, with the tool that MuJoCo finds there."""
    model = panda.scene(gravcomp=False).compile()
    data = mujoco.MjData(model)
    joints = np.random.default_rng(0).uniform(LOWER[:7], UPPER[:7], (500, 7))
    positions, rotations = [], []
    for q in joints:
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        positions.append(data.site("gripper").xpos.copy())
        rotations.append(data.site("gripper").xmat.reshape(3, 3).copy())
    return tuple(torch.from_numpy(np.array(x)) for x in (joints, positions, rotations))


def test_forward_finds_the_tool_where_mujoco_does(poses):
    joints, positions, rotations = poses
    position, rotation = kinematics.forward(joints)
    assert (position - positions).abs().max() < 1e-9
    assert (rotation - rotations).abs().max() < 1e-7  # the model's quaternion is rounded


def test_inverse_finds_the_joints_again_where_the_elbow_is_bent(poses):
    joints, *_ = poses
    positions, rotations = kinematics.forward(joints)
    found, exists = kinematics.inverse(positions, rotations, joints)
    bent = joints[:, 3] < -0.47  # less is the other solution of the elbow
    assert bent.sum() > 400 and exists[bent].all()
    assert (found - joints)[bent].abs().max() < 1e-6
    position, rotation = kinematics.forward(found[exists])
    assert (position - positions[exists]).abs().max() < 1e-9
    assert (rotation - rotations[exists]).abs().max() < 1e-7
    low, high = torch.tensor(LOWER[:7]), torch.tensor(UPPER[:7])
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()


def test_a_pose_out_of_reach_leaves_the_joints_where_they_are():
    near = torch.tensor([[0.0, 0.5, 0.0, -1.8, 0.0, 2.3, 0.785]]).repeat(2, 1)
    here, turn = kinematics.forward(near)
    goal = here.clone()
    goal[1, 0] += 0.5
    found, exists = kinematics.inverse(goal, turn, near)
    assert exists.tolist() == [True, False]
    torch.testing.assert_close(found, near, atol=1e-5, rtol=0.0)
