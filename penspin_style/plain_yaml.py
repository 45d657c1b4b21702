"""YAML that somebody else wrote, as plain values.

A file has one meaning and an end: each key once, no aliases (ten lines of them stand for billions
of values), no tags, nothing nested without end. What `${...}` in a text stands for is not looked
up: it would let the file read this computer's environment.
"""

import pathlib
import re
from typing import Any

import yaml

from penspin_style import storage

MAX_BYTES = 2**17
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
"""Numbers to OmegaConf and to people, but texts to YAML 1.1."""


def read_mapping(path: pathlib.Path) -> dict[str, Any]:
    """Return the mapping that a file holds.

    Raises:
        ValueError: not readable, or as `parse_mapping`; names the file.
    """
    try:
        return parse_mapping(storage.read_file(path, MAX_BYTES).decode())
    except (OSError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ValueError(f"{path} is not readable: {what}") from error


def parse_mapping(text: str) -> dict[str, Any]:
    """Return the mapping that a text holds: texts, numbers, booleans, null, lists and mappings.

    Raises:
        ValueError: not YAML, no mapping, larger than `MAX_BYTES`, or anything that the module's
            docstring excludes; in one line.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    try:
        value = yaml.load(text, _Loader)
        _check_plain(value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # PyYAML lets what its constructors raise of a value that does not fit its tag through
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    if not isinstance(value, dict):
        raise ValueError(f"it must be a mapping, it is {type(value).__name__}")
    return value


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ValueError(f"line {mark.line + 1} has an alias (*NAME): write out what it means")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key.value, str):
                raise ValueError(f"line {line} has a key that is not a text")
            if key.value in names:
                raise ValueError(f"line {line} has the key {key.value!r} for the second time")
            names.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not a text")
            _check_plain(item)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item)
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise ValueError(f"it holds a {type(value).__name__}, {value!r:.40}")
