"""`penspin tasks`: list the tasks, ours, those of packages and those of the current folder."""

import argparse
import ast
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from penspin_style.env.task import installed_tasks
from penspin_style.system.terminal import one_line, print_json
from penspin_style.train.compose import UsageError
from penspin_style.train.find_task import find_task, task_names
from penspin_style.train.run import EXIT_OK


class _Row(NamedTuple):
    name: str
    origin: str
    summary: str


def run(args: argparse.Namespace) -> int:
    """List the tasks, each with where it comes from and the first line of its module."""
    rows = [*_registered(), *_here(pathlib.Path())]
    if args.json:
        print_json(
            {
                "tasks": {row.name: row.summary for row in rows},
                "origins": {row.name: row.origin for row in rows},
            }
        )
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        for row in rows:
            print(f"{row.name:{widths[0]}}  {row.origin:{widths[1]}}  {row.summary}")
    return EXIT_OK


def _registered() -> Iterator[_Row]:
    """Yield our tasks and those of installed packages; one that is broken says why."""
    entries = installed_tasks()
    for name in dict.fromkeys(task_names()):
        origin = "penspin_style"
        if name in entries:
            package = entries[name].dist
            origin = f"{package.name} {package.version}" if package else entries[name].module
        try:
            summary = _summary(sys.modules[find_task(name).__module__].__doc__)
        except UsageError as error:
            summary = f"broken: {one_line(error)}"
        yield _Row(name, origin, summary)


def _here(folder: pathlib.Path) -> Iterator[_Row]:
    """Yield the tasks of a folder and of the packages in it, by their text: none is imported."""
    packages = sorted(file.parent for file in folder.glob("*/__init__.py"))
    for place in (folder, *packages):
        for file in sorted(place.glob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if not all(part.isidentifier() for part in parts):
                continue
            text = file.read_text(errors="replace")
            if re.search(r"^TASK\b", text, re.MULTILINE):
                yield _Row(".".join(parts), f"./{file.relative_to(folder)}", _text_summary(text))


def _text_summary(text: str) -> str:
    try:
        return _summary(ast.get_docstring(ast.parse(text)))
    except (SyntaxError, ValueError) as error:
        return f"broken: {one_line(error)}"


def _summary(docstring: str | None) -> str:
    return one_line((docstring or "").strip().partition("\n")[0])
