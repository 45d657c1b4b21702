"""Write episodes while a robot is controlled: nothing blocks, nothing is dropped in silence.

A row is copied into a bounded queue; one thread deflates images and writes. The file grows under
a hidden name; flush, rename and flush of the folder publish it, and only then does `finish` return.
A kill or a power cut at any moment leaves at most a hidden file, which the next recorder removes
once its writer is dead.
"""

import atexit
import contextlib
import datetime
import hashlib
import json
import pathlib
import queue
import threading
import time
import uuid
import weakref
import zlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from penspin_style import storage
from penspin_style.data.episodes.atomic_file import Stage, remove_stages, stage_file
from penspin_style.data.episodes.layout import (
    BLOCK,
    FORMAT,
    MAX_CARD,
    MAX_STEPS,
    RATIO,
    Channel,
    Header,
    card_text,
    facts_text,
    seal,
    sha256,
)

LEVEL = 4
_LARGEST = {np.dtype(t): float(np.finfo(t).max) for t in ("float32", "float64")}
_MEANT = ("finite", "in [-1, 1]")


class RecorderError(RuntimeError):
    """The episode being recorded is lost; the message says how many rows and why."""


class Recorder:
    """Record episodes of one kind into a folder, one file each.

    After `finish` or `abort` the next `append` begins another episode. To leave the block of a
    `with` gives up an episode that is not finished.
    """

    def __init__(self, folder: pathlib.Path, header: Header, *, queue: int = 512) -> None:
        """Make the folder; remove what killed recorders left there.

        queue: rows that may wait for the disk.

        Raises:
            ValueError: no queue, or a card too long to store.
            OSError: the folder cannot be made or read.
        """
        self.folder, self.header = pathlib.Path(folder), header
        if queue < 1:
            raise ValueError(f"queue must be >= 1, is {queue}")
        if len(card_text(header.card).encode()) > MAX_CARD:
            raise ValueError(f"the card's JSON has more than {MAX_CARD} bytes")
        self._queue = queue
        self._columns = [(channel, np.dtype(channel.dtype)) for channel in header.columns]
        self._names = {channel.name for channel in header.columns}
        self._writer: _Writer | None = None
        self._last = -np.inf
        storage.make_folder(self.folder)
        remove_stages(self.folder)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    @property
    def rows(self) -> int:
        """Rows of the episode being recorded."""
        return 0 if self._writer is None else self._writer.rows

    def append(self, row: Mapping[str, Any], *, wait: bool = False) -> None:
        """Take one control step: a value per channel, and `time`. Copies; does not wait.

        wait: wait while the queue is full, for data that need not keep time.

        Raises:
            ValueError: a value is missing, unknown, not finite or of another shape or type, or
                time does not increase; the row is not taken, the episode goes on.
            RecorderError: the disk failed or cannot keep up; the episode is lost.
        """
        if self._writer is not None:
            self._writer.check()
        values = self._values(row)
        if self._writer is None:
            self._writer = _Writer(self.folder, self.header, self._queue)
        self._writer.put(values, wait=wait)
        self._last = float(values[0])

    def finish(self, success: bool | None, facts: Mapping[str, Any] | None = None) -> pathlib.Path:
        """Write what waits, publish the episode and return its file: from here on it lasts.

        success: None where it is not known; facts: added to the header's.

        Raises:
            ValueError: there is no row, or the facts are not JSON; the episode goes on.
            RecorderError: the disk failed; the episode is lost.
        """
        text = facts_text({**self.header.facts, **(facts or {})})
        if self._writer is None:
            raise ValueError("there is no row to finish; append first")
        writer, self._writer = self._writer, None
        self._last = -np.inf
        return writer.finish(-1 if success is None else int(success), text)

    def abort(self) -> None:
        """Give up the episode; nothing of it remains."""
        writer, self._writer = self._writer, None
        self._last = -np.inf
        if writer is not None:
            writer.abort()

    def _values(self, row: Mapping[str, Any]) -> list[np.ndarray]:
        if row.keys() != self._names:
            missing, unknown = sorted(self._names - row.keys()), sorted(row.keys() - self._names)
            raise ValueError(f"row {self.rows}: missing {missing}, unknown {unknown}")
        values = [self._value(c, dtype, row[c.name]) for c, dtype in self._columns]
        if values[0] <= self._last:
            raise ValueError(
                f"row {self.rows}: time is {values[0]} s after {self._last} s; it must increase"
            )
        if self.rows >= MAX_STEPS:
            raise ValueError(f"an episode has at most {MAX_STEPS} rows; finish it")
        return values

    def _value(self, channel: Channel, dtype: np.dtype, value: Any) -> np.ndarray:
        given = np.asarray(value)
        if given.shape != channel.shape:
            raise self._refusal(channel, f"shape {given.shape}, must be {channel.shape}")
        if given.dtype == dtype:
            own = given.copy()
        elif np.can_cast(given.dtype, dtype, "same_kind"):
            with np.errstate(over="ignore"):  # is infinite then, and refused as that
                own = given.astype(dtype)
        else:
            raise self._refusal(channel, f"{given.dtype}, must be {dtype}")
        if dtype.kind == "f":
            # one pass each: a comparison with NaN is false
            limit = 1.0 if channel.name == "action" else _LARGEST[dtype]
            fine = np.abs(own) <= limit
            if not fine.all():
                bad = own.flat[int(np.flatnonzero(~fine)[0])]
                raise self._refusal(channel, f"{bad} is not {_MEANT[limit == 1.0]}")
        return own

    def _refusal(self, channel: Channel, what: str) -> ValueError:
        return ValueError(f"row {self.rows}, {channel.name}: {what}")


