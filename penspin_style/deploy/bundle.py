"""A policy as one ONNX file: read, checked and run with numpy and onnxruntime alone.

The file comes from elsewhere, so its bytes are read once and scanned before onnxruntime sees them;
what runs is then what was checked.
"""

import difflib
import hashlib
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from penspin_style.deploy.onnx_scan import BundleError, Scan
from penspin_style.features import Feature, Input, PolicyCard

__all__ = ["Bundle", "BundleError", "ObservationError", "check_features"]

CARD_KEY = "penspin_style.card"
OUTPUT = "action"
MAX_BYTES = 64 * 2**20
_MAX_CARD = 2**20
_MODES = ("delta", "absolute")
_TEXTS = ("name", "unit", "mode")
# onnxruntime's tanh exceeds 1 by a rounding
_SQUASHED = 1.0 + 1e-6
_ONNX_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}


class ObservationError(ValueError):
    """An observation is not what the policy's card asks for; the message names the feature."""


class Bundle:
    """A policy that maps observations to actions in [-1, 1].

    card: what the policy needs and means.
    sha256: of the bytes that run.
    """

    def __init__(self, data: bytes, where: str = "the model") -> None:
        """Check the bytes of an ONNX file and make them ready to run.

        where: how errors call the file.

        Raises:
            BundleError: see the module's docstring.
        """
        try:
            self.card = _read_card(data)
            self._session = _open_session(data)
            _check_graph(self._session, self.card)
            self.sha256 = hashlib.sha256(data).hexdigest()
            self._types = [group.tensor for group in self.card.inputs]
            self._slots = [_slots_of(group) for group in self.card.inputs]
            self._probe()
        except BundleError as error:
            raise BundleError(f"{where}: {error}") from error.__cause__
        except UnicodeDecodeError as error:
            raise BundleError(f"{where}: is damaged, a name in it is not UTF-8") from error

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Bundle":
        """Read a file once, check it and make it ready to run.

        Raises:
            BundleError: not a file, too large, damaged, hostile, or without a card that fits it.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise BundleError(f"{path} is not a file; give the .onnx that `export` wrote")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return cls(data, str(path))

    def __call__(self, observation: Mapping[str, Any] | np.ndarray) -> np.ndarray:
        """Return the action, (naction,) or (batch, naction) float32 as the observation has it.

        observation: per input its vector, (size,) or (batch, size), under the input's name; or its
            features one by one, each in its own shape, under theirs. An array alone will do for a
            policy with one input. Any floating type is converted to float32, nothing else is.

        Raises:
            ObservationError: a name, shape, type or value that the card does not allow.
            BundleError: the policy answered with something that is not an action.
        """
        tensors, batched = self._tensors(observation)
        action = self._run(tensors)
        return action if batched else action[0]

    def check_features(self, offered: Mapping[str, Feature]) -> None:
        """Check that a robot offers every value that the policy reads.

        offered: the robot's features by name. History is not compared: the caller stacks it.

        Raises:
            BundleError: lists every feature that is missing or has another shape, unit or type.
        """
        check_features(self.card, offered)

    def describe(self) -> str:
        """Return a table of inputs, actions and joints with units, scales and limits."""
        card = self.card
        features = [
            (group.name, f.name, _shape(f.shape), f.history, f.unit, f.dtype)
            for group in card.inputs
            for f in group.features
        ]
        actions = [(a.name, a.unit, a.mode, a.scale, a.low, a.high) for a in card.actions]
        joints = [
            (j.name, j.unit, j.low, j.high, j.default, j.stiffness, j.damping) for j in card.joints
        ]
        blocks = [
            [
                f"task        {card.task}",
                f"run         {card.run}",
                f"control_dt  {card.control_dt:g} s ({1.0 / card.control_dt:g} Hz)",
                f"sha256      {self.sha256}",
            ],
            _table(("input", "feature", "shape", "history", "unit", "dtype"), features),
            _table(("action", "unit", "mode", "scale", "low", "high"), actions),
        ]
        if joints:
            head = ("joint", "unit", "low", "high", "default", "stiffness", "damping")
            blocks.append(_table(head, joints))
        return "\n\n".join("\n".join(block) for block in blocks)

    def _run(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        # onnxruntime types the result as a union over tensors, sequences and maps
        action = np.asarray(self._session.run([OUTPUT], tensors)[0])
        # one comparison refuses NaN, infinity and what a squash would have excluded
        fine = np.abs(action) <= _SQUASHED
        if not fine.all():
            bad = action[~fine].flat[0]
            raise BundleError(f"the policy answered {bad}, which is not in [-1, 1]; do not run it")
        return np.clip(action, -1.0, 1.0)

    def _probe(self) -> None:
        """Run random observations, so that a policy that cannot act is refused now."""
        rng = np.random.default_rng(0)
        for batch in (1, 3):
            tensors = {}
            for group, (dtype, shape) in zip(self.card.inputs, self._types, strict=True):
                draw = rng.normal(0.0, 3.0, (batch, *shape))
                if dtype == "uint8":
                    draw = rng.integers(0, 256, (batch, *shape))
                tensors[group.name] = draw.astype(dtype)
            # onnxruntime's exceptions have no common base of their own
            try:
                action = self._run(tensors)
            except BundleError:
                raise
            except Exception as error:
                raise BundleError(f"the graph fails on a batch of {batch}: {error}") from error
            if action.shape != (batch, len(self.card.actions)):
                raise BundleError(
                    f"the graph answers a batch of {batch} with shape {action.shape}, the card "
                    f"has {len(self.card.actions)} actions"
                )

    def _tensors(self, observation: Mapping[str, Any] | np.ndarray) -> tuple[dict[str, Any], bool]:
        """Return the input tensors, and whether the observation was a batch."""
        if isinstance(observation, np.ndarray):
            if len(self._slots) > 1:
                names = ", ".join(repr(i.name) for i in self.card.inputs)
                raise ObservationError(f"one array is not enough: the policy has inputs {names}")
            observation = {self.card.inputs[0].name: observation}
        chosen = self._choose(observation)
        read = [[(s, *s.read(observation[s.name])) for s in slots] for slots in chosen]
        batch = _common_batch([(s, batches) for values in read for s, _, batches in values])
        n = 1 if batch is None else batch
        tensors = {}
        for group, (dtype, shape), values in zip(self.card.inputs, self._types, read, strict=True):
            columns = [array.reshape(n, -1) for _, array, _ in values]
            joined = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
            tensors[group.name] = joined.reshape(n, *shape).astype(dtype, copy=False)
        return tensors, batch is not None

    def _choose(self, observation: Mapping[str, Any]) -> list[tuple["_Slot", ...]]:
        """Return, per input, the values to read: the whole vector if it is there, else features."""
        chosen = []
        for whole, parts in self._slots:
            one_by_one = any(s.name in observation for s in parts)
            chosen.append(parts if one_by_one and whole.name not in observation else (whole,))
        wanted = {s.name: s for slots in chosen for s in slots}
        missing = [s for s in wanted.values() if s.name not in observation]
        if missing:
            texts = [f"{s}{_nearest(s.name, observation)}" for s in missing]
            raise ObservationError(
                f"the observation lacks {'; '.join(texts)}. An input may also be given as its "
                f"features: {', '.join(f.name for i in self.card.inputs for f in i.features)}"
            )
        unknown = [
            f"{name!r}{_nearest(name, wanted)}" for name in observation if name not in wanted
        ]
        if unknown:
            raise ObservationError(
                f"the policy does not read {', '.join(unknown)}; leave it out "
                f"(legal: {', '.join(wanted)})"
            )
        return chosen


@dataclass(frozen=True)
class _Slot:
    """One value of an observation: a feature, or all features of an input as one vector."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """The shape that errors ask for."""
    forms: tuple[tuple[int, ...], ...]
    """Every shape without a batch axis that is accepted."""
    features: tuple[Feature, ...]

    def __str__(self) -> str:
        """Return name, shape, type and unit."""
        units = ", ".join(dict.fromkeys(f.unit for f in self.features))
        return f"{self.name!r}, {_shape(self.shape)} {self.dtype} in [{units}]"

    def read(self, value: Any) -> tuple[np.ndarray, set[int | None]]:
        """Return the value as an array fit for the graph, and the batch sizes it can mean.

        A batch size of None is no batch axis.
        """
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise ObservationError(f"{self}: not an array ({error})") from error
        if self.dtype != "float32":
            if array.dtype != self.dtype:
                raise ObservationError(f"{self}: got {array.dtype}; convert it on the robot's side")
            return array, self._batches(array)
        if array.dtype.kind != "f":
            raise ObservationError(
                f"{self}: got {array.dtype}; give real numbers in the unit, as float32"
            )
        batches = self._batches(array)
        # a float64 beyond float32's range becomes infinite, and is refused as that
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ObservationError(f"{self}: {self._first_bad(array)}")
        return array, batches

    def _first_bad(self, array: np.ndarray) -> str:
        names = [f"{f.name}[{i}]" for f in self.features for i in range(f.size)]
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        return f"{names[at % len(names)]} is {array.flat[at]}; every number must be finite"

    def _batches(self, array: np.ndarray) -> set[int | None]:
        found: set[int | None] = set()
        if array.shape in self.forms:
            found.add(None)
        if array.ndim > 0 and array.shape[1:] in self.forms and len(array) > 0:
            found.add(len(array))
        if not found:
            raise ObservationError(f"{self}, or that with a batch axis before: got {array.shape}")
        return found


def _slots_of(group: Input) -> tuple[_Slot, tuple[_Slot, ...]]:
    dtype, shape = group.tensor
    whole = _Slot(group.name, dtype, shape, (shape,), group.features)
    parts = []
    for f in group.features:
        full = f.shape if f.history == 1 else (f.history, *f.shape)
        parts.append(_Slot(f.name, f.dtype, full, (full, (f.size,)), (f,)))
    if len(parts) == 1 and parts[0].name == whole.name:
        whole = parts[0]
    return whole, tuple(parts)


def _common_batch(read: list[tuple[_Slot, set[int | None]]]) -> int | None:
    """Return the one batch size that all values can mean; None, no batch axis, before any other."""
    common = read[0][1]
    for slot, batches in read[1:]:
        if not common & batches:
            raise ObservationError(
                f"{slot}: got {_or(batches)}, where the values before it have {_or(common)}"
            )
        common = common & batches
    return None if None in common else next(iter(common))


def _or(batches: set[int | None]) -> str:
    return " or ".join("no batch axis" if b is None else f"a batch of {b}" for b in batches)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [n for n in names if isinstance(n, str)], n=1)
    return f" (nearest: {near[0]!r})" if near else ""


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    text = [
        [f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in (head, *rows)
    ]
    widths = [max(len(row[i]) for row in text) for i in range(len(head))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in text
    ]


def _read_card(data: bytes) -> PolicyCard:
    """Scan a file's bytes and return the card in its metadata."""
    if len(data) > MAX_BYTES:
        raise BundleError(f"larger than {MAX_BYTES} bytes, which no policy of ours is")
    text = Scan(data).metadata.get(CARD_KEY)
    if text is None:
        raise BundleError(
            f"has no policy card (metadata key {CARD_KEY!r}); export it with `python -m "
            "penspin_style export`"
        )
    if len(text) > _MAX_CARD:
        raise BundleError(f"its policy card is longer than {_MAX_CARD} characters")
    try:
        card = PolicyCard.from_json(text)
        check_card(card)
    # a hostile card may nest deeper than the JSON reader does, or hold a text where a list belongs
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"its policy card is not usable: {error}") from error
    return card


