"""PPO against numbers derived by hand, a scalar reference and torch.distributions."""

import copy
import itertools
import math
import time

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Independent, Normal, kl_divergence

from penspin_style.algo.algorithm import MAX_SKIPPED, DivergedError, masked_mean, rollout
from penspin_style.algo.ppo import _NAMES, PPO, PPOConfig, explained_variance
from penspin_style.env.env import Env
from penspin_style.features import Feature, Input
from penspin_style.nets.gaussian import Gaussian
from penspin_style.train.evaluate import evaluate
from tests.support.toy import Cart, Config

T, N, SIZE, CRITIC_SIZE, NACTION = 7, 6, 3, 4, 2
TEACHER = Input("teacher", (Feature("x", (SIZE,)),))
CRITIC = Input("critic", (Feature("y", (CRITIC_SIZE,)),))
CPU = torch.device("cpu")


def make(*, seed=0, inputs=(TEACHER, CRITIC), naction=NACTION, **cfg):
    cfg = {"hidden": [8], "critic_hidden": [8], "horizon": T, **cfg}
    return PPO(PPOConfig(**cfg), inputs, naction, device=CPU, seed=seed)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def collected(ppo, seed=0, ends=0.2):
    """A batch [T, N] as `rollout` leaves it: random observations, rewards and flags."""
    rng = seeded(seed)
    size = torch.Size([T, N])

    def observation():
        return {
            "teacher": torch.randn(T, N, SIZE, generator=rng),
            "critic": torch.randn(T, N, CRITIC_SIZE, generator=rng),
        }

    def flag(probability):
        return torch.rand(T, N, 1, generator=rng) < probability

    td = TensorDict(observation(), size)
    ppo.act(td.view(-1))
    batch = ppo.act(td)
    terminated, fault = flag(ends), torch.zeros(T, N, 1, dtype=torch.bool)
    truncated = flag(ends)
    batch["next"] = TensorDict(
        {
            **observation(),
            "reward": torch.randn(T, N, 1, generator=rng),
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated | truncated,
            "fault": fault,
        },
        size,
    )
    return batch


def spoil(batch, *where):
    """Make transitions faulty, as the environment does."""
    nxt = batch["next"]
    for t, n in where:
        for key in ("fault", "truncated", "done"):
            nxt[key][t, n] = True
        nxt["terminated"][t, n] = False
    return batch


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


def close(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, atol=atol, rtol=0.0)


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


def gradients(ppo, mb):
    for net in (ppo.policy, ppo.critic):
        net.zero_grad()
    loss, metrics = ppo._losses(mb)
    loss.backward()
    grads = [p.grad.clone() for net in (ppo.policy, ppo.critic) for p in net.parameters()]
    return loss.detach(), metrics, torch.cat([g.flatten() for g in grads])


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


# Losses and metrics.

RATIO = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 9.0])
ADVANTAGE = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 5.0])
WEIGHT = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
MOVED = torch.tensor([0.1, 0.3, -0.25, 0.05, 0.0, 7.0])  # V - V_old
MISSED = torch.tensor([1.0, 2.0, -1.0, 0.5, -0.5, 9.0])  # V - target


def crafted(ppo):
    """A minibatch with the ratios, advantages and values above."""
    n = len(RATIO)
    td = TensorDict(
        {"teacher": randn(n, SIZE), "critic": randn(n, CRITIC_SIZE), "action": randn(n, 2)}, [n]
    )
    with torch.no_grad():
        dist, value = ppo.policy(td["teacher"]), ppo.critic(td["critic"])
    td["log_prob"] = dist.log_prob(td["action"]) - RATIO.log()
    td["loc"] = dist.loc + 0.3
    td["scale"] = dist.scale * 1.2
    td["advantage"] = ADVANTAGE[:, None]
    td["state_value"] = value - MOVED[:, None]
    td["value_target"] = value - MISSED[:, None]
    td["weight"] = WEIGHT[:, None]
    return td, dist


def named(metrics):
    """The metrics of a minibatch; the norm of the gradient comes with the step."""
    return dict(zip(_NAMES[:-1], metrics.tolist(), strict=True))


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


# Acting.


def test_actions_are_drawn_from_the_distribution_that_is_recorded():
    ppo = make()
    td = TensorDict({"teacher": randn(20000, SIZE), "critic": randn(20000, CRITIC_SIZE)}, [20000])
    td["teacher"][:] = td["teacher"][0].clone()
    ppo._has_statistics = True
    ppo.act(td)
    other = Independent(Normal(td["loc"], td["scale"]), 1)
    close(td["log_prob"], other.log_prob(td["action"]), atol=1e-5)
    close(td["loc"], ppo.policy.act(td["teacher"]).detach())
    z = (td["action"] - td["loc"]) / td["scale"]
    close(z.mean(dim=0), torch.zeros(2), atol=4 / 20000**0.5)
    close(z.std(dim=0), torch.ones(2), atol=0.02)
    assert td["scale"][0].tolist() == pytest.approx([0.8, 0.8])  # init_std


