"""The walk, on a cart whose motion can be worked out by hand."""

import math
import warnings

import pytest
import torch

from penspin_style.env.task import ObsTerm
from penspin_style.sim.sim import Fault
from tests.support.toy import substep

with warnings.catch_warnings():  # torchrl's own use of what it deprecates
    warnings.simplefilter("ignore", DeprecationWarning)

from tests.support.toy_env import (
    NAN,
    RICH,
    Fragile,
    column,
    differing,
    draw_actions,
    drive,
    make,
    place,
    step,
)

# One step.


def test_a_step_is_the_motion_derived_by_hand():
    env = make(3)
    place(env, 0.5, -0.25, 0.0)
    after = step(env, 1.0, -0.5, 0.0)["next"]
    expected = [(*substep(0.5, 0.0, 1.0), 1.0), (*substep(-0.25, 0.0, -0.5), -0.5), (0.0, 0.0, 0.0)]
    torch.testing.assert_close(after["teacher"], torch.tensor(expected), atol=1e-6, rtol=0.0)
    near = [1 - abs(x) for x, _, _ in expected]
    effort = [0.1 * 1.0, 0.1 * 0.25, 0.0]
    reward = torch.tensor([[n - e] for n, e in zip(near, effort, strict=True)])
    torch.testing.assert_close(after["reward"], reward, atol=1e-6, rtol=0.0)
    assert column(after["success"]) == [False, False, True]
    assert column(env.reward_terms["effort"]) == pytest.approx([-e for e in effort])


def test_actions_are_clipped_to_the_unit_interval():
    env, other = make(2), make(2)
    place(env, 0.5, 0.5), place(other, 0.5, 0.5)
    a, b = step(env, 7.0, -7.0), step(other, 1.0, -1.0)
    assert torch.equal(a["next", "teacher"], b["next", "teacher"])
    assert torch.equal(a["next", "reward"], b["next", "reward"])
    assert column(a["action"]) == [7.0, -7.0]  # a learner needs what was drawn


def test_the_control_step_must_be_a_multiple_of_the_timestep():
    with pytest.raises(ValueError, match=r"control_dt 0\.013 s must be a multiple of the timestep"):
        make(1, control_dt=0.013)


def test_the_weights_must_be_those_of_the_terms():
    with pytest.raises(ValueError, match=r"missing \['effort'\], unknown \['speed'\]"):
        make(1, reward={"near": 1.0, "speed": 1.0})


def test_a_seed_determines_everything_that_follows():
    env, twin = make(3, seed=4, randomize=True), make(3, seed=5, randomize=True)
    actions = draw_actions(env, 50)
    assert "teacher" in differing(drive(env, actions), drive(twin, actions))
    for each in (env, twin):
        each.set_seed(6)
        each.reset()
    assert differing(drive(env, actions), drive(twin, actions)) == set()


# Ends of episodes.


def test_the_time_limit_truncates_and_the_task_terminates():
    env = make(3, episode_length=3, rail=1.5)
    place(env, 0.0, 1.49, 0.5)
    seen = [step(env, 0.0, 1.0, 0.0)["next"] for _ in range(3)]
    # 1.49 m and 1 s at full force: v = 0.32 m/s after 5 substeps, past the rail after the first
    assert substep(1.49, 0.0, 1.0)[0] > 1.5
    assert [column(s["terminated"]) for s in seen[:1]] == [[False, True, False]]
    assert [column(s["truncated"]) for s in seen] == [[False] * 3, [False] * 3, [True, False, True]]
    for s in seen:
        assert torch.equal(s["done"], s["terminated"] | s["truncated"])


def test_an_episode_that_ends_in_both_ways_at_once_says_both():
    env = make(1, episode_length=1)
    place(env, 1.49)
    after = step(env, 1.0)["next"]
    assert (after["terminated"].item(), after["truncated"].item()) == (True, True)


