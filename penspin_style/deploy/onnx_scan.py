"""Look through the bytes of an ONNX file before anything else opens them.

The scan follows onnx.proto3 field by field and refuses what it does not know, so no byte of the
file means something to another reader alone. It refuses what a hostile file needs and a policy
does not: another format in the same bytes, data outside the file, functions, control flow, NaN
weights, and operators whose result is drawn at random or whose cost depends on the observation.
What is left costs an observation what it cost the ones that were tried.
"""

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# a policy has some thousands; more is a file made to keep the scan busy
_MAX_FIELDS = 500_000
_SHOWN = 80  # characters of a name
_DOMAINS = ("", "ai.onnx")
# onnx.TensorProto.DataType -> how its raw bytes are laid out, where they can be NaN
_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8"}
_INTEGERS = {2, 3, 4, 5, 6, 7, 9, 12, 13}  # bool among them
_ORT_MAGIC = b"ORTM"
"""At bytes 4 to 7 of onnxruntime's own format, which it would prefer to ONNX."""

_ORT_CONFIG = "ort_config"
"""Metadata that onnxruntime takes for its own options where an environment variable allows it."""

# wire types of protobuf
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIRES = {"int": _VARINT, "float": _FIXED32, "double": _FIXED64}
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

_SCHEMA = {
    "model": {
        1: "ir_version int",
        **dict.fromkeys((2, 3, 4, 6), "name text"),
        5: "model_version int",
        7: "graph graph",
        8: "opset_import opset*",
        14: "metadata entry*",
    },
    "opset": {1: "domain text", 2: "version int"},
    "entry": {1: "key text", 2: "value text"},
    "graph": {
        1: "node node*",
        2: "name text",
        5: "initializer tensor*",
        10: "doc_string text",
        11: "input value*",
        12: "output value*",
        13: "value_info value*",
        16: "metadata entry*",
    },
    "node": {
        1: "input text*",
        2: "output text*",
        3: "name text",
        4: "op_type text",
        5: "attribute attribute*",
        6: "doc_string text",
        7: "domain text",
        8: "overload text",
        9: "metadata entry*",
    },
    "attribute": {
        1: "name text",
        2: "f float",
        3: "i int",
        4: "s bytes",
        5: "t tensor",
        7: "floats float*",
        8: "ints int*",
        9: "strings bytes*",
        10: "tensors tensor*",
        13: "doc_string text",
        20: "type int",
    },
    "tensor": {
        1: "dims int*",
        2: "data_type int",
        4: "float_data float*",
        5: "int32_data int*",
        7: "int64_data int*",
        8: "name text",
        9: "raw_data bytes",
        10: "double_data double*",
        11: "uint64_data int*",
        12: "doc_string text",
        14: "data_location int",
        16: "metadata entry*",
    },
    "value": {1: "name text", 2: "type type", 3: "doc_string text", 4: "metadata entry*"},
    "type": {1: "tensor_type tensor_type", 6: "denotation text"},
    "tensor_type": {1: "elem_type int", 2: "shape shape"},
    "shape": {1: "dim dim*"},
    "dim": {1: "dim_value int", 2: "dim_param text", 3: "denotation text"},
}
"""Message of onnx.proto3 -> number -> name and type; * may be there more than once."""

_OUTSIDE = "holds sparse weights, which can point outside the file"
_CONTROL = "has control flow, so its time per action has no bound"
_OWN = "holds functions or training code of its own"
_ELSEWHERE = "keeps weights in another file; export it with all weights inside"
_REFUSED = {
    **{("model", number): _OWN for number in (20, 25)},
    **{("attribute", number): _CONTROL for number in (6, 11)},
    **{place: _OUTSIDE for place in (("graph", 15), ("attribute", 22), ("attribute", 23))},
    ("tensor", 13): _ELSEWHERE,
}

