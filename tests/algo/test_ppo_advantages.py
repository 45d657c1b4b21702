"""Advantages against a scalar reference and numbers by hand; faulty rows influence nothing."""

import math

import pytest
import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import masked_mean, rollout
from penspin_style.env.env import Env
from tests.support.ppo_batches import SIZE, N, T, close, collected, gradients, make, seeded, spoil
from tests.support.toy import Cart, Config


def reference(ppo, batch):
    """Advantages by the recursion of Schulman et al. 2016, one number at a time."""
    gamma, lam = ppo.cfg.gamma, ppo.cfg.gae_lambda
    with torch.no_grad():
        value = ppo.critic(batch["critic"])[..., 0].tolist()
        after = ppo.critic(batch["next", "critic"])[..., 0].tolist()
    flags = ("reward", "terminated", "truncated", "fault")
    nxt = {key: batch["next", key][..., 0].tolist() for key in flags}
    advantage = torch.zeros(T, N)
    for n in range(N):
        later = 0.0
        for t in reversed(range(T)):
            if nxt["fault"][t][n]:  # says nothing: the steps before bootstrap from its first state
                later = 0.0
            else:
                bootstrap = 0.0 if nxt["terminated"][t][n] else gamma * after[t][n]
                delta = ppo.cfg.reward_scale * nxt["reward"][t][n] + bootstrap - value[t][n]
                ended = nxt["terminated"][t][n] or nxt["truncated"][t][n]
                later = delta + (0.0 if ended else gamma * lam * later)
            advantage[t, n] = later
    return advantage, torch.tensor(value)


# Advantages.


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_advantages_equal_the_scalar_reference(gae_lambda):
    ppo = make(gamma=0.9, gae_lambda=gae_lambda, reward_scale=0.5)
    batch = spoil(collected(ppo, seed=3), (4, 0), (0, 1), (6, 2))
    flags = batch["next"]
    assert flags["terminated"].any() and (flags["truncated"] & ~flags["terminated"]).any()
    advantage, value = reference(ppo, batch)
    ppo.process(batch)
    close(ppo._batch["value_target"][..., 0] - value, advantage)
    kept = advantage[~flags["fault"][..., 0]]
    normal = (advantage - kept.mean()) / kept.std(correction=0)
    close(ppo._batch["advantage"][..., 0], normal, atol=1e-5)
    metrics = ppo.update()
    for name, value in {
        "rewards": flags["reward"][~flags["fault"]].mean(),
        "advantages_mean": kept.mean(),
        "advantages_max": kept.max(),
        "advantages_min": kept.min(),
    }.items():
        assert metrics[f"rollout/{name}"] == pytest.approx(value.item(), abs=1e-5)


def linear_value(ppo, weight, bias):
    """V(s) = weight s_0 + bias."""
    (layer,) = ppo.critic.net
    torch.nn.init.zeros_(layer.weight)
    layer.weight.data[0, 0] = weight * (1 + ppo.critic.normalizer.epsilon) ** 0.5
    layer.bias.data.fill_(bias)


def one_step(*, after, **flags):
    ppo = make(horizon=1, critic_hidden=[], gamma=0.9)
    linear_value(ppo, 1.0, 3.0)
    ppo._has_statistics = True
    td = TensorDict({"teacher": torch.zeros(1, 1, SIZE), "critic": torch.zeros(1, 1, 4)}, [1, 1])
    batch = ppo.act(td)
    flags = {"terminated": False, "truncated": False, "fault": False, **flags}
    flags["done"] = flags["terminated"] or flags["truncated"]
    batch["next"] = TensorDict(
        {
            "teacher": torch.zeros(1, 1, SIZE),
            "critic": torch.tensor([[[after, 0.0, 0.0, 0.0]]]),
            "reward": torch.full((1, 1, 1), 0.5),
            **{key: torch.tensor([[[value]]]) for key, value in flags.items()},
        },
        [1, 1],
    )
    ppo.process(batch)
    return ppo._batch["value_target"].item()


def test_truncation_bootstraps_from_the_true_last_observation():
    assert one_step(after=2.0, truncated=True) == pytest.approx(0.5 + 0.9 * (2.0 + 3.0))
    assert one_step(after=-1.0, truncated=True) == pytest.approx(0.5 + 0.9 * (-1.0 + 3.0))


def test_termination_does_not_bootstrap():
    assert one_step(after=2.0, terminated=True) == pytest.approx(0.5)
    assert one_step(after=2.0, terminated=True, truncated=True) == pytest.approx(0.5)


def test_a_fault_leaves_the_value_as_it_is():
    assert one_step(after=2.0, truncated=True, fault=True) == pytest.approx(3.0)


