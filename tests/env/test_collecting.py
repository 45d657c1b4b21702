"""How experience is collected: by TorchRL, into one buffer, without a wait for the accelerator."""

import warnings

import pytest
import torch
from tensordict.nn import TensorDictModuleBase

from penspin_style.algo.algorithm import rollout
from penspin_style.algo.ppo import PPO, PPOConfig
from penspin_style.env.env import Env
from penspin_style.env.task import ObsTerm, load_task
from tests.support.toy import Cart

with warnings.catch_warnings():  # torchrl's own use of what it deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrl.collectors import Collector

from tests.support.toy_env import NAN, RICH, Fragile, differing, draw_actions, make, step
from tests.support.waits import waits

# Collecting.


class Swing(TensorDictModuleBase):
    """A policy without noise, as a collector wants one, and as an algorithm that only acts."""

    horizon = 12

    def __init__(self):
        super().__init__()
        self.in_keys, self.out_keys = ["teacher"], ["action"]

    def forward(self, td):
        return td.set("action", torch.sin(20.0 * td["teacher"].sum(dim=1, keepdim=True)))

    act = forward


def learner(env, horizon=12):
    cfg = PPOConfig(horizon=horizon, hidden=[8], critic_hidden=[8])
    return PPO(cfg, env.inputs, 1, device=torch.device("cpu"), seed=3)


def test_torchrls_collector_drives_the_environment_and_collects_what_rollout_does():
    env, twin = (make(3, observation=RICH, episode_length=5, randomize=True) for _ in range(2))
    root = twin.reset()
    expected = []
    for _ in range(2):
        batch, root = rollout(twin, Swing(), root, None)
        expected.append(batch)
    frames = 3 * 12
    collector = Collector(
        env,
        Swing(),
        frames_per_batch=frames,
        total_frames=2 * frames,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )
    collected = [data.clone() for data in collector]
    collector.shutdown()
    assert len(collected) == 2
    for data, batch in zip(collected, expected, strict=True):
        assert data.batch_size == (3, 12)
        for key in batch.keys(True, True):
            assert torch.equal(data[key], batch[key].transpose(0, 1)), key
        assert batch["next", "done"].sum() >= 6


def test_a_rollout_writes_over_its_buffer_and_continues_from_its_root():
    env, twin = make(3, episode_length=5), make(3, episode_length=5)
    first, root = rollout(env, learner(env, 6), env.current(), None)
    kept = first.clone()
    second, _ = rollout(env, learner(env, 6), root, first)
    assert second is first
    assert differing(kept, second) != set()
    assert torch.equal(second[0]["teacher"], root["teacher"])
    chain = learner(twin, 6)
    long, _ = rollout(twin, chain, twin.current(), None)
    assert differing(long, kept) == set()
    for t in range(5):
        going = ~kept["next", "done"][t, :, 0]
        assert torch.equal(kept["teacher"][t + 1][going], kept["next", "teacher"][t][going])


# Waiting for the accelerator.


@pytest.mark.parametrize(
    "name", ["tests.support.toy", "tests.support.measured", "panda_lift_cube", "panda_pick_cube"]
)
def test_a_rollout_never_waits_for_the_accelerator(name):
    kind = load_task(name)
    config = kind.Config(episode_length=5)
    config.observation["teacher"] = {
        key: ObsTerm(noise=0.01, delay=(0, 2), history=2) for key in config.observation["teacher"]
    }
    env = Env(kind(config), 6, seed=1)
    algorithm = PPO(
        PPOConfig(horizon=12, hidden=[8], critic_hidden=[8]),
        env.inputs,
        len(env.task.actions),
        device=torch.device("cpu"),
        seed=3,
    )
    assert waits(env, algorithm) == []


def test_the_accelerators_branches_do_what_the_cpus_do():
    config = {"start": 0.0, "episode_length": 6, "rail": 0.3}  # restarts draw nothing that shows
    env, other = make(4, kind=Fragile, **config), make(4, kind=Fragile, **config)
    other._on_cpu = False
    actions = draw_actions(env, 40)
    actions[9, 1] = actions[20, 3] = NAN
    for t, action in enumerate(actions):
        bad = torch.tensor([0.0, 0.0, NAN, 0.0]) if t == 15 else None
        env.task.bad_reward = other.task.bad_reward = bad
        seen, expected = (step(e, *action.view(-1).tolist()) for e in (other, env))
        assert differing(seen.exclude("action"), expected.exclude("action")) == set()
        assert differing(other.current(), env.current()) == set()
    assert env.faults.counts.sum() == 3
    assert torch.equal(env.faults.counts, other.faults.counts)
    for a, b in zip(env.faults.take(), other.faults.take(), strict=True):
        assert (a.env_id, a.code) == (b.env_id, b.code) and torch.equal(a.row, b.row)
    assert env.metrics() == other.metrics()


HABITS = {
    "branch": lambda a: 1.0 if a.max() > 5 else 0.0,
    "mask": lambda a: a[a > 5].sum(),
    "list": lambda a: a[[0]],
    "tolist": lambda a: a.tolist(),
    "numpy": lambda a: a.numpy(),
    "item": lambda a: a.sum().item(),
    "write": lambda a: a.clone().index_put_((a > 5,), torch.zeros(())),
    "tensor": lambda a: torch.tensor([1.0]),
    "nonzero": lambda a: (a > 5).nonzero(),
}


class Hasty(Cart):
    """A task that looks at its tensors."""

    def apply_action(self, sim, action):
        super().apply_action(sim, action)
        HABITS[self.habit](action)


@pytest.mark.parametrize("habit", HABITS)
def test_the_search_for_waits_finds_every_kind(habit, monkeypatch):
    monkeypatch.setattr(Hasty, "habit", habit, raising=False)
    env = make(2, kind=Hasty)
    found = waits(env, learner(env, 3))
    assert len(found) >= 3
    assert {path for _, path, _ in found} == {"tests/env/test_collecting.py"}
    assert all(text.startswith(f'"{habit}": lambda a') for _, _, text in found)