def test_the_critic_reads_its_own_group_and_the_policy_does_not():
    ppo = make()
    ppo._has_statistics = True
    batch = collected(ppo)
    other = batch.clone()
    for td in (other, other["next"]):
        td["critic"] += 1.0
    ppo.process(batch)
    value = ppo._batch["state_value"]
    ppo.process(other)
    assert (ppo._batch["state_value"] != value).all()
    with torch.no_grad():
        same = ppo.policy(batch["teacher"]), ppo.policy(other["teacher"])
    assert torch.equal(same[0].loc, same[1].loc)
    batch["teacher"] += 1.0
    ppo.process(batch)
    assert torch.equal(ppo._batch["state_value"], value)
    assert (ppo.policy(batch["teacher"]).loc != same[0].loc).all()


def test_without_a_critic_group_the_critic_reads_what_the_teacher_does():
    assert make(inputs=(TEACHER,)).critic.in_key == "teacher"


def test_a_task_without_a_teacher_group_is_refused():
    with pytest.raises(ValueError, match=r"group 'teacher'; the task has \['critic'\]"):
        make(inputs=(CRITIC,))


def test_update_needs_a_processed_batch():
    with pytest.raises(RuntimeError, match=r"call process\(\) first"):
        make().update()


# Steps.


def weights(ppo):
    return copy.deepcopy({"policy": ppo.policy.state_dict(), "critic": ppo.critic.state_dict()})


def flat_weights(ppo):
    return torch.cat(
        [p.detach().flatten() for net in (ppo.policy, ppo.critic) for p in net.parameters()]
    )


def test_an_update_moves_every_network_and_its_normaliser():
    ppo = make()
    ppo._has_statistics = True  # or the batch would be in them already
    batch = collected(ppo)
    before = weights(ppo)
    ppo.process(batch)
    ppo.update()
    after = weights(ppo)
    same = [
        f"{net}.{key}"
        for net in before
        for key in before[net]
        if torch.equal(before[net][key], after[net][key])
    ]
    assert same == []


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    assert torch.equal(flat_weights(make(seed=1)), flat_weights(make(seed=1)))
    assert not torch.equal(flat_weights(make(seed=1)), flat_weights(make(seed=2)))
    torch.manual_seed(5)
    one, two = make(seed=1), make(seed=1)
    for ppo in (one, two):
        ppo.process(collected(ppo))
        ppo.update()
        torch.manual_seed(6)  # nothing may draw from the global generator
    assert torch.equal(flat_weights(one), flat_weights(two))


def test_a_restored_learner_continues_bit_for_bit():
    ppo, other = make(seed=1, target_kl=0.01), make(seed=2, target_kl=0.01)
    for seed in range(2):
        ppo.process(collected(ppo, seed))
        ppo.update()
    state = copy.deepcopy(ppo.state_dict())
    other.load_state_dict(state)
    results = []
    for each in (ppo, other):
        each.process(collected(each, 5))
        results.append((each.update(), flat_weights(each), each.policy.normalizer.mean.clone()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize(
    ("target_kl", "factor"), [(1e-6, 1 / 1.5), (1e3, 1.5), (None, 1.0)], ids=["far", "near", "off"]
)
def test_the_learning_rate_follows_the_divergence(target_kl, factor):
    ppo = make(learning_rate=1e-3, target_kl=target_kl)
    ppo.process(collected(ppo))
    metrics = ppo.update()
    assert metrics["train/actor/approx_kl"] > 2e-6
    assert metrics["train/actor/lr"] == 1e-3  # that of this update
    assert ppo.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)


def test_the_learning_rate_stays_where_the_divergence_is_as_wanted():
    ppo = make(learning_rate=1e-3, epochs=1)
    ppo.process(collected(ppo))
    kl = ppo.update()["train/actor/approx_kl"]
    assert kl > 0
    ppo = make(learning_rate=1e-3, epochs=1, target_kl=kl)
    ppo.process(collected(ppo))
    ppo.update()
    assert ppo.optimizer.param_groups[0]["lr"] == 1e-3


def test_a_large_value_error_does_not_shrink_the_policys_step():
    moved = []
    for scale in (1.0, 1e4):
        ppo = make(seed=1, epochs=1, num_minibatches=1)
        ppo.process(collected(ppo))
        ppo._batch["value_target"] *= scale
        before = [p.detach().clone() for p in ppo.policy.parameters()]
        ppo.update()
        moved.append([p.detach() - b for p, b in zip(ppo.policy.parameters(), before, strict=True)])
    for a, b in zip(*moved, strict=True):
        assert torch.equal(a, b) and (a != 0).any()


def test_gradients_are_clipped_to_their_norm():
    ppo = make(max_grad_norm=0.01, epochs=1, num_minibatches=1)
    ppo.process(collected(ppo))
    ppo._batch["value_target"] *= 100.0
    seen = []
    step = ppo.optimizer.step
    ppo.optimizer.step = lambda: (
        seen.append([p.grad.norm() for p in ppo.critic.parameters()]),
        step(),
    )
    metrics = ppo.update()
    assert metrics["train/actor/grad_norm"] > 1.0  # before clipping
    (norms,) = seen
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)