def test_next_holds_the_last_observation_of_the_episode_and_the_root_the_first_of_the_new():
    env = make(2, episode_length=2)
    place(env, 0.5, 1.49)
    first = step(env, 1.0, 1.0)
    x, v = substep(0.5, 0.0, 1.0)
    assert column(first["next", "terminated"]) == [False, True]
    assert first["next", "teacher"][1].tolist() == pytest.approx([*substep(1.49, 0, 1), 1.0])
    root = env.current()
    assert root["teacher"][0].tolist() == pytest.approx([x, v, 1.0])
    assert abs(root["teacher"][1, 0]) <= 1.0 and root["teacher"][1, 1:].tolist() == [0.0, 0.0]
    second = step(env, 1.0, 0.0)
    assert column(second["next", "truncated"]) == [True, False]
    assert second["next", "teacher"][0].tolist() == pytest.approx([*substep(x, v, 1.0), 1.0])
    assert env.current()["teacher"][0, 1:].tolist() == [0.0, 0.0]
    assert column(env.current()["done"]) == [False, False]
    assert env.step_count.tolist() == [0, 1]


# Statistics.


def test_metrics_are_means_over_the_episodes_that_ended():
    env = make(3, episode_length=4, close=0.1, rail=1.5)
    place(env, 0.08, 1.47, 0.5)
    states = [(0.08, 0.0), (1.47, 0.0), (0.5, 0.0)]
    actions = (1.0, 1.0, 0.0)
    near, effort, length = [0.0] * 3, [0.0] * 3, [0] * 3
    success, alive = [False] * 3, [True] * 3
    for _ in range(4):
        step(env, *actions)
        for i in range(3):
            if alive[i]:
                states[i] = substep(*states[i], actions[i])
                near[i] += 1.0 - abs(states[i][0])
                effort[i] -= 0.1 * actions[i] ** 2
                length[i] += 1
                success[i] |= abs(states[i][0]) < 0.1
                alive[i] = abs(states[i][0]) <= 1.5
    assert (length, success) == ([4, length[1], 4], [True, False, False])
    assert 1 < length[1] < 4  # it left the rail on the way; its second episode is not over
    metrics = env.metrics()
    assert metrics == {
        "env/num_trajectories": 3.0,
        "env/return": pytest.approx((sum(near) + sum(effort)) / 3, abs=1e-5),
        "env/episode_len": pytest.approx(sum(length) / 3),
        "env/success_once": pytest.approx(1 / 3),
        "env/success_at_end": sum(abs(x) < 0.1 for x, _ in states) / 3,
        "reward/near": pytest.approx(sum(near) / 3, abs=1e-5),
        "reward/effort": pytest.approx(sum(effort) / 3, abs=1e-6),
    }
    assert env.metrics() == {"env/num_trajectories": 0.0}


def test_success_once_forgets_the_episode_before():
    env = make(1, episode_length=1)
    place(env, 0.0)
    step(env, 0.0)
    place(env, 0.9)
    step(env, 0.0)
    assert env.metrics()["env/success_once"] == 0.5


def test_a_staggered_start_spreads_ends_evenly_and_counts_only_whole_episodes():
    n, length = 400, 10
    env = make(n, episode_length=length, stagger=True, rail=9.0)
    ages = torch.bincount(env.step_count, minlength=length)
    assert len(ages) == length and ages.min() >= 15 and ages.max() <= 65  # 40 expected, sd 6
    zero = torch.zeros(length, n, 1)
    ended = [d["next", "truncated"].sum().item() for d in drive(env, zero)]
    assert ended == ages.flip(0).tolist()
    assert env.metrics() == {"env/num_trajectories": 0.0}
    drive(env, zero)
    metrics = env.metrics()
    assert (metrics["env/num_trajectories"], metrics["env/episode_len"]) == (n, length)


# Faults.


def break_action(env, actions):
    actions[1] = NAN


def break_action_with_infinity(env, actions):
    actions[1] = -math.inf


def break_state(env, actions):
    env.sim.data.qpos[1, 0] = NAN


def break_observation(env, actions):
    env.task.bad_observation = torch.tensor([0.0, math.inf, 0.0])


def break_reward(env, actions):
    env.task.bad_reward = torch.tensor([0.0, NAN, 0.0])


