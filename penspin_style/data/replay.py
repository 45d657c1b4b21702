"""Samples that are kept on the device, the oldest written over: what is learned from again.

A checkpoint keeps them in blocks of rows, one file each, and `versions` tells which have changed:
saving a million samples again costs what is new of them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

BLOCK = 16_384
"""Rows of a block."""


class Replay:
    """A ring of samples; their keys, shapes and types are those of the first that are added."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ring: TensorDict | None = None
        self.count = 0
        """Samples that were ever added."""

    def __len__(self) -> int:
        """Return how many there are."""
        return min(self.count, self.capacity)

    @property
    def content(self) -> TensorDict:
        """The samples that are there, oldest anywhere."""
        assert self.ring is not None
        return self.ring[: len(self)]  # type: ignore[return-value]

    def add(self, batch: TensorDict) -> None:
        """Write a batch [n] over the oldest samples."""
        if not self.capacity or not len(batch):
            return
        rows = batch[-self.capacity :]
        if self.ring is None:
            # contiguous, as what is read from files: convolutions round by their input's strides
            self.ring = rows.new_empty(self.capacity)  # type: ignore[assignment]
        first = self.count + len(batch) - len(rows)
        ids = (first + torch.arange(len(rows), device=rows.device)) % self.capacity
        self.ring[ids] = rows  # type: ignore[index]
        self.count += len(batch)

    def sample(self, n: int, rng: torch.Generator) -> TensorDict:
        """Return n samples, drawn with replacement."""
        assert self.ring is not None
        ids = torch.randint(len(self), (n,), generator=rng, device=rng.device)
        return self.ring[ids]  # type: ignore[return-value]

    # Blocks.

    def versions(self) -> dict[int, int]:
        """Return block -> the number of samples that had been added when it was last written to.

        The same block with the same number has the same content.
        """
        found = {}
        for block in range(-(-len(self) // BLOCK)):
            last = min((block + 1) * BLOCK, self.capacity) - 1  # its last row
            rounds = (self.count - 1 - last) // self.capacity
            whole = rounds * self.capacity + last + 1 if rounds >= 0 else 0
            head = (self.count - 1) % self.capacity  # the row written to last
            found[block] = self.count if block == head // BLOCK else whole
        return found

    def block(self, block: int) -> dict[str, Tensor]:
        """Return the rows of a block, on the CPU, under flat names."""
        rows: Any = self.content[block * BLOCK : (block + 1) * BLOCK]
        return {_flat(key): value.cpu() for key, value in rows.items(True, True)}

    @classmethod
    def from_blocks(
        cls, capacity: int, count: int, blocks: Iterable[dict[str, Tensor]]
    ) -> "Replay":
        """Return the samples of all blocks, in their order, on the CPU; it holds one at a time.

        Raises:
            ValueError: they are not as many as there must be.
        """
        made = cls(capacity)
        for rows in blocks:
            n = len(next(iter(rows.values())))
            batch = TensorDict({}, batch_size=[n])
            for name, value in rows.items():
                batch[_nested(name)] = value
            made.add(batch)
        if made.count != min(count, capacity):
            raise ValueError(
                f"there are {made.count} samples, there must be {min(count, capacity)}"
            )
        made.count = count
        return made

    def take(self, other: "Replay", device: torch.device) -> None:
        """Become another ring of this capacity, whose samples are not copied where they are there.

        Raises:
            ValueError: it is of another capacity.
        """
        if other.capacity != self.capacity:
            raise ValueError(f"a replay buffer of {other.capacity} samples, not {self.capacity}")
        self.ring = None if other.ring is None else other.ring.to(device)
        self.count = other.count


_LEVEL = "::"
"""Between the parts of a nested key; a key of one part may hold a slash."""


def _flat(key: str | tuple[str, ...]) -> str:
    return key if isinstance(key, str) else _LEVEL.join(key)


def _nested(name: str) -> str | tuple[str, ...]:
    parts = tuple(name.split(_LEVEL))
    return parts if len(parts) > 1 else name