def check_features(card: PolicyCard, offered: Mapping[str, Feature]) -> None:
    """Check that a robot offers every value that a card's policy reads; see `Bundle`.

    Raises:
        BundleError: lists every feature that is missing or has another shape, unit or type.
    """
    faults = []
    for feature in dict.fromkeys(f for group in card.inputs for f in group.features):
        other = offered.get(feature.name)
        if other is None:
            faults.append(f"{feature.name}: not offered{_nearest(feature.name, offered)}")
            continue
        faults += [
            f"{feature.name}: the policy was trained with {what} {mine}, the robot has {its}"
            for what, mine, its in (
                ("shape", tuple(feature.shape), tuple(other.shape)),
                ("unit", feature.unit, other.unit),
                ("type", feature.dtype, other.dtype),
            )
            if mine != its
        ]
    if faults:
        lines = "\n  ".join(faults)
        raise BundleError(f"the robot does not fit the policy of {card.task}:\n  {lines}")


def check_card(card: PolicyCard) -> None:
    """Check that a card says something that a robot can do.

    Raises:
        BundleError: lists every value that cannot be meant.
    """
    faults = [] if card.inputs and card.actions else ["it needs an input and an action"]
    named = {"input": card.inputs, "action": card.actions, "joint": card.joints}
    for kind, items in named.items():
        names = [item.name for item in items]
        faults += [f"{kind} {n!r} is there twice" for n in names if names.count(n) > 1]
    for group in card.inputs:
        faults += _feature_faults(group, card)
    for item in (*card.inputs, *card.actions, *card.joints):
        for part in (item, *getattr(item, "features", ())):
            texts = {k: v for k, v in vars(part).items() if k in _TEXTS}
            faults += [
                f"{k} {v!r} is not a text" for k, v in texts.items() if not isinstance(v, str)
            ]
    for a in card.actions:
        if a.mode not in _MODES:
            faults.append(f"action {a.name!r}: mode {a.mode!r} is not one of {_MODES}")
    for item in (*card.actions, *card.joints):
        numbers = [v for k, v in vars(item).items() if k not in _TEXTS]
        if not all(_finite(v) for v in numbers) or item.low > item.high:
            faults.append(f"{item}: its numbers cannot be meant")
    if not _finite(card.control_dt) or card.control_dt <= 0:
        faults.append(f"control_dt must be positive, is {card.control_dt!r}")
    if faults:
        raise BundleError("; ".join(dict.fromkeys(faults)))


