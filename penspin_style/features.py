"""What crosses from simulation to a robot, as plain data: named values, actions, the policy card.

The card is the only carrier of facts between simulation and robot. It travels as exact JSON inside
the checkpoint and inside the exported ONNX, so no constant is spelled twice.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from penspin_style import storage

CARD_FORMAT = 1


@dataclass(frozen=True)
class Feature:
    """One named value of an observation."""

    name: str
    shape: tuple[int, ...]
    unit: str = "1"
    """SI, as `m`, `rad/s`, `N`; `1` for a pure number."""
    dtype: str = "float32"
    history: int = 1
    """How many past values are stacked, oldest first; 1 is the current one alone."""
    delay: int = field(default=0, compare=False)
    """Control steps that the value was late in training, where that never changed. Who runs the
    policy holds values back as long. Cards from before this was noted say 0."""

    @property
    def size(self) -> int:
        """Numbers that the feature takes in the policy's input vector."""
        count = self.history
        for n in self.shape:
            count *= n
        return count


@dataclass(frozen=True)
class Input:
    """One input tensor of a policy: its features, raveled and joined in this order."""

    name: str
    features: tuple[Feature, ...]

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Input":
        """Read what `dataclasses.asdict` made of one, also after a way through JSON.

        Raises:
            KeyError, TypeError: a field is missing, unknown or of another type.
        """
        features = (Feature(**{**f, "shape": tuple(f["shape"])}) for f in raw["features"])
        return cls(raw["name"], tuple(features))

    @property
    def size(self) -> int:
        """Numbers in the input tensor."""
        return sum(f.size for f in self.features)

    @property
    def is_image(self) -> bool:
        """Whether this is one feature that keeps its shape.

        That is a feature of another type than float32, or one with two axes or more that lends the
        input its name, as a depth image does.
        """
        first, *more = self.features
        own = first.name == self.name and len(first.shape) > 1
        return not more and (own or first.dtype != "float32")

    @property
    def tensor(self) -> tuple[str, tuple[int, ...]]:
        """Return type and shape, without the batch axis, of the input's tensor.

        Features are raveled into one float32 vector (size,). An image is an input of its own and
        keeps its shape, after the history if there is one.

        Raises:
            ValueError: features of other types share the input.
        """
        if self.is_image:
            (f,) = self.features
            return f.dtype, (f.shape if f.history == 1 else (f.history, *f.shape))
        if any(f.dtype != "float32" for f in self.features):
            raise ValueError(
                f"input {self.name!r}: a feature that is not float32 must be alone there"
            )
        return "float32", (self.size,)


@dataclass(frozen=True)
class ActionChannel:
    """One number of the action vector, in [-1, 1], and what the robot makes of it."""

    name: str
    unit: str
    scale: float
    """Change, or value, in `unit` that an action of 1 asks for."""
    low: float
    """Lower limit of the resulting target, in `unit`."""
    high: float
    """Upper limit of the resulting target, in `unit`."""
    mode: str
    """`delta`: added to the last target, clipped to the limits. `absolute`: low..high for -1..1."""


@dataclass(frozen=True)
class Joint:
    """One actuated joint in the policy's order."""

    name: str
    unit: str
    low: float
    high: float
    stiffness: float
    damping: float
    default: float


@dataclass(frozen=True)
class PolicyCard:
    """Everything that the user of a policy must know to run it."""

    task: str
    inputs: tuple[Input, ...]
    actions: tuple[ActionChannel, ...]
    joints: tuple[Joint, ...]
    control_dt: float
    """Seconds between two actions."""
    run: str = ""
    preprocessing: dict[str, str] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    score: dict[str, Any] = field(default_factory=dict)
    """Measured success and how it was measured."""
    versions: dict[str, str] = field(default_factory=dict)
    weights_sha256: str = ""
    format: int = CARD_FORMAT

    def to_json(self) -> str:
        """Return exact JSON: every float reads back bit for bit."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "PolicyCard":
        """Read a card.

        Raises:
            ValueError: not JSON (NaN, infinity and a key that is there twice are not), another
                format, a field missing or unknown, a text that a terminal would act on.
        """
        try:
            raw = storage.parse_json(text)
        except ValueError as error:
            raise ValueError(f"policy card is not JSON: {error}") from error
        if odd := next((t for t in _texts(raw) if not t.isprintable()), None):
            raise ValueError(f"policy card has a text that is not printable: {odd[:80]!r}")
        if not isinstance(raw, dict) or raw.get("format") != CARD_FORMAT:
            got = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise ValueError(f"policy card has format {got!r}, this version reads {CARD_FORMAT}")
        try:
            raw["inputs"] = tuple(Input.from_dict(i) for i in raw["inputs"])
            raw["actions"] = tuple(ActionChannel(**a) for a in raw["actions"])
            raw["joints"] = tuple(Joint(**j) for j in raw["joints"])
            return cls(**raw)
        except (KeyError, TypeError) as error:
            raise ValueError(f"policy card does not have the fields it should: {error}") from error


def command_differences(
    card: PolicyCard, channels: Sequence[ActionChannel], control_dt: float, whose: str
) -> list[str]:
    """Return how a policy's commands differ from those that are taken, one text for each.

    The one place that compares a card's rate and channels: with an environment's, a robot's, a
    twin's or a trajectory's.

    channels, control_dt: of `whose`, as `robot`.
    """
    faults = []
    if abs(card.control_dt - control_dt) > 1e-9:
        faults.append(
            f"the policy acts every {card.control_dt:g} s, the {whose} every {control_dt:g} s"
        )
    return faults + channel_differences(card.actions, channels, whose)


def in_scale_of(
    card: PolicyCard, channels: Sequence[ActionChannel]
) -> tuple[PolicyCard, tuple[float, ...]]:
    """Return a policy as one that acts in channels of larger scales, and factors of its actions.

    A teacher's small steps are thus said in the channels of a student that takes larger ones too.
    Only the scales of `delta` channels change, and none that the policy's actions would exceed;
    what else differs is left for `command_differences` to say.
    """
    own = {c.name: c for c in channels}
    actions = tuple(
        dataclasses.replace(a, scale=own[a.name].scale)
        if a.name in own and a.mode == "delta" and a.scale < own[a.name].scale
        else a
        for a in card.actions
    )
    factors = tuple(a.scale / b.scale for a, b in zip(card.actions, actions, strict=True))
    return dataclasses.replace(card, actions=actions), factors


def channel_differences(
    mine: Sequence[ActionChannel], theirs: Sequence[ActionChannel], whose: str
) -> list[str]:
    """Return how a policy's channels differ from others, in this order, one text for each.

    Numbers that differ by less than a millionth are the same one, computed in other ways.
    """
    names, other = [c.name for c in mine], [c.name for c in theirs]
    if names != other:
        return [f"the policy commands {names}, the {whose} takes {other}, in this order"]
    return [
        f"{a.name}: the policy has {what} {getattr(a, what)}, the {whose} {getattr(b, what)}"
        for a, b in zip(mine, theirs, strict=True)
        for what in ("unit", "mode", "scale", "low", "high")
        if not _same(getattr(a, what), getattr(b, what))
    ]


def _same(a: str | float, b: str | float) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        yield from (text for item in value for text in _texts(item))
    if isinstance(value, dict):
        yield from (text for item in value.values() for text in _texts(item))
