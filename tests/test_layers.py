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
LIGHT = {f"system.{name}" for name in ("arguments", "interrupt", "interval", "plugins", "terminal")}
LIGHT |= {"system.named_function"}
SYSTEM = LIGHT | {"system.plain_yaml", "system.ranks", "system.tensors"}
# may be used anywhere
FLOOR = {"penspin_style", "features", "config", "rotation", "storage"} | SYSTEM
ENV = FLOOR | {"sim", "render", "env"}
# needs neither torch nor the engines' batches
MESHES = {"storage", "system.terminal"}
NETS = {"penspin_style", "config", "features", "storage", "rotation", "nets"}
NETS |= {"system.plugins", "system.ranks", "system.tensors"}
# no torch
RUN_TIME = {"deploy.actions", "deploy.bundle", "deploy.history", "deploy.onnx_scan"}
RUN_TIME |= {"deploy.policy"}
LEARN = NETS | {"algo", "data", "data.episodes", "data.formats"}
TRAIN = ENV | LEARN | RUN_TIME | {"algo.search", "deploy", "train", "env.frozen_policy"}
TRAIN |= {"bridge.playground"}
# needs no torch
ROBOT = {"penspin_style", "features", "rotation", "data.episodes", "real"}
ROBOT |= {"tasks.robots.description"} | LIGHT | RUN_TIME
# what simulates, or learns, beside it
WORLD = TRAIN | ROBOT | {"viewer", "tasks", "tasks.robots"}
REAL = {f"real.{name}" for name in ("drivers", "cameras", "control", "serving")}

# room -> rooms that it may import, itself aside; every one is below those that import it
LAYERS: dict[str, set[str]] = {
    "penspin_style": set(),
    "storage": set(),
    "features": {"storage"},
    "config": set(),
    "rotation": set(),
    "system": set(),
    "system.arguments": set(),
    "system.interrupt": set(),
    "system.interval": set(),
    "system.named_function": set(),
    "system.plain_yaml": {"storage"},
    "system.plugins": set(),
    "system.ranks": set(),
    "system.tensors": {"storage"},
    "system.terminal": set(),
    "meshes": MESHES,
    "bridge.start": set(),
    "bridge.dlpack": {"bridge.start"},
    "bridge": NETS | RUN_TIME | {"bridge.start", "bridge.dlpack"},
    "sim": FLOOR | {"bridge.start", "bridge.dlpack"},
    "bridge.playground_sim": {"bridge.start", "bridge.dlpack", "sim"},
    "bridge.playground": ENV | {"bridge.start", "bridge.playground_sim"},
    "render": FLOOR | {"sim", "bridge.start", "bridge.dlpack"},
    "env": ENV,
    "env.frozen_policy": NETS | RUN_TIME,
    "nets": NETS,
    "data.episodes": {"features", "storage"},
    "data.formats": {"features", "storage", "system.terminal", "data.episodes"},
    "data": {"features", "storage", "data.episodes", "data.formats"}
    | {"system.tensors", "system.terminal", "deploy.actions", "deploy.history"},
    "algo": LEARN,
    # plans are tried in worlds
    "algo.search": ENV | {"data"},
    "pretrain": LEARN | {"train"},
    "deploy.actions": {"features"},
    "deploy.history": {"features"},
    "deploy.onnx_scan": set(),
    "deploy.policy": {"features"},
    "deploy.session": {"features", "deploy.onnx_scan"},
    "deploy.bundle": {"features", "storage", "deploy.actions"}
    | {"deploy.onnx_scan", "deploy.session"},
    "deploy": NETS | RUN_TIME | {"deploy.session"},
    "hub": LEARN | RUN_TIME | {"storage", "features"},
    "train": TRAIN,
    "viewer": ENV | {"meshes", "train", "data", "data.episodes", "data.formats"},
    "bench": TRAIN,
    "cli": TRAIN | {"bench", "hub", "meshes", "pretrain", "viewer"},
    "__main__": FLOOR | {"cli"},
    "tasks": FLOOR
    | {"meshes", "sim", "env", "env.frozen_policy"}
    | {"tasks.robots", "tasks.robots.description"},
    # its own Python and YAML surface of a training
    "tasks.real2sim.training": TRAIN | {"tasks"},
    "tasks.robots": FLOOR | {"sim", "env", "tasks.robots.description"},
    "tasks.robots.description": {"features"},
    "real": ROBOT - {"real"},
    "real.drivers": ROBOT | {"system.plain_yaml"},
    "real.cameras": ROBOT | {"real.drivers", "system.plain_yaml"},
    "real.serving": ROBOT | {"real.cameras"},
    "real.control": ROBOT | {"real.serving"},
    "real.twin": WORLD | {"real.serving", "real.control"},
    "real.drivers.hand_node": WORLD | {"real.drivers", "real.twin"},
    "real.drivers.aloha_node": WORLD | {"real.drivers", "real.twin"},
    "real.control.session": ROBOT | REAL | {"real.twin"},
    "real.control.check": ROBOT | REAL | {"real.control.session"},
    "real.teleop.device": ROBOT | REAL,
    # looks into a twin's world
    "real.teleop.scripted": WORLD | {"real.teleop.device"},
    "real.teleop": ROBOT
    | REAL
    | {"real.control.session", "real.teleop.device", "real.teleop.scripted"},
    "real.replay": WORLD | REAL | {"real.control.session", "real.twin"},
    "real.cli": ROBOT
    | REAL
    | {"storage", "real.control.check", "real.control.session"}
    | {"real.replay", "real.teleop", "real.twin"},
    # trainings: PenSpin's options as overrides
    "real.cli.finetune": TRAIN | ROBOT,
    "real.cli.train_act": {"real.cli.finetune"},
    "real.robot_controller": ROBOT | REAL | {"real.cli", "real.control.session", "real.replay"},
}
# room -> packages from outside that it must do without
WITHOUT = {
    "penspin_style": {"torch", "warp", "mujoco"},
    "features": {"torch", "numpy", "mujoco"},
    "config": {"torch", "mujoco"},
    "storage": {"torch"},
    "system.arguments": {"torch", "numpy"},
    "system.interrupt": {"torch", "numpy"},
    "system.interval": {"torch", "numpy"},
    "system.named_function": {"torch", "numpy"},
    "system.plain_yaml": {"torch", "mujoco"},
    "system.plugins": {"torch", "mujoco"},
    "system.ranks": {"mujoco"},
    "system.tensors": {"mujoco"},
    "system.terminal": {"torch", "numpy"},
    "meshes": {"torch", "warp", "mujoco_warp"},
    "bridge.start": {"torch", "mujoco"},
    "bridge.dlpack": {"mujoco"},
    "nets": {"mujoco", "mujoco_warp", "warp", "torchrl", "jax"},
    "algo": {"mujoco", "mujoco_warp", "warp"},
    "data.episodes": {"torch", "mujoco"},
    **{name: {"torch", "tensordict", "torchrl", "mujoco", "onnx"} for name in RUN_TIME},
    "deploy.session": {"torch", "tensordict", "torchrl", "mujoco", "onnx"},
    "tasks": {"torchrl", "warp", "mujoco_warp"},
    "tasks.robots.description": {"torch", "mujoco"},
    **{
        name: {"torch", "tensordict", "torchrl", "mujoco", "mujoco_warp", "warp"}
        for name in (
            *("real", *REAL, "real.cli", "real.control.session", "real.robot_controller"),
            *("real.control.check", "real.teleop", "real.teleop.device"),
        )
    },
}


