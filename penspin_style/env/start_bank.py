"""A bank of states that training episodes may begin in, as a folder.

<folder>/
    states.safetensors    `states` (n, k): rows of `Task.start_state`
    card.json             of which task, how many, where they come from
    manifest.json         checksums

`penspin search --bank` writes one; `algo.starts.states` names the one to use.
"""

import json
import pathlib
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from penspin_style import storage
from penspin_style.system.tensors import check_finite, read_tensors

_STATES = "states.safetensors"


def write_bank(folder: pathlib.Path, states: Tensor, card: dict[str, Any]) -> None:
    """Publish states (n, k) with a card, complete or not at all.

    Raises:
        FileExistsError: the folder is there already.
        OSError: it cannot be written.
    """
    rows = states.detach().cpu().contiguous()
    with storage.publish(folder, {}) as stage:
        (stage / _STATES).write_bytes(save_tensors({"states": rows}))
        (stage / "card.json").write_text(json.dumps({**card, "states": len(rows)}, indent=1) + "\n")


def read_bank(folder: pathlib.Path) -> Tensor:
    """Return the states of a bank, (n, k).

    Raises:
        DamagedError: it is missing, damaged, empty or not finite.
    """
    _, contents = storage.read_verified(folder, limit=storage.MAX_WEIGHTS)
    tensors = read_tensors(contents.get(_STATES, b""), folder)
    states = tensors.get("states", torch.zeros(0))
    if states.dim() != 2 or not states.numel() or not states.is_floating_point():
        raise storage.DamagedError(f"{folder} holds no states (n, k), n >= 1")
    check_finite(tensors, folder)
    return states
