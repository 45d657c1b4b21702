"""A file is opened in a child first: what it crashes, fills or keeps busy is that child."""

import os
import pathlib
import resource
import signal
import time

import numpy as np
import pytest
from onnx import helper
from test_onnx_scan import CARD, model

from penspin_style.deploy import session
from penspin_style.deploy.bundle import Bundle, BundleError


@pytest.fixture
def load(tmp_path):
    def write(made):
        path = tmp_path / "policy.onnx"
        path.write_bytes(made.SerializeToString())
        return Bundle.load(path)

    return write


def peak():
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("VmPeak:")[1].split()[0]) / 1024  # MB


def products(count, *, folded):
    """A chain of matrix products, of weights alone or with an observation."""
    size, nodes, name = 600, [], "m"
    if not folded:
        nodes += [
            helper.make_node("ReduceMean", ["h"], ["mean"], keepdims=0),
            helper.make_node("Add", ["m", "mean"], ["m0"]),
        ]
        name = "m0"
    for i in range(count):
        nodes.append(helper.make_node("MatMul", [name, "m"], [f"p{i}"]))
        name = f"p{i}"
    return model(*nodes, weights={"m": np.zeros((size, size), np.float32)}, result=name)


@pytest.mark.parametrize("folded", [True, False])
def test_a_file_that_computes_for_ever_is_given_up_without_a_server(load, monkeypatch, folded):
    assert load(products(2, folded=folded))(np.zeros(6)).shape == (2,)
    monkeypatch.setattr(session, "SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(BundleError, match=r"policy.onnx: .* longer than 0.3 s"):
        load(products(20_000, folded=folded))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("folded", [True, False])
def test_a_file_that_wants_all_memory_gets_none_of_this_process(load, folded):
    nodes = [helper.make_node("ReduceMean", ["h"], ["mean"], keepdims=0)]
    start = "e" if folded else "mean"
    nodes += [helper.make_node("Expand", [start, "size"], ["big"])]
    weights = {"e": np.float32(1), "size": np.array([10**10], np.int64)}
    before = peak()
    with pytest.raises(BundleError, match=r"policy.onnx: .*(graph fails on a batch of 1|refuses)"):
        load(model(*nodes, weights=weights, result="big"))
    assert peak() - before < 300


def test_this_process_has_its_limits_and_timers_as_before(load):
    kinds = (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
    before = [resource.getrlimit(kind) for kind in kinds]
    load(model())
    assert [resource.getrlimit(kind) for kind in kinds] == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("code", "how"),
    [("import os; os.abort()", "SIGABRT"), ("raise SystemExit(1)", "exit code 1")],
)
def test_a_crash_of_onnxruntime_costs_the_child(monkeypatch, code, how):
    command = (session._CHILD[0], "-c", code)
    monkeypatch.setattr(session, "_CHILD", command)
    with pytest.raises(BundleError, match=rf"does not survive it \({how}\)"):
        session.try_out(model().SerializeToString(), CARD)


def test_the_child_imports_no_module_of_the_current_folder(load, tmp_path, monkeypatch):
    for name in ("numpy", "onnxruntime", "penspin_style", "json", "resource"):
        (tmp_path / f"{name}.py").write_text("import os\nos.mkdir('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert load(model())(np.zeros(6)).shape == (2,)
    assert not os.path.exists("imported")
