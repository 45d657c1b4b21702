"""Hostile policy files at the door of a server: each is refused, in little time and memory.

What a file may hold is tests/deploy's business. Here are the verb's own answers, and files that are
sound but for what they cost.
"""

import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penspin_style.deploy.bundle import CARD_KEY
from tests.support.serving import ONNX, ROOT

MEGA = 2**20


def weights(model, name, value):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def beside(model, nodes, result):
    """Let the action depend on a tensor that some nodes make, by adding nothing to it."""
    last, out = model.graph.node[-1], model.graph.output[0].name
    last.output[0] = "before"
    model.graph.node.extend(nodes)
    weights(model, "nothing", np.float32(0))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", [result], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "nothing"], ["zero"]),
            helper.make_node("Add", ["before", "zero"], [out]),
        ]
    )


# Files that ask for 14 to 74 GB.


def filled(operator):
    def bomb(model):
        weights(model, "one", np.ones(1, np.float32))
        weights(model, "size", np.array([10**10], np.int64))
        inputs = ["size"] if operator == "ConstantOfShape" else ["one", "size"]
        beside(model, [helper.make_node(operator, inputs, ["big"])], "big")

    return bomb


def doubled(model):
    name, nodes = model.graph.input[0].name, []
    for i in range(32):
        nodes.append(helper.make_node("Concat", [name, name], [f"twice{i}"], axis=1))
        name = f"twice{i}"
    beside(model, nodes, name)


def outer_product(model):
    weights(model, "column", np.ones((60_000, 1), np.float32))
    weights(model, "row", np.ones((1, 60_000), np.float32))
    beside(model, [helper.make_node("MatMul", ["column", "row"], ["big"])], "big")


# Files that take a minute or more.


def slow(model, *, folded):
    """Multiply large matrices; `folded`: while the file is opened, else while it is tried."""
    weights(model, "w", np.ones((1000, 1000), np.float32) / 1000)
    mean = helper.make_node("ReduceMean", [model.graph.input[0].name], ["mean"], keepdims=0)
    nodes = [] if folded else [mean, helper.make_node("Add", ["w", "mean"], ["m"])]
    name = "w" if folded else "m"
    for i in range(8000):
        nodes.append(helper.make_node("MatMul", [name, "w"], [f"m{i}"]))
        name = f"m{i}"
    beside(model, nodes, name)


