"""Who may import whom, and the rules of the house that no linter knows.

A room is a package or module of `penspin_style`, or one of `tasks` and `real`; modules that may
import more, or less, than their package are rooms of their own. Imports inside functions count, and
so do those for types only.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# may be used anywhere
_FILES = {"storage", "terminal", "plain_yaml", "tensors"}
FLOOR = {"penspin_style", "features", "config", "rotation", "interrupt"} | _FILES
ENV = FLOOR | {"sim", "render", "env"}
NETS = {"penspin_style", "features", "storage", "tensors", "rotation", "nets"}
LEARN = NETS | {"config", "algo"}
TOP = (
    ENV
    | LEARN
    | {"checkpoint", "metrics", "evaluate", "compose", "deploy", "run", "run_folder", "run_faults"}
)
# needs no torch
ROBOT = {
    "penspin_style",
    "features",
    "rotation",
    "terminal",
    "interrupt",
    "data",
    "data.episode",
    "deploy.bundle",
}
WORLD = TOP | ROBOT | {"source", "film", "tasks", "real"}  # what simulates, or learns, beside it

EPISODE = ("data.layout", "data.guard", "data.stage", "data.recorder", "data.episode")

# room -> rooms that it may import, itself aside
LAYERS: dict[str, set[str]] = {
    "penspin_style": set(),
    "features": {"storage"},
    "config": set(),
    "rotation": set(),
    "storage": set(),
    "plain_yaml": {"storage"},
    "tensors": {"storage"},
    "terminal": set(),
    "interrupt": set(),
    "sim": FLOOR,
    "render": FLOOR | {"sim"},
    "env": ENV,
    "nets": NETS,
    "algo": LEARN | {"checkpoint", "data"},
    "data.layout": {"features"},
    "data.guard": {"storage", "data.layout"},
    "data.stage": {"storage"},
    "data.recorder": {"features", "storage", "data.layout", "data.stage"},
    "data.episode": {"features", "storage", "data.layout", "data.guard", "data.recorder"},
    "data": {"features", "storage", "terminal", *EPISODE},
    "deploy.onnx_scan": set(),
    "deploy.session": {"features", "deploy.onnx_scan"},
    "deploy.bundle": {"features", "storage", "deploy.onnx_scan", "deploy.session"},
    "deploy": NETS | {"deploy.bundle", "deploy.onnx_scan", "deploy.session"},
    "checkpoint": {"penspin_style", "storage", "tensors"},
    "metrics": {"penspin_style", "storage", "interrupt"},
    "evaluate": ENV,
    "compose": ENV,
    "run_faults": {"storage", "env", "sim"},
    "run_folder": {"storage", "compose"},
    "run": TOP,
    "film": ENV | {"evaluate"},
    "report": {"evaluate"},
    "source": TOP | {"deploy.bundle", "deploy.onnx_scan"},
    "bench": TOP | {"deploy.bundle", "deploy.onnx_scan"},
    "bench_render": TOP | {"bench"},
    "doctor": TOP,
    "verbs": TOP
    | {
        "bench",
        "bench_render",
        "data",
        "doctor",
        "film",
        "report",
        "source",
        "task_error",
        "deploy.bundle",
        "deploy.onnx_scan",
    },
    "task_error": set(),
    "data_verbs": {"features", "storage", "terminal", "compose", "data", *EPISODE, "deploy.bundle"},
    "__main__": TOP | {"verbs", "data_verbs", "task_error", "terminal"},
    "tasks": FLOOR | {"sim", "env"},
    "real": ROBOT,
    "real.twin": WORLD,
    "real.fleet": WORLD | {"real.twin"},
    "real.judge": WORLD | {"real.fleet", "real.twin"},
    "real.sim_robot": WORLD | {"real.fleet", "real.twin"},
    "real.hand_node": WORLD | {"real.twin", "real.sim_robot"},
    "real.control": WORLD | {"real.twin", "real.sim_robot"},
    "real.replay": WORLD | {"real.control", "real.demonstrate"},
    "real.demonstrate": WORLD | {"real.twin", "real.fleet"},
    "real.finetune": WORLD | {"real.sim_robot"},
    "real.act": WORLD | {"real.sim_robot", "real.finetune"},
    "real.robot_controller": ROBOT | {"real", "real.control", "real.replay", "real.command"},
    "real.command": WORLD
    | {
        "real.twin",
        "real.judge",
        "real.sim_robot",
        "real.control",
        "real.replay",
        "real.finetune",
        "real.act",
    },
}
FINER = {name for name in LAYERS if "." in name}  # modules that are rooms themselves
# room -> packages from outside that it must do without
WITHOUT = {
    "penspin_style": {"torch", "warp", "mujoco"},
    "features": {"torch", "numpy", "mujoco"},
    "config": {"torch", "mujoco"},
    "storage": {"torch"},
    "plain_yaml": {"torch", "mujoco"},
    "tensors": {"mujoco"},
    "interrupt": {"torch", "numpy"},
    "nets": {"mujoco", "mujoco_warp", "warp", "torchrl"},
    "algo": {"mujoco", "mujoco_warp", "warp"},
    "deploy.bundle": {"torch", "tensordict", "torchrl", "mujoco", "onnx"},
    "deploy.onnx_scan": {"torch", "onnx"},
    "deploy.session": {"torch", "tensordict", "torchrl", "mujoco", "onnx"},
    **{name: {"torch", "mujoco"} for name in EPISODE},
    "tasks": {"torchrl", "warp", "mujoco_warp"},
    "real": {"torch", "tensordict", "torchrl", "mujoco", "mujoco_warp", "warp"},
    "real.robot_controller": {"torch", "tensordict", "torchrl", "mujoco", "mujoco_warp", "warp"},
}


def sources(*roots):
    for root in roots:
        yield from sorted((ROOT / root).rglob("*.py"))


def module_name(path, root=ROOT):
    """Dotted name of a file, of the package for `__init__.py`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """Room of a dotted module; None if it is from outside."""
    first, *rest = module.split(".")
    if first in ("tasks", "real", "scripts", "tests"):
        finer = ".".join([first, *rest[:1]])
        return finer if finer in FINER else first
    if first != "penspin_style":
        return None
    if ".".join(rest[:2]) in FINER:
        return ".".join(rest[:2])
    return rest[0] if rest else "penspin_style"


