"""What ACT and diffusion share: from a student's card and episodes to chunks to learn from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penspin_style.data.dataset import Windows
from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.nets.student import StudentPolicy

Look = Callable[[Mapping[str, Tensor]], tuple[Tensor | None, dict[str, Tensor]]]
"""From observations to the raw numbers, and the features of every image, (n, size) each."""


@dataclass(frozen=True)
class Chunks:
    """What is seen at each step, and the actions from there on."""

    numbers: Tensor | None
    seen: dict[str, Tensor]
    label: Tensor
    """(n, horizon, naction); after the end of its trajectory the last one again and again."""
    padded: Tensor
    """(n, horizon) bool, actions after the end."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.label)

    def rows(self, ids: Tensor) -> "Chunks":
        """Return some of them."""
        numbers = None if self.numbers is None else self.numbers[ids]
        seen = {name: value[ids] for name, value in self.seen.items()}
        return Chunks(numbers, seen, self.label[ids], self.padded[ids])

    @classmethod
    @torch.no_grad()
    def of(
        cls, trajectories: Sequence[Windows], horizon: int, look: Look, device: torch.device
    ) -> "Chunks":
        """Return a chunk for each row of trajectories."""
        parts = []
        for rows in trajectories:
            n = len(rows)
            at = np.arange(n)[:, None] + np.arange(horizon)
            label = torch.from_numpy(rows.labels[at.clip(max=n - 1)]).to(device)
            padded = torch.from_numpy(at >= n).to(device)
            given = {k: torch.from_numpy(v).to(device) for k, v in rows.inputs.items()}
            parts.append(cls(*look(given), label, padded))
        numbers = [p.numbers for p in parts if p.numbers is not None]
        return cls(
            torch.cat(numbers) if numbers else None,
            {name: torch.cat([p.seen[name] for p in parts]) for name in parts[0].seen},
            torch.cat([p.label for p in parts]),
            torch.cat([p.padded for p in parts]),
        )


@torch.no_grad()
def distance(chunks: Chunks, predict: Callable[[Chunks], Tensor]) -> float:
    """Return the mean distance of what would be done from what was done.

    predict: from rows to chunks (n, horizon, naction) in [-1, 1].
    """
    device = chunks.label.device
    total = torch.zeros(2, device=device)
    for ids in torch.arange(len(chunks), device=device).split(256):
        rows = chunks.rows(ids)
        there = (~rows.padded)[..., None].expand_as(rows.label)
        off = (predict(rows) - rows.label).abs()[there]
        total += torch.stack((off.sum(), there.sum()))
    return (total[0] / total[1]).item()


def chunk_card(card: PolicyCard, mode: str = "") -> PolicyCard:
    """Return a student's card with what a policy of chunks reads instead: see `chunk_inputs`."""
    return dataclasses.replace(card, inputs=chunk_inputs(card, mode))


def chunk_inputs(card: PolicyCard, mode: str = "") -> tuple[Input, ...]:
    """Return what is read: the newest value of a student's features, and its images.

    mode: the features, as `joint_pos-obj_ends`; empty for all.

    Raises:
        ValueError: the student reads no such feature.
    """
    vectors = [f for i in card.inputs if not i.is_image for f in i.features]
    known = {f.name: f for f in vectors}
    chosen = mode.split("-") if mode else list(known)
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"algo.input_mode={mode}: no {name!r}, the student reads {list(known)}"
            )
    now = tuple(_now(known[name]) for name in chosen)
    return (*([Input("numbers", now)] if now else []), *(i for i in card.inputs if i.is_image))


def eyes_of(student: Any) -> StudentPolicy | None:
    """Return the student if it sees images, to encode them; else None."""
    return student if getattr(student, "frozen", ()) else None


def _now(feature: Feature) -> Feature:
    return dataclasses.replace(feature, history=1, delay=0)