def sources(*roots):
    for root in roots:
        yield from sorted((ROOT / root).rglob("*.py"))


def module_name(path, root=ROOT):
    """Dotted name of a file, of the package for `__init__.py`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """Room of a dotted module, the finest that it lies in; None if it is from outside."""
    first, *rest = module.split(".")
    if first in ("scripts", "tests"):
        return first
    if first not in ("penspin_style", "real", "tasks"):
        return None
    if rest[:1] == ["robots"] and rest[-1:] == ["description"]:
        return "tasks.robots.description"
    parts = rest if first == "penspin_style" else [first, *rest]
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in LAYERS:
            return ".".join(parts[:end])
    return parts[0] if parts else first


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
        elif by_name and here in ("env", "train") and there == "tasks":
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
        ("penspin_style.sim.sim", "from tasks.robots import panda", "sim may not import tasks"),
        ("penspin_style.sim.sim", "import_module('tasks')", "sim may not import tasks"),
        ("penspin_style.cli.verb", "import importlib\nimportlib.import_module('real.x')", "real"),
        ("penspin_style.env.env", "from ..algo import ppo", "env may not import algo"),
        ("penspin_style.env.env", "from ..train import run", "env may not import train"),
        ("penspin_style.features", "import torch.nn as nn", "features must do without"),
        ("penspin_style.deploy.bundle", "import torch", "deploy.bundle must do without"),
        ("penspin_style.deploy.bundle", "from penspin_style.nets import mlp", "may not"),
        ("penspin_style.deploy.bundle", "from . import export", "may not import deploy"),
        (
            "penspin_style.train.checkpoint",
            "if 1:\n  from penspin_style.viewer import video",
            "may not import viewer",
        ),
        ("tasks.spin", "from penspin_style.algo.ppo import PPO", "tasks may not import algo"),
        ("tasks.spin", "import real.hand", "tasks may not import real"),
        ("real.hand", "from penspin_style.sim.sim import Sim", "real may not import sim"),
        ("real.hand", "def f():\n    import torch", "real must do without"),
        (
            "real.hand",
            "from real.twin.robot import SimRobot",
            "real may not import real.twin",
        ),
        ("real.hand", "import real.replay.replay", "real may not import real.replay"),
        (
            "penspin_style.cli.verb",
            "from real.cli import command",
            "cli may not import real.cli",
        ),
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
        ("penspin_style.train.checkpoint", "from penspin_style import __version__, storage"),
        ("penspin_style.train.compose", "import importlib\nimportlib.import_module('tasks')"),
        ("penspin_style.deploy.export", "import torch\nfrom penspin_style.deploy import bundle"),
        ("tasks.spin", "from tasks.robots import panda\nimport mujoco"),
        ("real.hand", "from penspin_style.deploy.bundle import Bundle"),
        ("real.twin.robot", "import torch\nfrom penspin_style.env import task"),
        ("real.cli.finetune", "from penspin_style.train.run import Run"),
    ],
)
def test_an_allowed_import_is_not(module, text):
    assert forbidden(text, module, known=ALL) == []


@pytest.mark.parametrize(
    "module",
    [
        "penspin_style",
        "penspin_style.deploy.bundle",
        "real.cli.command",
        *(module for module in ALL if room(module) in ("real", "tasks.robots.description")),
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
                found.append(f"{where} {word} runs code of a file's author")
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
