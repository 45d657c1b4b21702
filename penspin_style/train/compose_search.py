"""From overrides to a checked search: `cfg/search/TASK.yaml`, then the command line."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from penspin_style.algo.search.config import SearchConfig
from penspin_style.config import TrainConfig
from penspin_style.env.task import Task
from penspin_style.system.plain_yaml import parse_mapping, read_mapping
from penspin_style.train.compose import (
    FOLDER,
    UsageError,
    compose_train,
    nearest,
    saved_overrides,
    typed_tasks,
)

_OWN = "search."
_TAKEN = ("task", "sim", "seed")


def compose_search(
    overrides: Sequence[str], method: str | None = None
) -> tuple[TrainConfig, SearchConfig, type[Task[Any]], str]:
    """Return (configuration of task and simulation, of the search, task class, both as YAML).

    Raises:
        UsageError: an override is invalid, or sets what a search does not have.
    """
    own = [word.removeprefix(_OWN) for word in overrides if word.startswith(_OWN)]
    rest = [word for word in overrides if not word.startswith(_OWN)]
    _check_taken(rest, "a search takes task=NAME, task.KEY, sim.KEY, search.KEY and seed")
    if not typed_tasks(rest):
        raise UsageError("say for which task: task=NAME")
    file = FOLDER / "search" / f"{pathlib.PurePath(typed_tasks(rest)[0]).name}.yaml"
    saved = saved_overrides(file) if file.is_file() else []
    cfg, task, text = compose_train(rest, saved)
    given = (read_mapping(file).get("search") or {}) if file.is_file() else {}
    search = _search(given, [*own, *([f"method={method}"] if method else [])])
    said = parse_mapping(text)
    common = {"task_name": said["task_name"], "task": said["task"], "seed": cfg.seed}
    common["search"] = dataclasses.asdict(search)
    return cfg, search, task, OmegaConf.to_yaml(OmegaConf.create(common))


def compose_demos(task: str, overrides: Sequence[str]) -> tuple[TrainConfig, type[Task[Any]], str]:
    """Return (configuration of task and simulation, task class, both as YAML) of demonstrations.

    Raises:
        UsageError: an override is invalid, or sets what demonstrations do not have.
    """
    if "=" in task:
        raise UsageError(f"{task!r}: say first for which task, as in penspin demos aloha_pick")
    says = "demonstrations take task.KEY, sim.KEY and seed"
    if typed_tasks(overrides):
        raise UsageError(f"{typed_tasks(overrides)[0]!r} beside the task {task}: {says}")
    _check_taken(overrides, says)
    cfg, kind, text = compose_train([f"task={task}", *overrides], [])
    said = parse_mapping(text)
    common = {"task_name": said["task_name"], "task": said["task"], "seed": cfg.seed}
    return cfg, kind, OmegaConf.to_yaml(OmegaConf.create(common))


def _check_taken(overrides: Sequence[str], says: str) -> None:
    for word in overrides:
        if "=" in word and word.partition("=")[0].partition(".")[0] not in _TAKEN:
            raise UsageError(f"{word!r}: {says}")


def _search(given: dict[str, Any], own: Sequence[str]) -> SearchConfig:
    """Return the search's configuration: a file's, then KEY=VALUE of the command line."""
    names = [f.name for f in dataclasses.fields(SearchConfig)]
    for word in own:
        key = word.partition("=")[0].partition(".")[0]
        if "=" not in word:
            raise UsageError(f"'{_OWN}{word}' is not an override; write KEY=VALUE")
        if key not in names:
            raise UsageError(f"unknown key '{_OWN}{key}'{nearest(key, names)}")
    try:
        schema = OmegaConf.structured(SearchConfig)
        merged = OmegaConf.merge(schema, given, OmegaConf.from_dotlist(list(own)))
        search = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{_OWN}{error.full_key or ''}: {reason}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    assert isinstance(search, SearchConfig)
    return search
