"""Recorded roll-outs: what was observed at every step, and what a policy would do there.

<folder>/
    card.json            inputs with shapes and units, task, which policy, control_dt, checksums
    00000.safetensors    rows of every input, raw, and of `label` (n, naction) in [-1, 1]
    00001.safetensors    ...

Shards are written whole or not at all; the card comes last, so a folder that has one is complete.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from penspin_style import storage
from penspin_style.features import Input

LABEL = "label"
_CARD = "card.json"
_MAX_CARD, _MAX_SHARD = 2**26, 2**36  # bytes
_REMEDY = "record anew with penspin record"


class RolloutWriter:
    """Write rows as they come; `close` makes the folder complete.

    Raises:
        ValueError: the folder holds something already.
    """

    def __init__(
        self, folder: pathlib.Path, inputs: tuple[Input, ...], facts: Mapping[str, Any]
    ) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; choose another folder for the roll-outs")
        storage.make_folder(folder)
        self.folder, self.inputs, self.facts = folder, inputs, dict(facts)
        self.rows = self.naction = 0
        self.sums: list[str] = []

    @property
    def shards(self) -> int:
        """Number of files written."""
        return len(self.sums)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Write one shard: every input and `label`, (n, ...)."""
        names = [*(i.name for i in self.inputs), LABEL]
        tensors = {name: rows[name].cpu().contiguous() for name in names}
        data = save_tensors(tensors)
        storage.write_file(self.folder / f"{self.shards:05d}.safetensors", data)
        self.sums.append(hashlib.sha256(data).hexdigest())
        self.rows += len(tensors[LABEL])
        self.naction = tensors[LABEL].shape[1]

    def close(self) -> None:
        """Write the card."""
        card = {
            **self.facts,
            "rows": self.rows,
            "shards": self.shards,
            "naction": self.naction,
            "inputs": [dataclasses.asdict(i) for i in self.inputs],
            "sha256": self.sums,
        }
        storage.write_file(self.folder / _CARD, json.dumps(card, indent=1).encode())


class Rollouts:
    """The rows of a recorded folder, read from disk shard by shard.

    Raises:
        ValueError: the folder is no complete recording, or a shard is missing or of other rows.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        try:
            card = storage.parse_json(storage.read_file(folder / _CARD, _MAX_CARD))
            self.inputs = tuple(Input.from_dict(raw) for raw in card["inputs"])
            self.rows, self.shards = int(card["rows"]), int(card["shards"])
            self.naction, self._sums = int(card["naction"]), list(card["sha256"])
            self.facts = {k: v for k, v in card.items() if k not in ("inputs", "sha256")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} holds no complete recording ({error!r}); {_REMEDY}"
            ) from error
        if self.rows < 1 or self.shards != len(self._sums):
            raise ValueError(
                f"{folder}: the card says {self.rows} rows in {self.shards} shards, with "
                f"{len(self._sums)} checksums; {_REMEDY}"
            )
        self.sizes = [self._check(i) for i in range(self.shards)]
        if sum(self.sizes) != self.rows:
            raise ValueError(
                f"{folder}: the card says {self.rows} rows, there are {self.sizes}; {_REMEDY}"
            )

    def shard(self, index: int) -> dict[str, Tensor]:
        """Return the rows of one shard, name -> (n, ...).

        Raises:
            ValueError: it does not match its checksum.
        """
        try:
            data = storage.read_file(self._path(index), _MAX_SHARD)
        except OSError as error:
            raise ValueError(f"{self._path(index)} is unreadable ({error}); {_REMEDY}") from error
        if hashlib.sha256(data).hexdigest() != self._sums[index]:
            raise ValueError(f"{self._path(index)} does not match its checksum; {_REMEDY}")
        return load_tensors(data)

    def _path(self, index: int) -> pathlib.Path:
        return self.folder / f"{index:05d}.safetensors"

    def _check(self, index: int) -> int:
        """Return the number of rows in a shard, from its header."""
        path = self._path(index)
        try:
            with (
                storage.open_file(path) as raw,
                safe_open(f"/dev/fd/{raw.fileno()}", framework="pt") as file,  # type: ignore[no-untyped-call]
            ):
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
                types = {key: file.get_slice(key).get_dtype() for key in shapes}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged: {error}; {_REMEDY}") from error
        n = next(iter(shapes.get(LABEL, [])), 0)
        said = {LABEL: ("F32", [n, self.naction])}
        for given in self.inputs:
            dtype, shape = given.tensor
            said[given.name] = {"uint8": "U8", "float32": "F32"}[dtype], [n, *shape]
        for name, wanted in said.items():
            if (types.get(name), shapes.get(name)) != wanted:
                raise ValueError(
                    f"{path}: {name!r} is {types.get(name)} {shapes.get(name)}, the card says "
                    f"{wanted[0]} {wanted[1]}; {_REMEDY}"
                )
        return n


def shuffled(rollouts: Rollouts, count: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Return `count` rows drawn from randomly chosen shards, with as many shards as that needs."""
    parts: list[dict[str, Tensor]] = []
    missing = count
    while missing > 0:
        index = int(torch.randint(rollouts.shards, (1,), generator=rng, device=rng.device))
        rows = rollouts.shard(index)
        n = rollouts.sizes[index]
        chosen = torch.randperm(n, generator=rng, device=rng.device)[:missing].cpu()
        parts.append({name: value[chosen] for name, value in rows.items()})
        missing -= len(chosen)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
