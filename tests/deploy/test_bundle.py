"""Which files are no policy: no hostile one is run, none that does not fit is loaded."""

import dataclasses
import os
import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penspin_style.deploy.bundle import CARD_KEY, MAX_BYTES, Bundle, BundleError
from penspin_style.features import Input, PolicyCard
from tests.support.bundles import CARD, FEATURES

# What it refuses: files.


def card_of(model):
    entry = next(p for p in model.metadata_props if p.key == CARD_KEY)
    return entry, PolicyCard.from_json(entry.value)


def new_card(**change):
    def edit(model):
        entry, card = card_of(model)
        entry.value = dataclasses.replace(card, **change).to_json()

    return edit


def card_text(old, new):
    def edit(model):
        entry, _ = card_of(model)
        assert old in entry.value
        entry.value = entry.value.replace(old, new)

    return edit


def card_is(text):
    def edit(model):
        card_of(model)[0].value = text

    return edit


def no_card(model):
    kept = [p for p in model.metadata_props if p.key != CARD_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def card_twice(model):
    model.metadata_props.add(key=CARD_KEY, value="{}")


def external(tensor):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_weights(model):
    external(model.graph.initializer[0])


def external_in_a_constant(model):
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "c")
    external(tensor)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def sparse_weights(model):
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def custom_domain(model):
    model.opset_import.add(domain="com.evil", version=1)
    model.graph.node[-1].domain = "com.evil"


def microsoft_domain(model):
    model.graph.node[-1].domain = "com.microsoft"


def own_function(model):
    node = helper.make_node("Tanh", ["a"], ["b"])
    opset = helper.make_opsetid("", 20)
    model.functions.append(helper.make_function("f", "F", ["a"], ["b"], [node], [opset]))


