"""Read a LeRobotDataset v3.0 folder, anyone's; restore the episodes of one that we wrote.

Nothing in the folder is believed: paths that lead outside are refused, and what the tables hold
must be what info.json says, row by row.
"""

import itertools
import math
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from penspin_style import storage
from penspin_style.data.episodes.layout import MAX_STEPS, RATIO, DataWarning, Header
from penspin_style.data.formats import parquet, provenance
from penspin_style.data.formats.lerobot_layout import (
    DATA,
    EPISODES,
    INFO,
    OWN,
    OWN_PREFIX,
    VIDEO,
    Layout,
)
from penspin_style.data.formats.video import read_video

_MAX_JSON = 64 * 2**20  # bytes
_MAX_EPISODES = 1_000_000
_MAX_RATE = 1e6  # Hz
_SMALL = 64 * 2**20  # bytes of an episode that are read whatever they were packed into
_VIDEO_RATIO = 5000
"""Bytes of images that a byte of video may unfold to: a still scene in AV1 comes to some 500."""
_BAD = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


class LeRobotError(ValueError):
    """A folder is not the dataset that it should be; names the file."""


@dataclass(frozen=True)
class Feature:
    """One entry of `features` in info.json."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None


@dataclass(frozen=True)
class Info:
    """What info.json says that a reader needs."""

    features: Mapping[str, Feature]
    rate: Fraction
    episodes: int
    frames: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Feature that is not read -> why."""

    @property
    def cameras(self) -> dict[str, Feature]:
        """The features that are videos."""
        known = {k: f for k, f in self.features.items() if k not in self.left_out}
        return {key: f for key, f in known.items() if f.dtype == "video"}

    @property
    def numbers(self) -> dict[str, parquet.Kind]:
        """The features that are columns of numbers."""
        found = {k: f for k, f in self.features.items() if f.dtype in parquet.DTYPES}
        return {key: (f.dtype, f.shape) for key, f in found.items()}


