"""A twin: one of our tasks as a robot of its own, with other physics and worse sensors.

`cfg/twin/NAME.yaml` holds the fields of `TwinConfig`; a path to any such file does as well. In YAML
`words` and `shift` are still read as `overrides` and `perturb`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penspin_style.sim.perturb import Perturbation
from penspin_style.system.plain_yaml import read_mapping
from penspin_style.train.compose import FOLDER, UsageError, check_installed, nearest
from penspin_style.train.find_task import check_registered

TWINS = FOLDER / "twin"


@dataclass(frozen=True)
class Measured:
    """A feature that measures what the next channels command, one number each."""

    feature: str
    count: int | None = None
    """How many of its numbers, from the first; None for all."""
    scale: float = 1.0
    """Channel units per unit of the feature."""


@dataclass(frozen=True)
class TwinConfig:
    """What a twin is."""

    task: str
    """Name of a task; its physics, controller and success are the twin's."""
    summary: str = ""
    overrides: tuple[str, ...] = ()
    """Overrides of the task's configuration, as `task.randomize=false`."""
    features: tuple[str, ...] = ()
    """What it measures: terms and images of the task; empty for those of the student's group,
    or, where there is none, of all groups."""
    measured: tuple[Measured, ...] = ()
    """Where the channels are measured; empty for channels that are joints, by name."""
    perturb: tuple[Perturbation, ...] = ()
    """What is done to the model, on top of what the task randomises."""
    noise: Mapping[str, float] = field(default_factory=dict)
    """Feature -> standard deviation of white noise, in its unit."""
    bias: Mapping[str, Any] = field(default_factory=dict)
    """Feature -> constant error: a number, or one for each of the feature's."""
    offset: Mapping[str, Any] = field(default_factory=dict)
    """Number in the task's memory, as the pen's `joint_offset` -> what is added to it at a reset:
    all features that follow from it then agree."""
    observation_latency: float = 0.0
    """Seconds until a measurement arrives. In fast time: up to the next control step."""
    command_latency: float = 0.0
    """Seconds until a command acts, up to the next physics step."""
    state_drop: float = 0.0
    """Odds that the numbers of a control step are lost, and those of the one before repeated."""
    frame_drop: float = 0.0
    """The same of the images."""
    realtime: bool = False
    """Whether time passes by itself, or only with each command, as fast as it goes."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        for key in ("observation_latency", "command_latency"):
            value = getattr(self, key)
            if not 0 <= value < 10:
                raise ValueError(f"{key} must be in [0, 10) s, got {value}")
        for key in ("state_drop", "frame_drop"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} must be in [0, 1), got {getattr(self, key)}")
        for name, value in self.noise.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"noise.{name} must be finite and >= 0, got {value}")
        for key in ("bias", "offset"):
            for name, value in getattr(self, key).items():
                if not np.isfinite(np.asarray(value, dtype=float)).all():
                    raise ValueError(f"{key}.{name} must be finite, got {value}")


def twin_names() -> list[str]:
    """Return the twins that come with us.

    Raises:
        UsageError: the installation is not whole.
    """
    check_installed()
    return sorted(file.stem for file in TWINS.glob("*.yaml"))


def load_twin(
    name: str | pathlib.Path, *, trusted: Sequence[str] = (), **changes: Any
) -> TwinConfig:
    """Return a twin by its name, or from a YAML file; with some fields changed.

    trusted: tasks that the user has named; the file itself can only name registered ones.

    Raises:
        UsageError: there is none, or it is not as it should be; names the key.
    """
    path = pathlib.Path(name)
    if path.suffix != ".yaml":
        path = TWINS / f"{name}.yaml"
        if path.parent != TWINS or not path.is_file():
            raise UsageError(f"there is no twin {str(name)!r}{nearest(str(name), twin_names())}")
    try:
        raw = read_mapping(path)
    except ValueError as error:
        raise UsageError(f"{error}; a twin must be a mapping with a task") from error
    if "task" not in raw:
        raise UsageError(f"{path} is not a twin: it must be a mapping with a task")
    try:
        if raw["task"] not in trusted:
            check_registered(raw["task"])
        return dataclasses.replace(_config(raw), **{k: _frozen(v) for k, v in changes.items()})
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _config(raw: dict[str, Any]) -> TwinConfig:
    known = {f.name for f in dataclasses.fields(TwinConfig)}
    for old, new in _FORMER.items():
        if old in raw and new in raw:
            raise ValueError(f"{old!r} is the former name of {new!r}: give one of them")
    raw = {_FORMER.get(key, key): value for key, value in raw.items()}
    for key, value in raw.items():
        if key not in known:
            raise ValueError(f"unknown key {key!r}{nearest(str(key), known)}")
        if "${" in str(value):  # it would read this computer's environment
            raise ValueError(f"{key} has ${{...}}: write the value, not where it stands")
        legal, what = _TYPES[key]
        if not isinstance(value, legal) or (isinstance(value, bool) and legal is not bool):
            raise ValueError(f"{key} must be {what}, got {value!r}")
    rows = {"perturb": Perturbation, "measured": Measured}
    out = {key: _frozen(value) for key, value in raw.items()}
    for key, kind in rows.items():
        for row in out.get(key, ()):
            if not isinstance(row, dict):
                raise ValueError(f"{key}: every row must be a mapping, got {row!r}")
        out[key] = tuple(kind(**_plain(row)) for row in out.get(key, ()))
    return TwinConfig(**out)


_FORMER = {"words": "overrides", "shift": "perturb"}
"""Keys of older files -> what they are called now."""
_TEXT, _LIST, _MAPPING = (str, "a text"), (list, "a list"), (dict, "a mapping")
_NUMBER = ((int, float), "a number")
_TYPES: dict[str, tuple[Any, str]] = {
    "task": _TEXT,
    "summary": _TEXT,
    **dict.fromkeys(("overrides", "features", "measured", "perturb"), _LIST),
    **dict.fromkeys(("noise", "bias", "offset"), _MAPPING),
    **dict.fromkeys(("observation_latency", "command_latency"), _NUMBER),
    **dict.fromkeys(("state_drop", "frame_drop"), _NUMBER),
    "realtime": (bool, "true or false"),
    "seed": (int, "a whole number"),
}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: _frozen(v) for k, v in row.items()}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
