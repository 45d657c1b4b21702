"""The squashed normal distribution against torch's own, and where that one loses its digits."""

import math

import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from penspin_style.nets.squashed import LOG_STD, Squashed, SquashedPolicy, distribution


def noise(like):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(3), dtype=like.dtype)


def test_actions_and_densities_are_those_of_a_transformed_normal():
    loc = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).reshape(4, 3)
    scale = torch.linspace(0.1, 0.8, 12, dtype=torch.float64).reshape(4, 3)
    action, log_prob = Squashed(loc, scale, noise).rsample_and_log_prob()
    reference = TransformedDistribution(Normal(loc, scale), TanhTransform())
    torch.testing.assert_close(log_prob, reference.log_prob(action).sum(dim=1))
    torch.testing.assert_close(action, torch.tanh(loc + scale * noise(loc)))


@pytest.mark.parametrize("far", [10.0, 20.0, 80.0])
def test_where_tanh_is_one_the_density_and_its_gradient_stay_right(far):
    loc = torch.full((1, 1), far, requires_grad=True)
    action, log_prob = Squashed(loc, torch.ones(1, 1), torch.zeros_like).rsample_and_log_prob()
    # log N(0) - log(1 - tanh(u)^2), and 1 - tanh(u)^2 = 4 exp(-2u) out there
    expected = -0.5 * math.log(2 * math.pi) - math.log(4.0) + 2.0 * far
    assert action.item() == 1.0 and log_prob.item() == pytest.approx(expected, rel=1e-6)
    log_prob.sum().backward()
    assert loc.grad is not None and loc.grad.item() == pytest.approx(2.0, rel=1e-5)


def test_the_deviation_stays_in_its_bounds_whatever_the_network_says():
    head = torch.tensor([[0.0, 0.0, -1e6, 1e6]])
    scale = distribution(head, torch.zeros_like).scale[0]
    low, high = (math.exp(x) for x in LOG_STD)
    assert scale.tolist() == pytest.approx([low, high], rel=1e-5)


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_policy_acts_without_noise_on_raw_observations(stochastic):
    policy = SquashedPolicy("teacher", 3, 2, hidden=[8], activation="elu", stochastic=stochastic,
                            rng=torch.Generator().manual_seed(0))  # fmt: skip
    policy.normalizer.update(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]]))
    x = torch.tensor([[2.0, 2.5, 4.0]])
    inner = policy.net(policy.normalizer(x))
    assert inner.shape == (1, 4 if stochastic else 2)
    assert torch.equal(policy.act(x), torch.tanh(inner[:, :2]))