def hidden(model):
    """Ask for 40 GB, but only where an observation exceeds 100, which no trial does."""
    source = model.graph.input[0].name
    for name, value in (("limit", 100.0), ("huge", 1e10), ("one", 1.0)):
        weights(model, name, np.float32(value))
    weights(model, "element", np.ones(1, np.float32))
    weights(model, "axis", np.array([0], np.int64))
    beside(
        model,
        [
            helper.make_node("ReduceMax", [source], ["max"], keepdims=0),
            helper.make_node("Greater", ["max", "limit"], ["is"]),
            helper.make_node("Cast", ["is"], ["as_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["as_float", "huge"], ["many"]),
            helper.make_node("Add", ["many", "one"], ["count"]),
            helper.make_node("Cast", ["count"], ["as_int"], to=TensorProto.INT64),
            helper.make_node("Unsqueeze", ["as_int", "axis"], ["shape"]),
            helper.make_node("Expand", ["element", "shape"], ["big"]),
        ],
        "big",
    )


# Files that are not what they should be.


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def custom_operator(model):
    model.opset_import.add(domain="com.evil", version=1)
    model.graph.node[-1].domain = "com.evil"


def not_a_number(model):
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[7] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def half(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def other_name(model):
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == model.graph.input[0].name:
                node.input[i] = "observations"
    model.graph.input[0].name = "observations"


def no_card(model):
    del model.metadata_props[:]


def card(old, new):
    def edit(model):
        (entry,) = [p for p in model.metadata_props if p.key == CARD_KEY]
        assert old in entry.value
        entry.value = entry.value.replace(old, new, 1)

    return edit


class Canary:
    def __reduce__(self):
        return os.mkdir, ("canary",)


EDITED = {
    "constant": (filled("ConstantOfShape"), "the graph fails on a batch of 1"),
    "tile": (filled("Tile"), "the graph fails on a batch of 1"),
    "expand": (filled("Expand"), "the graph fails on a batch of 1"),
    "double": (doubled, "the graph fails on a batch of 1"),
    "outer": (outer_product, "the graph fails on a batch of 1"),
    "hidden": (hidden, "an observation decides how much Expand of 'shape' makes"),
    "external": (external, "keeps weights in another file"),
    "custom": (custom_operator, "operators of the domain 'com.evil'"),
    "nan": (not_a_number, "weights that are NaN"),
    "half": (half, "onnxruntime refuses it|tensor.float16"),
    "name": (other_name, r"inputs \['observations'\]"),
    "no_card": (no_card, "no policy card"),
    "card_dt": (
        card('"control_dt": 0.05', '"control_dt": 1e999'),
        "holds 1e999, which is no finite",
    ),
    "card_mode": (card('"mode": "delta"', '"mode": "torque"'), "'torque' is not one of"),
    "card_shape": (card("3\n", "4\n"), r"\(22,\)|22\] in the graph"),
    "card_field": (card('"task"', '"tusk"'), "does not have the fields"),
}
MADE = {
    "empty": (lambda good: b"", "is not an ONNX file"),
    "page": (lambda good: b"<!doctype html><html>404</html>", "not an ONNX file"),
    "pickle": (lambda good: pickle.dumps(Canary()), "not an ONNX file"),
    "zip": (lambda good: b"PK\x03\x04" + bytes(400), "not an ONNX file"),
    "half_a_file": (lambda good: good[: len(good) // 2], "is cut off"),
    "twice": (lambda good: good + good, "graphs|twice"),
    "giant": (None, "larger than 67108864 bytes"),
}

CHILD = """
import contextlib, io, json, pathlib, sys, time
from penspin_style.__main__ import main
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    said, began = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said):
        code = main(["serve", str(path), "--port", "0"])
    # ru_maxrss would begin with what the parent had when it forked
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps([path.stem, code, said.getvalue(), time.monotonic() - began, peak]))
"""


def write(folder, name, edit):
    model = onnx.load(ONNX)
    edit(model)
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What `serve` says to each file: name -> code, text, seconds, MB so far; one process."""
    folder = tmp_path_factory.mktemp("hostile")
    good = ONNX.read_bytes()
    for name, (edit, _) in EDITED.items():
        write(folder, name, edit)
    for name, (make, _) in MADE.items():
        (folder / f"{name}.onnx").write_bytes(make(good) if make else b"")
    os.truncate(folder / "giant.onnx", 64 * MEGA + 1)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "canary").exists()
    assert {p.suffix for p in folder.iterdir()} == {".onnx"}
    return {line[0]: line[1:] for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", [*EDITED, *MADE])
def test_a_hostile_file_is_not_served_and_one_line_says_why(answers, name):
    code, said, seconds, megabytes = answers[name]
    assert code == 2
    assert said.count("\n") == 1
    assert said.startswith("penspin: /")
    assert re.search({**EDITED, **MADE}[name][1], said), said
    assert seconds < 5
    assert megabytes < 512


OPEN = """
import sys
from penspin_style.deploy import session
from penspin_style.__main__ import main
session.SECONDS = 0.5
sys.exit(main(["serve", sys.argv[1], "--port", "0"]))
"""


@pytest.mark.parametrize("folded", [True, False])
def test_a_file_that_takes_for_ever_is_given_up(tmp_path, folded):
    path = write(tmp_path, "slow", lambda model: slow(model, folded=folded))
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"penspin: {path}: opening and trying it takes longer than 0.5 s, which no policy of ours "
        "does; do not run it\n"
    )