def test_a_rollout_gives_process_the_last_observation_and_not_the_restarted_one():
    env = Env(Cart(Config(episode_length=3, randomize=False)), 4, seed=1)
    ppo = make(inputs=env.inputs, naction=1, horizon=7, critic_hidden=[], gamma=1.0, gae_lambda=0.0)
    root = env.current()
    ppo.act(root.clone())
    linear_value(ppo, 1.0, 0.0)
    ppo.critic.normalizer.mean.zero_()
    ppo.critic.normalizer.var.fill_(1.0)
    batch, _ = rollout(env, ppo, root, None)
    ppo.process(batch)
    # with lambda 0 the target is r + V(next), and V is the position: `near` gives it away as
    # r = 1 - |x| - 0.1 a^2, so the target knows the x that r was computed from
    position = batch["next", "teacher"][..., :1]
    effort = 0.1 * batch["action"].clamp(-1, 1) ** 2
    close(batch["next", "reward"], 1.0 - position.abs() - effort, atol=1e-5)
    close(ppo._batch["value_target"], batch["next", "reward"] + position, atol=1e-5)
    assert batch["next", "truncated"][[2, 5]].all()
    assert (position[2] != batch["teacher"][3][..., :1]).all()


# Faulty rows.


def with_garbage(batch, where, seed):
    """Fill what faulty transitions computed with anything at all."""
    rng = seeded(seed)
    big = torch.tensor([1e30, -1e30, 3e38, 1e10])
    nxt = batch["next"]
    for t, n in where:
        for td, keys in ((batch, ("log_prob", "action")), (nxt, ("teacher", "critic", "reward"))):
            for key in keys:
                pick = torch.randint(4, td[key][t, n].shape, generator=rng)
                td[key][t, n] = big[pick]
    for key in ("action", "log_prob"):
        batch[key][where[0]] = math.nan
    nxt["reward"][where[1]] = math.inf
    for key in ("teacher", "critic"):
        batch[key][where[-1]] = 1e30 * (1 + seed)
    return batch


WHERE = [(0, 1), (3, 3), (6, 5), (2, 0)]


def learned(batch, seed=0, **cfg):
    """What a whole iteration makes of a batch."""
    ppo = make(seed=seed, **cfg)
    ppo._has_statistics = True
    ppo.process(batch)
    metrics = ppo.update()
    state = {**ppo.policy.state_dict(), **{f"c/{k}": v for k, v in ppo.critic.state_dict().items()}}
    return ppo, metrics, state


def test_faulty_rows_influence_nothing_bit_for_bit():
    cfg = {"epochs": 2, "value_clip": 0.2, "entropy_coef": 0.01}
    clean = spoil(collected(make()), *WHERE)
    one, two = (with_garbage(clean.clone(), WHERE, seed) for seed in (1, 2))
    (_, m1, s1), (_, m2, s2) = learned(one, **cfg), learned(two, **cfg)
    assert all(math.isfinite(value) for value in m1.values())
    assert m1["train/skipped_updates"] == 0.0
    assert m1 == m2
    assert all(torch.isfinite(value).all() for value in s1.values())
    assert [key for key in s1 if not torch.equal(s1[key], s2[key])] == []
    assert not torch.equal(s1["net.0.weight"], make().policy.net[0].weight)


def test_gradients_are_those_of_the_healthy_rows_alone():
    ppo = make(value_clip=0.2, entropy_coef=0.01)
    ppo._has_statistics = True
    batch = with_garbage(spoil(collected(ppo), *WHERE), WHERE, 1)
    ppo.process(batch)
    flat = ppo._batch.reshape(-1)
    healthy = flat[flat["weight"].view(-1) > 0]
    assert (len(flat), len(healthy)) == (T * N, T * N - 4)
    for all_rows, alone in zip(gradients(ppo, flat), gradients(ppo, healthy), strict=True):
        close(all_rows, alone)
    # and the statistics of the normalisers are those of the healthy rows
    ppo.update()
    for net in (ppo.policy, ppo.critic):
        x = healthy[net.in_key]
        assert net.normalizer.count.item() == len(healthy)
        close(net.normalizer.mean, x.mean(dim=0))
        close(net.normalizer.var, x.var(dim=0, correction=0))


def test_the_advantage_is_normalised_over_healthy_rows():
    ppo = make()
    batch = with_garbage(spoil(collected(ppo), *WHERE), WHERE, 1)
    ppo.process(batch)
    kept = ppo._batch["advantage"][~batch["next", "fault"]]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert kept.std(correction=0).item() == pytest.approx(1.0, abs=1e-6)


def test_a_masked_mean_ignores_what_is_not_weighed():
    value = torch.tensor([1.0, math.nan, 3.0, math.inf])
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert masked_mean(value, weight).item() == 2.0
    assert masked_mean(value, torch.zeros(4)).item() == 0.0