_SIZES: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    **dict.fromkeys(("Expand", "OneHot", "Reshape", "Split", "Squeeze", "Tile", "TopK"), (1,)),
    **dict.fromkeys(("CumSum", "Unsqueeze"), (1,)),
    **{f"Reduce{x}": (1,) for x in ("L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
    **{f"Reduce{x}": (1,) for x in ("Max", "Mean", "Min", "Prod", "Sum")},
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
}
"""Operator -> those of its inputs that decide on the shape of its result."""

_PLAIN = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip
    Concat Constant Conv ConvTranspose Cos Cosh DepthToSpace DequantizeLinear Div
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp EyeLike Flatten Floor GRU Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization
    IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish
    Mod Mul Neg Not Or PRelu Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN
    Reciprocal Relu RotaryEmbedding Round ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign
    Sin Sinh Size Softmax Softplus Softsign SpaceToDepth Sqrt Sub Sum Swish Tan Tanh
    ThresholdedRelu Transpose Trilu Where Xor
"""
_OPERATORS = frozenset(_PLAIN.split()) | set(_SIZES)
"""Those that act alike on every call, on shapes that follow from the shapes of their inputs."""


class BundleError(ValueError):
    """The file is not a policy that this robot may run; the message says why."""


@dataclass
class _Node:
    """One operator of the graph."""

    op_type: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


class Scan:
    """Walk an ONNX file's bytes by the field numbers of onnx.proto3; collect its metadata."""

    def __init__(self, data: bytes) -> None:
        if data[4:8] == _ORT_MAGIC:
            raise BundleError("is in onnxruntime's own format (ORTM), not in ONNX")
        self.metadata: dict[str, str] = {}
        self._fields_left = _MAX_FIELDS
        graphs = 0
        for name, value in self._message(memoryview(data), "model"):
            if name == "graph":
                graphs += 1
                self._graph(value)
            elif name == "opset_import":
                self._opset(value)
            elif name == "metadata":
                key, text = self._entry(value)
                if key == _ORT_CONFIG:
                    raise BundleError(f"has the metadata key {key!r}: settings of onnxruntime")
                if key in self.metadata:
                    raise BundleError(f"has the metadata key {_short(key)} twice")
                self.metadata[key] = text
        if graphs != 1:
            raise BundleError(f"is not an ONNX file: it holds {graphs} graphs")

    def _opset(self, view: memoryview) -> None:
        _check_domain(self._skim(view, "opset").get("domain", ""))

    def _entry(self, view: memoryview) -> tuple[str, str]:
        entry = self._skim(view, "entry")
        return entry.get("key", ""), entry.get("value", "")

    def _graph(self, view: memoryview) -> None:
        nodes: list[_Node] = []
        weights, inputs = set[str](), set[str]()
        for name, value in self._message(view, "graph"):
            if name == "node":
                nodes.append(self._node(value))
            elif name == "initializer":
                weights.add(self._tensor(value))
            elif name in ("input", "output", "value_info"):
                text = self._skim(value, "value").get("name", "")
                if name == "input":
                    inputs.add(text)
            elif name == "metadata":
                self._entry(value)
        _check_nodes(nodes, weights, inputs)

    def _node(self, view: memoryview) -> _Node:
        node = _Node()
        for name, value in self._message(view, "node"):
            if name in ("op_type", "domain"):
                setattr(node, name, value)
            elif name in ("input", "output"):
                getattr(node, f"{name}s").append(value)
            elif name == "attribute":
                for part, inner in self._message(value, "attribute"):
                    if part in ("t", "tensors"):
                        self._tensor(inner)
            elif name == "metadata":
                self._entry(value)
        _check_domain(node.domain)
        return node

    def _tensor(self, view: memoryview) -> str:
        """Check a tensor's weights; return its name."""
        raw, kind, name = memoryview(b""), 0, ""
        for part, value in self._message(view, "tensor"):
            if part == "data_location" and value:
                raise BundleError(_ELSEWHERE)
            if part == "data_type":
                kind = value
            elif part == "raw_data":
                raw = value
            elif part == "name":
                name = value
            elif part in ("float_data", "double_data"):
                _check_weights(value, "<f4" if part == "float_data" else "<f8")
            elif part == "int32_data" and kind not in _INTEGERS:
                raise BundleError("is damaged: weights of one type are written as another")
            elif part == "metadata":
                self._entry(value)
        if kind in _FLOATS:
            _check_weights(raw, _FLOATS[kind])
        elif kind not in _INTEGERS:
            raise BundleError(f"has weights of ONNX's type {kind}, which no policy of ours has")
        return name

    def _skim(self, view: memoryview, kind: str) -> dict[str, Any]:
        """Walk a message of whose parts only the form is of interest; return its fields."""
        fields = {}
        for name, value in self._message(view, kind):
            fields[name] = value
            if (kind, name) in _INNER:
                self._skim(value, _INNER[kind, name])
        return fields

    def _message(self, view: memoryview, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield name and value of a message's fields: int, str or memoryview.

        Repeated numbers come one by one or packed into one memoryview.
        """
        schema, seen = _SCHEMA[kind], Counter[int]()
        names = {}
        for number, wire, value in self._fields(view):
            if (kind, number) in _REFUSED:
                raise BundleError(_REFUSED[kind, number])
            if number not in schema:
                raise BundleError(
                    f"is not an ONNX file, or a damaged one: a {kind} has no field {number}"
                )
            names[number], _, what = schema[number].partition(" ")
            repeated = what.endswith("*")
            expected = _WIRES.get(what.rstrip("*"), _BYTES)
            if wire != expected and not (repeated and wire == _BYTES):
                raise BundleError(
                    f"is not an ONNX file, or a damaged one: {names[number]} of a {kind} is of "
                    f"the wire type {wire}"
                )
            seen[number] += not repeated
            yield names[number], _text(value) if what.rstrip("*") == "text" else value
        # readers differ on which of two holds, or merge them
        if twice := [names[number] for number, count in seen.items() if count > 1]:
            raise BundleError(
                f"is not an ONNX file, or a damaged one: it holds {max(seen.values())} {twice[0]}s"
            )

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
            if number == 0 or key > 0xFFFFFFFF or kind not in (_VARINT, _BYTES, *_WIDTHS):
                raise BundleError("is not an ONNX file, or a damaged one")
            if kind == _VARINT:
                value, at = _varint(view, at)
                yield number, kind, value
                continue
            size = _WIDTHS.get(kind)
            if size is None:
                size, at = _varint(view, at)
            if at + size > len(view):
                raise BundleError("is cut off, or not an ONNX file")
            yield number, kind, view[at : at + size]
            at += size


_INNER = {
    (kind, name): what.rstrip("*")
    for kind, fields in _SCHEMA.items()
    for name, _, what in (text.partition(" ") for text in fields.values())
    if what.rstrip("*") in _SCHEMA
}
"""Message and field -> the message in there."""


def _check_domain(domain: str) -> None:
    if domain not in _DOMAINS:
        raise BundleError(f"uses operators of the domain {_short(domain)}, not of ONNX alone")


def _check_nodes(nodes: list[_Node], weights: set[str], inputs: set[str]) -> None:
    """Check that no observation can change what the graph costs, and none is answered by chance.

    An operator's result has a shape that follows from the shapes of its inputs, as long as those
    inputs that are sizes hold weights or shapes alone, never what was observed.
    """
    # the value of each: whether it depends on an observation
    depends = {"": False, **dict.fromkeys(weights, False), **dict.fromkeys(inputs, True)}
    for node in nodes:
        if node.op_type not in _OPERATORS:
            near = difflib.get_close_matches(node.op_type[:_SHOWN], _OPERATORS, n=1)
            hint = f" (nearest that may be: {near[0]})" if near else ""
            raise BundleError(
                f"uses the operator {_short(node.op_type)}{hint}; only those are run whose result "
                "is not drawn at random and whose size does not depend on what is observed"
            )
        if unknown := [name for name in node.inputs if name not in depends]:
            raise BundleError(f"is damaged: {_short(unknown[0])} is used before anything makes it")
        for at in _SIZES.get(node.op_type, ()):
            if depends[(node.inputs[at : at + 1] or [""])[0]]:
                raise BundleError(
                    f"an observation decides how much {node.op_type} of {_short(node.inputs[at])} "
                    "makes, so its memory per action has no bound"
                )
        # the sizes of what was observed are those of the card
        made = node.op_type not in ("Shape", "Size") and any(depends[n] for n in node.inputs)
        for name in node.outputs:
            if name and name in depends:
                raise BundleError(f"is damaged: {_short(name)} is made twice")
            depends[name] = made and bool(name)


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


def _short(name: str) -> str:
    """Return a name for a message, which a hostile file would fill with megabytes."""
    return repr(name) if len(name) <= _SHOWN else f"{name[:_SHOWN]!r}..."


def _check_weights(raw: bytes | memoryview, layout: str) -> None:
    if len(raw) % int(layout[-1]):
        raise BundleError("is damaged: a weight is cut off")
    weights = np.frombuffer(raw, layout)
    # an infinity alone is the bound of a clip, or what a mask fills in
    if np.isnan(weights).any() or (weights.size > 1 and np.isinf(weights).any()):
        raise BundleError("has weights that are NaN or infinite")
