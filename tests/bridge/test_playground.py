"""Playground's environments as ours, with one of the same interface that is known by hand."""

import dataclasses
from typing import Any

import pytest
import torch

from penspin_style.algo.algorithm import rollout
from penspin_style.algo.ppo import PPO
from penspin_style.bridge.playground import PlaygroundEnv

jax = pytest.importorskip("jax")
jnp = jax.numpy


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    data: Any
    obs: Any
    reward: Any
    done: Any
    metrics: dict
    info: dict

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)


class Walk:
    """A number that the action moves, from a random start; falls beyond 1, earns its position."""

    action_size, dt = 1, 0.1

    def __init__(self, obs=lambda x: x):
        self.obs = obs

    def reset(self, rng):
        x = 0.2 * jax.random.uniform(rng, (2,)).at[1].set(0.0)
        return State(x, self.obs(x), jnp.zeros(()), jnp.zeros(()), {}, {"key": rng})

    def step(self, state, action):
        x = state.data.at[0].add(0.25 * action[0]).at[1].add(1.0)
        done = (jnp.abs(x[0]) > 1.0).astype(jnp.float32)
        return state.replace(data=x, obs=self.obs(x), reward=x[0], done=done)


def step(env, root, *actions):
    root["action"] = torch.tensor(actions)[:, None]
    transition, root = env.step_and_maybe_reset(root)
    return transition["next"], root


def test_the_last_observation_of_an_episode_is_the_true_one_and_the_root_is_of_the_next():
    env = PlaygroundEnv(Walk(), 2, seed=4)
    root = env.current()
    start = root["teacher"][:, 0].clone()
    assert (start >= 0).all() and (start < 0.2).all() and start[0] != start[1]
    for i in range(1, 6):
        nxt, root = step(env, root, 1.0, 0.0)
        x = start[0] + 0.25 * i
        assert nxt["teacher"][0].tolist() == pytest.approx([float(x), i])
        assert nxt["reward"][0].item() == pytest.approx(float(x))
        if x > 1.0:
            break
    assert nxt["terminated"].tolist() == [[True], [False]] and not nxt["truncated"].any()
    assert root["teacher"][0, 1] == 0.0 and root["teacher"][0, 0] < 0.2  # begun anew
    assert root["teacher"][1].tolist() == pytest.approx([float(start[1]), i])
    metrics = env.metrics()
    assert metrics["env/episode_len"] == i and metrics["env/num_trajectories"] == 1
    assert metrics["env/return"] == pytest.approx(
        sum(float(start[0]) + 0.25 * k for k in range(1, i + 1)), rel=1e-5
    )
    assert env.metrics() == {"env/num_trajectories": 0}


def test_the_time_limit_truncates():
    env = PlaygroundEnv(Walk(), 2, episode_length=3)
    root = env.current()
    for _ in range(3):
        nxt, root = step(env, root, 0.0, 0.1)
    assert nxt["truncated"].all() and not nxt["terminated"].any()
    assert nxt["teacher"][:, 1].tolist() == [3.0, 3.0] and not root["teacher"][:, 1].any()


def test_actions_are_clipped_and_a_nan_is_a_fault_of_its_environment_alone():
    env = PlaygroundEnv(Walk(), 2)
    root = env.current()
    before = root["teacher"].clone()
    nxt, root = step(env, root, float("nan"), 7.0)
    assert nxt["fault"].tolist() == [[True], [False]]
    assert nxt["truncated"].tolist() == [[True], [False]] and nxt["reward"][0] == 0.0
    assert torch.equal(nxt["teacher"][0], before[0])
    assert nxt["teacher"][1, 0] == pytest.approx(float(before[1, 0]) + 0.25)


def test_a_dictionary_of_observations_gives_teacher_and_critic():
    env = PlaygroundEnv(Walk(lambda x: {"state": x[:1], "privileged_state": x}), 2)
    root = env.current()
    assert root["teacher"].shape == (2, 1) and root["critic"].shape == (2, 2)
    assert [i.name for i in env.inputs] == ["teacher", "critic"]
    with pytest.raises(ValueError, match="observes pixels; a vector `state` is needed"):
        PlaygroundEnv(Walk(lambda x: {"pixels": x}), 2)


def test_a_continuation_is_exact_and_seeds_repeat():
    env, again = (PlaygroundEnv(Walk(), 4, seed=2, episode_length=5) for _ in range(2))
    rng = torch.Generator().manual_seed(0)
    actions = (2.0 * torch.rand(20, 4, generator=rng) - 1.0).tolist()
    root = env.current()
    for action in actions[:7]:
        _, root = step(env, root, *action)
    again.load_state_dict(env.state_dict())
    other = again.current()
    for action in actions[7:]:
        one, root = step(env, root, *action)
        two, other = step(again, other, *action)
        assert all(torch.equal(one[k], two[k]) for k in one.keys())  # noqa: SIM118
    assert env.metrics() == again.metrics()
    assert torch.equal(
        PlaygroundEnv(Walk(), 4, seed=9).current()["teacher"],
        PlaygroundEnv(Walk(), 4, seed=9).current()["teacher"],
    )


def test_our_ppo_learns_in_it(one_thread):
    env = PlaygroundEnv(Walk(), 32, seed=1, episode_length=16)
    algo = PPO(PPO.Config(), env.inputs, 1, device=env.device, seed=0)
    buffer, root, returns = None, env.current(), []
    for _ in range(16):
        buffer, root = rollout(env, algo, root, buffer)
        algo.process(buffer)
        algo.update()
        returns.append(env.metrics().get("env/return", 0.0))
    assert sum(returns[-3:]) / 3 > sum(returns[:3]) / 3 + 2.0


def test_without_playground_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mujoco_playground", None)
    with pytest.raises(ImportError, match="PlaygroundEnv needs mujoco_playground"):
        PlaygroundEnv("playground:CartpoleBalance", 2)
