"""A YAML file of cameras: which device stands for which camera of a policy's card.

wrist_cam_left:        # the card's wrist_cam_left_rgb and wrist_cam_left_depth
  kind: realsense      # opencv, realsense or file
  device: "123456"     # index or URL; serial number; path
  size: [640, 480]
  center: [0.5, 0.5]   # of the crop
"""

import difflib
import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from penspin_style.system.plain_yaml import read_mapping
from real.cameras.camera import MAX_AGE, Camera
from real.cameras.opencv import OpenCV
from real.cameras.realsense import RealSense
from real.cameras.video_file import VideoFile

KINDS = ("opencv", "realsense", "file")
DEEP = ("realsense",)
"""Kinds that give depth."""


@dataclass(frozen=True)
class CameraConfig:
    """One camera, and what of its frames the policy sees."""

    kind: str
    device: int | str = 0
    """opencv: index or URL; realsense: serial number, 0 for the only one; file: its path."""
    size: tuple[int, int] | None = None
    """Width and height of its frames; None for what it gives by itself."""
    rate: float | None = None
    """Frames/s; None for what it gives by itself."""
    center: tuple[float, float] = (0.5, 0.5)
    """The crop's middle, shares of the frame's width and height from its left and top edge."""
    view: float | None = None
    """Degrees between the whole frame's top and bottom edge; a RealSense knows its own. With it
    the crop has the card's view, without it the crop is the largest."""
    max_age: float = MAX_AGE
    """Seconds after which a frame is too old to be used."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} must be one of {', '.join(KINDS)}")
        if self.kind == "file" and self.device == 0:
            raise ValueError("kind file needs device: the path of a video")
        if self.size is not None and not all(1 <= n <= 8192 for n in self.size):
            raise ValueError(f"size must be [width, height] of 1 to 8192 pixels, got {self.size}")
        if not all(0 < share < 1 for share in self.center):
            raise ValueError(f"center must be [x, y] between 0 and 1, got {self.center}")
        for key, most in (("rate", 1000), ("view", 179), ("max_age", 10)):
            value = getattr(self, key)
            if value is not None and not 0 < value <= most:
                raise ValueError(f"{key} must be above 0 and up to {most}, got {value}")


def read_cameras(path: pathlib.Path) -> dict[str, CameraConfig]:
    """Return the cameras of a YAML file by name.

    Raises:
        ValueError: it is not as the module's docstring says; names the file, camera and key.
    """
    raw = read_mapping(path)
    if not raw:
        raise ValueError(f"{path} names no camera")
    found = {}
    for name, values in raw.items():
        try:
            found[name] = _config(values)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return found


def make_camera(config: CameraConfig, *, depth: bool = True) -> Camera:
    """Return a camera, not yet opened.

    depth: whether it is wanted, of a camera that has it.
    """
    device, size, rate = config.device, config.size, config.rate
    if config.kind == "opencv":
        return OpenCV(device, size=size, rate=rate)
    if config.kind == "file":
        return VideoFile(str(device), rate=rate)
    serial = "" if device == 0 else str(device)
    return RealSense(serial, size=size or (640, 480), rate=rate or 30, depth=depth)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint at the name that was meant; empty for none."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


_NUMBER = (int, float)
_TYPES: Mapping[str, tuple[str, tuple[type, ...], int]] = {
    "kind": ("a text", (str,), 0),
    "device": ("a whole number or a text", (int, str), 0),
    "size": ("a list of two whole numbers", (int,), 2),
    "rate": ("a number", _NUMBER, 0),
    "center": ("a list of two numbers", _NUMBER, 2),
    "view": ("a number", _NUMBER, 0),
    "max_age": ("a number", _NUMBER, 0),
}
"""Key -> what it must be, its types, and the length of a list; 0 for none."""


def _config(raw: Any) -> CameraConfig:
    if not isinstance(raw, dict):
        raise ValueError(f"must be a mapping with a kind, it is {raw!r}")
    for key, value in raw.items():
        if key not in _TYPES:
            hint = nearest(key, _TYPES) or f"; there are {', '.join(_TYPES)}"
            raise ValueError(f"there is no key {key!r}{hint}")
        what, types, length = _TYPES[key]
        items = value if length and isinstance(value, list) else [value]
        right = (isinstance(item, types) and not isinstance(item, bool) for item in items)
        if len(items) != (length or 1) or not all(right):
            raise ValueError(f"{key} must be {what}, got {value!r}")
    if "kind" not in raw:
        raise ValueError(f"kind is missing: one of {', '.join(KINDS)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return CameraConfig(**values)
