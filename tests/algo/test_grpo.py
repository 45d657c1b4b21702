"""GRPO: advantages within groups, derived by hand, and what carries weight."""

import pytest
import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import Interface, rollout
from penspin_style.algo.grpo import GRPO, GRPOConfig, episodes, group_advantages
from penspin_style.config import StageConfig, TrainConfig
from penspin_style.env.env import Env
from tests.support.formula import CPU
from tests.support.toy import Cart, Config

SIZE, STEPS, N = 2, 4, 4


def nxt(reward, done, fault=None):
    """Transitions of two steps or more; rows are steps, columns environments."""
    done = torch.tensor(done, dtype=torch.bool)[..., None]
    fault = torch.zeros_like(done) if fault is None else torch.tensor(fault)[..., None].bool()
    reward = torch.tensor(reward)[..., None]
    return TensorDict(
        {"reward": reward, "done": done, "fault": fault}, batch_size=list(done.shape[:2])
    )


def test_the_return_is_undiscounted_and_of_the_first_episode_alone():
    returns, alive, sound = episodes(
        nxt([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]], [[0, 1], [0, 0], [1, 1]])
    )
    assert returns.tolist() == [111.0, 2.0] and sound.all()
    assert alive[..., 0].tolist() == [[True, True], [True, False], [True, False]]


def test_a_fault_spoils_the_first_episode_alone():
    after = nxt([[1.0, 1.0], [1.0, 9.0]], [[1, 0], [0, 1]], [[0, 0], [1, 1]])
    _, _, sound = episodes(after)
    assert sound.tolist() == [True, False]


def test_an_advantage_is_how_far_above_its_group_in_standard_deviations():
    """Group (1, 3): mean 2, deviation sqrt(2); group (5, 5): no spread; (0, 4, faulty)."""
    sound = torch.tensor([True, True, True, True])
    advantage, counts, spread = group_advantages(
        torch.tensor([1.0, 3.0, 5.0, 5.0]), sound, size=2, least_spread=1e-3
    )
    r = 1.0 / (2.0**0.5 + 1e-6)
    assert advantage.tolist() == pytest.approx([-r, r, 0.0, 0.0])
    assert counts.tolist() == [True, True, False, False]
    assert spread.item() == pytest.approx(2.0**0.5 / 2)
    advantage, counts, _ = group_advantages(
        torch.tensor([0.0, 4.0, float("nan")]),
        torch.tensor([True, True, False]),
        size=3,
        least_spread=0.0,
    )
    r = 2.0 / (8.0**0.5 + 1e-6)
    assert advantage.tolist() == pytest.approx([-r, r, 0.0])
    assert counts.tolist() == [True, True, False]


def make(curriculum=(), **cfg):
    cfg = {"group_size": SIZE, "horizon": STEPS, "hidden": [8], "num_minibatches": 2, **cfg}
    env = Env(Cart(Config(episode_length=STEPS)), N, seed=2, nthread=1, groups=(SIZE, STEPS))
    settings = TrainConfig(
        algo=GRPOConfig(**cfg), task=env.cfg, num_envs=N, curriculum=[*curriculum]
    )
    interface = Interface(env.inputs, env.task.actions, 0.05, lambda name: (name,))
    return env, GRPO.make(settings, interface, device=CPU, seed=0)


def test_a_step_has_its_episodes_advantage_and_a_group_without_spread_is_left_out():
    env, grpo = make()
    batch, _ = rollout(env, grpo, env.current(), None)
    batch["next", "reward"] = torch.zeros(STEPS, N, 1)
    batch["next", "reward"][2, 0] = 4.0
    grpo.process(batch)
    rows = grpo._batch
    assert len(rows) == STEPS * SIZE  # those of the first group
    r = 2.0 / (8.0**0.5 + 1e-6)
    by_step = rows["advantage"].view(STEPS, SIZE)
    assert by_step == pytest.approx(torch.tensor([[r, -r]]).expand(STEPS, SIZE))
    out = grpo.update()
    assert out["rollout/groups_share"] == 0.5 and out["train/skipped_updates"] == 0.0
    assert out["rollout/returns_mean"] == pytest.approx(1.0)


def test_the_loss_is_the_clipped_one_with_its_own_distance_to_either_side():
    _, grpo = make(clip_low=0.1, clip_high=0.5)
    mb = TensorDict(
        {
            "teacher": torch.zeros(4, 3),
            "action": torch.zeros(4, 1),
            "advantage": torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]),
            "weight": torch.ones(4, 1),
            "loc": torch.zeros(4, 1),
            "scale": torch.ones(4, 1),
        },
        batch_size=[4],
    )
    now = grpo._actor.get_dist(mb).log_prob(mb["action"]).detach()
    ratio = torch.tensor([2.0, 0.5, 2.0, 0.5])
    mb["log_prob"] = now - ratio.log()
    loss, metrics = grpo._losses(mb)
    # min(r A, clip(r) A): 1.5, 0.5, -2, -0.9
    assert loss.item() == pytest.approx(-(1.5 + 0.5 - 2.0 - 0.9) / 4)
    named = dict(zip(grpo.METRICS, metrics.tolist(), strict=True))
    assert named["actor/clip_fraction"] == pytest.approx(0.5)
    assert named["actor/reference_kl"] == 0.0


def test_the_reference_is_what_the_training_began_with_and_pulls_back():
    env, grpo = make(kl_coef=10.0)
    began = {k: v.clone() for k, v in grpo.policy.state_dict().items()}
    free = make()[1]
    for algo in (grpo, free):
        root = env.current()
        for _ in range(5):
            batch, root = rollout(env, algo, root, None)
            algo.process(batch)
            out = algo.update()
    kept = grpo._reference.policy.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in began.items() if "normalizer" not in k)
    assert out["train/actor/reference_kl"] == 0.0  # of the free one
    assert not any(p.requires_grad for p in grpo._reference.policy.parameters())
    grown = grpo.state_dict()["reference"]
    assert grown.keys() == kept.keys()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"algo.group_size must be at least 2"):
        GRPOConfig(group_size=1)
    with pytest.raises(ValueError, match=r"episode_length=9, and a round of algo=grpo has 4 steps"):
        make(curriculum=[StageConfig(task={"episode_length": 9})])
    with pytest.raises(ValueError, match=r"algo.group_size=3 does not divide num_envs=4; .* 3$"):
        make(group_size=3)
    with pytest.raises(ValueError, match="grpo reads the observation group 'teacher'"):
        GRPO(GRPOConfig(horizon=2), (), 1, device=CPU, seed=0)