def imported(text, module, *, is_package=False, known=()):
    """Dotted names that the source imports; for `from package import module` that of the module.

    Calls of import_module and __import__ with a constant count as well.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")
                up = up[: len(up) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in known else base
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0] if node.args else None
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield f"importlib:{first.value}"


def forbidden(text, module, *, is_package=False, known=()):
    """Edges of one source that the tables do not allow, as sentences."""
    here = room(module)
    if here not in LAYERS:
        return [f"{module}: the room {here!r} is not in the table of tests/test_layers.py"]
    found = []
    for name in imported(text, module, is_package=is_package, known=known):
        by_name = name.startswith("importlib:")
        name = name.removeprefix("importlib:")
        there = room(name)
        if there is None:
            if name.split(".")[0] in WITHOUT.get(here, ()):
                found.append(f"{module} imports {name}, which {here} must do without")
        elif by_name and here == "compose" and there == "tasks":
            continue  # the command line finds tasks by name
        elif there != here and there not in LAYERS[here]:
            found.append(f"{module} imports {name}: {here} may not import {there}")
    return found


ALL = {module_name(path): path for path in sources("penspin_style", "tasks", "real")}


# Layers.


def test_no_room_imports_what_is_above_it():
    found = []
    for module, path in ALL.items():
        is_package = path.name == "__init__.py"
        found += forbidden(path.read_text(), module, is_package=is_package, known=ALL)
    assert found == []


def test_the_table_has_no_cycles():
    seen: dict[str, bool] = {}

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in seen:
            for other in LAYERS[name] - {name}:
                visit(other, [*path, name])
            seen[name] = True

    for name in LAYERS:
        visit(name, [])


def test_every_module_belongs_to_a_room_of_the_table():
    assert {room(module) for module in ALL} <= set(LAYERS)
    assert len(ALL) > 30


def test_the_library_never_names_tasks_real_scripts_or_tests():
    for name, allowed in LAYERS.items():
        if name.split(".")[0] not in ("tasks", "real"):
            assert not {other.split(".")[0] for other in allowed} & {"tasks", "real"}
        assert not allowed & {"scripts", "tests"}


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("penspin_style.sim.batch_sim", "from penspin_style.env.env import Env", "sim may not"),
        ("penspin_style.algo.sac", "import penspin_style.env.env", "algo may not import env"),
        ("penspin_style.algo.sac", "from penspin_style import sim", "algo may not import sim"),
        ("penspin_style.algo.sac", "import mujoco", "algo must do without"),
        ("penspin_style.nets.mlp", "from penspin_style.algo import ppo", "nets may not"),
        ("penspin_style.nets.mlp", "def f():\n    from torchrl.envs import EnvBase", "without"),
        ("penspin_style.env.env", "import tasks", "env may not import tasks"),
        ("penspin_style.run", "from tasks.robots import panda", "run may not import tasks"),
        ("penspin_style.run", "import_module('tasks')", "run may not import tasks"),
        ("penspin_style.verbs", "import importlib\nimportlib.import_module('real.x')", "real"),
        ("penspin_style.env.env", "from ..algo import ppo", "env may not import algo"),
        ("penspin_style.env.env", "from .. import run", "env may not import run"),
        ("penspin_style.features", "import torch.nn as nn", "features must do without"),
        ("penspin_style.deploy.bundle", "import torch", "deploy.bundle must do without"),
        ("penspin_style.deploy.bundle", "from penspin_style.nets import mlp", "may not"),
        ("penspin_style.deploy.bundle", "from . import export", "may not import deploy"),
        (
            "penspin_style.checkpoint",
            "if 1:\n  from penspin_style import run",
            "may not import run",
        ),
        ("tasks.spin", "from penspin_style.algo.ppo import PPO", "tasks may not import algo"),
        ("tasks.spin", "import real.hand", "tasks may not import real"),
        ("real.hand", "from penspin_style.sim.sim import Sim", "real may not import sim"),
        ("real.hand", "def f():\n    import torch", "real must do without"),
        ("real.hand", "from real.sim_robot import SimRobot", "real may not import real.sim_robot"),
        ("real.hand", "import real.replay", "real may not import real.replay"),
        ("penspin_style.verbs", "from real import command", "verbs may not import real.command"),
        ("penspin_style.attic.x", "import math", "'attic' is not in the table"),
    ],
)
def test_a_planted_violation_is_found(module, text, complaint):
    (found,) = forbidden(text, module, known=ALL)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("penspin_style.env.env", "from penspin_style.sim import sim\nfrom . import task"),
        ("penspin_style.algo.ppo", "from penspin_style.nets.policy import Gaussian\nimport torch"),
        ("penspin_style.checkpoint", "from penspin_style import __version__, storage"),
        ("penspin_style.compose", "import importlib\nimportlib.import_module('tasks')"),
        ("penspin_style.deploy.export", "import torch\nfrom penspin_style.deploy import bundle"),
        ("tasks.spin", "from tasks.robots import panda\nimport mujoco"),
        ("real.hand", "from penspin_style.deploy.bundle import Bundle"),
        ("real.sim_robot", "import torch\nfrom penspin_style.env import task"),
        ("real.finetune", "from real.sim_robot import SimRobot"),
    ],
)
def test_an_allowed_import_is_not(module, text):
    assert forbidden(text, module, known=ALL) == []


@pytest.mark.parametrize(
    "module",
    [
        "penspin_style",
        "penspin_style.deploy.bundle",
        "real.command",
        *(module for module in ALL if room(module) == "real"),
    ],
)
def test_a_robots_computer_needs_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'mujoco', 'warp'}} & set(sys.modules)))"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"


# House rules.

MAX_FILE, MAX_FUNCTION = 500, 80  # lines
BAD_NAMES = {"utils", "util", "helper", "helpers", "manager", "managers", "misc", "common"}


def complaints(text, name):
    """What a source of the library does against the rules, as sentences."""
    lines = text.count("\n")
    found = [f"{name} has {lines} lines"] if lines > MAX_FILE else []
    tree = ast.parse(text)
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{where} bare except")
        elif isinstance(node, ast.Attribute | ast.Name | ast.alias):
            word = getattr(node, "attr", getattr(node, "id", getattr(node, "name", "")))
            if word == "nan_to_num":
                found.append(f"{where} nan_to_num hides a fault")
            if word in ("pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"):
                found.append(f"{where} {word} runs code of whoever wrote the file")
            owner = getattr(getattr(node, "value", None), "id", "")
            if owner == "torch" and word in ("load", "save"):
                found.append(f"{where} torch.{word} is pickle")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{where} {node.name} has {length} lines")
    return found + [f"{name}:{line} {what} has no docstring" for line, what in undocumented(tree)]


def undocumented(tree, prefix=""):
    """Public classes, functions and methods without a docstring."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield node.lineno, f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{node.name}.")


