"""The script that puts peg and socket together, and the states that it gives to training."""

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.start_bank import read_bank
from scripts import collect_insertion_starts as script
from tasks.aloha.peg_insertion import PegInsertion


@pytest.fixture(scope="module")
def recorded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "DISTURBED", 0.0)
        return script.record(10, 235, 5)


def test_the_script_picks_both_and_puts_them_together(recorded):
    states, distances, won = recorded
    assert won.sum() >= 9
    up = states[..., -1] > 0
    assert not up[0].any() and up[-1].all() and (up.int().diff(dim=0) >= 0).all()
    assert distances[0].min() > 0.2 and distances[-1, won].max() < 0.012


def test_states_along_the_way_are_after_the_switch_and_evenly_far(recorded):
    rows = script.along(*recorded, seed=0)
    assert rows.shape[1] == 73 and (rows[:, -1] == 1).all()
    assert rows[:, [18, 25]].min() > 0.1
    again = script.along(*recorded, seed=0)
    assert torch.equal(rows, again)


def test_states_at_the_switch_are_the_first_of_each_world(recorded):
    states, _, _ = recorded
    rows = script.at_switch(states)
    assert len(rows) == 10
    first = (states[..., -1] > 0).int().argmax(dim=0)
    assert torch.equal(rows[3], states[first[3], 3])


def test_the_shipped_states_can_be_begun_in():
    for name, least in (("insertion_starts", 2000), ("preinsertion", 100)):
        rows = read_bank(script.ROOT / "tasks" / "assets" / name)
        assert rows.shape[1] == 73 and len(rows) >= least and (rows[:, -1] == 1).all()
    env = Env(PegInsertion(PegInsertion.Config(ring_starts=1.0)), 64, seed=1, nthread=1)
    bank = env.task.start_bank(env.device)
    env.task.set_start_state(env.sim, torch.ones(64, dtype=torch.bool), bank[:64].double(), env.rng)
    env.sim.forward()
    env.step(env.current().set("action", torch.zeros(64, 14)))
    assert not env.task.dropped(env.sim).any() and (env.sim.faults == 0).all()


def test_what_it_does_follows_from_the_state_alone():
    env = Env(PegInsertion(PegInsertion.Config(ring_starts=0.0)), 4, seed=2, nthread=1)
    expert, fresh = env.task.expert(env.sim), env.task.expert(env.sim)
    everywhere = torch.ones(4, dtype=torch.bool)
    switched = []
    for _ in range(90):
        action = expert.act()
        assert action.shape == (4, 14) and action.abs().max() <= 1.0
        expert.restart(everywhere, torch.Generator())
        assert torch.equal(expert.act(), action)
        switched.append(env.task.is_up(env.sim).any().item())
        env.step(env.current().set("action", action))
    assert expert.memory == {} and not switched[0] and switched[-1]
    assert torch.equal(fresh.act(), expert.act())


def test_an_object_that_is_lost_before_the_switch_is_taken_again():
    config = PegInsertion.Config(ring_starts=0.0, episode_length=250)
    env = Env(PegInsertion(config), 8, seed=4, nthread=1)
    expert, at = env.task.expert(env.sim), env.task.hands[0].qpos
    for step in range(170):
        if step == 60:
            where = torch.tensor([-0.15, 0.05, 0.03, 1.0, 0.0, 0.0, 0.0])
            env.sim.data.qpos[:, at : at + 7] = where
            env.sim.data.qvel[:, env.task.hands[0].qvel :][:, :6] = 0.0
            env.sim.forward()
            assert not env.task.is_up(env.sim).any()
        env.step(env.current().set("action", expert.act()))
    assert env.task.memory["switched"].sum() >= 6


def test_the_command_refuses_what_it_cannot_do_and_overwrites_nothing(tmp_path, capsys):
    assert script.main([str(tmp_path / "a"), "--envs", "0"]) == 2
    assert "--envs 0" in capsys.readouterr().err
    assert script.main([str(tmp_path / "a"), "--envs", "1", "--steps", "2"]) == 2
    assert "none of 1 worlds came so far" in capsys.readouterr().err


def test_the_command_writes_a_bank_once(tmp_path, capsys, monkeypatch, recorded):
    monkeypatch.setattr(script, "record", lambda *_: recorded)
    folder = tmp_path / "bank"
    assert script.main([str(folder), "--at-switch", "--envs", "10"]) == 0
    assert len(read_bank(folder)) == 10 and "10 states at the switch" in capsys.readouterr().out
    assert script.main([str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_states_at_the_switch_of_a_policys_picks_become_a_bank(tmp_path, capsys):
    folder = tmp_path / "bank"
    picked = [str(folder), "--pick", "pretrained:aloha_pick", "--envs", "8", "--seed", "3"]
    assert script.main(picked) == 0
    assert "of 8 picks by a policy" in capsys.readouterr().out
    rows = read_bank(folder)
    assert 1 <= len(rows) <= 8 and (rows[:, -1] == 1.0).all()
    assert (rows[:, [18, 25]] > script.HELD).all()  # both objects are up
    assert script.main([str(tmp_path / "b"), "--pick", "nowhere"]) == 2
    assert "error: --pick: task.pick_policy=nowhere" in capsys.readouterr().err
