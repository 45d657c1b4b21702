"""Minibatches, losses and metrics of PPO, worked out by hand."""

import itertools

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from penspin_style.algo.actor_critic import explained_variance
from penspin_style.algo.algorithm import rollout
from penspin_style.algo.ppo import PPO
from penspin_style.env.env import Env
from penspin_style.nets.gaussian import Gaussian
from tests.support.ppo_batches import N, T, close, collected, crafted, make, randn, spoil
from tests.support.toy import Cart, Config

# Minibatches.


def test_minibatches_are_reshuffled_in_every_epoch():
    ppo = make(epochs=5, num_minibatches=4)
    batch = collected(ppo)
    batch["teacher"][..., 0] = torch.arange(T * N).view(T, N).float()
    ppo.process(batch)
    seen = []
    ppo._step = lambda mb: seen.append(mb["teacher"][:, 0].long().tolist())
    ppo.update()
    assert [len(mb) for mb in seen] == [11, 11, 11, 9] * 5
    epochs = [list(itertools.chain(*seen[i : i + 4])) for i in range(0, 20, 4)]
    assert all(sorted(order) == list(range(T * N)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 5
    assert all(order != sorted(order) for order in epochs)
    partitions = {frozenset(map(frozenset, seen[i : i + 4])) for i in range(0, 20, 4)}
    assert len(partitions) == 5  # other minibatches, not the same ones in another order


def test_the_first_minibatch_of_an_iteration_has_a_ratio_of_one():
    env = Env(Cart(Config()), 6, seed=1)
    ppo = make(inputs=env.inputs, naction=1, horizon=5, epochs=1, num_minibatches=1)
    root = env.current()
    for _ in range(3):
        batch, root = rollout(env, ppo, root, None)
        ppo.process(batch)
        metrics = ppo.update()
        assert metrics["train/actor/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert metrics["train/actor/ratio_abs"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["train/actor/approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["train/actor/clip_fraction"] == 0.0


def test_a_batch_of_an_older_policy_weighs_by_how_much_likelier_it_is_now():
    """And what is learned from it is measured from the policy that learns."""
    ppo, older = make(epochs=1, num_minibatches=1), make(seed=3)
    for parameter in older.policy.parameters():
        parameter.data.add_(0.3)
    batch = spoil(collected(older), (2, 1))
    batch["action"][2, 1] = float("nan")
    ppo.act(batch.clone().view(-1))  # its own statistics
    now = ppo.policy(batch["teacher"])
    before = batch["log_prob"].clone()
    ratio = (now.log_prob(batch["action"]) - before).exp()
    expected = torch.where(batch["next", "fault"].squeeze(-1), 1.0, ratio.clamp(max=2.0))
    assert (ratio > 2.0).any() and (ratio < 0.9).any()
    same = batch.clone()
    ppo.process(same)
    in_turns = ppo._batch["advantage"].clone()
    close(ppo._batch["log_prob"][0], before[0])  # what `act` wrote
    ppo.overlap = True
    ppo.process(batch)
    close(ppo._batch["advantage"], in_turns * expected[..., None])
    close(ppo._batch["loc"], now.loc.detach())
    metrics = ppo.update()
    assert metrics["train/actor/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["train/actor/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["train/skipped_updates"] == 0.0


def named(metrics):
    """The metrics of a minibatch; the norm of the gradient comes with the step."""
    return dict(zip(PPO.METRICS, metrics.tolist(), strict=True))


def test_metrics_have_the_values_worked_out_by_hand():
    ppo = make(clip_coef=0.2, value_clip=0.2, value_coef=0.5, entropy_coef=0.1)
    mb, dist = crafted(ppo)
    total, metrics = ppo._losses(mb)
    got = named(metrics)
    # min(r A, clip(r) A): 1.2, -1.5, 0.5, -0.8, 1.1
    assert got["actor/policy_loss"] == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 1.1) / 5)
    assert got["actor/policy_loss_abs"] == pytest.approx((1.2 + 1.5 + 0.5 + 0.8 + 1.1) / 5)
    assert got["actor/ratio"] == pytest.approx((1.5 + 1.5 + 0.5 + 0.5 + 1.1) / 5)
    assert got["actor/ratio_abs"] == pytest.approx((0.5 + 0.5 + 0.5 + 0.5 + 0.1) / 5)
    assert got["actor/clipped_ratio"] == pytest.approx((1.2 + 1.2 + 0.8 + 0.8 + 1.1) / 5)
    # active where the advantage pushes outwards: the first and the fourth, not the other two
    assert got["actor/clip_fraction"] == pytest.approx(2 / 5)
    # |V - V_old| > 0.2: the second and the third
    assert got["critic/value_clip_ratio"] == pytest.approx(2 / 5)
    # larger of (V - R)^2 and (V_old + clip(V - V_old) - R)^2; clipping moves the second to
    # 2 - 0.1 and the third to -1 + 0.05
    squares = [1.0, max(2.0**2, 1.9**2), max(1.0**2, 0.95**2), 0.25, 0.25]
    assert got["critic/value_loss"] == pytest.approx(0.5 * sum(squares) / 5, rel=1e-5)
    kept = slice(0, 5)
    new = Independent(Normal(dist.loc[kept], dist.scale[kept]), 1)
    old = Independent(Normal(mb["loc"][kept], mb["scale"][kept]), 1)
    assert got["actor/approx_kl"] == pytest.approx(kl_divergence(old, new).mean().item(), rel=1e-5)
    assert got["actor/entropy"] == pytest.approx(new.entropy().mean().item(), rel=1e-5)
    expected = got["actor/policy_loss"] + got["critic/value_loss"] - 0.1 * got["actor/entropy"]
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert got["actor/total_loss"] == pytest.approx(total.item())


def test_the_value_loss_without_a_clip_is_the_plain_square():
    ppo = make(value_clip=None, value_coef=2.0)
    mb, _ = crafted(ppo)
    got = named(ppo._losses(mb)[1])
    squares = [1.0, 4.0, 1.0, 0.25, 0.25]
    assert got["critic/value_loss"] == pytest.approx(2.0 * sum(squares) / 5, rel=1e-5)
    assert got["critic/value_clip_ratio"] == 0.0


def test_the_value_loss_takes_the_clipped_value_where_that_is_worse():
    ppo = make(value_clip=0.2)
    mb, _ = crafted(ppo)
    mb["weight"][:] = 0.0
    mb["weight"][1] = 1.0
    value = ppo.critic(mb["critic"]).detach()
    mb["state_value"] = value - 1.0  # V_clip = V - 0.8
    mb["value_target"] = value + 0.5  # off by 0.5, clipped by 1.3
    assert named(ppo._losses(mb)[1])["critic/value_loss"] == pytest.approx(1.3**2, rel=1e-5)


def test_explained_variance_by_hand():
    target, value = torch.tensor([1.0, 2.0, 3.0, 4.0, 99.0]), torch.tensor([1.0, 2.0, 3.0, 5.0, 0])
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    # residuals 0 0 0 -1: variance 3/16; targets: variance 5/4
    assert explained_variance(target, value, weight).item() == pytest.approx(1 - (3 / 16) / (5 / 4))
    assert explained_variance(target, target + 7.0, weight).item() == 1.0  # an offset is no error
    mean = torch.full((5,), 2.5)
    assert explained_variance(target, mean, weight).item() == pytest.approx(0.0)


def gaussians(seed=0):
    a = Gaussian(randn(50, 3, seed=seed), randn(50, 3, seed=seed + 1).exp())
    b = Gaussian(randn(50, 3, seed=seed + 2), randn(50, 3, seed=seed + 3).exp())
    return a, b


def test_the_gaussian_is_that_of_torch_distributions():
    a, b = gaussians()
    other = Independent(Normal(a.loc, a.scale), 1)
    x = randn(50, 3, seed=9)
    close(a.log_prob(x), other.log_prob(x), atol=1e-4)
    close(a.entropy(), other.entropy(), atol=1e-5)
    torch.testing.assert_close(
        a.kl(b), kl_divergence(other, Independent(Normal(b.loc, b.scale), 1)), rtol=1e-4, atol=1e-4
    )


def test_the_divergence_is_never_negative_and_zero_only_for_equals():
    for seed in range(5):
        a, b = gaussians(10 * seed)
        assert (a.kl(b) > 0).all()
        assert (a.kl(a) == 0).all()
