"""One trajectory of a simulation, whole: its actions, every state on the way, what the task knew.

A file NAME.safetensors of
    action          (steps, naction) float32 in [-1, 1]
    state           (steps + 1, columns) float64: mjSTATE_INTEGRATION, the columns that change
    state/columns   (columns,) long, which those are
    state/first     (nstate,) the first state
    memory/NAME     (steps + 1, ...), what the task remembers; one row if it never changes
    params/NAME     the model's parameters, as far as they differ between worlds
and, in the header, a card: JSON of the task, its configuration, the seed and the score.

It is written whole or not at all. From `snapshot` a `World` of the task continues at any step.
"""

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from penspin_style import storage
from penspin_style.system.tensors import read_tensors

_MAX_FILE = 2**30  # bytes
_CARD = "card"
_STATE = ("state", "state/columns", "state/first")
_KEPT = ("memory/", "params/")


@dataclass
class Trajectory:
    """See the module's docstring; here nothing is packed."""

    action: Tensor
    """(steps, naction) float32"""
    state: Tensor
    """(steps + 1, nstate) float64"""
    kept: dict[str, Tensor]
    """`memory/NAME` (steps + 1, ...) and `params/NAME` (...)."""
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Return the number of control steps."""
        return len(self.action)

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        """Return what the world was in before the steps `rows`, for `World.restore`."""
        memory = {k: v[rows] for k, v in self.kept.items() if k.startswith("memory/")}
        params = {k: v.expand(len(rows), *v.shape) for k, v in self.kept.items() if k not in memory}
        return {"sim": self.state[rows], **memory, **params}


def write_trajectory(path: pathlib.Path, trajectory: Trajectory) -> None:
    """Write a file, whole or not at all."""
    state = trajectory.state
    columns = (state != state[:1]).any(dim=0).nonzero()[:, 0]
    tensors = {"action": trajectory.action, "state": state[:, columns], "state/columns": columns}
    tensors |= {"state/first": state[0]}
    for name, value in trajectory.kept.items():
        constant = name.startswith("memory/") and torch.equal(value, value[:1].expand_as(value))
        tensors[name] = value[:1] if constant else value
    content = {name: value.contiguous() for name, value in tensors.items()}
    data = save_tensors(content, {_CARD: json.dumps(trajectory.card)})
    storage.write_file(path, data)


def read_trajectory(path: pathlib.Path) -> Trajectory:
    """Return what a file holds.

    Raises:
        DamagedError: it is missing, damaged, or another kind of file.
    """
    try:
        card = read_card(path)
        data = storage.read_file(path, _MAX_FILE)
    except OSError as error:
        raise storage.DamagedError(f"{path} is unreadable ({error})") from error
    tensors = read_tensors(data, path)
    _check(path, tensors)
    steps = len(tensors["action"])
    state = tensors["state/first"].expand(steps + 1, -1).clone()
    state[:, tensors["state/columns"]] = tensors["state"]
    kept = {}
    for name, value in tensors.items():
        if name.startswith("memory/"):
            kept[name] = value.expand(steps + 1, *value.shape[1:])
        elif name.startswith("params/"):
            kept[name] = value
    return Trajectory(tensors["action"], state, kept, card)


def read_card(path: pathlib.Path) -> dict[str, Any]:
    """Return a file's card, without reading its tensors.

    Raises:
        DamagedError: it is missing, damaged, or another kind of file.
    """
    try:
        with (
            storage.open_file(path) as raw,
            safe_open(f"/dev/fd/{raw.fileno()}", framework="pt") as file,  # type: ignore[no-untyped-call]
        ):
            card = storage.parse_json((file.metadata() or {})[_CARD])
        if not isinstance(card, dict):
            raise TypeError("its card is no object")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise storage.DamagedError(f"{path} holds no trajectory ({error!r})") from error
    return card


def _check(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit each other."""
    lost = [name for name in ("action", *_STATE) if name not in tensors]
    odd = [n for n in tensors if n not in ("action", *_STATE) and not n.startswith(_KEPT)]
    fault = f"it lacks {lost[0]}" if lost else f"it holds {odd[0]}" if odd else ""
    if not fault:
        action, state, columns, first = (tensors[name] for name in ("action", *_STATE))
        rows = len(action) + 1
        fits = action.dim() == 2 and first.dim() == 1 and state.shape == (rows, len(columns))
        index = columns.dtype == torch.int64 and bool(
            ((columns >= 0) & (columns < len(first))).all()
        )
        memory = all(
            v.dim() and len(v) in (1, rows) for k, v in tensors.items() if k.startswith("memory/")
        )
        fault = "" if fits and index and memory else "its shapes do not fit each other"
    if fault:
        raise storage.DamagedError(f"{path} is no trajectory: {fault}")
