"""PPO with encoders, a value head on the trunk, normalised values and the KL's schedule."""

import copy
import time
from typing import ClassVar

import pytest
import torch

from penspin_style.algo.algorithm import rollout
from penspin_style.algo.ppo import PPO, PPOConfig
from penspin_style.env.env import Env
from penspin_style.env.task import ObsTerm
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.teacher import TeacherPolicy
from penspin_style.train.evaluate import acting, evaluate
from tests.support.toy import Cart, Config

CPU = torch.device("cpu")
ENCODERS = {"privileged": [16, 4], "points": [16, 8]}


class Hidden(Cart):
    """Where the cart is, only `privileged` knows, and a cloud of points around the cart."""

    units: ClassVar[dict[str, str]] = {**Cart.units, "cloud": "m", "past": "m"}

    def observe(self, sim):
        terms = super().observe(sim)
        spread = torch.linspace(-0.1, 0.1, 30, device=sim.device).view(10, 3)
        cloud = terms["position"].view(-1, 1, 1) + spread
        everything = {**terms, "cloud": cloud.float(), "past": terms["position"]}
        listed = {name for group in self.cfg.observation.values() for name in group}
        return {name: value for name, value in everything.items() if name in listed}


def make_env(num_envs=6, *, groups=("privileged", "points"), seed=0, stagger=True, **cfg):
    groups_ = {
        "teacher": {"velocity": ObsTerm(), "last_action": ObsTerm()},
        "privileged": {"position": ObsTerm()},
        "points": {"cloud": ObsTerm()},
        "student": {"past": ObsTerm(history=5)},
        "critic": {"position": ObsTerm(), "velocity": ObsTerm()},
    }
    observation = {name: groups_[name] for name in ("teacher", *groups)}
    task = Hidden(Config(observation=observation, **cfg))
    return Env(task, num_envs, seed=seed, stagger=stagger)


def make(env, *, seed=0, **cfg):
    settings = {
        "hidden": [16],
        "critic_hidden": [16],
        "horizon": 8,
        "encoders": ENCODERS,
        "shared_critic": True,
        **cfg,
    }
    return PPO(PPOConfig(**settings), env.inputs, 1, device=CPU, seed=seed)


def collect(env, ppo, times=1):
    buffer, root = None, env.current()
    for _ in range(times):
        buffer, root = rollout(env, ppo, root, buffer)
    return buffer


def close(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, atol=atol, rtol=0.0)


def flat_weights(ppo):
    return torch.cat([p.detach().flatten() for p in ppo.policy.parameters()])


# What is read.


def test_groups_with_an_encoder_are_read_beside_the_teachers():
    ppo = make(make_env())
    assert ppo.policy.in_keys == ("teacher", "points", "privileged")
    assert ppo.policy.describe()["encoders"] == {"points": [16, 8], "privileged": [16, 4]}
    assert ppo.critic is None


def test_the_order_of_the_encoders_does_not_matter():
    env = make_env()
    one, two = make(env), make(env, encoders=dict(reversed(ENCODERS.items())))
    assert torch.equal(flat_weights(one), flat_weights(two))


@pytest.mark.parametrize("groups", [("privileged",), ("points",), ()])
def test_an_encoder_of_a_group_that_is_not_observed_is_passed_over(groups):
    env = make_env(groups=groups)
    ppo = make(env)
    assert ppo.policy.in_keys == ("teacher", *groups)
    ppo.process(collect(env, ppo))
    assert ppo.update()["train/skipped_updates"] == 0.0


def test_a_group_is_left_out_by_an_empty_list_too():
    ppo = make(make_env(), encoders={**ENCODERS, "points": []})
    assert ppo.policy.in_keys == ("teacher", "privileged")


def test_a_misspelt_group_is_told_from_an_ablated_one():
    with pytest.raises(ValueError, match=r"encoders.privilged: .* did you mean privileged\?"):
        make(make_env(), encoders={"privilged": [8], "points": [8]})


def test_without_encoders_and_value_head_it_is_the_plain_policy():
    ppo = make(make_env(groups=("privileged",)), encoders={"points": [8]}, shared_critic=False)
    assert isinstance(ppo.policy, GaussianPolicy)