def _feature_faults(group: Input, card: PolicyCard) -> list[str]:
    faults = [] if group.features else [f"input {group.name!r} has no features"]
    for f in group.features:
        if f.dtype not in _ONNX_TYPES:
            faults.append(f"feature {f.name!r}: type {f.dtype!r} is not one of {(*_ONNX_TYPES,)}")
        if not all(type(n) is int and n > 0 for n in (*f.shape, f.history)):
            faults.append(f"feature {f.name!r}: shape {f.shape}, history {f.history}")
        if type(f.delay) is not int or f.delay < 0:
            faults.append(f"feature {f.name!r}: delay {f.delay!r} is not a number of control steps")
    names = [f.name for i in card.inputs for f in i.features]
    if group.features and not faults:
        try:
            _ = group.tensor
        except ValueError as error:
            faults.append(str(error))
    if group.name in names and [f.name for f in group.features] != [group.name]:
        faults.append(f"input {group.name!r} has the name of a feature; rename one")
    return faults


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _open_session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # one thread: a policy is small, and a robot's other loops need the cores
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # what goes wrong is raised; onnxruntime would print it as well
    options.log_severity_level = 4
    # onnxruntime's exceptions have no common base of their own
    try:
        # its fallback prints the error and tries the same again
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], enable_fallback=False
        )
    except Exception as error:
        raise BundleError(f"onnxruntime refuses it: {error}") from error


