"""PPO and GRPO whose draws are squashed, and advantages that each minibatch normalises."""

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from penspin_style.algo.grpo import GRPO, GRPOConfig
from penspin_style.algo.ppo import PPOConfig
from penspin_style.features import Feature, Input
from penspin_style.nets.gaussian import Gaussian, TanhNormal
from penspin_style.nets.squashed import SquashedPolicy
from tests.support.ppo_batches import (
    CPU,
    NACTION,
    RATIO,
    TEACHER,
    T,
    close,
    collected,
    crafted,
    make,
    spoil,
)

TOUCH = Input("touch", (Feature("touch", (3,)),))

LOC = torch.tensor([[0.3, -1.2], [2.0, 0.0]], dtype=torch.float64)
SCALE = torch.tensor([[0.5, 0.9], [1.5, 0.2]], dtype=torch.float64)


def squashed(**cfg):
    return make(distribution="tanh_normal", **cfg)


def test_the_entropy_is_that_of_the_action():
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(400_000, 2, 2, generator=rng, dtype=torch.float64)
    action = torch.tanh(LOC + SCALE * noise)
    reference = TransformedDistribution(Normal(LOC, SCALE), TanhTransform())
    expected = -reference.log_prob(action.clamp(-1 + 1e-12, 1 - 1e-12)).sum(dim=-1).mean(dim=0)
    torch.testing.assert_close(TanhNormal(LOC, SCALE).entropy(), expected, atol=0.02, rtol=0.0)
    assert (Gaussian(LOC, SCALE).entropy() - expected).min() > 0.4  # another one


def test_ratios_of_densities_are_those_of_the_action():
    other = TanhNormal(LOC + 0.1, 1.2 * SCALE)
    u = LOC + 0.7 * SCALE
    got = other.log_prob(u) - TanhNormal(LOC, SCALE).log_prob(u)
    pair = [
        Independent(TransformedDistribution(Normal(loc, scale), TanhTransform()), 1)
        for loc, scale in ((other.loc, other.scale), (LOC, SCALE))
    ]
    torch.testing.assert_close(got, pair[0].log_prob(u.tanh()) - pair[1].log_prob(u.tanh()))


def test_what_is_done_is_squashed_and_what_is_learned_from_is_what_was_drawn():
    ppo = squashed(init_std=2.0)
    batch = spoil(collected(ppo), (2, 1))
    assert isinstance(ppo.policy, SquashedPolicy)
    assert torch.equal(batch["action"], torch.tanh(batch["drawn"]))
    assert batch["action"].abs().max() > 0.99 and batch["drawn"].abs().max() > 2.0
    dist = ppo.policy.normal(batch["teacher"])
    close(batch["log_prob"], dist.log_prob(batch["drawn"]).detach())
    close(dist.scale.mean(), torch.tensor(2.0), atol=0.1)  # what the head begins with
    batch["drawn"][2, 1] = float("nan")
    ppo.process(batch)
    good = ~batch["next", "fault"].squeeze(-1)
    assert torch.equal(ppo._batch["action"][good], batch["drawn"][good])
    metrics = ppo.update()
    assert metrics["train/skipped_updates"] == 0.0
    assert all(p.isfinite().all() for p in ppo.policy.parameters())


def test_the_deviation_follows_from_the_observation_once_it_has_learned():
    ppo = squashed(epochs=20, learning_rate=0.01, target_kl=None)
    batch = collected(ppo, ends=1.0)
    # noise is worth it where x is positive, and costs where it is not
    size = (batch["drawn"] - batch["loc"]).square().sum(dim=-1, keepdim=True)
    batch["next", "reward"] = size * batch["teacher"][..., :1].sign()
    ppo.process(batch)
    ppo.update()
    scale = ppo.policy.normal(batch["teacher"]).scale.mean(dim=-1)
    positive = batch["teacher"][..., 0] > 0
    assert scale[positive].mean() > 1.05 * scale[~positive].mean()


