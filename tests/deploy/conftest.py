"""A small policy, exported once a module."""

import pytest
import torch

from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.export import export
from penspin_style.nets.gaussian_policy import GaussianPolicy
from tests.support.bundles import CARD


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    rng = torch.Generator().manual_seed(0)
    policy = GaussianPolicy("student", 16, 2, hidden=(32,), activation="elu", init_std=1.0, rng=rng)
    with torch.no_grad():
        policy.net[-1].weight.mul_(60.0)
        policy.normalizer.mean.normal_(0.0, 2.0, generator=rng)
    path = tmp_path_factory.mktemp("bundle") / "policy.onnx"
    export(policy, CARD, path, samples=74)
    return path


@pytest.fixture(scope="module")
def bundle(onnx_file):
    return Bundle.load(onnx_file)
