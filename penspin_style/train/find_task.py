"""Find what the command line and saved configurations name: tasks, and robots.

Importing a module runs it. A task that the user types may be any module, also one in the current
folder; one that a file names must be registered: one of ours, or an installed package's.
"""

import contextlib
import importlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from penspin_style.bridge.playground import (
    PREFIX,
    UnknownEnvironmentError,
    playground_task,
)
from penspin_style.env.contract import ContractError
from penspin_style.env.task import ENTRY_POINTS, Task, installed_tasks, load_task
from penspin_style.train.keys import nearest


class UsageError(ValueError):
    """The overrides are invalid; exit code 2."""


def find_task(name: str, *, is_typed: bool = True) -> type[Task[Any]]:
    """Return a task class by name.

    is_typed: whether the user names it. Then a module is imported, also from the current folder,
        there without a dot, too; a file can only name tasks that are registered.

    Raises:
        UsageError: unknown; names the nearest.
    """
    if name.startswith(PREFIX):
        return _find_playground(name)
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"task={name} is not the name of a task{nearest(name, task_names())}")
    if not is_typed:
        check_registered(name)
    is_module = "." in name or (name not in task_names() and _lies_here(name))
    try:
        with current_folder_searched() if is_typed and is_module else contextlib.nullcontext():
            return load_task(name, is_module=is_module)
    except ContractError as error:
        raise UsageError(f"task={name}: {error}") from error
    except ValueError as error:
        near = nearest(name, task_names()) if str(error).startswith("there is no") else ""
        raise UsageError(f"{error}{near}") from error


def _find_playground(name: str) -> type[Task[Any]]:
    """Return a task of MuJoCo Playground.

    Raises:
        UsageError: the package is not installed, has none of that name, or cannot load it.
    """
    try:
        return playground_task(name.removeprefix(PREFIX))
    except UnknownEnvironmentError as error:
        known = [f"{PREFIX}{one}" for one in error.known]
        raise UsageError(f"task={name}: {error}{nearest(name, known)}") from error
    except (ImportError, ValueError) as error:
        raise UsageError(f"task={name}: {error}") from error


def check_registered(name: object) -> None:
    """Check a task that a file names: importing any other module would run code of its choice.

    Raises:
        UsageError: it is neither one of ours nor an installed package's.
    """
    modules = {entry.module for entry in installed_tasks().values()}
    if not isinstance(name, str) or (name not in modules and name not in task_names()):
        remedy = nearest(str(name), task_names())
        if isinstance(name, str) and ("." in name or _lies_here(name)):
            remedy = (
                f"; if you trust that module, say task={name} yourself, or install its package "
                f"with an entry point of {ENTRY_POINTS}"
            )
        raise UsageError(f"a file names the task {name!r}, which is not registered{remedy}")


def _lies_here(name: str) -> bool:
    """Return whether the current folder holds a module of this name, without a dot."""
    return any(pathlib.Path(path).is_file() for path in (f"{name}.py", f"{name}/__init__.py"))


@contextlib.contextmanager
def current_folder_searched() -> Iterator[None]:
    """Let an import find what lies in the current folder, after everything that is installed."""
    here = os.getcwd()
    if {"", here} & {*sys.path}:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def find_robot(name: str) -> Any:
    """Return the module `tasks/robots/NAME/description.py`, a robot's joints and kinematics.

    Raises:
        UsageError: unknown; names the nearest.
    """
    folder = pathlib.Path(importlib.import_module("tasks").__file__ or "").parent / "robots"
    known = {file.parent.name for file in folder.glob("*/description.py")}
    if name not in known:
        raise UsageError(f"there is no robot {name!r}{nearest(name, known)}")
    return importlib.import_module(f"tasks.robots.{name}.description")


def task_names() -> list[str]:
    """Return the registered tasks: of the `tasks` package, by listing its folder, and installed."""
    return [*importlib.import_module("tasks").task_names(), *installed_tasks()]
