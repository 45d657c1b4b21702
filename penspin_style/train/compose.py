"""From overrides of the command line to a checked configuration, through Hydra.

Whatever is wrong with the overrides comes out as one `UsageError` line that names the offender,
what is legal and the nearest match.
"""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Container, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from penspin_style.algo.registry import algorithm_names, find_algorithm, own_names
from penspin_style.config import TrainConfig
from penspin_style.env.contract import place
from penspin_style.env.frozen_policy import pinned
from penspin_style.env.task import Task, task_name
from penspin_style.env.user_function import load_function
from penspin_style.system.plain_yaml import parse_mapping, read_mapping
from penspin_style.train.collection import check as check_collection
from penspin_style.train.find_task import (
    UsageError,
    current_folder_searched,
    find_task,
    task_names,
)
from penspin_style.train.keys import changed_task, keys_of, leaves, nearest

FOLDER = (pathlib.Path(__file__).parents[1] / "cfg").resolve()
_EVALUATED = "eval."
"""Before a key of the task: its value in evaluations alone."""
CHOICES = ("ablation", "recipe", "student")
"""Groups of named changes: the keys that `cfg/<group>/<name>.yaml` sets, for `<group>=<name>`."""
_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*|")
"""Strings that need no quotation marks."""
_KEY = re.compile(r"[\w-]+(\.[\w-]+)*")
"""What a file may call a key: no more of Hydra's grammar."""
_NOT_TEXT = ("null", "true", "false", "nan", "inf")
_FORMER_KEYS = {"algo.holdout": "algo.absent_object", "algo.memory": "algo.replay_capacity"}
_FORMER_VALUES = {"algo.network=pictures": "images"}
"""What older files and command lines say -> what it is called now."""
_ODD_REASONS = {
    "is not a ListConfig, list or tuple": "a list is written [a,b]",
    "is not Optional": "the value must not be null",
}


def check_installed() -> None:
    """Refuse to go on without what a wheel or a checkout holds.

    Raises:
        UsageError: names the folder that is missing.
    """
    if not FOLDER.is_dir():
        raise UsageError(f"{FOLDER} is missing: this installation is not whole, install it again")