def _check_graph(session: onnxruntime.InferenceSession, card: PolicyCard) -> None:
    """Check the graph's inputs and output against the card."""
    inputs = session.get_inputs()
    got, want = [i.name for i in inputs], [i.name for i in card.inputs]
    if got != want:
        raise BundleError(f"the graph has inputs {got}, its card {want}")
    outputs = [o.name for o in session.get_outputs()]
    if outputs != [OUTPUT]:
        raise BundleError(f"the graph has outputs {outputs}, a policy has [{OUTPUT!r}]")
    for node, group in zip(inputs, card.inputs, strict=True):
        dtype, shape = group.tensor
        _check_node(f"input {node.name!r}", node, _ONNX_TYPES[dtype], shape)
    output = session.get_outputs()[0]
    _check_node("the output", output, _ONNX_TYPES["float32"], (len(card.actions),))


def _check_node(
    what: str, node: onnxruntime.NodeArg, onnx_type: str, shape: tuple[int, ...]
) -> None:
    if node.type != onnx_type:
        raise BundleError(f"{what} is {node.type} in the graph, {onnx_type} in the card")
    got = list(node.shape)
    if got[1:] != list(shape):
        raise BundleError(f"{what} has shape {got} in the graph, (batch, ...) {shape} in the card")
    if isinstance(got[0], int):
        raise BundleError(f"{what} has a fixed batch of {got[0]}; export it with a dynamic one")
