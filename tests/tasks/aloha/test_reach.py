"""Inverse kinematics for scripted experts."""

import mujoco
import numpy as np
import torch

from penspin_style.env.env import Env
from penspin_style.sim.sim import make_sim
from tasks.aloha.arms import both
from tasks.aloha.handover import HandOver
from tasks.aloha.reach import Reach, capped, follow


def test_a_hand_comes_to_a_pose_within_two_millimetres_in_spite_of_the_servos_sag():
    env = Env(HandOver(HandOver.Config()), 3, seed=2)
    sim = env.sim
    ghost = make_sim(sim.model, 3)
    arms = both(sim)
    reach = Reach(sim, ghost, arms[0])
    place = torch.tensor([[-0.1, 0.0, 0.2], [-0.15, 0.05, 0.15], [-0.12, -0.05, 0.18]])
    level = torch.eye(3).expand(3, 3, 3)
    for _ in range(250):
        follow(ghost, sim, arms)
        sim.data.ctrl[:, :6] += reach.step(place, level, speed=0.015)
        sim.step(4)
    assert reach.error(place).max() < 2e-3
    assert (arms[0].matrix(sim) - level).abs().max() < 0.12
    # at the commands themselves the hand would be higher: that is the sag
    follow(ghost, sim, arms)
    assert (arms[0].position(ghost)[:, 2] - place[:, 2]).min() > 2e-3


def least_squares(jac, wish, damping, turn_weight):
    """Return the damped solution of jac x = wish, the turns weighted."""
    weights = np.repeat([1.0, turn_weight], 3)
    jac, wish = jac * weights[:, None], wish * weights
    return jac.T @ np.linalg.solve(jac @ jac.T + damping**2 * np.eye(6), wish)


def test_steps_are_those_of_mujocos_own_jacobian():
    env = Env(HandOver(HandOver.Config()), 1, seed=2)
    sim, model = env.sim, env.model
    ghost = make_sim(model, 1)
    arms = both(sim)
    follow(ghost, sim, arms)
    data = mujoco.MjData(model)
    data.qpos[:] = ghost.data.qpos[0].numpy()
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    for arm, columns in zip(arms, (slice(0, 6), slice(8, 14)), strict=True):
        reach = Reach(sim, ghost, arm)
        ahead = torch.tensor([[1e-3, -2e-3, 1e-3]])
        change = reach.step(arm.position(ghost) + ahead, arm.matrix(ghost), speed=1.0)
        jac = np.zeros((2, 3, model.nv))
        mujoco.mj_jacSite(model, data, jac[0], jac[1], arm.gripper)
        full = jac[:, :, columns].reshape(6, 6)
        wish = np.concatenate(((ahead + reach.sag)[0].numpy(), np.zeros(3)))
        np.testing.assert_allclose(change[0], least_squares(full, wish, 0.03, 0.15), atol=2e-6)
        firm = Reach(sim, ghost, arm, damping=0.1, turn_weight=0.4)
        turn = torch.tensor([[0.01, -0.02, 0.03]])
        wish = np.concatenate((ahead[0].numpy(), turn[0].numpy()))
        change = firm.solve(ahead, turn)
        np.testing.assert_allclose(change[0], least_squares(full, wish, 0.1, 0.4), atol=2e-6)


def test_a_change_keeps_its_direction_where_it_is_too_fast():
    change = torch.tensor([[0.03, -0.06], [0.001, 0.002]])
    torch.testing.assert_close(capped(change, 0.01), torch.tensor([[0.005, -0.01], [0.001, 0.002]]))
