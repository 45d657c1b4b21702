"""Read HDF5 that may be damaged or hostile: nothing is followed, nothing grows beyond its bound.

Links that leave the file, pointers into heaps, other files' data, filters that would be loaded,
claims that the file's bytes cannot hold: each is refused before it costs anything. Chunks are read
as they stand and inflated here up to their size, so that HDF5 runs no filter at all.
"""

import contextlib
import functools
import itertools
import math
import pathlib
import zlib
from collections.abc import Iterator
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

from penspin_style import storage
from penspin_style.data.layout import (
    DTYPES,
    MAX_ROW,
    MAX_STEPS,
    RATIO,
    EpisodeError,
    UnknownKindError,
)

BAD = (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError, MemoryError)
"""What h5py raises on damage, depending on where it stands."""
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_CHUNK = 2 * MAX_ROW  # bytes
_FILTERS = {h5py.h5z.FILTER_SHUFFLE: "shuffle", h5py.h5z.FILTER_DEFLATE: "deflate"}
_STRIDE = 4 * 2**20  # bytes read at a time


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[h5py.File]:
    """Open a file for reading; whatever h5py raises inside comes out as EpisodeError."""
    try:
        with storage.open_file(path) as raw:
            if raw.read(len(_SIGNATURE)) != _SIGNATURE:
                raise EpisodeError(path, None, None, "is not an HDF5 file")
            # the file that was looked at, whatever has its name by now
            with h5py.File(raw, "r", locking=False) as file:
                yield file
    except EpisodeError:
        raise
    except storage.NotAFileError as error:
        raise EpisodeError(path, None, None, "is not a file") from error
    except BAD as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EpisodeError(path, None, None, f"is damaged or unreadable: {reason}") from error


def members(path: pathlib.Path, key: str, group: Any, limit: int) -> list[str]:
    """Return the names in a group after checking that each is the thing itself, not a link.

    key: the group's, empty for the file.

    Raises:
        EpisodeError: a link, or more than `limit` names.
    """
    if len(group) > limit:
        raise EpisodeError(path, key or None, None, f"holds {len(group)} things, over {limit}")
    names = list(group)
    if not all(isinstance(name, str) for name in names):  # h5py gives bytes where it is no UTF-8
        raise EpisodeError(path, key or None, None, "holds something whose name is no text")
    for name in names:
        if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            where = f"{key}/{name}" if key else name
            raise EpisodeError(path, where, None, "is a link elsewhere; links are never followed")
    return sorted(names)


def group(path: pathlib.Path, file: h5py.File, key: str) -> h5py.Group:
    """Return a group whose name `members` gave.

    Raises:
        EpisodeError: it is something else.
    """
    found = h5py.h5o.open(file.id, key.encode())
    if not isinstance(found, h5py.h5g.GroupID):
        raise EpisodeError(path, key, None, "is not a group")
    return h5py.Group(found)


def check_attributes(path: pathlib.Path, key: str | None, owner: Any, names: set[str]) -> None:
    """Check that an object has these attributes and no others.

    Raises:
        EpisodeError: lists what is missing.
    """
    count = h5py.h5a.get_num_attrs(owner.id)
    present = {name for name in names if h5py.h5a.exists(owner.id, name.encode())}
    if missing := sorted(names - present):
        raise EpisodeError(path, key, None, f"is no episode: attributes {missing} are missing")
    if count > len(names):
        raise EpisodeError(path, key, None, f"has {count} attributes, an episode {len(names)}")


def text(path: pathlib.Path, key: str | None, owner: Any, name: str, limit: int) -> str:
    """Return an attribute that is a text of fixed length, `limit` bytes at most.

    Raises:
        EpisodeError: it is something else.
    """
    attribute = h5py.h5a.open(owner.id, name.encode())
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str():
        raise EpisodeError(path, key, None, f"attribute {name} is not a text of fixed length")
    if attribute.shape != () or kind.get_size() > limit:
        raise EpisodeError(path, key, None, f"attribute {name} is longer than {limit} bytes")
    content = np.empty((), f"S{kind.get_size()}")
    attribute.read(content, mtype=kind)
    return content.item().decode()


