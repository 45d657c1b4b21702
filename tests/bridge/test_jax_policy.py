"""Policies that cross between torch and JAX compute the same, and share their weights."""

import pathlib

import numpy as np
import pytest
import torch

from penspin_style.bridge.brax import from_brax
from penspin_style.bridge.policy import jax_policy
from penspin_style.deploy.export import export
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import load_policy, save_policy

ROOT = pathlib.Path(__file__).parents[2]
LIFT = ROOT / "outputs" / "pretrained" / "panda_lift_cube"
# made by brax 0.14.2 itself: make_brax_ppo.py
BRAX = dict(np.load(pathlib.Path(__file__).with_name("brax_ppo.npz")))


def brax_params(**changes):
    arrays = BRAX | changes
    layers: dict = {}
    for name, value in arrays.items():
        if "/" in name:
            layer, part = name.split("/")
            layers.setdefault(layer, {})[part] = value
    return ({"mean": arrays["mean"], "std": arrays["std"]}, {"params": layers})


def make(activation="elu", size=7, seed=3):
    rng = torch.Generator().manual_seed(seed)
    policy = GaussianPolicy(
        *("teacher", size, 3), hidden=(32, 16), activation=activation, init_std=0.5, rng=rng
    )
    policy.normalizer.update(2.0 + 3.0 * torch.randn(64, size, generator=rng))
    with torch.no_grad():
        policy.net[-1].weight.mul_(30.0)
    return policy.eval()


@pytest.mark.parametrize("activation", ["elu", "relu", "silu", "tanh"])
def test_a_policy_of_torch_acts_the_same_in_jax(activation):
    jax = pytest.importorskip("jax")
    policy = make(activation)
    observation = torch.randn(64, 7, generator=torch.Generator().manual_seed(1)) * 20.0
    want = policy.act(observation).detach().numpy()
    act = jax_policy(policy)
    given = jax.numpy.asarray(observation.numpy())
    assert np.abs(want).max() > 0.2  # actions that can differ
    for got in (act(given), jax.jit(act)(given), jax.vmap(act)(given)):
        assert np.abs(np.asarray(got) - want).max() < 1e-6


def test_a_policy_acts_within_a_scan_and_shares_its_weights():
    jax = pytest.importorskip("jax")
    policy = make()
    act = jax_policy(policy)

    def body(observation, _):
        action = act(observation)
        return observation.at[:3].add(action), action

    _, actions = jax.lax.scan(body, jax.numpy.zeros(7), None, length=5)
    observation = torch.zeros(7)
    for i in range(5):
        action = policy.act(observation).detach()
        assert np.allclose(actions[i], action, atol=1e-6, rtol=0)
        observation[:3] += action
    before = np.asarray(act(jax.numpy.ones(7)))
    with torch.no_grad():
        policy.net[-1].bias.add_(1.0)
    assert np.abs(np.asarray(act(jax.numpy.ones(7))) - before).max() > 0.1


def test_an_exported_bundle_acts_the_same_in_jax():
    jax = pytest.importorskip("jax")
    policy, card = load_policy(LIFT / "policy")
    observation = torch.randn(256, card.inputs[0].size, generator=torch.Generator().manual_seed(2))
    want = policy.act(observation).detach().numpy()
    act = jax.jit(jax_policy(LIFT / "policy.onnx"))
    assert np.abs(np.asarray(act(observation.numpy())) - want).max() < 1e-6


def test_what_is_no_perceptron_is_refused_by_name():
    pytest.importorskip("jax")
    student = ROOT / "outputs" / "pretrained" / "pen_spin" / "student_ends" / "policy.onnx"
    with pytest.raises(ValueError, match=r"no perceptron: it has .*LayerNormalization"):
        jax_policy(student)
    with pytest.raises(TypeError, match=r"takes a GaussianPolicy or an exported .onnx, got Linear"):
        jax_policy(torch.nn.Linear(2, 2))


# brax.


def test_a_policy_of_brax_acts_as_in_brax():
    policy = from_brax(brax_params())
    assert BRAX["actions"].shape == (32, 3) and np.abs(BRAX["actions"]).max() > 0.5
    got = policy.act(torch.from_numpy(BRAX["observations"])).detach().numpy()
    assert np.abs(got - BRAX["actions"]).max() < 1e-5
    assert np.allclose(policy(torch.zeros(5)).scale.detach()[0], 0.694, atol=1e-3)  # softplus(0)


def test_nothing_is_clipped_and_small_deviations_keep_their_digits():
    std = np.array([1e-6, 1e-4, 1.0, 1.0, 2.0], np.float32)
    policy = from_brax(brax_params(std=std))
    far = BRAX["mean"] + std * np.linspace(-60.0, 60.0, 5, dtype=np.float32)
    x = (far.astype(np.float64) - BRAX["mean"]) / std
    for i in range(3):
        x = x @ BRAX[f"hidden_{i}/kernel"].astype(np.float64) + BRAX[f"hidden_{i}/bias"]
        x = x / (1.0 + np.exp(-x)) if i < 2 else x
    got = policy.act(torch.from_numpy(far)).detach().numpy()
    assert np.abs(got - np.tanh(x[:3])).max() < 1e-4


def test_a_policy_of_brax_is_published_exported_and_read_again(tmp_path):
    policy = from_brax(brax_params())
    card = PolicyCard(
        task="panda_lift_cube",
        inputs=(Input("teacher", (Feature("x", (5,), "1"),)),),
        actions=tuple(ActionChannel(f"a{i}", "1", 1.0, -1.0, 1.0, "absolute") for i in range(3)),
        joints=(),
        control_dt=0.05,
        run="brax",
        preprocessing={},
        network=policy.describe(),
        score={},
        versions={},
    )
    save_policy(policy, card, tmp_path / "policy")
    again, _ = load_policy(tmp_path / "policy")
    far = 1e3 * torch.from_numpy(BRAX["observations"])
    assert torch.equal(again.act(far), policy.act(far))
    report = export(again, card, tmp_path / "policy.onnx", samples=64)
    assert report is not None and (tmp_path / "policy.onnx").exists()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (lambda: {"params": {}}, r"must be \(normalizer, policy"),
        (lambda: (None, {"params": {"hidden_0": {"kernel": 0}}}), "kernel and bias, has kernel"),
        (lambda: (None, {"params": {"LayerNorm_0": {}}}), "found LayerNorm_0"),
        (lambda: brax_params(mean=np.zeros(4)), r"mean is \(4,\), the first layer takes 5"),
        (lambda: brax_params(**{"hidden_2/bias": np.zeros(5)}), "not a mean and a deviation"),
        (lambda: ({"mean": {"pixels": 0}, "std": {}}, brax_params()[1]), "no key='state'"),
    ],
)
def test_other_parameters_are_refused_with_what_was_found(params, said):
    with pytest.raises(ValueError, match=said):
        from_brax(params())
