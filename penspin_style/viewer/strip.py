"""Frames and images side by side."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_strip(path: Path, frames: Sequence[np.ndarray], count: int = 6, axis: int = 1) -> None:
    """Write `count` frames, evenly spread from first to last, as one PNG.

    axis: 1 puts them side by side, 0 one below the other.
    """
    from PIL import Image

    picks = np.linspace(0, len(frames) - 1, count).round().astype(int)
    Image.fromarray(np.concatenate([frames[i] for i in picks], axis=axis)).save(path)


def side_by_side(images: Mapping[str, np.ndarray], height: int) -> np.ndarray:
    """Return images beside each other, enlarged without smoothing; near is bright in depth.

    images: (height, width, 3) uint8 or (height, width) m, or stacks of such, the last one counts.
    height: pixels of the result, about.
    """
    tiles = []
    for image in images.values():
        tile = _colors(image)
        times = max(1, round(height / tile.shape[0]))
        tiles.append(tile.repeat(times, axis=0).repeat(times, axis=1))
    tallest = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(t, ((0, tallest - t.shape[0]), (0, 2), (0, 0))) for t in tiles]
    return np.concatenate(padded, axis=1)[:, :-2]


def inset_column(images: Mapping[str, np.ndarray], height: int) -> np.ndarray:
    """Return images one below the other, each under its name, (height, width, 3) uint8.

    It stands beside a scene, never over it; the width is even, a quarter of the height or more.
    images: as of `side_by_side`; enlarged without smoothing, or reduced to fit.
    """
    from PIL import Image, ImageDraw

    text = max(9, height // 40)
    width = height // 4 // 2 * 2
    room = max(1, min(width - 4, height // len(images) - text - 8))
    column = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(column), font_of(text)
    for k, (name, image) in enumerate(images.items()):
        top = k * (height // len(images))
        tile = Image.fromarray(_colors(image))
        scale = room / max(tile.size)
        scale = float(int(scale)) if scale >= 1 else scale
        tile = tile.resize([max(1, round(n * scale)) for n in tile.size], Image.Resampling.NEAREST)
        draw.text((2, top + 2), name, "black", font)
        column.paste(tile, (2, top + text + 6))
    return np.asarray(column)


@functools.cache  # reading it takes a millisecond of each frame
def font_of(size: int) -> Any:
    """Return the font of captions. size: pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _colors(image: np.ndarray) -> np.ndarray:
    """Return an image, or the last of a stack, as (height, width, 3) uint8."""
    tile = image if image.dtype == np.uint8 else _gray(image)
    return tile[-1] if tile.ndim == 4 else tile


def _gray(depth: np.ndarray) -> np.ndarray:
    """Return depth as an image: white at 0.1 m, darker with distance, black for nothing."""
    bright = np.where(depth > 0, 0.1 / np.maximum(depth, 0.1), 0.0) ** 0.5
    return np.repeat((255 * bright).astype(np.uint8)[..., None], 3, axis=-1)