@pytest.mark.parametrize(
    ("breaks", "code"),
    [
        (break_action, Fault.ACTION),
        (break_action_with_infinity, Fault.ACTION),
        (break_state, None),
        (break_observation, Fault.OBSERVATION),
        (break_reward, Fault.REWARD),
    ],
)
def test_a_fault_cuts_out_its_own_environment_only(breaks, code):
    layout = {"teacher": {**RICH["critic"], "velocity": ObsTerm(history=2)}}
    env = make(3, kind=Fragile, observation=layout, episode_length=20)
    twin = make(3, kind=Fragile, observation=layout, episode_length=20)
    for each in (env, twin):
        place(each, 0.5, 0.05, 1.0)
        step(each, 0.3, 0.0, -0.3)
    before = env.current()["teacher"].clone()
    actions = [0.1, 0.2, 0.3]
    expected = step(twin, *actions)["next"]
    breaks(env, actions)
    row = env.sim.get_state()[1]
    seen = step(env, *actions)["next"]
    env.task.bad_observation = env.task.bad_reward = None
    if code is Fault.OBSERVATION:  # the new episode began with it
        env.reset()
        twin.reset()

    assert column(seen["fault"]) == [False, True, False]
    others = torch.tensor([0, 2])
    assert differing(seen[others], expected[others]) == set()
    assert seen["truncated"][1] and seen["done"][1]
    assert not seen["terminated"][1] and not seen["success"][1]
    assert seen["reward"][1] == 0.0
    assert torch.equal(seen["teacher"][1], before[1])  # the last finite observation
    assert env.step_count[1] == 0 and torch.isfinite(env.current()["teacher"]).all()

    bits = [f for f, count in zip(Fault, env.faults.counts.tolist(), strict=True) if count]
    (record,) = env.faults.take()
    assert record.env_id == 1
    torch.testing.assert_close(record.row, row, equal_nan=True, atol=0.0, rtol=0.0)
    if code is not None:
        assert (record.code, bits) == (code, [code])
    else:
        assert record.code & (Fault.NONFINITE | Fault.WARNING)
    assert env.faults.take() == []
    assert not drive(env, torch.zeros(3, 3, 1))["next", "fault"].any()


@pytest.mark.parametrize("breaks", [break_action, break_state, break_observation, break_reward])
def test_a_faulty_episode_enters_no_statistics_and_spoils_no_later_one(breaks):
    env = make(3, kind=Fragile, episode_length=3)
    actions = [0.0, 0.0, 0.0]
    breaks(env, actions)
    step(env, *actions)
    assert torch.isfinite(torch.stack(list(env.reward_terms.values()))).all()
    env.task.bad_observation = env.task.bad_reward = None
    if breaks is break_observation:
        env.reset()
    drive(env, torch.zeros(3, 3, 1))
    metrics = env.metrics()
    assert metrics["env/num_trajectories"] == 3.0  # two that were healthy, the faulty one's next
    assert metrics["env/episode_len"] == 3.0
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_faulty_step_neither_terminates_nor_succeeds():
    env = make(2, close=9.0)
    place(env, 2.0, 2.0)  # past the rail, and close by this measure
    after = step(env, NAN, 0.0)["next"]
    assert column(after["terminated"]) == [False, True]
    assert column(after["truncated"]) == [True, False]
    assert column(after["success"]) == [False, True]


def test_faults_of_several_steps_keep_the_first_reason_and_count_all():
    env = make(2)
    step(env, NAN, 0.0)
    first = env.sim.get_state()[1]
    step(env, NAN, NAN)
    assert env.faults.counts.sum() == 3
    records = env.faults.take()
    assert [(r.env_id, r.code) for r in records] == [(0, Fault.ACTION), (1, Fault.ACTION)]
    assert torch.equal(records[1].row, first)


# State.


@pytest.mark.parametrize("stagger", [False, True])
def test_a_restored_environment_continues_bit_for_bit(stagger):
    config = {"observation": RICH, "episode_length": 9, "randomize": True, "stagger": stagger}
    env, other = make(5, seed=1, **config), make(5, seed=2, **config)
    drive(env, draw_actions(env, 13))
    drive(other, draw_actions(other, 4, seed=1))
    state = env.state_dict()
    actions = draw_actions(env, 40, seed=2)
    expected = drive(env, actions)
    other.load_state_dict(state)
    assert differing(drive(other, actions), expected) == set()
    assert expected["next", "done"].sum() >= 4 * 5
    assert other.metrics() == env.metrics()
    assert not torch.equal(state["sim"], env.state_dict()["sim"])  # a copy, not a view


def test_the_state_is_flat_tensors_only():
    state = make(2, observation=RICH, randomize=True).state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert {"params/body_mass", "params/dof_damping", "memory/action", "last/critic"} <= set(state)
