"""Numbers that are finite and yet no measurement: faults, and out of every running statistic."""

import math

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.nets.normalizer import Normalizer
from penspin_style.sim.sim import Fault
from tests.env.toy import Cart, Config

HUGE = (3e38, -2e6, math.inf, math.nan)


class Spoiled(Cart):
    """A cart whose second environment observes, or is rewarded with, `value` when told to."""

    value, where = 0.0, ""

    def observe(self, sim):
        out = {k: v.clone() for k, v in super().observe(sim).items()}
        if self.where == "observation":
            out["position"][1] = self.value
        return out

    def reward(self, sim, action):
        out = super().reward(sim, action)
        if self.where == "reward":
            out["near"] = torch.where(torch.arange(sim.num_envs) == 1, self.value, out["near"])
        return out


def make(**config):
    return Env(Spoiled(Config(randomize=False, **config)), 3, seed=1)


def step(env):
    root = env.current()
    root.set("action", torch.zeros(3, 1))
    return env.step_and_maybe_reset(root)


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("where", ["observation", "reward"])
def test_a_number_beyond_any_measurement_is_a_fault_of_one_environment(where, value):
    env = make()
    env.task.value, env.task.where = value, where
    reward = env.task.reward

    def once(sim, action):
        out = reward(sim, action)
        env.task.where = "" if where == "reward" else where
        return out

    env.task.reward = once
    observe = env.task.observe

    def once_seen(sim):
        out = observe(sim)
        env.task.where = "" if where == "observation" else env.task.where
        return out

    env.task.observe = once_seen
    transition, root = step(env)
    nxt = transition["next"]
    assert nxt["fault"].view(-1).tolist() == [False, True, False]
    assert nxt["truncated"].view(-1).tolist() == [False, True, False]
    assert float(nxt["reward"].abs().max()) < 10 and float(nxt["teacher"].abs().max()) < 10
    assert float(root["teacher"].abs().max()) < 10
    (record,) = env.take_faults()
    assert record.env_id == 1
    assert record.code == (Fault.OBSERVATION if where == "observation" else Fault.REWARD)


@pytest.mark.parametrize("value", HUGE)
def test_an_episode_that_begins_with_such_a_number_is_seen_by_nobody_and_ends_at_once(value):
    env = make()
    env.task.value, env.task.where = value, "observation"
    env.reset()
    env.task.where = ""
    assert float(env.current()["teacher"].abs().max()) < 10
    saved = env.state_dict()
    transition, root = step(env)
    assert transition["next"]["fault"].view(-1).tolist() == [False, True, False]
    assert env.step_count.tolist() == [1, 0, 1]
    assert float(root["teacher"][1].abs().max()) > 0  # the next episode has begun well
    assert step(env)[0]["next"]["fault"].any().item() is False
    env.load_state_dict(saved)
    assert step(env)[0]["next"]["fault"].view(-1).tolist() == [False, True, False]


def test_a_task_may_measure_more_than_a_million(monkeypatch):
    monkeypatch.setattr(Spoiled, "largest", 1e9)
    env = make()
    env.task.value, env.task.where = 5e8, "observation"
    assert not step(env)[0]["next"]["fault"].any()


def test_a_checkpoint_from_before_these_buffers_still_loads():
    env, old = make(), make().state_dict()
    del old["unusable"]
    old["finished"] = old["finished"][:-1]
    env.unusable[1] = True
    env.load_state_dict(old)
    assert not env.unusable.any() and not env.finished.any()


@pytest.mark.parametrize("value", [3e38, -1e19, math.inf, math.nan])
def test_the_normaliser_absorbs_no_number_whose_square_is_infinite(value):
    one, other = Normalizer(2), Normalizer(2)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    spoiled = torch.cat((x, torch.tensor([[0.5, value]])))
    one.update(x)
    other.update(spoiled)
    assert torch.equal(one.mean, other.mean) and torch.equal(one.var, other.var)
    assert one.count == other.count == 64


def test_training_measures_success_at_the_end_beside_success_at_some_step():
    """A cart that is pushed through the middle succeeds on the way, not at the end."""
    env = Env(Cart(Config(randomize=False, episode_length=20)), 2, seed=1)
    env.sim.data.qpos[:, 0] = torch.tensor([-0.2, 0.0], dtype=torch.float64)
    env.sim.forward()
    for _ in range(20):
        root = env.current()
        root.set("action", torch.tensor([[1.0], [0.0]]))
        env.step_and_maybe_reset(root)
    found = env.metrics()
    assert found["env/num_trajectories"] == 2
    assert (found["env/success_once"], found["env/success_at_end"]) == (1.0, 0.5)
