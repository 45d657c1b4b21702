"""Settings of a pick-and-place training in the words of its YAML files, as overrides.

    environment:
      num_parallel_envs: 4096          max_episode_steps: 200
      reconstructed_objects_dir: DIR   objects: [mug, bunny.stl]
      reward_type: dense               domain_randomization: {physics: true, sensor: false}
      vision_enabled: false            camera_resolution: [64, 64]
      observation_type: state
    training:
      total_timesteps: 1000000         use_gpu: true
      name: ppo                        seed: 0
    algorithms:
      ppo: {learning_rate: 3e-4, num_epochs: 10}
      sac: {}
      ddpg: {}

Every key may be left out; of several files the later ones count. Under an algorithm stand the keys
of its Config (`penspin train --print-config algo=ppo`) and the synonyms of `SYNONYMS`.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penspin_style.algo.registry import find_algorithm
from penspin_style.system.plain_yaml import read_mapping
from penspin_style.train.keys import nearest

PRESETS = pathlib.Path(__file__).parent / "presets"
"""Files that come with the package; one is named without its folder and `.yaml`."""
DEFAULT = "real2sim_config"
ALGORITHMS = ("ppo", "sac", "ddpg")
ENVIRONMENT = {
    "num_parallel_envs": "num_envs",
    "max_episode_steps": "task.episode_length",
    "reward_type": "task.reward_type",
    "vision_enabled": "task.vision_enabled",
    "camera_resolution": "task.camera_resolution",
    "observation_type": "task.observation_type",
}
RANDOMIZATION = {
    "enabled": "task.randomize",
    **{name: f"task.randomization.{name}.on" for name in ("physics", "visual", "sensor", "object")},
}
"""Switches under `environment.domain_randomization`."""
OBJECTS = ("reconstructed_objects_dir", "objects")
TRAINING = {"total_timesteps": "total_samples", "use_gpu": "device", "name": "name", "seed": "seed"}
SYNONYMS = {
    "num_epochs": "epochs",
    "ent_coef": "entropy_coef",
    "vf_coef": "value_coef",
    "buffer_size": "replay_capacity",
    "learning_starts": "warmup",
}
"""Other names of keys of an algorithm -> its own."""

_DRAWN = "domain_randomization"

Settings = dict[str, dict[str, Any]]


class SettingsError(ValueError):
    """A file of settings, or a value of one, is invalid."""


def read_settings(files: Sequence[str | pathlib.Path]) -> Settings:
    """Return the sections of files one after another, later ones over earlier ones.

    files: paths, or names of presets.

    Raises:
        SettingsError: names file and key, and what is legal.
    """
    merged: Settings = {"environment": {}, "training": {}, **{name: {} for name in ALGORITHMS}}
    for file in files:
        path = _path(file)
        try:
            read = read_mapping(path)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        _check(path, "", read, ("environment", "training", "algorithms"))
        sections = {name: _section(path, name, read.get(name)) for name in read}
        algorithms = sections.pop("algorithms", {})
        _check(path, "algorithms.", algorithms, ALGORITHMS)
        sections |= {n: _section(path, f"algorithms.{n}", v) for n, v in algorithms.items()}
        for name, section in sections.items():
            where = f"algorithms.{name}." if name in ALGORITHMS else f"{name}."
            _check(path, where, section, _legal(name))
            if _DRAWN in section:
                drawn = _section(path, f"{where}{_DRAWN}", section[_DRAWN])
                _check(path, f"{where}{_DRAWN}.", drawn, RANDOMIZATION)
                section[_DRAWN] = merged[name].get(_DRAWN, {}) | drawn
            merged[name] |= section
    return merged


def checked_environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return keys of the section `environment`, its objects aside, after checking their names.

    Raises:
        SettingsError: a key that there is not.
    """
    _check(None, "", config, {*ENVIRONMENT, _DRAWN})
    _check(None, f"{_DRAWN}.", config.get(_DRAWN, {}), RANDOMIZATION)
    return dict(config)


def environment_overrides(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides of `environment` but for its objects: key -> value."""
    found = {ENVIRONMENT[key]: value for key, value in section.items() if key in ENVIRONMENT}
    found |= {RANDOMIZATION[key]: value for key, value in section.get(_DRAWN, {}).items()}
    if isinstance(size := found.get("task.camera_resolution"), tuple):
        found["task.camera_resolution"] = list(size)
    return found


def training_overrides(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides of `training`: key -> value.

    Raises:
        SettingsError: `use_gpu` is neither true nor false.
    """
    found = {TRAINING[key]: value for key, value in section.items()}
    if "device" in found:
        if not isinstance(found["device"], bool):
            raise SettingsError(f"training.use_gpu must be true or false, not {found['device']!r}")
        found["device"] = "auto" if found["device"] else "cpu"
    return found


def algorithm_overrides(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides of an algorithm: key -> value."""
    own = {f"algo.{SYNONYMS.get(key, key)}": value for key, value in section.items()}
    return {"algo": name, **own}


def _path(file: str | pathlib.Path) -> pathlib.Path:
    """Return the file of a path, or of a preset's name."""
    name, known = str(file), sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name in known:
        return PRESETS / f"{name}.yaml"
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        raise SettingsError(f"there is no preset {name!r}{nearest(name, known)}")
    return pathlib.Path(file)


def _section(path: pathlib.Path, name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise SettingsError(f"{path}: {name} must hold KEY: VALUE, not {value!r}")
    return dict(value or {})


def _legal(name: str) -> set[str]:
    """Return what may stand in a section."""
    if name == "environment":
        return {*ENVIRONMENT, *OBJECTS, _DRAWN}
    if name == "training":
        return set(TRAINING)
    own = {field.name for field in dataclasses.fields(find_algorithm(name).Config)} - {"name"}
    return own | {other for other, key in SYNONYMS.items() if key in own}


def _check(
    path: pathlib.Path | None, where: str, given: Iterable[str], legal: Iterable[str]
) -> None:
    known = sorted(legal)
    for key in given:
        if key not in known:
            file = f"{path}: " if path else ""
            raise SettingsError(f"{file}unknown key {where}{key}; there are {', '.join(known)}")
