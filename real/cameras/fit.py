"""From a camera's frame to the image that a policy was trained on: crop, then average down.

Colours are averaged over the area of each pixel; of depth the nearest pixel is taken, because the
mean of two distances is a place where nothing is.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

_MIDDLE = (0.5, 0.5)


@dataclass(frozen=True)
class Crop:
    """Part of a frame, in pixels."""

    top: int
    left: int
    rows: int
    columns: int


def largest(rows: float, columns: float, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the largest part with the form of `size`, (height, width)."""
    high, wide = size
    scale = min(rows / high, columns / wide)
    return round(scale * high), round(scale * wide)


def crop_around(
    frame: tuple[int, int],
    size: tuple[int, int],
    *,
    center: tuple[float, float] = _MIDDLE,
    view: float | None = None,
    frame_view: float | None = None,
) -> Crop:
    """Return what a policy sees of a frame.

    frame, size: (height, width) of the frame and of the policy's image.
    center: the crop's middle, shares of the frame's width and height from its left and top edge.
    view, frame_view: degrees of vertical view of the policy's image and of the whole frame; where
        one is None, the crop is the largest around the center.

    Raises:
        ValueError: the crop leaves the frame, or has fewer pixels than the policy's image.
    """
    height, width = frame
    x, y = center
    most = 2 * min(y, 1 - y) * height, 2 * min(x, 1 - x) * width
    rows, columns = largest(*most, size)
    if view is not None and frame_view is not None:
        share = math.tan(math.radians(view) / 2) / math.tan(math.radians(frame_view) / 2)
        wanted = share * height, share * height * size[1] / size[0]
        if wanted[0] > most[0] + 1 or wanted[1] > most[1] + 1:
            raise ValueError(
                f"the policy sees {view:g} degrees, {wanted[1]:.0f} x {wanted[0]:.0f} pixels; the "
                f"frame has {most[1]:.0f} x {most[0]:.0f} around the center ({width} x {height}, "
                f"{frame_view:g} degrees): take a wider lens, or move the center to the middle"
            )
        rows, columns = min(round(wanted[0]), height), min(round(wanted[1]), width)
    if rows < size[0] or columns < size[1]:
        raise ValueError(
            f"of the frame, {width} x {height}, {columns} x {rows} pixels are seen; the policy "
            f"needs {size[1]} x {size[0]}: ask the camera for a larger size"
        )
    top, left = math.floor(y * height - rows / 2), math.floor(x * width - columns / 2)
    # rounding alone can have brought it beyond an edge
    top, left = min(max(0, top), height - rows), min(max(0, left), width - columns)
    return Crop(top, left, rows, columns)


def fit(image: np.ndarray, size: tuple[int, int], crop: Crop) -> np.ndarray:
    """Return part of an image at a policy's size, (height, width), as a new array.

    image: (height, width, 3) uint8, which is averaged; or depth (height, width) float32, of which
        the nearest pixels are taken.
    """
    high, wide = size
    rows, columns = crop.rows, crop.columns
    seen = image[crop.top : crop.top + rows, crop.left : crop.left + columns]
    if image.ndim == 2:
        down = (2 * np.arange(high) + 1) * rows // (2 * high)
        across = (2 * np.arange(wide) + 1) * columns // (2 * wide)
        return seen[down[:, None], across]
    if (rows, columns) == size:
        return seen.copy()
    seen = Image.fromarray(np.ascontiguousarray(seen))
    return np.asarray(seen.resize((wide, high), Image.Resampling.BOX))
