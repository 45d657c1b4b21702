"""A policy that float32 does not resolve, computed in float64 with the same float32 weights."""

import copy
import dataclasses
import pathlib

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.export import ActingModule, ParityError, export
from penspin_style.deploy.float64 import in_float64
from penspin_style.features import Feature, Input
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import load_policy
from penspin_style.nets.student import StudentPolicy
from tests.support.bundles import CARD

SHIPPED = pathlib.Path(__file__).parents[2] / "outputs/pretrained/aloha_peg_insertion_student"
CONVOLUTIONS = {
    "stride and padding": nn.Conv2d(3, 5, 4, stride=2, padding=(1, 2), bias=False),
    "dilation and bias": nn.Conv2d(3, 2, (3, 2), dilation=(1, 2), stride=(1, 3)),
}


def steep(policy, layer, factor):
    with torch.no_grad():
        layer.weight.mul_(factor)
    return policy


def rng():
    return torch.Generator().manual_seed(0)


def seeing():
    """A student with one colour image, and its card."""
    image = Input("cam_rgb", (Feature("cam_rgb", (32, 32, 3), "1", "uint8"),))
    card = dataclasses.replace(CARD, inputs=(*CARD.inputs, image))
    settings = {"pool": False, "latent": 8, "depth_pixels": 8, "max_depth": {}, "hidden": (32, 32)}
    policy = StudentPolicy(
        card.inputs,
        len(card.actions),
        activation="elu",
        train_encoder=False,
        layer_norm=True,
        rng=rng(),
        **settings,
    )
    return steep(policy, policy.trunk[-1], 3000.0), card


def blind():
    name, naction = CARD.inputs[0].name, len(CARD.actions)
    policy = GaussianPolicy(
        name, CARD.inputs[0].size, naction, hidden=(32,), activation="elu", init_std=1.0, rng=rng()
    )
    return steep(policy, policy.net[-1], 10_000.0), CARD


@pytest.mark.parametrize("make", [seeing, blind])
def test_a_steep_policy_passes_in_float64_alone_with_float32_weights(tmp_path, make):
    policy, card = make()
    path = tmp_path / "policy.onnx"
    with pytest.raises(ParityError, match="float64 or a larger tolerance is right"):
        export(policy, card, path, samples=300)
    report = export(policy, card, path, samples=300, float64=True)
    assert report.max_abs_diff < 1e-6 < 1e-5 < report.float32_diff
    assert all(weight.dtype == torch.float32 for weight in policy.parameters())
    assert Bundle.load(path).card.inputs == card.inputs
    kinds = {w.dims[-1]: w.data_type for w in onnx.load(path).graph.initializer if w.dims}
    assert kinds[32] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("conv", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_in_float64_is_torchs(conv):
    x = torch.rand(2, 3, 9, 11, generator=rng(), dtype=torch.float64)
    ours = in_float64(nn.Sequential(conv))(x)
    torch.testing.assert_close(ours, copy.deepcopy(conv).double()(x), rtol=0, atol=1e-12)


def test_an_elu_in_float64_is_torchs_and_stays_finite():
    x = torch.tensor([-800.0, -1.5, 0.0, 1e-9, 800.0], dtype=torch.float64)
    ours = in_float64(nn.Sequential(nn.ELU(0.7)))(x)
    torch.testing.assert_close(ours, nn.functional.elu(x, 0.7), rtol=0, atol=1e-12)


def test_a_convolution_in_groups_is_refused():
    with pytest.raises(ValueError, match="only plain ones"):
        in_float64(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)))


def test_the_shipped_student_of_aloha_is_its_weights_in_float64():
    policy, card = load_policy(SHIPPED / "policy")
    rng = np.random.default_rng(0)
    acting = ActingModule(policy, float64=True)
    seen = {
        i.name: rng.integers(0, 256, (8, *i.tensor[1]), np.uint8)
        if i.tensor[0] == "uint8"
        else rng.uniform(0.0, 0.5, (8, *i.tensor[1])).astype(np.float32)
        for i in card.inputs
    }
    with torch.no_grad():
        wanted = acting(*(torch.from_numpy(x) for x in seen.values())).numpy()
    found = Bundle.load(SHIPPED / "policy.onnx")(seen)
    assert np.abs(found - wanted).max() < 1e-6 < np.abs(found).max()
