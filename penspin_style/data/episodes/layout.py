"""What an episode holds, and how that stands in its HDF5 file.

/                       attrs: format, task, source, robot, control_dt (s), success (1, 0, -1 for
                        unknown), steps, created (ISO, UTC), card_sha256, facts (JSON), sha256
/card                   the policy card's JSON, if a policy acted
/time                   (T,) float64, s from the episode's begin, increasing
/observation/<feature>  (T, *shape), current values without history
/action                 (T, naction) float32 in [-1, 1], what the policy asked for
/target                 (T, naction) float64, in the channels' units: what it was decoded to
/sent                   (T, naction) float64, what the robot was sent, after safety
/measure/<name>         (T,) numbers that only a simulation knows, never an input

Every dataset has the attributes unit, names (JSON) and sha256 of its values. Rows of images are
chunks of their own, shuffled and deflated; other datasets are stored as they are, `BLOCK` rows in a
chunk. Texts have a fixed length: nothing in the file is a pointer into a heap.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penspin_style.features import PolicyCard

FORMAT = 1
SOURCES = ("sim", "twin", "real")
DTYPES = ("uint8", "uint16", "int32", "int64", "float32", "float64")
COMMANDS = {"action": "float32", "target": "float64", "sent": "float64"}
"""What every episode holds beside its observations, and as what."""
TIME = "time"

MAX_STEPS = 1_000_000
MAX_CHANNELS = 256
MAX_ROW = 32 * 2**20  # bytes of one value
MAX_FACTS = 32 * 2**10  # bytes
MAX_CARD = 2**20  # bytes
MAX_NAMES = 8192  # bytes
MAX_UNIT = 64  # bytes
MAX_NAME = 256  # bytes, of a task and a robot
BLOCK = 64
RATIO = 250
"""No value is deflated to less than one in this: a reader can bound what a file unfolds to."""

_GROUPS = ("observation", "measure")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IMAGE = 1024  # bytes of a value from which a row is a chunk


class EpisodeError(ValueError):
    """A file is no episode that can be trusted.

    file, key, row, what: where the fault is and what it is; key and row may be None.
    """

    def __init__(
        self, file: pathlib.Path | str, key: str | None, row: int | None, what: str
    ) -> None:
        self.file, self.key, self.row, self.what = file, key, row, what
        where = "" if key is None else f"{key}: " if row is None else f"{key}, row {row}: "
        super().__init__(f"{file}: {where}{what}")


class UnknownKindError(EpisodeError):
    """Something is whole, as far as can be seen, but of a kind that is not read."""


class DataWarning(UserWarning):
    """Something of a file is left out, or contradicts the rest."""


def _plain(text: Any, limit: int) -> bool:
    """Return whether a value is a text to print that a field of so many bytes can hold."""
    return isinstance(text, str) and text.isprintable() and len(text.encode()) <= limit


@dataclass(frozen=True)
class Channel:
    """One column of an episode; `name` is its key, as `observation/joint_pos`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: str = "1"
    names: tuple[str, ...] = ()
    """Of the entries along the first axis, or none."""

    def __post_init__(self) -> None:
        """Refuse what cannot be stored.

        Raises:
            ValueError: names the channel.
        """
        group, slash, name = self.name.rpartition("/")
        known = group in _GROUPS if slash else name in (*COMMANDS, TIME)
        if not known or not _NAME.fullmatch(name):
            raise ValueError(
                f"channel {self.name!r}: must be action, target, sent, observation/NAME or "
                "measure/NAME, NAME of letters, digits, '_', '-' and '.'"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"channel {self.name!r}: type {self.dtype!r} is not one of {DTYPES}")
        if len(self.shape) > 4 or not all(type(n) is int and n > 0 for n in self.shape):
            raise ValueError(f"channel {self.name!r}: shape {self.shape} must be up to 4 sizes > 0")
        if self.row_bytes > MAX_ROW:
            raise ValueError(f"channel {self.name!r}: {self.row_bytes} bytes a row > {MAX_ROW}")
        if group == "measure" and self.shape:
            raise ValueError(f"channel {self.name!r}: a measure is one number, not {self.shape}")
        names = json.dumps(self.names)
        plain = all(_plain(name, MAX_NAMES) for name in self.names)
        if not _plain(self.unit, MAX_UNIT) or not plain or len(names) > MAX_NAMES:
            raise ValueError(
                f"channel {self.name!r}: its unit must be a text of up to {MAX_UNIT} bytes "
                f"that can be printed, is {self.unit!r}; its names together may have {MAX_NAMES}"
            )
        if self.names and (not self.shape or len(self.names) != self.shape[0]):
            raise ValueError(
                f"channel {self.name!r}: {len(self.names)} names for shape {self.shape}"
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of one value."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def is_image(self) -> bool:
        """Whether every row is a deflated chunk of its own."""
        small = self.dtype in ("uint8", "uint16") and len(self.shape) > 1
        return small or self.row_bytes >= _IMAGE

    @property
    def chunk(self) -> tuple[int, ...]:
        """Shape of a chunk."""
        return (1 if self.is_image else BLOCK, *self.shape)


TIME_CHANNEL = Channel(TIME, (), "float64", "s")


@dataclass(frozen=True)
class Header:
    """What is known of an episode before it begins. `time` is always there and not listed."""

    task: str
    source: str
    robot: str
    control_dt: float
    channels: tuple[Channel, ...]
    card: PolicyCard | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no episode can be.

        Raises:
            ValueError: says what.
        """
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source!r} is not one of {SOURCES}")
        if not (math.isfinite(self.control_dt) and self.control_dt > 0):
            raise ValueError(f"control_dt must be positive, is {self.control_dt} s")
        keys = [channel.name for channel in self.channels]
        if twice := sorted({key for key in keys if keys.count(key) > 1} | ({TIME} & set(keys))):
            raise ValueError(f"channels {twice} are listed twice; {TIME!r} is there unlisted")
        if len(keys) > MAX_CHANNELS:
            raise ValueError(f"{len(keys)} channels are more than {MAX_CHANNELS}")
        self._check_commands({channel.name: channel for channel in self.channels})
        facts_text(self.facts)
        for name, text in (("task", self.task), ("robot", self.robot)):
            if not _plain(text, MAX_NAME):
                raise ValueError(
                    f"{name} must be a text of up to {MAX_NAME} bytes that can be printed, is "
                    f"{text!r}"
                )

    def _check_commands(self, channels: dict[str, Channel]) -> None:
        if missing := sorted(set(COMMANDS) - set(channels)):
            raise ValueError(f"an episode needs the channels {missing}")
        shapes = {channels[name].shape for name in COMMANDS}
        (shape, *others) = shapes
        if others or len(shape) != 1:
            raise ValueError(f"{', '.join(COMMANDS)} must be (naction,) alike, are {shapes}")
        for name, dtype in COMMANDS.items():
            if channels[name].dtype != dtype:
                raise ValueError(f"channel {name!r} must be {dtype}, is {channels[name].dtype}")
        if self.card is not None and len(self.card.actions) != shape[0]:
            raise ValueError(f"the card has {len(self.card.actions)} actions, not {shape[0]}")

    @property
    def columns(self) -> tuple[Channel, ...]:
        """Every dataset: `time`, then the channels."""
        return (TIME_CHANNEL, *self.channels)

    @classmethod
    def of_card(
        cls,
        card: PolicyCard,
        *,
        source: str,
        robot: str,
        facts: Mapping[str, Any] | None = None,
        more: tuple[Channel, ...] = (),
    ) -> "Header":
        """Return the header of an episode in which the card's policy acts.

        Its features without their history are the observations; more: further channels.
        """
        features = {f.name: f for group in card.inputs for f in group.features}
        observed = tuple(
            Channel(f"observation/{f.name}", tuple(f.shape), f.dtype, f.unit)
            for f in features.values()
        )
        return cls(
            card.task,
            source,
            robot,
            card.control_dt,
            (*observed, *commands(card), *more),
            card,
            facts or {},
        )


def commands(card: PolicyCard) -> tuple[Channel, ...]:
    """Return the channels action, target and sent of a card."""
    names = tuple(a.name for a in card.actions)
    units = {a.unit for a in card.actions}
    unit = units.pop() if len(units) == 1 else "mixed"
    return tuple(
        Channel(key, (len(names),), dtype, "1" if key == "action" else unit, names)
        for key, dtype in COMMANDS.items()
    )


def facts_text(facts: Mapping[str, Any]) -> str:
    """Return facts as the JSON that is stored.

    Raises:
        ValueError: not JSON, NaN or infinite, or too long.
    """
    try:
        text = json.dumps(dict(facts), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"facts must be finite JSON values: {error}") from error
    if len(text) > MAX_FACTS:
        raise ValueError(f"facts have {len(text)} characters, more than {MAX_FACTS}")
    return text


def card_text(card: PolicyCard | None) -> str:
    """Return a card as the JSON that is stored, empty for none."""
    return "" if card is None else card.to_json()


def sha256(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def seal(attributes: Mapping[str, Any], card: str, columns: Mapping[Channel, str]) -> str:
    """Return the checksum of everything but the values, which have their own.

    attributes: of the file, less `sha256`; columns: every channel with the sum of its values.
    """
    parts = [{**dataclasses.asdict(channel), "sha256": s} for channel, s in columns.items()]
    parts.sort(key=lambda part: part["name"])
    return sha256(json.dumps([dict(attributes), card, parts], sort_keys=True))
