"""Episodes of a robot or its simulation, one HDF5 file each: read here, written by `Recorder`.

See `layout` for what a file holds. A file is checked before it is believed: what it links to, how
much it claims, types, shapes, checksums. Chunks are read as they stand and inflated here, so that
HDF5 runs no filter and nothing grows beyond what the header allows.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import h5py.h5a
import h5py.h5d
import h5py.h5g
import h5py.h5l
import h5py.h5o
import h5py.h5s
import h5py.h5t
import h5py.h5z
import numpy as np

from penspin_style.data.layout import (
    COMMANDS,
    DTYPES,
    FORMAT,
    MAX_CARD,
    MAX_CHANNELS,
    MAX_FACTS,
    MAX_STEPS,
    RATIO,
    SOURCES,
    TIME,
    Channel,
    EpisodeError,
    Header,
    commands,
    seal,
    sha256,
)
from penspin_style.data.recorder import Recorder, RecorderError
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

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_TEXTS = {"task": 800, "source": 16, "robot": 800, "created": 64, "card_sha256": 64, "sha256": 64}
_NUMBERS = {"format": "iu", "control_dt": "f", "success": "i", "steps": "iu"}
_GROUPS = ("observation", "measure")
_BAD = (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError, MemoryError)
"""What h5py raises on damage, depending on where it stands."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode, read only; `open` makes it. Columns are read when asked for."""

    path: pathlib.Path
    header: Header
    success: bool | None
    steps: int
    created: str

    @classmethod
    def open(cls, path: pathlib.Path | str) -> "Episode":
        """Check a file's structure and header, not its values, and return the episode.

        Raises:
            EpisodeError: names file, key and row.
        """
        path = pathlib.Path(path)
        with _opened(path) as file:
            attributes = _attributes(path, file)
            steps = attributes["steps"]
            if not 1 <= steps <= MAX_STEPS:
                raise EpisodeError(path, None, None, f"claims {steps} steps, not 1 to {MAX_STEPS}")
            columns = _columns(path, file, steps)
            text = _card(path, file)
            if sha256(text) != attributes["card_sha256"] and (text or attributes["card_sha256"]):
                raise EpisodeError(path, "card", None, "does not match its checksum")
            own = attributes.pop("sha256")
            if seal(attributes, text, columns) != own:
                raise EpisodeError(path, None, None, "the header does not match its checksum")
            try:
                card = PolicyCard.from_json(text) if text else None
                facts = json.loads(attributes["facts"])
                channels = tuple(c for c in columns if c.name != TIME)
                names = ("task", "source", "robot", "control_dt")
                said = {name: attributes[name] for name in names}
                header = Header(**said, channels=channels, card=card, facts=facts)
            except _BAD as error:
                raise EpisodeError(
                    path, None, None, f"its header cannot be meant: {error}"
                ) from error
        success = {1: True, 0: False, -1: None}
        if attributes["success"] not in success:
            raise EpisodeError(path, None, None, f"success is {attributes['success']}")
        return cls(path, header, success[attributes["success"]], steps, attributes["created"])

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

    def blocks(self, key: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield a column in parts that fit into memory: the first row and the values.

        Raises:
            KeyError: there is no such column.
            EpisodeError: a part is damaged; after the last: the checksum does not match.
        """
        channel = self._channel(key)
        with _opened(self.path) as file:
            found, own = _column(self.path, file, key, self.steps)
            if found != channel:
                raise EpisodeError(self.path, key, None, "has changed since it was opened")
            group, _, name = key.rpartition("/")
            data = h5py.h5d.open(file[group].id if group else file.id, name.encode())
            total = hashlib.sha256()
            for row in range(0, self.steps, channel.chunk[0]):
                block = _chunk(self.path, data, channel, row)[: self.steps - row]
                total.update(block.tobytes())
                yield row, block
            if total.hexdigest() != own:
                raise EpisodeError(self.path, key, None, "does not match its checksum")

    def _channel(self, key: str) -> Channel:
        for channel in self.header.columns:
            if channel.name == key:
                return channel
        raise KeyError(f"{self.path} has no {key!r}, it has {self.keys()}")


def episodes(folder: pathlib.Path | str) -> list[pathlib.Path]:
    """Return the episodes of a folder, demo_2 before demo_10; hidden files are none."""
    found = (p for p in pathlib.Path(folder).glob("*.h5") if not p.name.startswith("."))
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


# Reading what may be hostile.


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[h5py.File]:
    """Open for reading; what h5py raises comes out as EpisodeError."""
    try:
        with path.open("rb") as raw:
            if raw.read(len(_SIGNATURE)) != _SIGNATURE:
                raise EpisodeError(path, None, None, "is not an HDF5 file")
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except EpisodeError:
        raise
    except _BAD as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EpisodeError(path, None, None, f"is damaged or unreadable: {reason}") from error


def _attributes(path: pathlib.Path, file: h5py.File) -> dict[str, Any]:
    names = {*_TEXTS, *_NUMBERS, "facts"}
    _check_attributes(path, None, file.id, names)
    limits = {**_TEXTS, "facts": 4 * MAX_FACTS}
    found: dict[str, Any] = {n: _text(path, None, file, n, limit) for n, limit in limits.items()}
    for name, kinds in _NUMBERS.items():
        kind = h5py.h5a.open(file.id, name.encode())
        if kind.shape != () or kind.dtype.kind not in kinds or kind.dtype.itemsize > 8:
            raise EpisodeError(path, None, None, f"attribute {name} is not one number")
        found[name] = np.asarray(file.attrs[name]).item()
    if found["format"] != FORMAT:
        what = f"has format {found['format']}, this version reads {FORMAT}"
        raise EpisodeError(path, None, None, what)
    return found


def _check_attributes(path: pathlib.Path, key: str | None, owner: Any, names: set[str]) -> None:
    count = h5py.h5a.get_num_attrs(owner)
    present = {name for name in names if h5py.h5a.exists(owner, name.encode())}
    if missing := sorted(names - present):
        raise EpisodeError(path, key, None, f"is no episode: attributes {missing} are missing")
    if count > len(names):
        raise EpisodeError(path, key, None, f"has {count} attributes, an episode has {len(names)}")


def _text(path: pathlib.Path, key: str | None, owner: Any, name: str, limit: int) -> str:
    attribute = h5py.h5a.open(owner.id, name.encode())
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str():
        raise EpisodeError(path, key, None, f"attribute {name} is not a text of fixed length")
    if attribute.shape != () or kind.get_size() > limit:
        raise EpisodeError(path, key, None, f"attribute {name} is longer than {limit} bytes")
    return bytes(owner.attrs[name]).decode()


def _members(path: pathlib.Path, key: str | None, group: Any) -> list[str]:
    """Return the names in a group after checking that each is the thing itself, not a link."""
    if len(group) > MAX_CHANNELS + len(_GROUPS) + 1:
        raise EpisodeError(path, key, None, f"holds {len(group)} things, far more than an episode")
    names = sorted(group)
    for name in names:
        if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            where = name if key is None else f"{key}/{name}"
            raise EpisodeError(path, where, None, "is a link elsewhere; links are never followed")
    return names


def _columns(path: pathlib.Path, file: h5py.File, steps: int) -> dict[Channel, str]:
    """Return every channel with the checksum that its values claim."""
    top = _members(path, None, file)
    legal = {TIME, *COMMANDS, *_GROUPS, "card"}
    if unknown := sorted(set(top) - legal):
        raise EpisodeError(path, unknown[0], None, f"is unknown; legal are {sorted(legal)}")
    if missing := sorted({TIME, *COMMANDS} - set(top)):
        raise EpisodeError(path, missing[0], None, "is missing")
    keys = [name for name in (TIME, *COMMANDS) if name in top]
    for name in _GROUPS:
        if name in top:
            group = h5py.h5o.open(file.id, name.encode())
            if not isinstance(group, h5py.h5g.GroupID):
                raise EpisodeError(path, name, None, "is not a group")
            keys += [f"{name}/{member}" for member in _members(path, name, h5py.Group(group))]
    columns = dict(_column(path, file, key, steps) for key in keys)
    claimed = sum(_open(path, file, channel.name).get_storage_size() for channel in columns)
    if claimed > path.stat().st_size:
        raise EpisodeError(path, None, None, f"claims {claimed} bytes, more than the file has")
    return columns


def _open(path: pathlib.Path, file: h5py.File, key: str) -> Any:
    group, _, name = key.rpartition("/")
    found = h5py.h5o.open(file[group].id if group else file.id, name.encode())
    if not isinstance(found, h5py.h5d.DatasetID):
        raise EpisodeError(path, key, None, "is not a dataset")
    return found


def _column(path: pathlib.Path, file: h5py.File, key: str, steps: int) -> tuple[Channel, str]:
    """Return a dataset's channel and the checksum it claims, after checking what it claims."""
    data = _open(path, file, key)

    def refuse(what: str) -> EpisodeError:
        return EpisodeError(path, key, None, what)

    plan = data.get_create_plist()
    # before anything else is asked: the shape of a virtual dataset opens other files
    if plan.get_layout() != h5py.h5d.CHUNKED or plan.get_external_count():
        raise refuse("is not stored in chunks of this file")
    dtype = _dtype(data.get_type())
    if dtype is None:
        raise refuse(f"its type {data.get_type().dtype!s:.60} is not one of {DTYPES}")
    if data.get_space().get_simple_extent_type() != h5py.h5s.SIMPLE or not data.shape:
        raise refuse("has no rows")
    rows, *shape = data.shape
    if rows != steps:
        raise refuse(f"has {rows} rows, the header says {steps}")
    _check_attributes(path, key, data, {"unit", "names", "sha256"})
    owner = h5py.Dataset(data)
    unit, names, own = (
        _text(path, key, owner, *v) for v in (("unit", 64), ("names", 8192), ("sha256", 64))
    )
    try:
        channel = Channel(key, tuple(shape), dtype, unit, tuple(json.loads(names)))
        if not all(isinstance(name, str) for name in channel.names):
            raise ValueError("its names are not texts")
    except (ValueError, TypeError, RecursionError) as error:
        raise refuse(str(error)) from error
    if plan.get_chunk() != channel.chunk:
        raise refuse(f"has chunks of {plan.get_chunk()}, not {channel.chunk}")
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    wanted = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE] if channel.is_picture else []
    if filters != wanted:
        raise refuse(f"goes through the filters {filters}, not {wanted}")
    if data.get_num_chunks() != -(-steps // channel.chunk[0]):
        raise refuse(f"has {data.get_num_chunks()} chunks for {steps} rows: rows are missing")
    if data.get_storage_size() * RATIO < steps * channel.row_bytes:
        stored = data.get_storage_size()
        raise refuse(f"unfolds {stored} bytes to {steps * channel.row_bytes}, a bomb")
    return channel, own


@functools.cache
def _types() -> dict[str, Any]:
    return {name: h5py.h5t.py_create(np.dtype(name).newbyteorder("<")) for name in DTYPES}


def _dtype(kind: Any) -> str | None:
    return next((name for name, known in _types().items() if known.equal(kind)), None)


def _chunk(path: pathlib.Path, data: Any, channel: Channel, row: int) -> np.ndarray:
    """Return the rows of one chunk."""
    origin = (row, *(0 for _ in channel.shape))
    size = channel.row_bytes * channel.chunk[0]
    stored = data.get_chunk_info_by_coord(origin).size
    if stored > size + size // 100 + 1024:
        raise EpisodeError(path, channel.name, row, f"takes {stored} bytes for {size}")
    mask, raw = data.read_direct_chunk(origin)
    dtype = np.dtype(channel.dtype)
    if channel.is_picture:
        inflate = zlib.decompressobj()
        try:
            raw = inflate.decompress(raw, size + 1)
        except zlib.error as error:
            raise EpisodeError(path, channel.name, row, f"cannot be inflated: {error}") from error
        if mask or len(raw) != size or not inflate.eof:
            raise EpisodeError(path, channel.name, row, f"does not unfold to {size} bytes")
        if dtype.itemsize > 1:
            raw = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
    elif len(raw) != size:
        raise EpisodeError(path, channel.name, row, f"has {len(raw)} bytes, not {size}")
    return np.frombuffer(raw, dtype).reshape(channel.chunk)


def _card(path: pathlib.Path, file: h5py.File) -> str:
    """Return the card's JSON, empty without one."""
    if "card" not in file:
        return ""
    data = _open(path, file, "card")
    plan, kind = data.get_create_plist(), data.get_type()
    local = plan.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    text = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    if not local or plan.get_external_count() or not text or data.shape != ():
        raise EpisodeError(path, "card", None, "is not a text of fixed length in this file")
    if data.get_storage_size() > min(MAX_CARD * 4, path.stat().st_size):
        raise EpisodeError(path, "card", None, f"is longer than {MAX_CARD} characters")
    return bytes(h5py.Dataset(data)[()]).decode()
