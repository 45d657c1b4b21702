"""Where a LeRobotDataset v3.0 keeps what, and which of its features holds which channel.

Read from LeRobot 0.4.4 and 0.6.1 (lerobot/datasets); see `lerobot` for the mapping.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from penspin_style.data.episodes.layout import COMMANDS, Channel
from penspin_style.data.formats.video import CODEC, pixel_format

VERSION = "v3.0"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
OWN = "meta/penspin.json"
OWN_PREFIX = "penspin/"
"""Of our columns in the table of episodes."""
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = f"meta/episodes/{DATA.removeprefix('data/')}"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
STATE, IMAGES, EXACT = "observation.state", "observation.images.", "exact."
INDICES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


class Layout:
    """Which feature of the dataset holds which channel of the episodes."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self.channels = {channel.name: channel for channel in channels}
        observed = [c for c in channels if c.name.startswith("observation/")]
        self.state = [c for c in observed if len(c.shape) < 2]
        self.cameras = {
            IMAGES + _short(c): c for c in observed if c.dtype == "uint8" and c.shape[2:] == (3,)
        }
        arrays = [c for c in observed if len(c.shape) > 1 and c not in self.cameras.values()]
        self.arrays = {f"observation.{_short(c)}": c for c in arrays}
        inexact = [c for c in self.state if not np.can_cast(c.dtype, np.float32)]
        self.exact = {EXACT + _short(c): c for c in inexact}
        rest = [c for c in channels if c.name in COMMANDS or c.name.startswith("measure/")]
        self.plain = {c.name.replace("/", "."): c for c in rest}
        one_to_one = [*self.arrays, *self.exact, *self.cameras, *self.plain, STATE]
        if twice := sorted({key for key in one_to_one if one_to_one.count(key) > 1}):
            raise ValueError(f"two channels would both become {twice}; rename one")

    def features(self, rate: Fraction, *, success: bool) -> dict[str, dict[str, Any]]:
        """Return `features` of info.json."""
        found = {}
        if self.state:
            found[STATE] = _feature("float32", (self.width,), self.names())
        for key, c in self.cameras.items():
            found[key] = _feature("video", c.shape, ["height", "width", "channels"])
            found[key]["info"] = _video_info(c, rate)
        for key, c in (self.arrays | self.plain | self.exact).items():
            found[key] = _feature(c.dtype, c.shape or (1,), list(c.names) or None)
        found["time"] = _feature("float64", (1,), None)
        found["next.done"] = _feature("bool", (1,), None)
        if success:
            found["next.success"] = _feature("bool", (1,), None)
        return found | {key: _feature(dtype, (1,), None) for key, dtype in INDICES.items()}

    @property
    def width(self) -> int:
        """Numbers in observation.state."""
        return sum(_size(c) for c in self.state)

    def names(self) -> list[str]:
        """Return the names of the numbers in observation.state."""
        found = []
        for c in self.state:
            entries = c.names or [str(i) for i in range(_size(c))]
            found += [f"{_short(c)}.{entry}" for entry in entries] if c.shape else [_short(c)]
        return found

    def numbers(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the features that are no videos, (T, *shape), of an episode's columns."""
        steps = len(columns["time"])
        found = {}
        if self.state:
            parts = [columns[c.name].reshape(steps, -1) for c in self.state]
            found[STATE] = np.concatenate(parts, 1, dtype=np.float32, casting="same_kind")
        for key, c in (self.arrays | self.plain | self.exact).items():
            found[key] = columns[c.name].reshape(steps, *(c.shape or (1,)))
        return found | {"time": columns["time"].reshape(steps, 1)}

    def columns(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return an episode's columns of all its features: the way back."""
        found = {"time": features["time"][:, 0]}
        at = 0
        for c in self.state:
            found[c.name] = features[STATE][:, at : at + _size(c)].astype(c.dtype)
            at += _size(c)
        for key, c in (self.arrays | self.plain | self.exact | self.cameras).items():
            found[c.name] = features[key]
        return {
            name: values.reshape(len(values), *self.channels[name].shape)
            if name != "time"
            else values
            for name, values in found.items()
        }


def _short(channel: Channel) -> str:
    return channel.name.partition("/")[2]


def _size(channel: Channel) -> int:
    return channel.shape[0] if channel.shape else 1


def _feature(dtype: str, shape: Sequence[int], names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": names}


def _video_info(channel: Channel, rate: Fraction) -> dict[str, Any]:
    height, width, colours = channel.shape
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": CODEC,
        "video.pix_fmt": pixel_format(height, width),
        "video.is_depth_map": False,
        "video.fps": number(rate),
        "video.channels": colours,
        "has_audio": False,
    }


def number(rate: Fraction) -> int | float:
    """Return a rate as JSON holds it."""
    return rate.numerator if rate.denominator == 1 else float(rate)
