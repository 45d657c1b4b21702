"""The script that hands the box over, and the states that it gives to training."""

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.start_bank import read_bank
from penspin_style.sim.sim import make_sim
from scripts import collect_handover_starts as script
from tasks.aloha.arms import both
from tasks.aloha.handover import HandOver
from tasks.aloha.handover_expert import STAGES, Expert
from tasks.aloha.reach import Reach, follow


@pytest.fixture(scope="module")
def recorded():
    return script.record(12, 420, 5)


def test_the_script_hands_most_boxes_over_and_passes_every_stage(recorded):
    states, stages, won = recorded
    assert won.sum() >= 8
    assert stages[0].eq(0).all() and (stages.diff(dim=0) >= 0).all()
    assert set(stages[:, won].unique().tolist()) == set(range(len(STAGES)))
    box = states[:, won, 16:19]
    assert box[0, :, 0].max() < -0.1 and box[-1, :, 0].min() > 0.1


def test_actions_stay_within_one_and_the_left_gripper_ajar():
    env = Env(HandOver(HandOver.Config()), 4, seed=2)
    expert = Expert(env.task, env.sim)
    expert.restart(torch.ones(4, dtype=torch.bool), torch.Generator())
    for _ in range(30):
        action = expert.act()
        assert action.shape == (4, 14) and action.abs().max() <= 1.0
        env.task.apply_action(env.sim, action)
        env.sim.step(env.n_substeps)
    assert (expert.stage >= 0).all() and (expert.wait > 0).any()
    other = torch.tensor([True, False, False, False])
    before = expert.grasp.clone()
    expert.stage.fill_(3)
    expert.restart(other, torch.Generator())
    assert expert.stage.tolist() == [0, 3, 3, 3]
    assert torch.equal(expert.grasp[1:], before[1:])


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
        full = jac[:, :, columns].reshape(6, 6) * np.repeat([1.0, 0.15], 3)[:, None]
        wish = np.concatenate(((ahead + reach.sag)[0].numpy(), np.zeros(3)))
        expected = full.T @ np.linalg.solve(full @ full.T + 0.03**2 * np.eye(6), wish)
        np.testing.assert_allclose(change[0], expected, atol=2e-6)


def test_states_of_hand_overs_that_were_won_are_taken_evenly_over_the_stages(recorded):
    states, stages, won = recorded
    rows = script.choose(states, stages, won, 0)
    sizes = [min(script.EACH, int((stages[:, won] == i).sum())) for i in range(len(STAGES))]
    assert len(rows) == sum(sizes)
    lost = states[:, ~won].flatten(0, 1)
    assert not (lost[:, None] == rows[None]).all(dim=2).any()


def test_a_folder_that_is_there_is_not_written_over(tmp_path, capsys, monkeypatch, recorded):
    monkeypatch.setattr(script, "record", lambda *_: recorded)
    folder = tmp_path / "bank"
    assert script.main([str(folder)]) == 0
    assert read_bank(folder).shape[1] == 59
    assert "states along" in capsys.readouterr().out
    assert script.main([str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert script.main([str(tmp_path / "other"), "--envs", "0"]) == 2
    none = (*recorded[:2], torch.zeros_like(recorded[2]))
    monkeypatch.setattr(script, "record", lambda *_: none)
    assert script.main([str(tmp_path / "other")]) == 2
    assert "hand-overs succeeded; use more" in capsys.readouterr().err
