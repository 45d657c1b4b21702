"""`penspin new`: write a task, or an installable project with one, that trains as it is.

The files are those of `penspin_style/templates`, with the names filled in. They hold a cart-pole:
what a task needs, each part once, to be replaced by what is yours.
"""

import argparse
import importlib.util
import keyword
import pathlib
import string

from penspin_style import __version__
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import UsageError
from penspin_style.train.find_task import task_names
from penspin_style.train.run import EXIT_OK

TEMPLATES = pathlib.Path(__file__).parents[1] / "templates"
_FILES = {
    "task": {"$name.py": "task.py", "test_$name.py": "test_task.py"},
    "project": {
        "$name/pyproject.toml": "pyproject.toml",
        "$name/README.md": "README.md",
        "$name/.gitignore": "gitignore",
        "$name/$name/__init__.py": "__init__.py",
        "$name/$name/cartpole.py": "task.py",
        "$name/tests/test_cartpole.py": "test_task.py",
    },
}
"""Kind -> file that is written -> template."""
_SIZE = "total_samples=500000"
"""Trains the cart-pole on each seed that was tried, in less than a minute of one core."""


def run(args: argparse.Namespace) -> int:
    """Write the files and say how to go on."""
    name, root = args.name, pathlib.Path(args.out)
    _check_name(name)
    task = name if args.kind == "task" else f"{name}.cartpole"
    values = {"name": name, "task": task, "size": _SIZE, "version": __version__}
    files = {
        root / string.Template(path).substitute(values): template
        for path, template in _FILES[args.kind].items()
    }
    if there := sorted(str(path) for path in files if path.exists()):
        raise UsageError(f"{there[0]} exists already; choose another name, or --out DIR")
    for above in (each for path in files for each in path.parents):
        if above.exists() and not above.is_dir():
            raise UsageError(f"--out {root}: {above} is no folder")
    for path, template in files.items():
        text = (TEMPLATES / f"{template}.template").read_text()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(string.Template(text).substitute(values))
    folder = root if args.kind == "task" else root / name
    commands = _commands(folder, task)
    if args.json:
        print_json({"files": [str(path) for path in files], "task": task, "commands": commands})
    else:
        print("\n".join(f"wrote {path}" for path in files))
        print("\n".join(("now:", *(f"  {command}" for command in commands))))
    return EXIT_OK


def _commands(folder: pathlib.Path, task: str) -> list[str]:
    """Return what to type next, from the current folder on."""
    policy = f"outputs/{task}/first"
    return [
        *([] if folder == pathlib.Path() else [f"cd {folder}"]),
        f"penspin train task={task} name=first {_SIZE}",
        f"penspin eval {policy} task={task}",
        f"penspin export {policy}",
        f"penspin serve {policy}/policy.onnx",
    ]


def _check_name(name: str) -> None:
    """Refuse a name that Python cannot import, or under which it would import something else.

    Raises:
        UsageError: says what is wrong with it.
    """
    legal = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    if not legal or not name.strip("_"):
        raise UsageError(f"{name!r} is no name of a Python module; letters, digits and _ are")
    if name in task_names():
        raise UsageError(f"there is a task {name} already; choose another name")
    if importlib.util.find_spec(name) is not None and not pathlib.Path(name).exists():
        raise UsageError(f"there is a Python module {name} already; choose another name")
