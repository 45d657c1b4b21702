"""A policy as one ONNX file: read, checked and run with numpy and onnxruntime alone.

The file comes from elsewhere, so its bytes are read once, scanned, and opened and run in a child
with limits before onnxruntime sees them here; what runs is then what was checked.
"""

import difflib
import hashlib
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style import storage
from penspin_style.deploy import session
from penspin_style.deploy.actions import MODES
from penspin_style.deploy.onnx_scan import BundleError, Scan
from penspin_style.deploy.session import ONNX_TYPES
from penspin_style.features import Feature, Input, PolicyCard

__all__ = ["Bundle", "BundleError", "ObservationError", "check_features"]

CARD_KEY = "penspin_style.card"
MAX_BYTES = 64 * 2**20
_MAX_CARD = 2**20
_TEXTS = ("name", "unit", "mode")


class ObservationError(ValueError):
    """An observation is not what the policy's card asks for; the message names the feature."""


class Bundle:
    """A policy that maps observations to actions in [-1, 1], see `penspin_style.deploy.policy`.

    card: what the policy needs and means.
    sha256: of the bytes that run.
    horizon: actions that it answers at a time.
    """

    def __init__(self, data: bytes, where: str = "the model", *, try_first: bool = False) -> None:
        """Check the bytes of an ONNX file and make them ready to run.

        where: how errors call the file.
        try_first: whether a child with limits opens and runs them before this process does.

        Raises:
            BundleError: see the module's docstring.
        """
        try:
            self.card = _read_card(data)
            if try_first:
                session.try_out(data, self.card)
            self._session = session.open_session(data, self.card)
            self.horizon = session.horizon_of(self._session)
            self.sha256 = hashlib.sha256(data).hexdigest()
            self._types = [group.tensor for group in self.card.inputs]
            self._slots = [_slots_of(group) for group in self.card.inputs]
        except BundleError as error:
            raise BundleError(f"{where}: {error}") from error.__cause__

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Bundle":
        """Read a file once, check it, try it in a child and make it ready to run.

        Raises:
            BundleError: not a file, too large, damaged, hostile, without a card that fits it, or
                one that takes more than `session.SECONDS` or `session.MEMORY` to open and try.
        """
        path = pathlib.Path(path)
        try:
            data = storage.read_file(path, MAX_BYTES)
        except OSError as error:
            if not path.is_file():
                raise BundleError(
                    f"{path} is not a file; give the .onnx that `export` wrote"
                ) from error
            raise BundleError(str(error)) from error
        return cls(data, str(path), try_first=True)

    def reset(self) -> None:
        """Do nothing: a bundle remembers nothing of an episode."""

    def act(self, observation: Mapping[str, Any] | np.ndarray) -> np.ndarray:
        """Return the action, (naction,) or (batch, naction) float32 as the observation has it.

        With a horizon above 1, (horizon, naction) or (batch, horizon, naction).

        observation: per input its vector, (size,) or (batch, size), under the input's name; or its
            features one by one, each in its own shape, under theirs. An array alone will do for a
            policy with one input. Any floating type is converted to float32, nothing else is.

        Raises:
            ObservationError: a name, shape, type or value that the card does not allow.
            BundleError: the policy answered with something that is not an action.
        """
        tensors, batched = self._tensors(observation)
        action = session.run(self._session, tensors)
        return action if batched else action[0]

    __call__ = act

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
        BundleError: lists every invalid value.
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
        if a.mode not in MODES:
            faults.append(f"action {a.name!r}: mode {a.mode!r} is not one of {MODES}")
    for item in (*card.actions, *card.joints):
        numbers = [v for k, v in vars(item).items() if k not in _TEXTS]
        if not all(_finite(v) for v in numbers) or item.low > item.high:
            faults.append(f"{item}: its numbers are invalid")
    if not _finite(card.control_dt) or card.control_dt <= 0:
        faults.append(f"control_dt must be positive, is {card.control_dt!r}")
    if faults:
        raise BundleError("; ".join(dict.fromkeys(faults)))


def _feature_faults(group: Input, card: PolicyCard) -> list[str]:
    faults = [] if group.features else [f"input {group.name!r} has no features"]
    for f in group.features:
        if f.dtype not in ONNX_TYPES:
            faults.append(f"feature {f.name!r}: type {f.dtype!r} is not one of {(*ONNX_TYPES,)}")
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
