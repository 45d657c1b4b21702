"""Inverse kinematics for scripted experts."""

import mujoco
import numpy as np
import torch

from penspin_style.env.env import Env
from penspin_style.sim.sim import make_sim
from tasks.aloha.arms import both
from tasks.aloha.handover import HandOver
from tasks.aloha.reach import Reach, capped


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
    ghost.data.qpos.copy_(sim.data.qpos)
    ghost.forward()
    data = mujoco.MjData(model)
    data.qpos[:] = ghost.data.qpos[0].numpy()
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    for arm, columns in zip(arms, (slice(0, 6), slice(8, 14)), strict=True):
        reach = Reach(ghost, arm)
        ahead = torch.tensor([[1e-3, -2e-3, 1e-3]])
        change = reach.move(ahead, torch.zeros(1, 3), speed=1.0)
        jac = np.zeros((2, 3, model.nv))
        mujoco.mj_jacSite(model, data, jac[0], jac[1], arm.gripper)
        full = jac[:, :, columns].reshape(6, 6)
        wish = np.concatenate((ahead[0].numpy(), np.zeros(3)))
        np.testing.assert_allclose(change[0], least_squares(full, wish, 0.03, 0.15), atol=2e-6)
        firm = Reach(ghost, arm, damping=0.1, turn_weight=0.4)
        turn = torch.tensor([[0.01, -0.02, 0.03]])
        wish = np.concatenate((ahead[0].numpy(), turn[0].numpy()))
        change = firm.solve(ahead, turn)
        np.testing.assert_allclose(change[0], least_squares(full, wish, 0.1, 0.4), atol=2e-6)


def test_a_change_keeps_its_direction_where_it_is_too_fast():
    change = torch.tensor([[0.03, -0.06], [0.001, 0.002]])
    torch.testing.assert_close(capped(change, 0.01), torch.tensor([[0.005, -0.01], [0.001, 0.002]]))
