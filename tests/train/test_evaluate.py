"""Evaluating a policy: the interval by hand, and the first episode of every environment only."""

import json
import math

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.statistics import RESERVED
from penspin_style.train.evaluate import evaluate, normal, wilson
from tests.support.measured import MeasuredCart
from tests.support.toy import Cart, Config, substep

# Newcombe 1998, Statistics in Medicine 17, p. 861, table I, method 3 (score, 95 %)
NEWCOMBE = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611)}


@pytest.mark.parametrize(("counts", "interval"), NEWCOMBE.items())
def test_the_interval_is_wilsons(counts, interval):
    successes, n = counts
    assert wilson(successes / n, n) == pytest.approx(interval, abs=5e-5)
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_the_interval_worked_out_for_half_of_four():
    # with z = 2: centre (1/2 + 4/8) / (1 + 4/4) = 1/2, half 2 / 2 sqrt(1/16 + 4/64) = sqrt(1/8)
    assert wilson(0.5, 4, z=2.0) == pytest.approx((0.5 - math.sqrt(1 / 8), 0.5 + math.sqrt(1 / 8)))


def test_the_interval_solves_the_quadratic_that_defines_it():
    z = 1.959964
    for n, rate in ((10, 0.3), (100, 0.97), (7, 1 / 7)):
        for p in wilson(rate, n):
            assert (rate - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n)


def test_the_interval_stays_within_zero_and_one():
    for n in range(1, 50):
        assert 0.0 <= wilson(0.0, n)[0] < 1e-15
        assert 1.0 - 1e-15 < wilson(1.0, n)[1] <= 1.0


def make(positions, *, kind=Cart, **config):
    env = Env(kind(Config(randomize=False, **config)), len(positions), seed=1)
    env.sim.data.qpos[:, 0] = torch.tensor(positions, dtype=torch.float64)
    env.sim.forward()
    env._last = env.groups.observe(env.task.observe(env.sim))
    return env


def push(*actions):
    return lambda td: torch.tensor(actions)[:, None]


def test_only_the_first_episode_of_every_environment_counts():
    # the first cart leaves the rail after two steps and restarts; the second stays out its time;
    # the third crosses the middle and goes on
    positions, actions = (1.4, 0.5, -0.2), (1.0, 0.0, 1.0)
    env = make(positions, episode_length=20, rail=1.5, close=0.1)
    calls = []
    result = evaluate(
        env, push(*actions), seed=9, on_step=lambda: calls.append(env.world.control_steps)
    )
    near, effort, length, once, at_end = [], [], [], [], []
    for x, a in zip(positions, actions, strict=True):
        v, inside, total = 0.0, [], 0.0
        while len(inside) < 20 and abs(x) <= 1.5:
            x, v = substep(x, v, a)
            inside.append(abs(x) < 0.1)
            total += 1.0 - abs(x)
        near.append(total)
        effort.append(-0.1 * a * a * len(inside))
        length.append(len(inside))
        once.append(any(inside))
        at_end.append(inside[-1])
    assert length[0] < 10 and length[1:] == [20, 20]
    assert (once, at_end) == ([False, False, True], [False, False, False])
    assert result.success_rate == pytest.approx(1 / 3)
    assert result.success_at_end == 0.0
    assert result.episode_len == pytest.approx(sum(length) / 3)
    assert result.reward == pytest.approx(
        {"near": sum(near) / 3, "effort": sum(effort) / 3}, abs=1e-5
    )
    assert result.return_ == pytest.approx((sum(near) + sum(effort)) / 3, abs=1e-5)
    assert result.interval == wilson(result.success_rate, 3)
    assert (result.episodes, result.seed, result.faults) == (3, 9, 0)
    assert calls == list(range(21))


def test_success_in_a_later_episode_is_not_that_of_the_first():
    def act(td):
        return torch.full((1, 1), 1.0 if env.world.control_steps == 0 else 0.0)

    env = make((1.49,), episode_length=6, start=0.0)  # off the rail, then at rest in the middle
    result = evaluate(env, act, seed=0)
    assert result.episode_len == 1.0
    assert env.current()["teacher"][0, 0] == 0.0
    assert (result.success_rate, result.success_at_end) == (0.0, 0.0)