def compose_train(
    overrides: Sequence[str], saved: Sequence[str] = (), trusted: Sequence[str] = ()
) -> tuple[TrainConfig, type[Task[Any]], str]:
    """Return (the checked configuration, the task class, the resolved YAML) of overrides.

    saved: overrides that come before these from a file, see `saved_overrides`. They name a
        registered task; another module is imported only if `overrides` have the same `task=`, or it
        is `trusted`.

    Raises:
        UsageError: unknown task, choice, key or value; a choice that is not for the task; an
            installation that is not whole.
    """
    check_installed()
    typed = _parse(overrides)
    parsed = [*_parse(saved), *typed]
    name = _chosen("task", parsed)
    name = _default_task() if name is None else name
    task = find_task(name, is_typed=_chosen("task", typed) is not None or name in trusted)
    algo = _chosen("algo", parsed)
    if algo is not None and algo not in (known := algorithm_names()):
        raise UsageError(f"algo={algo}: there is no such algorithm{nearest(algo, known)}")
    _register(name, task, algo)
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        try:
            defaults = _defaults(name, task, algo)
            overrides, saved = (_renamed(part, defaults) for part in (overrides, saved))
            typed = _parse(overrides)
            saved = _still_said(saved, typed)
            parsed = [*_parse(saved), *typed]
            _check_choices(parsed, name, algo, defaults)
            _check_keys(parsed, defaults)
            _check_functions(task, saved, typed)
            words = [*saved, *(_as_typed(o, defaults) for o in typed)]
            # what evaluations have otherwise is in no schema until it is said
            cfg = compose("train", [f"++{w}" if w.startswith(_EVALUATED) else w for w in words])
            _check_numbers(cfg)
            _pin_policies(cfg, task)
            checked: Any = OmegaConf.to_object(cfg)
            check_collection(checked)
            changed_task(checked.task, checked.eval.task, "eval")
            # what ${...} stands for here is kept, not the question: it is read elsewhere
            text = OmegaConf.to_yaml(cfg, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(_one_line(error)) from error
        except ValueError as error:
            raise UsageError(str(error)) from error
    assert isinstance(checked, TrainConfig)
    return checked, task, f"task_name: {task_name(task)}\n{text}"


def typed(overrides: Sequence[str], key: str) -> str:
    """Return the value that overrides give a key, the last one; empty if none do."""
    values = [str(o.value()) for o in _parse(overrides) if o.key_or_group == key]
    return values[-1] if values else ""


def typed_tasks(overrides: Sequence[str]) -> list[str]:
    """Return the tasks that overrides of the command line name."""
    return [word.removeprefix("task=") for word in overrides if word.startswith("task=")]


def _chosen(group: str, parsed: list[Override]) -> str | None:
    """Return what the overrides choose of a group, None if nothing."""
    named = [str(o.value()) for o in parsed if o.key_or_group == group]
    if len(set(named)) > 1:
        raise UsageError(f"{group}={named[1]}: the {group} is {named[0]} already")
    return named[0] if named else None


def _check_functions(task: type[Task[Any]], saved: Sequence[str], typed: list[Override]) -> None:
    """Check the functions that configurations name: typed ones are imported, a file's refused.

    Raises:
        UsageError: a file names one that the user does not name too; see `load_function`.
    """
    said = {o.key_or_group: str(o.value() or "") for o in typed}
    filed = {o.key_or_group: str(o.value() or "") for o in _parse(saved)}
    for key in (f"{part}task.{name}" for name in task.functions for part in ("", _EVALUATED)):
        if filed.get(key) and key not in said:
            raise UsageError(
                f"a file names the function {filed[key]!r}: if you trust that module, say "
                f"{key}={filed[key]} yourself, else {key}=''"
            )
        if said.get(key):
            try:
                with current_folder_searched():
                    load_function(key, said[key])
            except ValueError as error:
                raise UsageError(str(error)) from error


def saved_overrides(config: pathlib.Path, text: str | None = None) -> list[str]:
    """Return overrides that reproduce a run's saved task and algorithm configuration.

    Only what `task`, `algo`, `sim` and `eval` set counts, as plain values: nothing in the file
    chooses other files to compose it from (Hydra's `defaults`), a class (`_target_`), or looks
    anything up (`${...}`).

    config: the file; text: what it holds, if it has been read.

    Raises:
        UsageError: the file is missing or not a run's configuration.
    """
    try:
        saved = read_mapping(config) if text is None else parse_mapping(text)
    except ValueError as error:
        raise UsageError(f"{config} is not readable as a run's configuration: {error}") from error
    if not isinstance(saved.get("task_name"), str):
        raise UsageError(f"{config} names no task: it is not the configuration of a run")
    groups = {group: saved.get(group) or {} for group in ("task", "algo", "sim", "eval")}
    if odd := [group for group, value in groups.items() if not isinstance(value, dict)]:
        raise UsageError(f"{config}: {odd[0]} must be a mapping")
    said = [leaf for group in groups for leaf in leaves(groups[group], group) if groups[group]]
    said = [leaf for leaf in said if leaf != (f"{_EVALUATED}task", {})]
    for key, value in (("task_name", saved["task_name"]), *said):
        if not _KEY.fullmatch(key):
            raise UsageError(f"{config}: {key!r} is not the name of a key")
        if "${" in str(value):
            raise UsageError(f"{config}: {key} is {value!r}: write the value, not where it stands")
    overrides = [assignment("task", saved["task_name"])]
    overrides += [assignment("algo", groups["algo"].get("name", "ppo"))]
    return overrides + [assignment(key, value) for key, value in said]


def assignment(key: str, value: Any) -> str:
    """Return the override that sets a key to a plain value, whatever characters that has."""
    return f"{key}={_literal(value)}"


def differences(saved: str, resolved: str) -> dict[str, tuple[str, str]]:
    """Return in which keys two configurations differ: key -> (value in the first, in the second).

    Values are written as after KEY=, or "absent".
    """
    before, now = (dict(leaves(parse_mapping(text))) for text in (saved, resolved))

    def written(values: dict[str, Any], key: str) -> str:
        return _literal(values[key]) if key in values else "absent"

    before = dict(_current(key, value, now) for key, value in before.items())
    # nothing set is nothing said: older files do not even name it
    before, now = ({k: v for k, v in each.items() if v != {}} for each in (before, now))
    return {
        key: (written(before, key), written(now, key))
        for key in {**before, **now}
        if key not in before or key not in now or before[key] != now[key]
    }


def _current(key: str, value: Any, legal: Container[str]) -> tuple[str, Any]:
    """Return key and value as they are called now; a key that is legal is no former one."""
    key = key if key in legal else _FORMER_KEYS.get(key, key)
    return key, _FORMER_VALUES.get(f"{key}={value}", value)


def _renamed(overrides: Sequence[str], defaults: DictConfig) -> list[str]:
    """Return overrides with former names replaced."""
    legal = _legal(defaults)
    pairs = (override.partition("=") for override in overrides)
    return ["=".join(_current(key, value, legal)) for key, _, value in pairs]


def _still_said(saved: Sequence[str], typed: list[Override]) -> list[str]:
    """Return saved overrides without what evaluations had otherwise of a key that is typed now."""
    said = tuple(f"{_EVALUATED}{o.key_or_group}{end}" for o in typed for end in ("=", "."))
    return [word for word in saved if not word.startswith(said)]


def _literal(value: Any) -> str:
    """Return the value as it is written after KEY=."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(_literal(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and (value in _NOT_TEXT or not _PLAIN.fullmatch(value)):
        # in Hydra's quotation marks a backslash means itself, except before one of them
        return "'" + re.sub(r"(\\*)(?='|$)", r"\1\1", value).replace("'", r"\'") + "'"
    return str(value)


def _default_task() -> str:
    raw: Any = OmegaConf.load(FOLDER / "train.yaml")
    return next(
        str(d["task"]) for d in raw["defaults"] if isinstance(d, DictConfig) and "task" in d
    )


def _register(name: str, task: type[Task[Any]], algo: str | None = None) -> None:
    """Give Hydra the schemas of a task and of the algorithms.

    Those of other tasks are taken away: each composition copies the whole store.
    """
    store = ConfigStore.instance()
    for group in ("task", "task_schema"):
        store.repo.pop(group, None)
    if "train_schema.yaml" not in store.repo:
        store.store(name="train_schema", node=TrainConfig)
    own = own_names()  # all of them, for a task may begin with any
    for one in {*own, *([algo] if algo else [])}:
        if one in own and f"{one}.yaml" in store.repo.get("algo", {}):
            continue
        try:
            store.store(group="algo", name=one, node=find_algorithm(one).Config)
        except ValueError as error:
            raise UsageError(str(error)) from error
    try:
        store.store(group="task_schema", name=name, node=task.Config)
        if not (FOLDER / "task" / f"{name}.yaml").exists():  # a task of the user's own
            store.store(group="task", name=name, node=task.Config)
    except (OmegaConfBaseException, ValueError) as error:
        raise UsageError(f"task={name}: {place(task.Config)}: {_one_line(error)}") from error


@functools.lru_cache(maxsize=64)
def _defaults(name: str, task: type[Task[Any]], algo: str | None) -> DictConfig:
    """Return the configuration of a registered task and an algorithm before any override.

    task: its class; only that the same name may be another task later.
    """
    defaults = compose("train", [f"task={name}", *([f"algo={algo}"] if algo else [])])
    OmegaConf.set_readonly(defaults, True)  # it is kept
    return defaults


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        word = _unparsable(overrides)
        raise UsageError(f"{word!r} is not an override; write KEY=VALUE{_quoted(word)}") from error
    for override in parsed:
        word = str(override.input_line)
        if override.is_add() or override.is_delete() or override.is_force_add():
            raise UsageError(f"{word!r}: keys can be set, not added or deleted; write KEY=VALUE")
        if override.is_sweep_override():
            raise UsageError(f"{word!r}: one value per run; lists are written [a,b]{_quoted(word)}")
    return parsed


def _quoted(word: str) -> str:
    """Return how a word is written so that every character of its value counts, empty if none is.

    The double quotation marks are the shell's, which takes the inner ones away otherwise.
    """
    key, _, value = word.partition("=")
    if not _KEY.fullmatch(key) or not value or value.startswith("="):
        return ""
    shown = re.sub(r'(["$`\\])', r"\\\1", _literal(value))
    return f'; a text of such characters is quoted: "{key}={shown}"'


def _as_typed(override: Override, defaults: DictConfig) -> str:
    """Return the word of an override, where a text is wanted with the very text that was typed.

    Hydra reads 1e45678 as infinity and 1.10 as 1.1 before anybody knows that it is a name.
    """
    word, value = str(override.input_line), override.value()
    key = override.key_or_group.removeprefix(_EVALUATED)
    node: Any = OmegaConf.select(defaults, key, throw_on_missing=False)
    if isinstance(node, str) and isinstance(value, bool | int | float):
        return f"{override.key_or_group}={_literal(word.partition('=')[2].strip())}"
    return word


def _unparsable(overrides: Sequence[str]) -> str:
    """Return the first word that Hydra's grammar refuses."""
    for word in overrides:
        try:
            OverridesParser.create().parse_override(word)
        except HydraException:
            return word
    return " ".join(overrides)


def _check_choices(
    parsed: list[Override], task: str, algo: str | None, defaults: DictConfig
) -> None:
    """Refuse named changes that are unknown, or that set what task and algorithm do not have.

    Raises:
        UsageError: names the tasks that they are for.
    """
    pair = f"task={task}" + (f" algo={algo}" if algo else "")
    for group in CHOICES:
        name = _chosen(group, parsed)
        if name is None:
            continue
        known = {file.stem for file in (FOLDER / group).glob("*.yaml")}
        if name not in known:
            raise UsageError(f"{group}={name}: there is no such {group}{nearest(name, known)}")
        changes = keys_of(compose(f"{group}/{name}"))
        if missing := sorted(changes - _legal(defaults)):
            takers = ((t, _taking(t, f"{group}={name}", changes)) for t in task_names())
            others = [f"task={t}{f' algo={a}' if t == task else ''}" for t, a in takers if a]
            raise UsageError(
                f"{group}={name} sets {missing[0]}, which {pair} does not have; it is for "
                f"{' or '.join(others)}"
            )


def _taking(task: str, choice: str, changes: set[str]) -> str:
    """Return the algorithm that a task begins with, empty if it does not take a choice with it.

    Taken is one whose keys, `changes`, are there and whose values are legal.
    """
    keys = [key.split(".") for key in changes if key.startswith("task.")]
    own = {key[1] for key in keys}
    rewarded = {key[2] for key in keys if key[1] == "reward"}
    try:
        found = find_task(task)
        # known without composing anything
        if not own <= {field.name for field in dataclasses.fields(found.Config)}:
            return ""
        if rewarded and not rewarded <= found.Config().reward.keys():
            return ""
        _register(task, found)
    except UsageError:  # another package's, which cannot be imported
        return ""
    defaults = compose("train", [f"task={task}"])
    if not changes <= _legal(defaults):
        return ""
    try:
        OmegaConf.to_object(compose("train", [f"task={task}", choice]))
    except ValueError:
        return ""
    return str(defaults.algo.name)


def _check_keys(parsed: list[Override], defaults: DictConfig) -> None:
    legal = {"task", "algo", *CHOICES} | _legal(defaults)
    nodes = {".".join(path.split(".")[:i]) for path in legal for i in range(1, path.count(".") + 1)}
    for override in parsed:
        key = override.key_or_group
        if key in nodes - {"task", "algo"}:
            raise UsageError(
                f"{key} is a group; set one of its keys, for example {key}.{_child(key, legal)}"
            )
        if key not in legal:
            raise UsageError(f"unknown key {key!r}{nearest(key, legal)}")


def _check_numbers(cfg: DictConfig) -> None:
    """Refuse what parses as a number but is invalid as one: NaN, infinity, more than 64 bits.

    A comparison with NaN is false, so range checks further on would let it through.
    """
    for key, value in leaves(cfg):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{key} must be finite, got {number}")
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UsageError(f"{key} must be below 2**63, got {number}")


def _pin_policies(cfg: DictConfig, task: type[Task[Any]]) -> None:
    """Add to the path of each policy that acts in the task what it is now."""
    for key in task.policies:
        for part in (cfg.task, *([cfg.eval.task] if key in cfg.eval.task else [])):
            if part[key]:
                part[key] = pinned(f"task.{key}", part[key])


def _child(group: str, legal: set[str]) -> str:
    return min(path.removeprefix(f"{group}.") for path in legal if path.startswith(f"{group}."))


def _legal(defaults: DictConfig) -> set[str]:
    """Return the keys that can be set: those that are there, the task's for evaluations too."""
    keys = keys_of(defaults) - {f"{_EVALUATED}task"}
    return keys | {f"{_EVALUATED}{key}" for key in keys if key.startswith("task.")}


def _one_line(error: Exception) -> str:
    """Return the reason in one line: Hydra wraps what OmegaConf found, which says more."""
    reason = error.__cause__ or error
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    lines = [line for line in lines if not line.endswith("raised while composing config:")]
    text = lines[0] if lines else type(error).__name__
    key = next((v for k, _, v in (line.partition(": ") for line in lines) if k == "full_key"), "")
    for odd, plain in _ODD_REASONS.items():
        if odd in text:
            text = plain
    return f"{key}: {text}" if key and key not in text else text
