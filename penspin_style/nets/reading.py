"""How a policy of action chunks reads: one vector of numbers, and images through a student's eyes.

The eyes are a distilled student whose frozen encoders are used; its own numbers are not read.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from penspin_style.features import Input
from penspin_style.nets.student import StudentPolicy


def look(
    inputs: Sequence[Input], eyes: StudentPolicy | None, observations: Mapping[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return the raw numbers (n, size), and the features of every image (n, size)."""
    vectors = [observations[i.name] for i in inputs if not i.is_image]
    seen: dict[str, Tensor] = {}
    if eyes is not None:
        unread = torch.empty(0)  # the student's own numbers
        given = {i.name: observations[i.name] for i in inputs if i.is_image}
        raw = eyes.decode({name: given.get(name, unread) for name in eyes.in_keys})
        seen = eyes.encode(raw.rgb, raw.depth)
    return (vectors[0] if vectors else None), seen


@torch.no_grad()
def seen_sizes(inputs: Sequence[Input], eyes: StudentPolicy | None) -> dict[str, int]:
    """Return image -> numbers that its encoder makes of it.

    Raises:
        ValueError: images without a student that sees them.
    """
    images = [i for i in inputs if i.is_image]
    if images and eyes is None:
        raise ValueError(f"nothing encodes {[i.name for i in images]}; give a student's run")
    blank = {}
    for given in inputs:
        dtype, shape = given.tensor
        blank[given.name] = torch.zeros((1, *shape), dtype=getattr(torch, dtype))
    return {name: rows.shape[1] for name, rows in look(inputs, eyes, blank)[1].items()}


def describe_eyes(eyes: StudentPolicy | None) -> dict[str, Any] | None:
    """Return what `build_eyes` needs, as JSON values."""
    if eyes is None:
        return None
    own = [dataclasses.asdict(i) for i in eyes.inputs]
    return {"inputs": own, "naction": eyes.naction, **eyes.describe()}


def build_eyes(described: Mapping[str, Any] | None, rng: torch.Generator) -> StudentPolicy | None:
    """Return the eyes that a card describes, with weights of no meaning.

    Raises:
        KeyError, TypeError, ValueError: it describes none.
    """
    if described is None:
        return None
    own = dict(described)
    own.pop("kind")
    inputs = [Input.from_dict(i) for i in own.pop("inputs")]
    return StudentPolicy(inputs, own.pop("naction"), rng=rng, **own)