def test_success_at_the_end_is_that_of_the_last_step():
    env = make((0.0, 0.6), episode_length=5)
    result = evaluate(env, push(0.0, 0.0), seed=0)
    assert (result.success_rate, result.success_at_end) == (0.5, 0.5)


def test_a_faulty_episode_is_a_failure_even_after_success():
    def act(td):
        action = torch.zeros(2, 1)
        if env.world.control_steps == 2:
            action[0] = math.nan
        return action

    env = make((0.0, 0.0), episode_length=5)
    result = evaluate(env, act, seed=0)
    assert (result.success_rate, result.success_at_end, result.faults) == (0.5, 0.5, 1)
    assert result.episode_len == (3 + 5) / 2


class Fragile(Cart):
    """A cart whose reward fails in environment 0 from the third step on."""

    def reward(self, sim, action):
        terms = super().reward(sim, action)
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > 3:  # one call was made when the environment was built
            terms["near"][0] = math.nan
        return terms


def test_a_nan_reward_ends_its_episode_and_spoils_no_sum():
    env = make((0.5, 0.5), kind=Fragile, episode_length=4)
    result = evaluate(env, push(0.0, 0.0), seed=0)
    assert result.faults == 1
    assert result.reward["near"] == pytest.approx((2 * 0.5 + 4 * 0.5) / 2)
    assert result.return_ == pytest.approx(result.reward["near"])


def test_the_result_is_plain_json():
    result = evaluate(make((0.0, 0.6), episode_length=2), push(0.0, 0.0), seed=3)
    raw = json.loads(json.dumps(result.as_dict()))
    assert raw["return"] == result.return_
    assert "return_" not in raw
    assert raw["interval"] == list(result.interval)
    assert set(raw["reward"]) == {"near", "effort"}


# The task's own figures.


def normal_by_hand(*values):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    half = 1.959964 * math.sqrt(variance / len(values))
    return mean - half, mean + half


def test_the_interval_of_a_mean_is_by_its_standard_error():
    # 1, 2, 3, 4: mean 5/2, variance 5/3, standard error sqrt(5/12)
    half = 2.0 * math.sqrt(5 / 12)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert normal(values, z=2.0) == pytest.approx((2.5 - half, 2.5 + half))
    assert normal(values) == pytest.approx(normal_by_hand(1, 2, 3, 4))


def run_by_hand(x, action, steps):
    """(Way, control steps, whether it left the rail) of a cart that starts at rest."""
    start, v, count = x, 0.0, 0
    while count < steps and abs(x) <= 1.5:
        x, v = substep(x, v, action)
        count += 1
    return x - start, count, abs(x) > 1.5


def test_the_tasks_figures_are_means_with_intervals_also_of_each_kind():
    positions, actions = (1.47, 0.5, -0.2, 0.0), (1.0, 1.0, 0.0, 0.5)
    env = make(positions, kind=MeasuredCart, episode_length=8)
    result = evaluate(env, push(*actions), seed=4)
    carts = [run_by_hand(x, a, 8) for x, a in zip(positions, actions, strict=True)]
    way, steps, terminated = zip(*carts, strict=True)
    assert terminated == (True, False, False, False) and steps[0] < 4
    assert [w >= 0.1 for w in way] == [False, True, False, True]
    found = result.measures
    assert list(found) == ["travel", "survival", "time_to_fall", "share_far"]
    seconds = [0.05 * s for s in steps]
    for name, values in (("travel", way), ("time_to_fall", seconds)):
        measure = found[name]
        assert not measure.is_share and measure.episodes == 4
        assert measure.mean == pytest.approx(sum(values) / 4, abs=1e-6)
        assert measure.interval == pytest.approx(normal_by_hand(*values), abs=1e-6)
        for kind, (a, b) in (("even", values[::2]), ("odd", values[1::2])):
            part = measure.kinds[kind]
            assert (part.episodes, part.kinds) == (2, {})
            assert part.mean == pytest.approx((a + b) / 2, abs=1e-6)
            assert part.interval == pytest.approx(normal_by_hand(a, b), abs=1e-6)
    for name, rate, even, odd in (("survival", 0.75, 0.5, 1.0), ("share_far", 0.5, 0.0, 1.0)):
        measure = found[name]
        assert measure.is_share
        assert (measure.mean, measure.interval) == (rate, wilson(rate, 4))
        assert measure.kinds["even"].interval == wilson(even, 2)
        assert (measure.kinds["even"].mean, measure.kinds["odd"].mean) == (even, odd)
    assert result.record.steps.tolist() == list(steps)
    assert result.record.terminated.tolist() == list(terminated)
    assert result.score("travel") == found["travel"].mean
    assert result.score("success_rate") == result.success_rate