def number(path: pathlib.Path, owner: Any, name: str, kinds: str) -> Any:
    """Return an attribute that is one number; kinds: of NumPy, as "iu" for whole numbers.

    Raises:
        EpisodeError: it is something else.
    """
    attribute = h5py.h5a.open(owner.id, name.encode())
    if attribute.shape != () or dtype_of(attribute.get_type(), (*DTYPES, "int8")) is None:
        raise EpisodeError(path, None, None, f"attribute {name} is not one number")
    value = np.asarray(owner.attrs[name])
    if value.dtype.kind not in kinds:
        raise EpisodeError(path, None, None, f"attribute {name} is {value.dtype}")
    return value.item()


@functools.cache
def _type(name: str) -> Any:
    return h5py.h5t.py_create(np.dtype(name).newbyteorder("<"))


def dtype_of(kind: Any, legal: tuple[str, ...] = DTYPES) -> str | None:
    """Return the legal type that an HDF5 type is, little endian; None if it is another."""
    return next((name for name in legal if _type(name).equal(kind)), None)


def dataset(path: pathlib.Path, file: h5py.File, key: str) -> Any:
    """Return the h5py identifier of a dataset that lies in this file.

    Raises:
        EpisodeError: its values are elsewhere; `UnknownKindError`: it is no dataset.
    """
    found = h5py.h5o.open(file.id, key.encode())
    if not isinstance(found, h5py.h5d.DatasetID):
        raise UnknownKindError(path, key, None, "is not a dataset")
    plan = found.get_create_plist()
    # before anything else is asked: the shape of a virtual dataset opens other files
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise EpisodeError(path, key, None, "keeps its values in other files; none is opened")
    return found


