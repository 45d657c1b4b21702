"""Weights from files: what is no safetensors file, or not finite, is damaged."""

import math

import pytest
import torch
from safetensors.torch import save

from penspin_style.storage import DamagedError
from penspin_style.tensors import check_finite, read_tensors


def test_tensors_come_back_as_they_were():
    given = {"a": torch.arange(3.0), "n": torch.tensor([2**40])}
    found = read_tensors(save(given), "w")
    assert all(torch.equal(found[name], value) for name, value in given.items())


@pytest.mark.parametrize(
    "data", [b"", b"not weights", b"\xff" * 64, save({"a": torch.ones(9)})[:-3]]
)
def test_what_is_no_safetensors_file_is_damaged(data):
    with pytest.raises(DamagedError, match="run/w is not readable as safetensors"):
        read_tensors(data, "run/w")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_number_that_is_none_names_its_tensor(value, dtype):
    bad = torch.zeros(2, 3, dtype=dtype)
    bad[1, 2] = value
    with pytest.raises(DamagedError, match=r"w: net\.2\.bias is not finite"):
        check_finite({"net.0.bias": torch.ones(2), "net.2.bias": bad}, "w")
    check_finite({"count": torch.tensor([2**62]), "large": torch.tensor([3e38])}, "w")