def test_a_faulty_episode_enters_no_figure_of_the_task():
    def act(td):
        action = torch.tensor([[1.0], [1.0], [0.0]])
        if env.world.control_steps == 2:
            action[0] = math.nan
        return action

    env = make((0.0, 0.0, 0.0), kind=MeasuredCart, episode_length=5)
    result = evaluate(env, act, seed=0)
    survival, travel = result.measures["survival"], result.measures["travel"]
    assert (result.faults, result.episodes, survival.episodes) == (1, 3, 2)
    assert (survival.mean, survival.kinds["even"].episodes) == (1.0, 1)
    assert travel.mean == pytest.approx(run_by_hand(0.0, 1.0, 5)[0] / 2, abs=1e-6)


def test_one_episode_has_no_standard_error_and_faulty_ones_no_mean():
    one = evaluate(make((0.5,), kind=MeasuredCart, episode_length=2), push(0.0), seed=0)
    assert (one.measures["travel"].mean, one.measures["travel"].interval) == (0.0, None)
    assert one.measures["survival"].interval == wilson(1.0, 1)
    assert list(one.measures["travel"].kinds) == ["even"]  # none is odd
    none = evaluate(make((0.5,), kind=MeasuredCart, episode_length=2), push(math.nan), seed=0)
    assert (none.measures["survival"].mean, none.measures["survival"].episodes) == (None, 0)
    assert none.score("travel") is None
    assert json.loads(json.dumps(none.as_dict(), allow_nan=False))["travel"] is None


def test_the_json_has_the_means_by_name_and_everything_under_measures():
    env = make((0.0, 0.6, 0.1), kind=MeasuredCart, episode_length=2)
    result = evaluate(env, push(0.0, 1.0, 0.0), seed=3)
    raw = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert raw["travel"] == raw["measures"]["travel"]["mean"] == result.measures["travel"].mean
    assert (raw["survival"], raw["time_to_fall"], raw["share_far"]) == (1.0, pytest.approx(0.1), 0)
    assert raw["measures"]["survival"]["interval"] == list(wilson(1.0, 3))
    assert raw["measures"]["survival"]["kinds"]["odd"]["episodes"] == 1
    assert "record" not in raw
    plain = evaluate(make((0.0,), episode_length=2), push(0.0), seed=3).as_dict()
    assert plain["measures"] == {}
    assert plain.keys() <= RESERVED  # a task cannot take their names


class Strange(MeasuredCart):
    """A cart of a kind that its task does not have."""

    def kinds(self, sim):
        return super().kinds(sim) + 1


class Endless(MeasuredCart):
    """A cart that divides by zero."""

    def episode_metrics(self, sums, steps, terminated):
        return {**super().episode_metrics(sums, steps, terminated), "ratio": steps / sums["moved"]}


def test_what_a_task_cannot_mean_is_named():
    with pytest.raises(ValueError, match=r"Strange\.kinds must be below 2, .* got 1 to 2"):
        evaluate(make((0.0, 0.0), kind=Strange, episode_length=2), push(0.0, 0.0), seed=0)
    with pytest.raises(
        ValueError, match=r"Endless\.episode_metrics gives a 'ratio' that is not finite"
    ):
        evaluate(make((0.0,), kind=Endless, episode_length=2), push(0.0), seed=0)