def read(folder: pathlib.Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the features of every episode, (T, *shape): numbers as stored, videos as uint8.

    Text, single images, depth as a video and numbers of other types are left out; a DataWarning
    names them, and another says where time stamps contradict the rate.

    Raises:
        ValueError: names the file that is missing, damaged or does not fit the others.
    """
    parquet.need_pyarrow()
    folder = pathlib.Path(folder)
    info = read_info(folder)
    rows = _read_episodes(folder, info)
    _say_what_is_left_out(folder, info, rows)
    contradicted = False
    for number, (row, features) in enumerate(
        zip(rows, _read_numbers(folder, info, rows), strict=True)
    ):
        _check_indices(folder, number, row, features)
        contradicted = contradicted or _contradicts(folder, number, info, features)
        for key, feature in info.cameras.items():
            features[key] = _read_video(folder, info, key, feature, row)
        yield features


def restore(folder: pathlib.Path) -> Iterator[provenance.Recording]:
    """Yield the episodes of a dataset that `write` made, as they were before.

    Videos come back as their codec leaves them; everything else bit for bit.

    Raises:
        ValueError: as `read`; or another program wrote the dataset.
    """
    parquet.need_pyarrow()
    folder = pathlib.Path(folder)
    info = read_info(folder)
    for (header, success), features in zip(_read_headers(folder), read(folder), strict=True):
        layout = Layout(header.channels)
        promised = layout.features(info.rate, success=False)
        if wrong := sorted(k for k, f in promised.items() if _feature(f) != info.features.get(k)):
            raise LeRobotError(f"{folder / OWN} does not fit {INFO}: {wrong} differ")
        yield header, layout.columns(features), success


def _feature(raw: Mapping[str, Any]) -> Feature:
    dtype, shape = str(raw["dtype"]), tuple(raw["shape"])
    if dtype == "video" and len(shape) == 3 and shape[0] == 3 != shape[2]:
        shape = (*shape[1:], 3)  # as other converters write it; the video is the same
    return Feature(dtype, shape, raw.get("names"))


def read_info(folder: pathlib.Path) -> Info:
    """Return what info.json says.

    Raises:
        LeRobotError: it is missing, damaged, of another version or invalid.
    """
    path, raw = _read_json(folder, INFO)
    try:
        version = raw["codebase_version"]
        if not str(version).startswith("v3."):
            raise LeRobotError(f"{path} is of version {version}; v3.0 is read, convert it first")
        if raw["data_path"] != DATA or raw["video_path"] not in (VIDEO, None):
            raise LeRobotError(f"{path} keeps its files elsewhere than {DATA} and {VIDEO}")
        features = {str(key): _feature(f) for key, f in raw["features"].items()}
        left_out = {k: why for k, f in raw["features"].items() if (why := _unknown(f))}
        rate = _rate(raw["fps"])
        info = Info(features, rate, raw["total_episodes"], raw["total_frames"], left_out)
        for key, f in features.items():
            known = key not in left_out
            if known and not all(type(n) is int and 0 < n <= 2**20 for n in f.shape):
                raise LeRobotError(f"{path}: {key!r} has the shape {f.shape}")
            if "/" in key or key in ("", ".", ".."):
                raise LeRobotError(f"{path}: {key!r} cannot be the name of a feature")
    except LeRobotError:
        raise
    except _BAD as error:
        raise LeRobotError(f"{path} does not have the fields it should ({error!r})") from error
    counts = (info.episodes, info.frames)
    if rate <= 0 or not all(type(n) is int and 0 <= n < 2**40 for n in counts):
        raise LeRobotError(f"{path}: fps, total_episodes or total_frames is not a number")
    if info.episodes > _MAX_EPISODES:
        raise LeRobotError(f"{path} claims {info.episodes} episodes, more than {_MAX_EPISODES}")
    if missing := sorted({"frame_index", "episode_index", "index"} - set(info.numbers)):
        raise LeRobotError(f"{path} lists no features {missing} of a type that is read")
    return info


def _rate(fps: Any) -> Fraction:
    """Return frames per second; 0 for what no camera has."""
    if type(fps) not in (int, float):  # a Fraction of "1e999999999" would take for ever
        raise TypeError(f"fps is {fps!r:.40}, not a number")
    return Fraction(fps).limit_denominator(1001) if 0 < fps <= _MAX_RATE else Fraction(0)


def _unknown(raw: Mapping[str, Any]) -> str:
    """Return why a feature is not read, empty if it is."""
    dtype, shape = raw["dtype"], tuple(raw["shape"])
    if dtype == "video":
        if len(shape) != 3 or 3 not in (shape[0], shape[2]):
            return f"a video of shape {shape}, not (height, width, 3)"
        if dict(raw.get("info") or {}).get("video.is_depth_map"):
            return "depth, which the codec of a video spoils"
    elif dtype not in parquet.DTYPES:
        return f"of type {dtype!r:.40}"
    return ""


def _say_what_is_left_out(
    folder: pathlib.Path, info: Info, rows: Sequence[Mapping[str, Any]]
) -> None:
    found = dict(info.left_out)
    if rows:
        place = {name: rows[0][f"data/{name}"] for name in ("chunk_index", "file_index")}
        columns = parquet.column_names(_inside(folder, DATA.format(**place)))
        found |= {name: f"not in {INFO}" for name in columns if name not in info.features}
    if found:
        listed = "; ".join(f"{name!r}, {why}" for name, why in found.items())
        warnings.warn(f"{folder}: left out: {listed}", DataWarning, stacklevel=3)


def _contradicts(
    folder: pathlib.Path, number: int, info: Info, features: Mapping[str, np.ndarray]
) -> bool:
    """Return whether an episode's time stamps contradict the rate; say so."""
    stamps = features.get("timestamp")
    if stamps is None or stamps.shape[1:] != (1,):
        return False
    stamp = stamps[:, 0].astype(np.float64)
    wanted = np.arange(len(stamp)) / float(info.rate)
    # LeRobot's tolerance, and what float32 resolves
    wrong = np.flatnonzero(np.abs(stamp - wanted) > 1e-4 + 1e-6 * wanted)
    if not len(wrong):
        return False
    k = int(wrong[0])
    warnings.warn(
        f"{folder}: episode {number}, frame {k}: the time stamp {stamp[k]:.6g} s contradicts the "
        f"{float(info.rate):g} frames a second of {INFO}, which make it {wanted[k]:.6g} s",
        DataWarning,
        stacklevel=3,
    )
    return True


def _read_json(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, Any]:
    path = _inside(folder, name)
    try:
        return path, storage.parse_json(storage.read_file(path, _MAX_JSON))
    except (OSError, ValueError) as error:
        raise LeRobotError(f"{path} is missing or unreadable ({error})") from error


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / name
    if path.resolve() != folder.resolve() / name:
        raise LeRobotError(f"{path} is a link elsewhere; links are never followed")
    return path


def _read_episodes(folder: pathlib.Path, info: Info) -> list[dict[str, Any]]:
    """Return the rows that say where each episode is, in order."""
    whole = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    places = ["data", *(f"videos/{key}" for key in info.cameras)]
    whole += [f"{place}/{name}" for place in places for name in ("chunk_index", "file_index")]
    kinds: dict[str, parquet.Kind] = {name: ("int64", (1,)) for name in whole}
    kinds |= {f"videos/{key}/from_timestamp": ("float64", (1,)) for key in info.cameras}
    rows: list[dict[str, Any]] = []
    for path in _episode_files(folder):
        for piece in parquet.read_table(path, kinds):
            if len(rows) > info.episodes:
                break  # too many, however many
            listed = {name: values[:, 0].tolist() for name, values in piece.items()}
            rows += [
                dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)
            ]
    rows.sort(key=lambda row: row["episode_index"])
    _check_episodes(folder, info, rows)
    return rows


