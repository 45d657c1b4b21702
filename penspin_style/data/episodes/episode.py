"""Episodes of a robot or its simulation, one HDF5 file each: read here, written by `Recorder`.

See `layout` for what a file holds. A file is checked before it is believed: what it links to, how
much it claims, types, shapes, checksums; see `guard`.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import h5py.h5t
import numpy as np

from penspin_style import storage
from penspin_style.data.episodes import untrusted_hdf5
from penspin_style.data.episodes.layout import (
    COMMANDS,
    FORMAT,
    MAX_CARD,
    MAX_CHANNELS,
    MAX_FACTS,
    MAX_NAME,
    MAX_NAMES,
    MAX_STEPS,
    MAX_UNIT,
    SOURCES,
    TIME,
    Channel,
    EpisodeError,
    Header,
    commands,
    seal,
    sha256,
)
from penspin_style.data.episodes.recorder import Recorder, RecorderError
from penspin_style.features import PolicyCard

__all__ = [
    "SOURCES",
    "TIME",
    "Channel",
    "Episode",
    "EpisodeError",
    "Header",
    "Recorder",
    "RecorderError",
    "commands",
    "episodes",
    "write_episode",
]

SUFFIXES = (".h5", ".hdf5")
_TEXTS = {
    **{"task": MAX_NAME, "source": 16, "robot": MAX_NAME, "facts": MAX_FACTS},
    **{"created": 64, "card_sha256": 64, "sha256": 64},
}
_NUMBERS = {"format": "iu", "control_dt": "f", "success": "i", "steps": "iu"}
_COLUMN_TEXTS = {"unit": MAX_UNIT, "names": MAX_NAMES, "sha256": 64}
"""Attributes and the bytes that they may have, or NumPy's kinds of numbers."""
_GROUPS = ("observation", "measure")
_SUCCESS = {1: True, 0: False, -1: None}