class _Writer:
    """One episode on its way to disk: the queue, the thread, the hidden file."""

    def __init__(self, folder: pathlib.Path, header: Header, size: int) -> None:
        self.folder, self.header, self.size = folder, header, size
        self.rows = 0
        self.error: Exception | None = None
        self._result: tuple[int, str] | None = None
        self._path: pathlib.Path | None = None
        self._queue: queue.SimpleQueue[list[np.ndarray] | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="episode writer", daemon=True)
        _LIVING.add(self)
        self._thread.start()

    def check(self) -> None:
        if self.error is not None:
            raise self._lost()

    def put(self, values: list[np.ndarray], *, wait: bool = False) -> None:
        """Hand one row to the thread; raise RecorderError if it is not there to take it."""
        while wait and self.error is None and self._queue.qsize() >= self.size:
            time.sleep(0.001)
        if self.error is None and self._queue.qsize() >= self.size:
            self.error = RecorderError(
                f"the disk cannot keep up: {self.size} rows wait for it; record fewer or smaller "
                "images, on a faster disk, or with a longer queue"
            )
            self._given_up.set()
        self.check()
        self._queue.put(values)
        self.rows += 1

    def finish(self, success: int, facts: str) -> pathlib.Path:
        if self.error is None:
            self._result = success, facts
        self._end()
        self.check()
        assert self._path is not None
        return self._path

    def abort(self) -> None:
        self._given_up.set()
        self._end()

    def _end(self) -> None:
        self._queue.put(None)
        self._thread.join()
        _LIVING.discard(self)

    def _lost(self) -> RecorderError:
        error = self.error
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else error
        lost = RecorderError(f"the episode of {self.rows} rows in {self.folder} is lost: {reason}")
        lost.__cause__ = error
        return lost

    def _work(self) -> None:
        try:
            with stage_file(self.folder) as stage:
                file = _EpisodeFile(stage, self.header)
                try:
                    while (values := self._queue.get()) is not None and not self._given_up.is_set():
                        file.append(values, hurried=2 * self._queue.qsize() > self.size)
                        stage.check()
                    wanted = None if self._given_up.is_set() else self._result
                    if wanted is not None:
                        file.complete(*wanted)
                finally:
                    file.close()
                stage.check()
                if wanted is not None:
                    target = self.folder / _file_name(file.created)
                    stage.publish(target)
                    self._path = target
        except Exception as error:  # whatever it is, the next append says it
            self.error = self.error or error
        finally:
            self._given_up.set()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()


def _file_name(created: datetime.datetime) -> str:
    stamp = created.strftime("%Y%m%dT%H%M%S.%fZ")
    return f"episode-{stamp}-{uuid.uuid4().hex[:8]}.h5"


_LIVING: "weakref.WeakSet[_Writer]" = weakref.WeakSet()


@atexit.register
def _give_up() -> None:
    """End threads before the interpreter does: HDF5 would call back into what is gone."""
    for writer in list(_LIVING):
        writer.abort()


