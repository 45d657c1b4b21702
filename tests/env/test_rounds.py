"""Groups of environments that begin alike, and all anew after a round."""

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.rounds import Rounds
from tests.support import rail, toy


def make(kind=toy, n=4, groups=(2, 3), **config):
    config = {"episode_length": 6} | config
    return Env(kind.TASK(kind.Config(**config)), n, seed=1, nthread=1, groups=groups)


def step(env, *actions):
    action = torch.tensor(actions).view(-1, 1).expand(env.num_envs, 1)
    return env.step_and_maybe_reset(env.current().set("action", action))


def pairs(state):
    return state.view(2, 2, -1).unbind(1)


def test_a_group_begins_in_one_state_of_one_world_bit_for_bit_and_groups_differ():
    env = make(start=0.5)
    for _ in range(3):  # three rounds
        snapshot = env.world.snapshot()
        assert {"sim", "params/body_mass", "params/dof_damping"} <= set(snapshot)
        for value in snapshot.values():
            first, second = pairs(value)
            assert torch.equal(first, second)
        assert not torch.equal(snapshot["sim"][0], snapshot["sim"][2])
        assert snapshot["params/body_mass"][0, 1] != snapshot["params/body_mass"][2, 1]
        seen = env.current()["teacher"]
        assert torch.equal(*(seen.view(2, 2, -1).unbind(1)))
        for _ in range(3):
            done = step(env, 0.1)[0]["next", "done"]
        assert done.all()


def test_the_same_actions_lead_a_group_the_same_way_and_others_apart():
    env = make(rail, start=0.3)
    step(env, 0.2, 0.2, 0.2, 0.4)
    a, b, c, d = env.sim.get_state()
    assert torch.equal(a, b) and not torch.equal(c, d)


def test_an_episode_that_ends_early_begins_apart_is_not_counted_and_ends_with_its_round():
    env = make(start=0.0, groups=(2, 5), rail=0.05)
    ends = []
    for _ in range(5):
        after = step(env, 1.0, 0.0, 0.0, 0.0)[0]["next"]
        ends.append(after["done"].view(-1).tolist())
    assert [row[0] for row in ends].count(True) >= 2  # off the rail, and at the end of the round
    assert ends[-1] == [True] * 4 and not any(any(row[1:]) for row in ends[:-1])
    assert env.metrics()["env/num_trajectories"] == 4  # one each
    first, second = pairs(env.sim.get_state())
    assert torch.equal(first, second)


def test_without_rounds_an_episode_has_its_own_length():
    env = make(groups=None)
    assert not any(step(env, 0.0)[0]["next", "done"].any() for _ in range(5))
    assert step(env, 0.0)[0]["next", "done"].all()


def test_a_reset_begins_a_round_and_a_resumed_environment_is_where_it_was():
    env = make(start=0.5)
    step(env, 0.1)
    other = make(start=0.5)
    other.load_state_dict(env.state_dict())
    for e in (env, other):
        assert not step(e, 0.1)[0]["next", "done"].any()
        assert step(e, 0.1)[0]["next", "done"].all()
    assert torch.equal(env.sim.get_state(), other.sim.get_state())
    step(env, 0.1)
    env.reset()
    first, second = pairs(env.sim.get_state())
    assert torch.equal(first, second)
    assert not any(step(env, 0.1)[0]["next", "done"].any() for _ in range(2))
    assert step(env, 0.1)[0]["next", "done"].all()


@pytest.mark.parametrize(
    ("groups", "complaint"),
    [
        ((3, 2), "groups of 3 do not divide 4 environments"),
        ((0, 2), "groups of 0 do not"),
        ((2, 7), r"rounds of 7 steps: an episode has 1 to 6 \(task.episode_length\)"),
        ((2, -1), "rounds of -1 steps"),
    ],
)
def test_invalid_groups_are_refused(groups, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(groups=groups)


def test_zero_steps_are_whole_episodes_and_worlds_cannot_be_shared_by_groups_that_do_not_divide():
    assert Rounds.make((2, 0), 4, 6).steps == 6
    with pytest.raises(ValueError, match="groups of 3 do not divide 4 worlds"):
        make().world.share(3)