def test_grpo_draws_so_too_and_measures_the_policy_that_it_began_with():
    cfg = GRPOConfig(hidden=[8], group_size=2, horizon=T, distribution="tanh_normal", kl_coef=0.1)
    grpo = GRPO(cfg, (TEACHER,), NACTION, device=CPU, seed=0)
    batch = collected(grpo, ends=0.0)
    batch["next", "truncated"][-1] = True
    batch["next", "done"] = batch["next", "truncated"].clone()
    assert torch.equal(batch["action"], torch.tanh(batch["drawn"]))
    grpo.process(batch)
    metrics = grpo.update()
    assert metrics["train/actor/reference_kl"] > 0.0 and metrics["train/skipped_updates"] == 0.0


def test_a_network_with_encoders_or_a_value_head_is_refused_by_name():
    with pytest.raises(ValueError, match=r"algo\.distribution=tanh_normal .*shared_critic=false"):
        squashed(shared_critic=True, inputs=(TEACHER,))
    with pytest.raises(ValueError, match=r"algo\.encoders\.touch=\[\]"):
        make(distribution="tanh_normal", encoders={"touch": [4]}, inputs=(TEACHER, TOUCH))
    for key, value in (("distribution", "beta"), ("advantage_norm", "none")):
        with pytest.raises(ValueError, match=rf"algo\.{key}.*{value}"):
            PPOConfig(**{key: value})


# Advantages.


def test_each_minibatch_normalises_its_own_advantages():
    ppo = make(advantage_norm="minibatch", num_minibatches=3)
    batch = spoil(collected(ppo), (1, 1), (3, 2))
    ppo.process(batch)
    seen = []
    step = ppo._losses
    ppo._losses = lambda mb: (seen.append(mb), step(mb))[1]
    ppo.update()
    assert len(seen) == 3 * ppo.cfg.epochs
    for mb in seen:
        kept = mb["advantage"][mb["weight"] > 0]
        close(kept.mean(), torch.tensor(0.0), atol=1e-5)
        close(kept.std(correction=0), torch.tensor(1.0), atol=1e-5)


def test_the_objective_is_that_of_the_normalised_minibatch_and_rows_without_weight_have_no_part():
    ppo = make(advantage_norm="minibatch", clip_coef=0.2)
    mb, _ = crafted(ppo)  # advantages 1 -1 1 -1 1 and one without weight
    std = (24 / 25) ** 0.5
    advantage = [(a - 0.2) / std for a in (1.0, -1.0, 1.0, -1.0, 1.0)]
    bounded = RATIO.clamp(0.8, 1.2).tolist()
    gains = [min(RATIO[i].item() * a, bounded[i] * a) for i, a in enumerate(advantage)]
    names = dict(zip(ppo.METRICS, ppo._losses(mb)[1].tolist(), strict=True))
    assert names["actor/policy_loss"] == pytest.approx(-sum(gains) / 5, rel=1e-5)


def test_an_older_policys_rows_keep_their_weight_after_it():
    """With `overlap`: the weight multiplies what the minibatch has normalised."""
    ppo, older = make(advantage_norm="minibatch", num_minibatches=1, epochs=1), make(seed=3)
    for parameter in older.policy.parameters():
        parameter.data.add_(0.3)
    batch = collected(older)
    ppo.act(batch.clone().view(-1))
    ppo.overlap = True
    ppo.process(batch)
    rows = ppo._batch.clone()
    seen = []
    step = ppo._losses
    ppo._losses = lambda mb: (step(mb), seen.append(mb))[0]
    ppo.update()
    (mb,) = seen
    advantage = rows["advantage"]
    expected = (advantage - advantage.mean()) / advantage.std(correction=0) * rows["likelier"]
    order = torch.cdist(mb["teacher"], rows["teacher"].reshape(-1, 3)).argmin(dim=1)
    close(mb["advantage"], expected.reshape(-1, 1)[order], atol=1e-5)
    assert rows["likelier"].std() > 0.05