def test_encoders_go_with_a_critic_of_its_own():
    env = make_env(groups=("privileged", "critic"))
    ppo = make(env, shared_critic=False)
    assert isinstance(ppo.policy, TeacherPolicy) and ppo.policy.value is None
    assert ppo.critic.in_key == "critic"
    before = flat_weights(ppo)
    ppo.process(collect(env, ppo))
    ppo.update()
    assert not torch.equal(flat_weights(ppo), before)


def test_a_critics_group_and_a_value_head_exclude_each_other():
    with pytest.raises(ValueError, match=r"use algo\.shared_critic=false or drop the group"):
        make(make_env(groups=("critic",)))


def test_what_is_not_read_is_not_stored():
    env = make_env(groups=("privileged", "points", "student"))
    batch = collect(env, make(env))
    for td in (batch, batch["next"]):
        keys = set(td.keys())
        assert {"teacher", "privileged", "points"} < keys
        assert "student" not in keys
    assert "student" in set(env.current().keys())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoders": {"points": [8, 0]}}, r"algo.encoders.points must be a list of sizes >= 1"),
        ({"encoders": {"teacher": [8]}}, "algo.encoders must be another group, got teacher"),
        ({"kl_every": "step"}, "algo.kl_every must be iteration or epoch, got step"),
        ({"min_learning_rate": 1.0}, r"algo.max_learning_rate must be at least .*, 1.0, got 0.003"),
        ({"max_learning_rate": 0.0}, "algo.max_learning_rate must be finite and > 0"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**changes)


# Statistics.


def test_points_share_their_statistics_and_faulty_rows_are_in_none():
    env = make_env()
    ppo = make(env)
    ppo._has_statistics = True
    batch = collect(env, ppo)
    batch["next", "fault"][3, 2] = batch["next", "done"][3, 2] = True
    batch["points"][3, 2] = 1e30
    ppo.process(batch)
    ppo.update()
    keep = ~batch["next", "fault"].view(-1)
    points = batch["points"].reshape(-1, 30)[keep].reshape(-1, 3)
    normalizer = ppo.policy.normalizers["points"]
    assert normalizer.count.item() == len(points) == 470
    close(normalizer.mean, points.mean(dim=0), atol=1e-5)
    close(normalizer.var, points.var(dim=0, correction=0), atol=1e-5)


# Values.


def everything_evaluated(ppo, batch):
    """Values of every row by the network itself."""
    with torch.no_grad():
        now, later = (
            ppo._returns(ppo.policy.evaluate(*(td[key] for key in ppo.policy.in_keys))[1])
            for td in (batch, batch["next"])
        )
    return now, later


@pytest.mark.parametrize("value_norm", [False, True])
def test_next_values_are_those_of_a_full_evaluation_where_they_count(value_norm):
    env = make_env(64, episode_length=5, rail=0.9)
    ppo = make(env, value_norm=value_norm)
    if value_norm:
        ppo.value_normalizer.update(3.0 + 5.0 * torch.randn(50, 1))
    batch = collect(env, ppo, 3)
    nxt = batch["next"]
    for t, n in ((0, 0), (3, 1), (7, 2)):
        nxt["fault"][t, n] = nxt["done"][t, n] = nxt["truncated"][t, n] = True
        nxt["terminated"][t, n] = False
    ended = nxt["terminated"]
    assert ended.any() and ended[-1].any() and (nxt["truncated"] & ~ended)[:-1].any()
    value, next_value = ppo._values(batch)
    full, full_next = everything_evaluated(ppo, batch)
    close(value, full, atol=1e-5)
    counts = ~(ended | nxt["fault"])
    close(next_value[counts], full_next[counts], atol=1e-5)
    assert (next_value[~counts] == 0.0).all()
    # the restarted observation would have been another one
    cut = (nxt["truncated"] & counts)[:-1]
    assert (full_next[:-1][cut] - full[1:][cut]).abs().min() > 1e-6
    shortcut, slow = ppo, copy.deepcopy(ppo)
    slow._values = lambda batch: everything_evaluated(slow, batch)
    for each in (shortcut, slow):
        each.process(batch)
    for key in ("state_value", "value_target", "advantage"):
        close(shortcut._batch[key], slow._batch[key], atol=1e-4)