@dataclass(frozen=True)
class Rows:
    """A dataset of numbers (n, ...) whose claims the file can hold; `rows` makes it."""

    path: pathlib.Path
    key: str
    data: Any
    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...] | None
    """None if the values lie in one piece."""
    filters: tuple[str, ...]
    stored: int
    """Bytes in the file."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row and the values of some megabytes at a time."""
        rows = 1 if self.chunk is None else self.chunk[0]
        rows *= max(1, _STRIDE // (rows * self.row_bytes))
        for row in range(0, self.shape[0], rows):
            yield row, self.read(row, min(row + rows, self.shape[0]))

    def read(self, begin: int, end: int) -> np.ndarray:
        """Return rows begin to end - 1.

        Raises:
            EpisodeError: a chunk is damaged.
        """
        if self.chunk is None:
            return np.asarray(h5py.Dataset(self.data)[begin:end], self.dtype)
        out = np.empty((end - begin, *self.shape[1:]), self.dtype)
        deep = self.chunk[0]
        grid = [range(0, n, c) for n, c in zip(self.shape[1:], self.chunk[1:], strict=True)]
        for row in range(begin - begin % deep, end, deep):
            low, high = max(row, begin), min(row + deep, end)
            for rest in itertools.product(*grid):
                inner = tuple(slice(o, o + c) for o, c in zip(rest, self.chunk[1:], strict=True))
                part = out[(slice(low - begin, high - begin), *inner)]
                inside = tuple(slice(0, n) for n in part.shape[1:])
                part[...] = self._chunk((row, *rest))[(slice(low - row, high - row), *inside)]
        return out

    def _chunk(self, origin: tuple[int, ...]) -> np.ndarray:
        """Return one chunk, read as it stands and inflated up to its size."""
        assert self.chunk is not None
        dtype, row = np.dtype(self.dtype), origin[0]
        size = math.prod(self.chunk) * dtype.itemsize
        stored = self.data.get_chunk_info_by_coord(origin).size
        if stored > size + size // 100 + 1024:
            raise EpisodeError(self.path, self.key, row, f"takes {stored} bytes for {size}")
        mask, raw = self.data.read_direct_chunk(origin)
        if mask:
            raise EpisodeError(self.path, self.key, row, "skips a filter")
        if "deflate" in self.filters:
            inflate = zlib.decompressobj()
            try:
                raw = inflate.decompress(raw, size + 1)
            except zlib.error as error:
                raise EpisodeError(self.path, self.key, row, f"is damaged: {error}") from error
            if len(raw) > size:
                raise EpisodeError(self.path, self.key, row, f"unfolds to more than {size} bytes")
            if not inflate.eof:
                raise EpisodeError(self.path, self.key, row, "is cut off")
        if len(raw) != size:
            raise EpisodeError(self.path, self.key, row, f"has {len(raw)} bytes, not {size}")
        if "shuffle" in self.filters and dtype.itemsize > 1:
            raw = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        return np.frombuffer(raw, dtype).reshape(self.chunk)


def rows(path: pathlib.Path, file: h5py.File, key: str) -> Rows:
    """Return a dataset of numbers after checking everything that it claims.

    Raises:
        EpisodeError: names the key and what cannot be; `UnknownKindError`: its type, filters or
            axes are none that are read.
    """

    def refuse(what: str) -> EpisodeError:
        return EpisodeError(path, key, None, what)

    def unknown_kind(what: str) -> UnknownKindError:
        return UnknownKindError(path, key, None, what)

    data = dataset(path, file, key)
    dtype = dtype_of(data.get_type())
    if dtype is None:
        raise unknown_kind(
            f"its type {data.get_type().dtype!s:.60} is not one of {', '.join(DTYPES)}"
        )
    if data.get_space().get_simple_extent_type() != h5py.h5s.SIMPLE or not data.shape:
        raise unknown_kind("is not a table with rows")
    shape, itemsize = tuple(data.shape), np.dtype(dtype).itemsize
    if not 1 <= shape[0] <= MAX_STEPS:
        raise refuse(f"claims {shape[0]} rows, not 1 to {MAX_STEPS}")
    if not 1 <= math.prod(shape[1:]) * itemsize <= MAX_ROW:
        raise refuse(f"claims rows of {math.prod(shape[1:]) * itemsize} bytes, not 1 to {MAX_ROW}")
    claimed, size = math.prod(shape) * itemsize, path.stat().st_size
    plan, chunk = data.get_create_plist(), None
    codes = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if unknown := [code for code in codes if code not in _FILTERS]:
        raise unknown_kind(f"goes through the filters {unknown}; only {_FILTERS} are read")
    if sorted(codes) != codes[::-1] or len(set(codes)) < len(codes):
        raise refuse(f"goes through its filters as {codes}, not first shuffled, then deflated")
    if plan.get_layout() == h5py.h5d.CHUNKED:
        chunk = tuple(plan.get_chunk())
        if math.prod(chunk) * itemsize > _MAX_CHUNK:
            raise refuse(f"has chunks of {math.prod(chunk) * itemsize} bytes, over {_MAX_CHUNK}")
        wanted = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
        if (got := data.get_num_chunks()) != wanted:
            raise refuse(f"has {got} of the {wanted} chunks that {shape} needs: values are missing")
        stored = data.get_storage_size()
        if stored * RATIO < claimed:
            raise refuse(f"would unfold {stored} bytes to {claimed}, more than {RATIO} times")
    else:
        stored, offset = claimed, data.get_offset()
        if plan.get_layout() == h5py.h5d.CONTIGUOUS and (offset is None or offset + claimed > size):
            raise refuse(f"claims {claimed} bytes that the file does not have: values are missing")
    if stored > size:
        raise refuse(f"claims {stored} bytes, the file has {size}")
    return Rows(path, key, data, dtype, shape, chunk, tuple(_FILTERS[c] for c in codes), stored)


def check_values(
    path: pathlib.Path, key: str, row: int, block: np.ndarray, low: Any, high: Any
) -> None:
    """Check that values (n, ...) are finite and within limits.

    row: the first one's number; low, high: broadcast against one row.

    Raises:
        EpisodeError: names the first value that is not.
    """
    fine = np.isfinite(block)
    if not fine.all():
        at = tuple(int(i) for i in np.argwhere(~fine)[0])
        raise EpisodeError(path, key, row + at[0], f"{block[at]} at {at[1:]} is not finite")
    fine = (block >= low) & (block <= high)
    if not fine.all():
        at = tuple(int(i) for i in np.argwhere(~fine)[0])
        bounds = [float(np.broadcast_to(bound, block.shape)[at]) for bound in (low, high)]
        what = f"{block[at]} at {at[1:]} is outside {bounds[0]:.6g} to {bounds[1]:.6g}"
        raise EpisodeError(path, key, row + at[0], what)