@dataclass(frozen=True)
class Episode:
    """One recorded episode, read only; `open` makes it. Columns are read when asked for."""

    path: pathlib.Path
    header: Header
    success: bool | None
    steps: int
    created: str
    sha256: str
    """Of everything in the file, by way of the columns' own sums."""

    @classmethod
    def open(cls, path: pathlib.Path | str) -> "Episode":
        """Check a file's structure and header, not its values, and return the episode.

        Raises:
            EpisodeError: names file, key and row.
        """
        path = pathlib.Path(path)
        with untrusted_hdf5.opened(path) as file:
            return cls.read(path, file)

    @classmethod
    def read(cls, path: pathlib.Path, file: h5py.File) -> "Episode":
        """Do what `open` does with a file that `guard.opened` yields."""
        attributes = _attributes(path, file)
        steps = attributes["steps"]
        if not 1 <= steps <= MAX_STEPS:
            raise EpisodeError(path, None, None, f"claims {steps} steps, not 1 to {MAX_STEPS}")
        columns = _columns(path, file, steps)
        text = _card(path, file)
        if attributes["card_sha256"] != (sha256(text) if text else ""):
            raise EpisodeError(path, "card", None, "does not match its checksum")
        own = attributes.pop("sha256")
        if seal(attributes, text, columns) != own:
            raise EpisodeError(path, None, None, "the header does not match its checksum")
        if attributes["success"] not in _SUCCESS:
            raise EpisodeError(path, None, None, f"success is {attributes['success']}")
        try:
            card = PolicyCard.from_json(text) if text else None
            facts = storage.parse_json(attributes["facts"])
            channels = tuple(c for c in columns if c.name != TIME)
            names = ("task", "source", "robot", "control_dt")
            said = {name: attributes[name] for name in names}
            header = Header(**said, channels=channels, card=card, facts=facts)
        except untrusted_hdf5.BAD as error:
            raise EpisodeError(path, None, None, f"its header is invalid: {error}") from error
        success = _SUCCESS[attributes["success"]]
        return cls(path, header, success, steps, attributes["created"], own)

    def keys(self) -> list[str]:
        """Return the names of all columns, `time` first."""
        return [channel.name for channel in self.header.columns]

    def __getitem__(self, key: str) -> np.ndarray:
        """Return a column, (steps, *shape).

        Raises:
            KeyError: there is no such column.
            EpisodeError: it does not match its checksum.
        """
        channel = self._channel(key)
        out = np.empty((self.steps, *channel.shape), channel.dtype)
        for row, block in self.blocks(key):
            out[row : row + len(block)] = block
        return out

    def blocks(self, key: str, file: h5py.File | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield a column in parts that fit into memory: the first row and the values.

        file: this episode's, if it is open already.

        Raises:
            KeyError: there is no such column.
            EpisodeError: a part is damaged; after the last: the checksum does not match.
        """
        channel = self._channel(key)
        if file is None:
            with untrusted_hdf5.opened(self.path) as own:
                yield from self._blocks(channel, own)
        else:
            yield from self._blocks(channel, file)

    def _blocks(self, channel: Channel, file: h5py.File) -> Iterator[tuple[int, np.ndarray]]:
        rows, found, own = _column(self.path, file, channel.name, self.steps)
        if found != channel:
            raise EpisodeError(self.path, channel.name, None, "has changed since it was opened")
        total = hashlib.sha256()
        for row, block in rows.blocks():
            total.update(block.tobytes())
            yield row, block
        if total.hexdigest() != own:
            raise EpisodeError(self.path, channel.name, None, "does not match its checksum")

    def _channel(self, key: str) -> Channel:
        for channel in self.header.columns:
            if channel.name == key:
                return channel
        raise KeyError(f"{self.path} has no {key!r}, it has {self.keys()}")


def episodes(folder: pathlib.Path | str) -> list[pathlib.Path]:
    """Return the episodes of a folder, demo_2 before demo_10; hidden files are none.

    Also what has such a name and is no file: to open it says so.
    """
    named = (p for p in pathlib.Path(folder).glob("*") if p.suffix in SUFFIXES)
    found = [p for p in named if p.name[0] != "." and not p.is_dir()]
    return sorted(found, key=lambda path: natural(path.name))


def natural(name: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts demo_2 before demo_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def write_episode(
    folder: pathlib.Path,
    header: Header,
    columns: Mapping[str, np.ndarray],
    success: bool | None,
) -> pathlib.Path:
    """Write an episode that is at hand, (T, ...) per channel and `time`; return its file.

    Raises:
        ValueError: columns of other lengths, names, shapes, types, or not finite.
        RecorderError: the disk failed.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns must have one length, have {lengths}")
    with Recorder(folder, header) as recorder:
        for t in range(lengths.get(TIME, 1)):
            recorder.append({name: column[t] for name, column in columns.items()}, wait=True)
        return recorder.finish(success)


def _attributes(path: pathlib.Path, file: h5py.File) -> dict[str, Any]:
    untrusted_hdf5.check_attributes(path, None, file, {*_TEXTS, *_NUMBERS})
    found: dict[str, Any] = {
        n: untrusted_hdf5.text(path, None, file, n, k) for n, k in _TEXTS.items()
    }
    found |= {
        name: untrusted_hdf5.number(path, file, name, kinds) for name, kinds in _NUMBERS.items()
    }
    if found["format"] != FORMAT:
        what = f"has format {found['format']}, this version reads {FORMAT}"
        raise EpisodeError(path, None, None, what)
    return found


def _columns(path: pathlib.Path, file: h5py.File, steps: int) -> dict[Channel, str]:
    """Return every channel with the checksum that its values claim."""
    legal = (TIME, *COMMANDS, *_GROUPS, "card")
    top = untrusted_hdf5.members(path, "", file, MAX_CHANNELS)
    if unknown := sorted(set(top) - set(legal)):
        raise EpisodeError(path, unknown[0], None, f"is unknown; legal are {', '.join(legal)}")
    if missing := [name for name in (TIME, *COMMANDS) if name not in top]:
        raise EpisodeError(path, missing[0], None, "is missing")
    keys = [TIME, *COMMANDS]
    for name in sorted(set(_GROUPS) & set(top)):
        inside = untrusted_hdf5.members(
            path, name, untrusted_hdf5.group(path, file, name), MAX_CHANNELS
        )
        keys += [f"{name}/{member}" for member in inside]
    read = [_column(path, file, key, steps) for key in keys]
    if (claimed := sum(rows.stored for rows, _, _ in read)) > path.stat().st_size:
        raise EpisodeError(path, None, None, f"claims {claimed} bytes, more than the file has")
    return {channel: own for _, channel, own in read}


def _column(
    path: pathlib.Path, file: h5py.File, key: str, steps: int
) -> tuple[untrusted_hdf5.Rows, Channel, str]:
    """Return a dataset, its channel and the checksum that it claims."""

    def refuse(what: str) -> EpisodeError:
        return EpisodeError(path, key, None, what)

    rows = untrusted_hdf5.rows(path, file, key)
    if rows.shape[0] != steps:
        raise refuse(f"has {rows.shape[0]} rows, the header says {steps}")
    owner = h5py.Dataset(rows.data)
    untrusted_hdf5.check_attributes(path, key, owner, set(_COLUMN_TEXTS))
    unit, names, own = (
        untrusted_hdf5.text(path, key, owner, n, k) for n, k in _COLUMN_TEXTS.items()
    )
    try:
        channel = Channel(key, rows.shape[1:], rows.dtype, unit, tuple(storage.parse_json(names)))
    except (ValueError, TypeError, RecursionError) as error:
        raise refuse(str(error)) from error
    if rows.chunk != channel.chunk:
        raise refuse(f"has chunks of {rows.chunk}, not {channel.chunk}")
    wanted = ("shuffle", "deflate") if channel.is_image else ()
    if rows.filters != wanted:
        raise refuse(f"goes through the filters {rows.filters}, not {wanted}")
    return rows, channel, own


def _card(path: pathlib.Path, file: h5py.File) -> str:
    """Return the card's JSON, empty without one."""
    if "card" not in file:
        return ""
    data = untrusted_hdf5.dataset(path, file, "card")
    kind = data.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str() or data.shape != ():
        raise EpisodeError(path, "card", None, "is not a text of fixed length")
    if kind.get_size() > MAX_CARD or data.get_create_plist().get_nfilters():
        raise EpisodeError(path, "card", None, f"is longer than {MAX_CARD} bytes")
    return bytes(h5py.Dataset(data)[()]).decode()
