"""Keys of a configuration, dotted, and a task's with other values of some."""

import difflib
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_MANY = 20
"""Legal names beyond which a message does not list them all."""


def nearest(word: str, legal: Iterable[str]) -> str:
    """Return "; did you mean X?" with the closest legal word, or all of them."""
    names = sorted(legal)
    if close := _closest(word, names):
        return f"; did you mean {close}?"
    if len(names) > _MANY:
        return f"; penspin train --print-config shows all {len(names)}"
    return f"; there are {', '.join(names)}"


def _closest(word: str, names: list[str]) -> str:
    """Return the name that a word seems to mean, empty if none.

    It may be misspelled, lack the groups before its last part, or be initials, as algo.lr for
    algo.learning_rate.
    """
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.8):
        return close[0]
    group, _, leaf = word.rpartition(".")
    leaves = {name: name.rpartition(".")[2] for name in names}
    same = [n for n, end in leaves.items() if leaf and leaf in (end, _initials(end))]
    if not same and not (close := difflib.get_close_matches(word, names, n=1, cutoff=0.5)):
        ends = difflib.get_close_matches(leaf, leaves.values(), n=1, cutoff=0.75)
        same = [name for name, end in leaves.items() if end in ends]
    best = min(same, key=lambda name: (not name.startswith(group), len(name)), default="")
    return best or (close[0] if close else "")


def _initials(name: str) -> str:
    parts = name.split("_")
    return "".join(part[:1] for part in parts) if len(parts) > 1 else name


def keys_of(node: DictConfig) -> set[str]:
    """Return the dotted path of every value below a node."""
    return {path for path, _ in leaves(node)}


def leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted path, value) of every value below a node; lists are values."""
    raw = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if not isinstance(raw, dict) or not raw:
        return [(prefix, raw)] if prefix else []
    out: list[tuple[str, Any]] = []
    for key, value in raw.items():
        out += leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def changed_task(task: Any, changes: dict[str, Any], where: str) -> Any:
    """Return a task's Config with other values of some keys, itself if there are none.

    where: the part of the configuration whose `task` says so.

    Raises:
        ValueError: a key that the task does not have, or a value that is not legal.
    """
    if not changes:
        return task
    schema = OmegaConf.structured(task)
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, changes))
    except OmegaConfBaseException as error:
        near = nearest(str(error.full_key), keys_of(schema)) if error.full_key else ""
        raise ValueError(f"{where}.task: {str(error).splitlines()[0]}{near}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