def _episode_files(folder: pathlib.Path) -> list[pathlib.Path]:
    above = pathlib.PurePath(EPISODES).parents[1]
    names = (p.relative_to(folder).as_posix() for p in (folder / above).glob("*/*.parquet"))
    return [_inside(folder, name) for name in sorted(names)]


def _check_episodes(folder: pathlib.Path, info: Info, rows: Sequence[Mapping[str, Any]]) -> None:
    where = folder / pathlib.PurePath(EPISODES).parents[1]
    numbers = [row["episode_index"] for row in rows]
    if numbers != list(range(info.episodes)):
        gap = next((i for i, n in enumerate(numbers) if i != n), len(numbers))
        raise LeRobotError(
            f"{where} lists {len(numbers)} episodes, {INFO} says {info.episodes}; the first that "
            f"is missing or there twice is {gap}"
        )
    frame = 0
    for number, row in enumerate(rows):
        ends = row["dataset_from_index"], row["dataset_to_index"]
        if ends != (frame, frame + row["length"]) or not 0 < row["length"] <= MAX_STEPS:
            raise LeRobotError(
                f"{where}: episode {number} claims {row['length']} frames from {ends[0]} to "
                f"{ends[1]}, the one before ends at {frame}"
            )
        if not all(
            0 <= row[name] < 10**6 for name in row if name.endswith(("chunk_index", "file_index"))
        ):
            raise LeRobotError(f"{where}: episode {number} is in a file of no legal number")
        frame = ends[1]
    if frame != info.frames:
        raise LeRobotError(f"{where} lists {frame} frames, {INFO} says {info.frames}")


