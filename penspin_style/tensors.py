"""Tensors from a file: what it holds is checked before it is used."""

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from penspin_style.storage import DamagedError


def read_tensors(data: bytes, where: object) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    where: how errors call the file.

    Raises:
        DamagedError: it is none, or holds a type that torch does not know.
    """
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{where} is not readable as safetensors: {error}") from error


def check_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Check weights: with NaN among them a policy still acts, and fails without a word.

    Raises:
        DamagedError: names the tensor that holds NaN or an infinity.
    """
    for name, tensor in tensors.items():
        # torch has no isfinite of the smallest floating types
        if tensor.is_floating_point() and not torch.isfinite(tensor.double()).all():
            raise DamagedError(f"{where}: {name} is not finite")