def test_the_values_of_an_older_policy_are_asked_anew():
    env = make_env(32)
    ppo, older = make(env, seed=1), make(env)
    collect(env, ppo, 1)  # its own statistics
    batch = collect(env, older)
    full, _ = everything_evaluated(ppo, batch)
    assert (batch["state_value"] - full).abs().max() > 0.01
    ppo.overlap = True
    ppo.process(batch)
    close(ppo._batch["state_value"], full, atol=1e-5)


def test_few_rows_are_evaluated():
    env = make_env(32, episode_length=100)
    ppo = make(env)
    batch = collect(env, ppo)
    seen, both = [], ppo.policy.evaluate
    ppo.policy.evaluate = lambda *x: (seen.append(len(x[0])), both(*x))[1]
    ppo.process(batch)
    flags = batch["next"]
    cut = (flags["done"] & ~flags["terminated"])[:-1].sum() + (~flags["terminated"][-1]).sum()
    assert seen == [cut.item()]
    assert seen[0] < 64


def test_a_minibatch_is_evaluated_once_for_policy_and_value():
    env = make_env()
    ppo = make(env, epochs=1, num_minibatches=4)
    ppo.process(collect(env, ppo))
    calls, trunk = [], ppo.policy.trunk.forward
    ppo.policy.trunk.forward = lambda x: (calls.append(len(x)), trunk(x))[1]
    ppo.update()
    assert calls == [12] * 4


def test_the_value_loss_is_that_of_the_head():
    env = make_env()
    ppo = make(env, value_coef=0.5)
    ppo.process(collect(env, ppo))
    mb = ppo._batch.reshape(-1)
    _, metrics = ppo._losses(mb)
    value = ppo.policy.evaluate(*(mb[key] for key in ppo.policy.in_keys))[1]
    expected = 0.5 * (value - mb["value_target"]).square().mean()
    assert metrics[1].item() == pytest.approx(expected.item(), rel=1e-5)
    close(value, mb["state_value"], atol=1e-5)  # nothing has been learned yet


def test_with_normalised_values_the_head_learns_in_standard_deviations():
    env = make_env(32)
    ppo = make(env, value_norm=True)
    batch = collect(env, ppo)
    plain = copy.deepcopy(ppo)
    plain.value_normalizer = None
    ppo.process(batch)
    plain.process(batch)
    target = plain._batch["value_target"]
    assert target.std() > 0.1
    statistics = ppo.value_normalizer
    close(statistics.mean, target.mean().view(1), atol=1e-5)
    close(statistics.var, target.var(correction=0).view(1), atol=1e-4)
    normal = ppo._batch["value_target"]
    assert normal.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert normal.std(correction=0).item() == pytest.approx(1.0, abs=1e-3)
    close(statistics.undo(normal), target, atol=1e-4)
    close(ppo._batch["advantage"], plain._batch["advantage"], atol=1e-4)  # in returns
    # what acts next predicts returns again
    td = env.current()
    ppo.act(td)
    head = ppo.policy.evaluate(*(td[key] for key in ppo.policy.in_keys))[1]
    close(td["state_value"], statistics.undo(head).detach(), atol=1e-5)


def test_rewards_of_another_size_are_learned_alike_with_normalised_values():
    seen = []
    for scale in (0.1, 100.0):
        env = make_env(16)
        ppo = make(env, value_norm=True, reward_scale=scale, epochs=1, gae_lambda=1.0, gamma=0.9)
        batch = collect(env, ppo)
        batch["state_value"].zero_()  # the first guess knows no scale
        nxt = batch["next"]
        nxt["terminated"][-1] = nxt["done"][-1] = True
        nxt["truncated"][:] = False
        nxt["done"] = nxt["terminated"].clone()
        ppo.process(batch)
        seen.append(ppo._batch["value_target"])
    close(*seen, atol=1e-2)


