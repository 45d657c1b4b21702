"""A task's own figures in the statistics of training, on carts whose way is known."""

import pytest
import torch

from penspin_style.env.env import Env
from tests.support.measured import MeasuredCart
from tests.support.toy import Cart, Config, substep

NAN = float("nan")
OWN = ("travel", "survival", "time_to_fall", "share_far")


def make(num_envs, *, kind=MeasuredCart, seed=1, stagger=False, **config):
    return Env(kind(Config(randomize=False, **config)), num_envs, seed=seed, stagger=stagger)


def place(env, *positions):
    env.sim.data.qpos[:, 0] = torch.tensor(positions, dtype=torch.float64)
    env.sim.data.qvel.zero_()
    env.sim.forward()


def step(env, *actions):
    td = env.current().set("action", torch.tensor(actions)[:, None])
    return env.step_and_maybe_reset(td)[0]["next"]


def own(env):
    metrics = env.metrics()
    return {name: metrics[f"env/{name}"] for name in OWN}


def episode(x, action, steps, rail=1.5):
    """(Way, control steps, whether it left the rail) of a cart that starts at rest, by hand."""
    start, v, count = x, 0.0, 0
    while count < steps and abs(x) <= rail:
        x, v = substep(x, v, action)
        count += 1
    return x - start, count, abs(x) > rail


def test_the_statistics_are_means_of_what_the_task_says_of_ended_episodes():
    env = make(3, episode_length=6)
    starts, actions = (0.5, 1.47, -0.2), (1.0, 1.0, 0.0)
    place(env, *starts)
    for _ in range(6):
        step(env, *actions)
    way, steps, terminated = zip(
        *(episode(*c, 6) for c in zip(starts, actions, strict=True)), strict=True
    )
    assert terminated == (False, True, False) and steps[1] < 4  # its second episode is not over
    assert way[0] > 0.1 > way[1] > 0.03
    assert own(env) == pytest.approx(
        {
            "travel": sum(way) / 3,
            "survival": 2 / 3,
            "time_to_fall": 0.05 * sum(steps) / 3,
            "share_far": 1 / 3,
        },
        abs=1e-6,
    )


def test_the_measures_of_the_last_step_can_be_read():
    env = make(2)
    place(env, 0.5, -0.25)
    step(env, 1.0, -0.5)
    expected = [substep(x, 0.0, a)[0] - x for x, a in ((0.5, 1.0), (-0.25, -0.5))]
    assert env.measures["moved"].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_sum_begins_anew_with_its_episode():
    env = make(1, episode_length=2)
    for start, action in ((0.0, 1.0), (0.0, 0.0)):
        place(env, start)
        step(env, action)
        step(env, action)
    assert own(env)["travel"] == pytest.approx(episode(0.0, 1.0, 2)[0] / 2, abs=1e-6)


def test_a_fall_in_the_last_step_is_a_fall():
    env = make(1, episode_length=1)
    place(env, 1.499)
    step(env, 1.0)
    assert own(env)["survival"] == 0.0


def test_faulty_absent_and_staggered_episodes_stay_out():
    env = make(3, episode_length=2)
    place(env, 0.0, 0.5, 0.0)
    env.is_absent[1] = True
    step(env, 1.0, 1.0, 1.0)
    step(env, NAN, 1.0, 1.0)
    assert env.measures["moved"][0] == 0.0
    way = episode(0.0, 1.0, 2)[0]
    assert own(env)["travel"] == pytest.approx(way, abs=1e-6)
    env.is_absent.zero_()
    place(env, 0.0, 0.0, 0.0)
    for _ in range(2):
        step(env, 0.0, 0.0, 0.0)
    assert own(env)["travel"] == 0.0  # nothing is left of the faulty episode
    env = make(50, episode_length=5, stagger=True)
    for _ in range(5):
        step(env, *[0.0] * 50)
    assert "env/travel" not in env.metrics()
    for _ in range(5):
        step(env, *[0.0] * 50)
    assert own(env)["time_to_fall"] == pytest.approx(0.25)


