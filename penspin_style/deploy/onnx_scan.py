"""Look through the bytes of an ONNX file before anything else opens them.

The scan follows the wire format of onnx.proto3 (protobuf) and refuses what a hostile file needs and
a policy does not: data outside the file, operators outside the ONNX standard, functions and control
flow, NaN weights.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

# a policy has some thousands; more is a file made to keep the scan busy
_MAX_FIELDS = 500_000
_DOMAINS = ("", "ai.onnx")
# onnx.TensorProto.DataType -> how its raw bytes are laid out
_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8"}
# wire types of protobuf, and the bytes of those with a fixed width
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}


class BundleError(ValueError):
    """The file is not a policy that this robot may run; the message says why."""


class Scan:
    """Walk an ONNX file's bytes by the field numbers of onnx.proto3; collect its metadata."""

    def __init__(self, data: bytes) -> None:
        self.metadata: dict[str, str] = {}
        self._fields_left = _MAX_FIELDS
        graphs = 0
        for number, kind, value in self._fields(memoryview(data)):
            if kind != _BYTES:
                continue
            if number == 7:
                graphs += 1
                self._graph(value)
            elif number == 8:
                self._domains(value, 1)
            elif number == 14:
                self._metadata(value)
            elif number in (20, 25):
                raise BundleError("holds functions or training code of its own")
        if graphs != 1:
            raise BundleError(f"is not an ONNX file: it holds {graphs} graphs")

    def _metadata(self, view: memoryview) -> None:
        entry = {n: _text(v) for n, kind, v in self._fields(view) if kind == _BYTES}
        key = entry.get(1, "")
        if key in self.metadata:
            raise BundleError(f"has the metadata key {key!r} twice")
        self.metadata[key] = entry.get(2, "")

    def _domains(self, view: memoryview, field: int) -> None:
        for number, kind, value in self._fields(view):
            if (number, kind) == (field, _BYTES) and _text(value) not in _DOMAINS:
                raise BundleError(
                    f"uses operators of the domain {_text(value)!r}, not of ONNX alone"
                )

    def _graph(self, view: memoryview) -> None:
        for number, kind, value in self._fields(view):
            if kind != _BYTES:
                continue
            if number == 1:
                self._domains(value, 7)
                self._attributes(value)
            elif number == 5:
                self._tensor(value)
            elif number == 15:
                raise BundleError("holds sparse weights, which can point outside the file")

    def _attributes(self, view: memoryview) -> None:
        for number, kind, attribute in self._fields(view):
            if (number, kind) != (5, _BYTES):
                continue
            for field, wire, value in self._fields(attribute):
                if wire != _BYTES:
                    continue
                if field in (5, 10):
                    self._tensor(value)
                elif field in (6, 11):
                    raise BundleError("has control flow, so its time per action has no bound")
                elif field in (22, 23):
                    raise BundleError("holds sparse weights, which can point outside the file")

    def _tensor(self, view: memoryview) -> None:
        raw, layout = b"", ""
        for number, kind, value in self._fields(view):
            if number == 13 or (number == 14 and kind == _VARINT and value > 0):
                raise BundleError(
                    "keeps weights in another file; export it with all weights inside"
                )
            if number == 2 and kind == _VARINT:
                layout = _FLOATS.get(value & 0xFFFFFFFF, "")
            elif number == 9 and kind == _BYTES:
                raw = value
            elif number == 4 and kind != _VARINT:
                _check_weights(value, "<f4")
            elif number == 10 and kind != _VARINT:
                _check_weights(value, "<f8")
        if layout:
            _check_weights(raw, layout)

    def _fields(self, view: memoryview) -> Iterator[tuple[int, int, Any]]:
        """Yield number, wire type and value (int or memoryview) of a message's fields."""
        at = 0
        while at < len(view):
            self._fields_left -= 1
            if self._fields_left < 0:
                raise BundleError(
                    f"has more than {_MAX_FIELDS} fields, which no policy of ours has"
                )
            key, at = _varint(view, at)
            number, kind = key >> 3, key & 7
            # readers cut larger numbers to 32 bits each in its own way
            if number == 0 or key > 0xFFFFFFFF or kind not in (_VARINT, _BYTES, *_FIXED):
                raise BundleError("is not an ONNX file, or a damaged one")
            if kind == _VARINT:
                value, at = _varint(view, at)
                yield number, kind, value
                continue
            size = _FIXED.get(kind)
            if size is None:
                size, at = _varint(view, at)
            if at + size > len(view):
                raise BundleError("is cut off, or not an ONNX file")
            yield number, kind, view[at : at + size]
            at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise BundleError("is cut off, or not an ONNX file")


def _text(view: memoryview) -> str:
    try:
        return bytes(view).decode()
    except UnicodeDecodeError as error:
        raise BundleError("is not an ONNX file, or a damaged one (a name is not UTF-8)") from error


def _check_weights(raw: bytes | memoryview, layout: str) -> None:
    if len(raw) % int(layout[-1]):
        raise BundleError("is damaged: a weight is cut off")
    weights = np.frombuffer(raw, layout)
    # an infinity alone is the bound of a clip, or what a mask fills in
    if np.isnan(weights).any() or (weights.size > 1 and np.isinf(weights).any()):
        raise BundleError("has weights that are NaN or infinite")