class _EpisodeFile:
    """The HDF5 file of an episode that grows row by row."""

    def __init__(self, stage: Stage, header: Header) -> None:
        self.header = header
        self.steps = 0
        self.created = datetime.datetime.now(datetime.UTC)
        self._file = h5py.File(stage, "w", libver=("v110", "v110"), track_order=False)
        self._columns = [_Column(self._file, channel) for channel in header.columns]

    def append(self, values: list[np.ndarray], *, hurried: bool = False) -> None:
        """Write a row; hurried: spend no time on making images smaller."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(self.steps, value, 0 if hurried else LEVEL)
        self.steps += 1

    def close(self) -> None:
        self._file.close()

    def complete(self, success: int, facts: str) -> None:
        header, card = self.header, card_text(self.header.card)
        sums = {column.channel: column.close(self.steps) for column in self._columns}
        attributes = {
            "format": FORMAT,
            "task": header.task,
            "source": header.source,
            "robot": header.robot,
            "control_dt": float(header.control_dt),
            "success": success,
            "steps": self.steps,
            "created": self.created.isoformat(timespec="microseconds"),
            "card_sha256": sha256(card) if card else "",
            "facts": facts,
        }
        if card:
            data = card.encode()
            self._file.create_dataset("card", data=data, dtype=_text_type(data))
        for name, value in {**attributes, "sha256": seal(attributes, card, sums)}.items():
            _write_attribute(self._file, name, value)


class _Column:
    """One dataset that grows: images row by row, the rest block by block."""

    def __init__(self, file: h5py.File, channel: Channel) -> None:
        self.channel = channel
        filters = {"compression": "gzip", "compression_opts": LEVEL, "shuffle": True}
        self._data = file.create_dataset(
            channel.name,
            (0, *channel.shape),
            np.dtype(channel.dtype).newbyteorder("<"),
            maxshape=(None, *channel.shape),
            chunks=channel.chunk,
            **(filters if channel.is_image else {}),
        )
        self._block = np.zeros(channel.chunk, channel.dtype)
        self._sum = hashlib.sha256()
        self._is_image = channel.is_image
        self._origin = (0,) * len(channel.shape)

    def append(self, row: int, value: np.ndarray, level: int) -> None:
        if row % BLOCK == 0:
            self._data.resize(row + BLOCK, axis=0)
        if self._is_image:
            raw = value.tobytes()
            self._sum.update(raw)
            packed = deflate(raw, value.itemsize, level)
            self._data.id.write_direct_chunk((row, *self._origin), packed)
            return
        self._block[row % BLOCK] = value
        if row % BLOCK == BLOCK - 1:
            self._write_block(row + 1 - BLOCK, BLOCK)

    def close(self, rows: int) -> str:
        """Write the rest, cut the dataset to its rows, describe it; return the values' sum."""
        if not self._is_image and rows % BLOCK:
            self._block[rows % BLOCK :] = 0
            self._write_block(rows - rows % BLOCK, rows % BLOCK)
        self._data.resize(rows, axis=0)
        digest = self._sum.hexdigest()
        texts = {
            "unit": self.channel.unit,
            "names": json.dumps(self.channel.names),
            "sha256": digest,
        }
        for name, text in texts.items():
            _write_attribute(self._data, name, text)
        return digest

    def _write_block(self, row: int, count: int) -> None:
        self._sum.update(self._block[:count].tobytes())
        self._data.id.write_direct_chunk((row, *self._origin), self._block.tobytes())


def deflate(raw: bytes, itemsize: int, level: int = LEVEL) -> bytes:
    """Return a chunk as HDF5's filters shuffle and deflate make it, at most `RATIO` times smaller.

    level: 0 to 9, of zlib, which releases the interpreter's lock; HDF5's own filters do not.
    """
    if itemsize > 1:
        raw = np.frombuffer(raw, np.uint8).reshape(-1, itemsize).T.tobytes()
    packed = zlib.compress(raw, level)
    if len(packed) * RATIO < len(raw):  # one colour all over: code bytes one by one
        plain = zlib.compressobj(LEVEL, strategy=zlib.Z_HUFFMAN_ONLY)
        packed = plain.compress(raw) + plain.flush()
    return packed


def _text_type(data: bytes) -> Any:
    return h5py.string_dtype("utf-8", max(1, len(data)))


def _write_attribute(owner: Any, name: str, value: Any) -> None:
    if isinstance(value, str):
        data = value.encode()
        owner.attrs.create(name, data, dtype=_text_type(data))
    else:
        owner.attrs.create(name, value, dtype=_NUMBERS.get(name, "<i8"))


_NUMBERS = {"control_dt": "<f8", "success": "i1"}
