"""What is found by looking: the modules of a folder, and what installed packages register."""

import functools
import importlib.util
import pathlib
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType


def entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Return what installed packages register in a group, sorted; none of it is imported.

    They are looked for once for each `sys.path` that there is in a process.
    """
    return _entry_points(group, tuple(sys.path))


@functools.cache
def _entry_points(group: str, _: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    return tuple(sorted(metadata.entry_points(group=group)))


@functools.cache
def named_modules(package: str, binding: str) -> Mapping[str, str]:
    """Return the modules below a package that bind `NAME`, a literal, and `binding`: by that name.

    None of them is imported. Sorted by name. A folder is read once in a process.
    """
    spec = importlib.util.find_spec(package)
    found = {}
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in pathlib.Path(folder).rglob("*.py"):
            text = file.read_text()
            name = re.search(r'^NAME = "(\w+)"$', text, re.MULTILINE)
            if name and re.search(rf"^{binding}\b", text, re.MULTILINE):
                parts = file.relative_to(folder).with_suffix("").parts
                found[name[1]] = ".".join((package, *parts))
    return MappingProxyType(dict(sorted(found.items())))
