"""A task's script, asked in every state that an environment gets into."""

import pytest
import torch
from torchrl.envs import check_env_specs

from penspin_style.env.env import Env
from tests.support.homed import Homed, Homing
from tests.support.rail import Config, Rail


def make(kind=Homed, seed=1, **config):
    return Env(kind(Config(**config)), 3, seed=seed, expert=True)


def go(env, *actions):
    td = env.current().set("action", torch.tensor(actions)[:, None])
    return env.step_and_maybe_reset(td)


def said(env):
    """By hand, of what is there now."""
    expert = env.expert.expert
    place = env.sim.data.qpos[:, 0].float()
    return (-4.0 * place + 0.01 * expert.asked + 0.001 * expert.drawn)[:, None]


def test_a_root_holds_what_the_expert_would_do_in_its_own_state_asked_once_a_step():
    env = make()
    assert env.expert.expert.asked.tolist() == [1.0, 1.0, 1.0]
    for step in range(2, 6):
        transition, root = go(env, 0.5, -0.5, 0.0)
        assert env.expert.expert.asked.tolist() == [step] * 3
        torch.testing.assert_close(root["expert_action"], said(env))
    root, place = env.current(), env.sim.data.qpos
    assert place[0, 0] > 0.1 and root["expert_action"][0] < 0 < root["expert_action"][1]
    assert torch.equal(transition["expert_action"], transition["expert_action"].clamp(-1, 1))


def test_the_expert_begins_anew_where_an_episode_ends_and_nowhere_else():
    env = make()
    before = env.expert.expert.drawn.clone()
    steps = 0
    done = torch.zeros(3, dtype=torch.bool)
    while not done.any():
        transition, root = go(env, 1.0, 0.0, 0.0)  # the first cart falls off the end
        done, steps = transition["next", "done"][:, 0], steps + 1
    expert = env.expert.expert
    assert done.tolist() == [True, False, False]
    assert expert.asked.tolist() == [1.0, steps + 1, steps + 1]
    assert (expert.drawn != before).tolist() == [True, False, False]
    torch.testing.assert_close(root["expert_action"], said(env))


def test_a_reset_of_some_asks_the_expert_of_those_alone():
    env = make()
    td = env.step(env.current().set("action", torch.zeros(3, 1)))
    assert env.expert.expert.asked.tolist() == [2.0, 2.0, 2.0]
    kept = td["next", "expert_action"].clone()
    root = env.reset(td["next"].set("_reset", torch.tensor([False, True, False])[:, None]))
    assert env.expert.expert.asked.tolist() == [2.0, 1.0, 2.0]
    assert torch.equal(root["expert_action"][[0, 2]], kept[[0, 2]])
    torch.testing.assert_close(root["expert_action"], said(env))
    check_env_specs(make())


def test_a_resumed_environment_and_its_expert_go_on_bit_for_bit():
    env = make(episode_length=5, start=0.4)
    for _ in range(3):
        go(env, 0.3, -0.2, 0.1)
    state = env.state_dict()
    other = make(episode_length=5, start=0.4, seed=9)
    other.load_state_dict(state)
    assert torch.equal(other.current()["expert_action"], env.current()["expert_action"])
    for _ in range(7):  # an episode ends: the draws are the same, too
        roots = [go(e, 0.3, -0.2, 0.1)[1] for e in (env, other)]
        assert torch.equal(roots[0]["expert_action"], roots[1]["expert_action"])
    for name, value in env.expert.expert.memory.items():
        assert torch.equal(value, other.expert.expert.memory[name])


def test_a_task_without_an_expert_is_refused():
    with pytest.raises(ValueError, match=r"algo\.teacher=expert: Rail has no scripted"):
        make(Rail)


class Narrow(Homing):
    def act(self):
        return super().act()[:, 0]


class Wrong(Rail):
    def expert(self, sim):
        return Narrow(sim)


def test_actions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must be \(3, 1\) float32, got \(3,\)"):
        make(Wrong)
