"""Messages between a robot and its policy server: msgpack with numpy arrays, as OpenPI writes them.

What `pack` writes is byte for byte what `openpi_client.msgpack_numpy` writes. What `unpack` reads
comes from a network, so it is read by hand: every length is held against a limit before anything is
made of it, and arrays have one of six types whose bytes cannot mean anything but numbers.
"""

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

RESET = "__reset__"
"""Of a request: true begins a new episode."""
SEQUENCE = "__seq__"
"""Of a request: a whole number, which its reply repeats."""
DTYPES = {t: np.dtype(t) for t in ("|u1", "<i4", "<i8", "<f4", "<f8", "|b1")}

_NUMBERS = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# tag -> what it is, bytes of its length
_SIZED = {
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xD9: ("text", 1),
    0xDA: ("text", 2),
    0xDB: ("text", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}


class WireError(ValueError):
    """A message is not one that may be sent or read; the text says what is wrong with it."""


@dataclass(frozen=True)
class Limits:
    """What a message may hold at most."""

    depth: int = 8
    """Maps and lists inside each other; the message itself is the first."""
    keys: int = 64
    """Keys of one map."""
    items: int = 4096
    """Values and keys in all; an array is one."""
    text: int = 4096
    """Bytes of one text."""
    ndim: int = 4
    """Axes of an array."""


REQUEST = Limits()
HELLO = Limits(depth=16, keys=1024, items=100_000, text=2**20)


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message.

    message: texts, numbers, None, lists, maps, arrays and numpy scalars of the types in DTYPES.

    Raises:
        WireError: a value of another type.
    """
    try:
        # msgpack types its answer as None too, for a packer that keeps it
        return msgpack.packb(message, default=_plain)  # pyright: ignore[reportReturnType]
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"cannot be sent: {error}") from error


def unpack(frame: bytes, limits: Limits = REQUEST) -> dict[str, Any]:
    """Return the message that a frame holds; its arrays own their numbers.

    Raises:
        WireError: not msgpack, not a map, an array that is not what it says, or beyond a limit.
    """
    reader = _Reader(frame, limits)
    try:
        message = reader.value(1)
    except (struct.error, IndexError) as error:
        raise WireError("the message is cut off") from error
    if reader.at != len(frame):
        raise WireError(f"{len(frame) - reader.at} bytes follow the message")
    if not isinstance(message, dict):
        raise WireError(f"the message is a {type(message).__name__}, not a map of names to values")
    return message


def _plain(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise WireError(f"cannot be sent: a {type(value).__name__}; make it an array or a number")
    layout = value.dtype.str
    if layout not in DTYPES:
        raise WireError(f"cannot be sent: {value.dtype}; legal: {_legal()}")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": layout,
            b"shape": value.shape,
        }
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": layout}


class _Reader:
    """Walk the bytes of one message."""

    def __init__(self, frame: bytes, limits: Limits) -> None:
        self.frame, self.view, self.at = frame, memoryview(frame), 0
        self.limits, self.left = limits, limits.items

    def value(self, depth: int) -> Any:
        """Return the value that begins here; raw bytes as a memoryview, fit for an array alone."""
        self.left -= 1
        if self.left < 0:
            raise WireError(f"the message holds more than {self.limits.items} values")
        tag = self.frame[self.at]
        self.at += 1
        if tag < 0x80:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag < 0x90:
            return self._map(tag & 0x0F, depth)
        if tag < 0xA0:
            return self._list(tag & 0x0F, depth)
        if tag < 0xC0:
            return self._text(tag & 0x1F)
        number = _NUMBERS.get(tag)
        if number is not None:
            (value,) = number.unpack_from(self.view, self.at)
            self.at += number.size
            return value
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag not in _SIZED:
            raise WireError(f"the message holds the tag 0x{tag:02x}, which is not for plain values")
        kind, width = _SIZED[tag]
        size = int.from_bytes(self._bytes(width), "big")
        if kind == "text":
            return self._text(size)
        if kind == "bytes":
            return self._bytes(size)
        return self._map(size, depth) if kind == "map" else self._list(size, depth)

    def _bytes(self, size: int) -> memoryview:
        end = self.at + size
        if end > len(self.view):
            raise WireError("the message is cut off")
        part = self.view[self.at : end]
        self.at = end
        return part

    def _text(self, size: int) -> str:
        if size > self.limits.text:
            raise WireError(f"a text has {size} bytes, at most {self.limits.text} are allowed")
        try:
            return str(self._bytes(size), "utf-8")
        except UnicodeDecodeError as error:
            raise WireError("a text is not UTF-8") from error

    def _list(self, size: int, depth: int) -> list[Any]:
        self._enter(size, depth)
        values = [self.value(depth + 1) for _ in range(size)]
        if any(isinstance(v, memoryview) for v in values):
            raise WireError("a list holds raw bytes; send an array")
        return values

    def _map(self, size: int, depth: int) -> Any:
        if size > self.limits.keys:
            raise WireError(f"a map has {size} keys, at most {self.limits.keys} are allowed")
        self._enter(size, depth)
        found: dict[Any, Any] = {}
        raw = False
        for _ in range(size):
            key = self.value(depth + 1)
            if isinstance(key, memoryview):
                key, raw = bytes(key[:32]), True
            elif type(key) is not str:
                raise WireError(f"a map has a {type(key).__name__} for a key, not a text")
            if key in found:
                raise WireError(f"a map has the key {key[:64]!r} twice")
            found[key] = self.value(depth + 1)
        if raw:
            return _numpy(found, self.limits)
        for key, value in found.items():
            if isinstance(value, memoryview):
                raise WireError(f"{key[:64]!r} is raw bytes; send an array")
        return found

    def _enter(self, size: int, depth: int) -> None:
        """Refuse before a claimed size makes anything."""
        if depth > self.limits.depth:
            raise WireError(f"the message nests deeper than {self.limits.depth}")
        if size > self.left:
            raise WireError(f"the message holds more than {self.limits.items} values")


def _numpy(found: dict[Any, Any], limits: Limits) -> np.ndarray | np.generic:
    """Return the array or scalar that a map with keys of bytes describes."""
    layout = found.get(b"dtype")
    if found.get(b"__ndarray__") is True and found.keys() == _ARRAY_KEYS:
        return _array(found[b"data"], _dtype(layout), found[b"shape"], limits)
    if found.get(b"__npgeneric__") is True and found.keys() == _SCALAR_KEYS:
        return _scalar(found[b"data"], _dtype(layout))
    raise WireError("a map has keys of bytes, but is neither an array nor a number of numpy")


_ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {b"__npgeneric__", b"data", b"dtype"}


def _dtype(layout: Any) -> np.dtype:
    dtype = DTYPES.get(layout) if isinstance(layout, str) else None
    if dtype is None:
        shown = f"{layout:.32}" if isinstance(layout, str) else type(layout).__name__
        raise WireError(f"an array has the type {shown!r}; legal: {_legal()}")
    return dtype


def _array(data: Any, dtype: np.dtype, shape: Any, limits: Limits) -> np.ndarray:
    if not isinstance(data, memoryview):
        raise WireError(f"an array's data is a {type(data).__name__}, not bytes")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError("an array's shape is not a list of whole numbers of at least 0")
    if len(shape) > limits.ndim:
        raise WireError(f"an array has {len(shape)} axes, at most {limits.ndim} are allowed")
    # an axis of 0 lets the others claim anything, and numpy multiplies them
    if math.prod(max(n, 1) for n in shape) > 2**31:
        raise WireError("an array claims more than 2**31 numbers")
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        raise WireError(f"an array of {dtype} {tuple(shape)} takes {size} bytes, has {len(data)}")
    if dtype.kind == "b" and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise WireError("an array of bool holds bytes that are neither 0 nor 1")
    # a copy is aligned, can be written to, and does not keep the whole frame
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _scalar(data: Any, dtype: np.dtype) -> np.generic:
    legal = {"b": (bool,), "f": (float, int)}.get(dtype.kind, (int,))
    if type(data) not in legal:
        raise WireError(f"a number of {dtype} is a {type(data).__name__}")
    try:
        # beyond float32 is infinite, which is for the policy to refuse
        with np.errstate(over="ignore"):
            return dtype.type(data)
    except OverflowError as error:
        raise WireError(f"a number is outside {dtype}") from error


@functools.cache
def _legal() -> str:
    return ", ".join(str(dtype) for dtype in DTYPES.values())