def test_the_library_keeps_the_rules_of_the_house():
    found = []
    for path in ALL.values():
        found += complaints(path.read_text(), path.relative_to(ROOT).as_posix())
    assert found == []


def test_no_file_is_named_after_nothing():
    files = [*sources("penspin_style", "tasks", "real", "tests"), *(ROOT / "scripts").glob("*")]
    bad = [path for path in files if {*path.stem.split("_"), path.stem} & BAD_NAMES]
    assert bad == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("try:\n    x = 1\nexcept:\n    pass\n", "bare except"),
        ("import torch\nx = torch.nan_to_num(y)\n", "nan_to_num"),
        ("import numpy as np\nx = np.nan_to_num(y)\n", "nan_to_num"),
        ("from torch import nan_to_num\n", "nan_to_num"),
        ("import torch\nx = torch.load(p)\n", "torch.load"),
        ("import torch\ntorch.save(x, p)\n", "torch.save"),
        ("import pickle\n", "pickle runs code"),
        ("x = 1\n" * 501, "has 501 lines"),
        ('def f():\n    """F."""\n' + "    x = 1\n" * 79, "f has 81 lines"),
        ("def f():\n    return 1\n", "f has no docstring"),
        ("class A:\n    pass\n", "A has no docstring"),
        ('class A:\n    """A."""\n    def f(self):\n        return 1\n', "A.f has no docstring"),
    ],
)
def test_a_planted_breach_is_found(text, complaint):
    (found,) = complaints(text, "x.py")
    assert complaint in found


def test_what_is_private_or_nested_needs_no_docstring():
    text = (
        'def f():\n    """F."""\n    def g():\n        return 1\n    return g\n'
        "def _h():\n    return 1\nclass _A:\n    def f(self):\n        return 1\n"
    )
    assert complaints(text, "x.py") == []