def control_flow(model):
    branch = helper.make_graph(
        [helper.make_node("Identity", ["clamp"], ["branch"])],
        "branch",
        [],
        [helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)],
    )
    truth = numpy_helper.from_array(np.array(True), "truth")
    model.graph.initializer.append(truth)
    node = helper.make_node("If", ["truth"], ["unused"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def unknown_operator(model):
    model.graph.node[-1].op_type = "Tanhh"


def weight_is(value, index=0):
    def edit(model):
        tensor = model.graph.initializer[index]
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return edit


def nan_as_typed_data(model):
    tensor = helper.make_tensor("unused", TensorProto.FLOAT, [2], [0.0, np.nan])
    model.graph.initializer.append(tensor)


def input_type(onnx_type):
    def edit(model):
        """Take another type at the door and cast it to float32."""
        node = model.graph.input[0]
        node.type.tensor_type.elem_type = onnx_type
        cast = helper.make_node("Cast", [node.name], ["as_float"], to=TensorProto.FLOAT)
        for other in model.graph.node:
            for i, name in enumerate(other.input):
                if name == node.name:
                    other.input[i] = "as_float"
        model.graph.node.insert(0, cast)

    return edit


def fixed_batch(model):
    for node in (*model.graph.input, *model.graph.output):
        node.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]


def output_name(model):
    model.graph.node[-1].output[0] = model.graph.output[0].name = "actions"


def second_output(model):
    model.graph.output.append(
        helper.make_tensor_value_info("clamp", TensorProto.FLOAT, ["batch", 16])
    )


def no_squash(model):
    model.graph.node[-1].op_type = "Exp"


HOSTILE = [
    (external_weights, "keeps weights in another file"),
    (external_in_a_constant, "keeps weights in another file"),
    (sparse_weights, "sparse weights"),
    (custom_domain, "operators of the domain 'com.evil'"),
    (microsoft_domain, "operators of the domain 'com.microsoft'"),
    (own_function, "functions or training code of its own"),
    (control_flow, "control flow"),
    (unknown_operator, "uses the operator 'Tanhh' .nearest that may be: Tanh"),
    (weight_is(np.nan), "weights that are NaN"),
    (weight_is(np.nan, index=3), "weights that are NaN"),
    (weight_is(-np.inf, index=3), "weights that are NaN or infinite"),
    (nan_as_typed_data, "weights that are NaN"),
    (input_type(TensorProto.FLOAT16), r"tensor\(float16\) in the graph, tensor\(float\) in the"),
    (input_type(TensorProto.DOUBLE), r"tensor\(double\) in the graph"),
    (fixed_batch, "fixed batch of 1"),
    (output_name, r"outputs \['actions'\], a policy has \['action'\]"),
    (second_output, r"outputs \['action', 'clamp'\]"),
    (no_squash, r"which is not in \[-1, 1\]; do not run it"),
    (no_card, "no policy card .*export it with"),
    (card_twice, "metadata key 'penspin_style.card' twice"),
    (card_is("not JSON"), "card is not JSON"),
    (card_is("[" * 100_000), "not usable"),
    (card_is("x" * (2**20 + 1)), "longer than 1048576 characters"),
    (card_is("[]"), "format 'list'"),
    (card_text('"format": 1', '"format": 2'), "format 2, this version reads 1"),
    (card_text('"control_dt"', '"control_time"'), "does not have the fields it should"),
    (card_text('"control_dt": 0.05', '"control_dt": NaN'), "card is not usable: .* NaN"),
    (card_text('"scale": 0.04', '"scale": "0.04"'), "scale='0.04'.*numbers are invalid"),
    (card_text('"control_dt": 0.05', '"control_dt": -0.05'), "must be positive, is -0.05"),
    (card_text('"mode": "delta"', '"mode": "torque"'), "mode 'torque' is not one of"),
    (card_text('"unit": "N"', '"unit": 3'), "unit 3 is not a text"),
    (card_text('"history": 3', '"history": 2'), r"shape \['.*', 16\] in the graph, .*\(12,\) in"),
    (card_text('"dtype": "float32"', '"dtype": "float16"'), "type 'float16' is not one of"),
    (
        new_card(inputs=(Input("teacher", FEATURES),)),
        r"inputs \['student'\], its card \['teacher'\]",
    ),
    (new_card(actions=CARD.actions[:1]), r"the output has shape \[.*, 2\] in the graph"),
    (new_card(actions=()), "needs an input and an action"),
    (new_card(joints=(dataclasses.replace(CARD.joints[0], low=9.0),)), "numbers are invalid"),
]


@pytest.mark.parametrize(("damage", "message"), HOSTILE)
def test_a_hostile_or_foreign_model_is_refused_with_its_reason(
    onnx_file, tmp_path, capfd, damage, message
):
    model = onnx.load(onnx_file)
    damage(model)
    path = tmp_path / "policy.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert capfd.readouterr() == ("", "")


def tag(number, payload):
    size, length = len(payload), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


class Canary:
    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda good: b"", "is not an ONNX file"),
        (lambda good: b"<!doctype html><html>404 not found</html>", "not an ONNX file"),
        (lambda good: pickle.dumps(Canary()), "not an ONNX file"),
        (lambda good: b"PK\x03\x04" + bytes(400), "not an ONNX file"),
        (lambda good: good[: len(good) // 2], "is cut off"),
        (lambda good: good[:-1], "is cut off|not an ONNX file"),
        (lambda good: good[: len(good) - 2000], "is cut off"),
        (lambda good: good + good, "2 graphs|key .* twice"),
        (lambda good: good + tag(7, b""), "2 graphs"),
        (lambda good: tag(7, b"\x00\x00" * 600_000) + good, "damaged|more than 500000 fields"),
        (
            lambda good: tag(7, b"\x10\x00" * 600_000) + good,
            "name of a graph is of the wire type 0",
        ),
        (lambda good: tag(7, b"\x6a\x00" * 600_000) + good, "more than 500000 fields"),
        (lambda good: b"\xff" * 64, "is cut off, or not an ONNX file|damaged"),
        (lambda good: good + bytes([14 << 3 | 2, 4, 10, 2, 0xFF, 0xFE]), "not UTF-8"),
        (lambda good: good.replace(b"\x07student", b"\x07\xff\xfeudent"), "not UTF-8"),
        (lambda good: good.replace(b"\x06action", b"\x06\xff\xfetion", 1), "not UTF-8"),
        # a reader that keeps 32 bits of it sees field 7; one that keeps all sees none
        (lambda good: good + b"\xba\x80\x80\x80\x10\x00", "damaged"),
    ],
)
def test_bytes_that_are_no_model_are_refused(
    onnx_file, tmp_path, monkeypatch, capfd, make, message
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "policy.onnx"
    path.write_bytes(make(onnx_file.read_bytes()))
    with pytest.raises(BundleError, match=message):
        Bundle.load(path)
    assert [f.name for f in tmp_path.iterdir()] == ["policy.onnx"]
    assert capfd.readouterr() == ("", "")


def test_what_is_not_a_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path, tmp_path / "none.onnx", tmp_path / "pipe.onnx", "/dev/zero"):
        with pytest.raises(BundleError, match=r"is not a file; give the \.onnx"):
            Bundle.load(path)


def test_a_file_above_the_limit_is_refused(onnx_file, tmp_path):
    path = tmp_path / "policy.onnx"
    path.write_bytes(onnx_file.read_bytes())
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(BundleError, match="larger than 67108864 bytes"):
        Bundle.load(path)


def test_the_bytes_that_were_checked_are_those_that_run(onnx_file, tmp_path):
    path = tmp_path / "policy.onnx"
    path.write_bytes(onnx_file.read_bytes())
    loaded = Bundle.load(path)
    before = loaded(np.ones(16))
    path.write_bytes(b"something else")
    assert loaded(np.ones(16)).tobytes() == before.tobytes()


def test_the_scan_alone_refuses_external_data_so_onnxruntime_never_sees_it(onnx_file, monkeypatch):
    model = onnx.load(onnx_file)
    external_weights(model)
    opened = []
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *a, **k: opened.append(a))
    with pytest.raises(BundleError, match="another file"):
        Bundle(model.SerializeToString())
    assert opened == []


def test_no_flipped_byte_crashes_the_loader(onnx_file):
    good = onnx_file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(good), 150):
        data = bytearray(good)
        data[at] ^= 1 << rng.integers(8)
        try:
            action = Bundle(bytes(data))(np.ones(16))
        except BundleError:
            refused += 1
        else:
            assert np.abs(action).max() <= 1.0
    assert refused > 10