def sick(ppo, *bad):
    """Make the losses of these steps NaN."""
    healthy, calls = ppo._losses, iter(range(10**6))

    def losses(mb):
        loss, metrics = healthy(mb)
        return (loss * math.nan if next(calls) in bad else loss), metrics

    ppo._losses = losses
    return ppo


def test_a_step_that_is_not_finite_is_skipped_and_the_others_are_taken():
    ppo = make(epochs=1, num_minibatches=4)
    ppo.process(collected(ppo))
    before = flat_weights(ppo)
    sick(ppo, 0, 1, 2, 3)
    metrics = ppo.update()
    assert metrics["train/skipped_updates"] == 4.0
    assert torch.equal(flat_weights(ppo), before)
    assert all(math.isfinite(value) for value in metrics.values())
    ppo.process(collected(ppo))
    assert ppo.update()["train/skipped_updates"] == 0.0
    assert torch.isfinite(flat_weights(ppo)).all()
    assert not torch.equal(flat_weights(ppo), before)


def test_a_gradient_that_is_not_finite_is_skipped_too():
    ppo = make(epochs=1, num_minibatches=1)
    ppo.process(collected(ppo))
    before = flat_weights(ppo)
    ppo.policy.raw_std.register_hook(lambda grad: grad * math.inf)
    assert ppo.update()["train/skipped_updates"] == 1.0
    assert torch.equal(flat_weights(ppo), before)


def test_five_skipped_steps_in_a_row_mean_that_learning_diverged():
    assert MAX_SKIPPED == 5
    ppo = sick(make(epochs=3, num_minibatches=4), *range(4), *range(5, 9))
    ppo.process(collected(ppo))
    assert ppo.update()["train/skipped_updates"] == 8.0  # never five in a row
    ppo = sick(make(epochs=2, num_minibatches=4), *range(5))
    ppo.process(collected(ppo))
    with pytest.raises(DivergedError, match="5 updates in a row"):
        ppo.update()


def test_skips_are_counted_across_iterations_and_checkpoints():
    ppo = sick(make(epochs=1, num_minibatches=3), 0, 1, 2)
    ppo.process(collected(ppo))
    ppo.update()
    other = make(epochs=1, num_minibatches=3)
    other.load_state_dict(ppo.state_dict())
    sick(other, 0, 1)
    other.process(collected(other))
    with pytest.raises(DivergedError):
        other.update()


# Learning.


def test_ppo_solves_the_cart_within_25_iterations():
    began = time.process_time()
    env = Env(Cart(Config()), 64, seed=0, stagger=True)
    ppo = make(
        inputs=env.inputs,
        naction=1,
        horizon=16,
        epochs=5,
        learning_rate=3e-3,
        gamma=0.9,
        reward_scale=0.1,
        init_std=0.5,
        hidden=[32],
        critic_hidden=[32],
    )

    def mean_return():
        fresh = Env(Cart(Config()), 100, seed=77)
        return evaluate(fresh, lambda td: ppo.policy.act(td["teacher"]), seed=77)

    before = mean_return()
    buffer, root = None, env.current()
    for _ in range(25):
        buffer, root = rollout(env, ppo, root, buffer)
        ppo.process(buffer)
        metrics = ppo.update()
    after = mean_return()
    assert before.success_at_end < 0.3
    assert after.success_at_end >= 0.97
    assert after.return_ > before.return_ + 10.0
    assert metrics["train/critic/explained_variance"] > 0.3
    assert time.process_time() - began < 20.0


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it does itself
def test_the_compiled_losses_are_the_eager_ones():
    eager, compiled = make(value_clip=0.2), make(value_clip=0.2, compile=True)
    mb, _ = crafted(eager)
    expected = gradients(eager, mb)
    seen = gradients(compiled, mb)
    for a, b in zip(expected, seen, strict=True):
        close(a, b, atol=1e-5)