class Broken(MeasuredCart):
    """A cart whose measure fails where its action is not finite."""

    def step_metrics(self, sim):
        moved = super().step_metrics(sim)["moved"]
        return {"moved": torch.where(sim.data.ctrl[:, 0] == 0, NAN, moved)}


def test_a_measure_that_is_not_finite_in_a_faulty_step_spoils_nothing():
    env = make(2, kind=Broken, episode_length=2)
    place(env, 0.0, 0.0)
    step(env, NAN, 1.0)
    assert env.measures["moved"].isfinite().all()
    step(env, 1.0, 1.0)
    step(env, 1.0, 1.0)
    assert own(env)["time_to_fall"] == pytest.approx(0.1)
    assert torch.tensor(list(env.metrics().values())).isfinite().all()


# State.


def test_a_restored_environment_keeps_the_sums_of_the_running_episodes():
    env, other = make(2, episode_length=6), make(2, seed=2, episode_length=6)
    place(env, 0.5, -0.2)
    for _ in range(4):
        step(env, 1.0, 0.5)
    state = env.state_dict()
    moved = [episode(x, a, 4)[0] for x, a in ((0.5, 1.0), (-0.2, 0.5))]
    assert state["measure/moved"].tolist() == pytest.approx(moved, abs=1e-6)
    step(other, 1.0, 1.0)
    other.load_state_dict(state)
    for e in (env, other):
        step(e, 1.0, 0.5)
        step(e, 1.0, 0.5)
    metrics = env.metrics()
    assert metrics == other.metrics()
    moved = [episode(x, a, 6)[0] for x, a in ((0.5, 1.0), (-0.2, 0.5))]
    assert metrics["env/travel"] == pytest.approx(sum(moved) / 2, abs=1e-6)


def test_the_accelerators_branches_do_what_the_cpus_do():
    env, other = (make(3, episode_length=4, rail=0.6, start=0.0) for _ in range(2))
    other._on_cpu = False
    for t in range(30):
        actions = [1.0 if t % 3 else NAN, 1.0, -0.3]
        for e in (env, other):
            step(e, *actions)
    metrics = env.metrics()
    assert metrics == other.metrics() and metrics["env/travel"] != 0.0


# Contract.


class Counting(Cart):
    """A cart without metrics, and counts how often it is asked."""

    asked = 0

    def step_metrics(self, sim):
        self.asked += 1
        return {"moved": sim.data.qpos[:, 0]}


def test_nothing_is_computed_for_a_task_without_metrics():
    env = make(2, kind=Counting, episode_length=2)
    step(env, 0.0, 0.0)
    step(env, 0.0, 0.0)
    assert env.task.asked == 1  # for the names
    assert env.measures == {} and "env/moved" not in env.metrics()


INVALID = {
    "return": (lambda n: torch.zeros(n), "'return', which is taken; choose another"),
    "success_once": (lambda n: torch.zeros(n), "'success_once', which is taken"),
    "policy": (lambda n: torch.zeros(n), "'policy', which is taken"),
    "a/b": (lambda n: torch.zeros(n), "without a slash"),
    "count": (lambda n: torch.zeros(n, dtype=torch.long), r"'count' as \(2,\) of bool or float"),
    "wide": (lambda n: torch.zeros(n, 1), r"got \(2, 1\)"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_figure_is_refused_at_once(name):
    make_value, complaint = INVALID[name]

    class Odd(Cart):
        def episode_metrics(self, sums, steps, terminated):
            return {name: make_value(len(steps))}

    with pytest.raises(ValueError, match=complaint):
        make(2, kind=Odd)


def test_the_score_and_the_kinds_must_be_known_and_distinct():
    class Lost(MeasuredCart):
        score = "turns"

    class Twice(MeasuredCart):
        kind_names = ("even", "even")

    with pytest.raises(ValueError, match=r"Lost\.score is 'turns'; there are success_rate, .*trav"):
        make(2, kind=Lost)
    with pytest.raises(ValueError, match=r"Twice\.kind_names must be different"):
        make(2, kind=Twice)