def test_a_critic_of_its_own_can_learn_normalised_values_too():
    env = make_env(groups=("privileged",))
    ppo = make(env, shared_critic=False, value_norm=True)
    for _ in range(2):
        ppo.process(collect(env, ppo))
        ppo.update()
    assert ppo.value_normalizer.count.item() == 2 * 8 * 6


def test_a_restored_learner_continues_bit_for_bit():
    settings = {"value_norm": True, "target_kl": 0.01, "kl_every": "epoch", "value_clip": 0.2}
    env = make_env()
    ppo, other = make(env, seed=1, **settings), make(env, seed=2, **settings)
    for _ in range(2):
        ppo.process(collect(env, ppo))
        ppo.update()
    other.load_state_dict(copy.deepcopy(ppo.state_dict()))
    assert other.value_normalizer.count.item() == 2 * 8 * 6
    batch = collect(env, ppo)
    other.rng.set_state(ppo.rng.get_state())
    results = []
    for each in (ppo, other):
        each.process(batch)
        results.append((each.update(), flat_weights(each), each.value_normalizer.mean.clone()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


# The schedule.


def follow(kl_every, divergences, **cfg):
    """Learning rates after an update whose passes diverge that much."""
    ppo = make(make_env(), epochs=len(divergences), target_kl=0.02, kl_every=kl_every, **cfg)
    seen = []
    ppo._step = lambda mb: torch.full((12,), divergences[len(seen) // 4])
    step = ppo._step
    ppo._step = lambda mb: (step(mb), seen.append(ppo.optimizer.param_groups[0]["lr"]))[0]
    env = make_env()
    ppo.process(collect(env, ppo))
    metrics = ppo.update()
    passes = [seen[i] for i in range(0, len(seen), 4)]
    return passes, ppo.optimizer.param_groups[0]["lr"], metrics["train/actor/lr"]


def test_the_rate_is_adapted_after_every_pass():
    """Above 0.04 it falls by 1.5, below 0.01 it rises, between them it stays."""
    rates, last, reported = follow("epoch", [0.041, 0.039, 0.011, 0.009], learning_rate=1e-3)
    assert rates == pytest.approx([1e-3, 1e-3 / 1.5, 1e-3 / 1.5, 1e-3 / 1.5])
    assert last == pytest.approx(1e-3)
    assert reported == rates[-1]


def test_the_rate_is_adapted_once_by_the_last_pass():
    rates, last, reported = follow("iteration", [0.5, 0.5, 0.001], learning_rate=1e-3)
    assert rates == [1e-3] * 3
    assert last == pytest.approx(1.5e-3)
    assert reported == 1e-3


def test_the_rate_stays_within_its_limits():
    limits = {"min_learning_rate": 5e-4, "max_learning_rate": 2e-3, "learning_rate": 1e-3}
    assert follow("epoch", [1.0] * 5, **limits)[1] == 5e-4
    assert follow("epoch", [1e-4] * 5, **limits)[1] == 2e-3


# Learning.


@pytest.mark.parametrize("group", ["privileged", "points"])
def test_ppo_solves_the_cart_with_what_an_encoder_tells_it(group):
    began = time.process_time()
    env = make_env(64, groups=(group,))
    ppo = make(
        env,
        horizon=16,
        epochs=5,
        learning_rate=3e-3,
        target_kl=0.02,
        kl_every="epoch",
        gamma=0.9,
        value_norm=True,
        init_std=0.5,
        hidden=[32],
    )

    def mean_return():
        fresh = make_env(100, groups=(group,), seed=77, stagger=False)
        return evaluate(fresh, acting(ppo.policy), seed=77)

    before = mean_return()
    buffer, root = None, env.current()
    for _ in range(25):
        buffer, root = rollout(env, ppo, root, buffer)
        ppo.process(buffer)
        metrics = ppo.update()
    after = mean_return()
    assert before.success_at_end < 0.3
    assert after.success_at_end >= 0.9
    assert metrics["train/critic/explained_variance"] > 0.3
    assert time.process_time() - began < 30.0