def _read_numbers(
    folder: pathlib.Path, info: Info, rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of numbers of every episode."""

    def place(row: Mapping[str, Any]) -> dict[str, int]:
        return {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}

    for where, of_file in itertools.groupby(rows, place):
        path = _inside(folder, DATA.format(**where))
        pieces = _Pieces(path, info.numbers)
        kinds = info.numbers.values()
        row_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in kinds)
        for row in of_file:
            _check_claim(path, row["length"] * row_bytes, RATIO)
            yield pieces.take(row["length"])
        pieces.end()


def _check_claim(path: pathlib.Path, claimed: int, ratio: int) -> None:
    """Refuse an episode that would unfold to far more than its file can hold."""
    stored = path.stat().st_size if path.is_file() else 0
    if claimed > max(_SMALL, stored * ratio):
        raise LeRobotError(
            f"{path} would unfold {stored} bytes to {claimed} in one episode, over {ratio} times"
        )


class _Pieces:
    """The rows of a table, taken in order."""

    def __init__(self, path: pathlib.Path, kinds: Mapping[str, parquet.Kind]) -> None:
        self.path = path
        self._source = parquet.read_table(path, kinds)
        self._rest: dict[str, np.ndarray] = {
            key: np.empty((0, *shape), dtype) for key, (dtype, shape) in kinds.items()
        }

    def take(self, count: int) -> dict[str, np.ndarray]:
        """Return the next `count` rows."""
        parts, have = [self._rest], self._length(self._rest)
        while have < count:
            piece = next(self._source, None)
            if piece is None:
                raise LeRobotError(f"{self.path} ends {count - have} rows early")
            parts.append(piece)
            have += self._length(piece)
        joined = {key: np.concatenate([part[key] for part in parts]) for key in self._rest}
        self._rest = {key: values[count:] for key, values in joined.items()}
        return {key: values[:count] for key, values in joined.items()}

    def end(self) -> None:
        """Refuse rows that no episode has."""
        if self._length(self._rest) or next(self._source, None) is not None:
            raise LeRobotError(f"{self.path} has rows of no episode")

    @staticmethod
    def _length(columns: Mapping[str, np.ndarray]) -> int:
        return len(next(iter(columns.values())))


def _check_indices(
    folder: pathlib.Path, number: int, row: Mapping[str, Any], features: Mapping[str, np.ndarray]
) -> None:
    frame = np.arange(row["length"])
    wanted = {
        "frame_index": frame,
        "index": frame + row["dataset_from_index"],
        "episode_index": np.full_like(frame, number),
    }
    for key, values in wanted.items():
        wrong = np.flatnonzero(features[key][:, 0] != values)
        if len(wrong):
            raise LeRobotError(
                f"{folder / 'data'}: episode {number}, frame {wrong[0]}: {key} is "
                f"{features[key][wrong[0], 0]}, not {values[wrong[0]]}"
            )
    for key, values in features.items():
        if values.dtype.kind == "f" and not (good := np.isfinite(values)).all():
            raise LeRobotError(
                f"{folder / 'data'}: episode {number}, frame {np.argwhere(~good)[0, 0]}: {key} is "
                "not finite"
            )


def _read_video(
    folder: pathlib.Path, info: Info, key: str, feature: Feature, row: Mapping[str, Any]
) -> np.ndarray:
    names = ("chunk_index", "file_index", "from_timestamp")
    chunk, file, start = (row[f"videos/{key}/{name}"] for name in names)
    path = _inside(folder, VIDEO.format(video_key=key, chunk_index=chunk, file_index=file))
    if not 0 <= start < 1e9:
        raise LeRobotError(f"{path}: an episode begins at {start} s")
    height, width, colours = feature.shape
    _check_claim(path, row["length"] * math.prod(feature.shape), _VIDEO_RATIO)
    first = round(Fraction(start) * info.rate)
    return read_video(path, (height, width, colours), first, row["length"], info.rate)


def _read_headers(folder: pathlib.Path) -> list[tuple[Header, bool | None]]:
    """Return what the episodes' headers were, from what only we write."""
    if not (folder / OWN).exists():
        raise LeRobotError(f"{folder} has no {OWN}: another program wrote it, use read")
    path, common = _read_json(folder, OWN)
    kinds = {name: ("int64", (1,)) for name in ("episode_index", f"{OWN_PREFIX}success")}
    rows: list[dict[str, Any]] = []
    for file in _episode_files(folder):
        pieces = list(parquet.read_table(file, kinds))
        columns = {k: np.concatenate([p[k][:, 0] for p in pieces]).tolist() for k in kinds}
        columns |= parquet.read_texts(file, [f"{OWN_PREFIX}{name}" for name in provenance.TEXTS])
        names = [name.removeprefix(OWN_PREFIX) for name in columns]
        rows += [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows.sort(key=lambda row: row["episode_index"])
    try:
        return list(provenance.headers(common, rows))
    except _BAD as error:
        raise LeRobotError(f"{path} does not fit this dataset ({error!r})") from error
