"""What the scan of an ONNX file lets through: one reading of the bytes, and a bounded cost."""

import struct

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penspin_style.deploy import onnx_scan, session
from penspin_style.deploy.bundle import CARD_KEY, Bundle, BundleError
from penspin_style.deploy.onnx_scan import Scan
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard

CARD = PolicyCard(
    task="reach",
    inputs=(Input("state", (Feature("joint_pos", (6,), "rad"),)),),
    actions=tuple(ActionChannel(n, "rad", 0.1, -1.0, 1.0, "delta") for n in ("a", "b")),
    joints=(),
    control_dt=0.05,
)


def model(*middle, weights=None, result="h"):
    """A policy: tanh(state @ w + sum of `result`), `middle` the nodes that make `result`."""
    arrays = {"w": np.full((6, 2), 0.1, np.float32), **(weights or {})}
    nodes = [helper.make_node("MatMul", ["state", "w"], ["h"]), *middle]
    if result != "h":
        nodes += [
            helper.make_node("Cast", [result], ["as_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["as_float"], ["most"], keepdims=0),
            helper.make_node("Add", ["h", "most"], ["sum"]),
        ]
    nodes.append(helper.make_node("Tanh", ["h" if result == "h" else "sum"], ["action"]))
    graph = helper.make_graph(
        nodes,
        "reach",
        [helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    made.metadata_props.add(key=CARD_KEY, value=CARD.to_json())
    return made


GOOD = model().SerializeToString()


def tag(number, payload, wire=2):
    head = bytes([number << 3 & 127 | 128 * (number > 15) | wire]) + bytes([number >> 4]) * (
        number > 15
    )
    return head + (varint(len(payload)) if wire == 2 else b"") + payload


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def test_the_model_of_these_tests_is_a_policy():
    assert Bundle(GOOD)(np.ones(6)).shape == (2,)


# One reading.


@pytest.fixture(scope="module")
def ort_format(tmp_path_factory):
    """Another policy, in onnxruntime's own format."""
    path = tmp_path_factory.mktemp("ort") / "policy.ort"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    other = model(weights={"w": np.full((6, 2), -0.3, np.float32)})
    onnxruntime.InferenceSession(other.SerializeToString(), options)
    return path.read_bytes()


def both(buffer):
    """Return bytes that protobuf reads as GOOD and flatbuffers as `buffer`.

    The first four are ir_version 8 and the head of a fixed64 that covers the magic; read as a
    place, they lead to a copy of the root table whose fields point into the old buffer.
    """
    (old,) = struct.unpack_from("<I", buffer)
    table = old - struct.unpack_from("<i", buffer, old)[0]
    (size,) = struct.unpack_from("<H", buffer, table)
    places = struct.unpack_from(f"<{size // 2 - 2}H", buffer, table + 4)
    there = {
        i: old + p + struct.unpack_from("<I", buffer, old + p)[0] for i, p in enumerate(places) if p
    }
    count, head = len(places), bytes([8, 8, 9, 0]) + b"ORTM" + bytes(3)
    root = int.from_bytes(head[:4], "little")
    slots = [4 + 4 * i if i in there else 0 for i in range(count)]
    entries = struct.pack(f"<HH{count}H", 4 + 2 * count, 4 + 4 * count, *slots)
    entries += bytes(-len(entries) % 4)
    begin = (root + 4 + 4 * count + 31) // 16 * 16
    jumps = [begin + there[i] - (root + 4 + 4 * i) if i in there else 0 for i in range(count)]
    body = struct.pack(f"<i{count}I", len(entries), *jumps)
    end = begin + len(buffer)
    name = b"\x12" + varint(end - len(head) - 4)  # producer_name takes all of it
    assert len(name) == 4
    out = (head + name).ljust(root - len(entries), b"\0") + entries + body
    return out.ljust(begin, b"\0") + buffer + GOOD


@pytest.mark.parametrize("make", [both, bytes], ids=["both formats at once", "ORT alone"])
def test_a_file_in_onnxruntimes_own_format_is_refused_by_each_of_the_defences(
    ort_format, monkeypatch, make
):
    data = make(ort_format)
    plain = onnxruntime.SessionOptions()
    plain.log_severity_level = 4
    # this is what onnxruntime makes of it if it may choose
    loaded = onnxruntime.InferenceSession(data, plain)
    (action,) = loaded.run(None, {"state": np.ones((1, 6), np.float32)})
    np.testing.assert_allclose(action, np.tanh([[-1.8, -1.8]]), atol=1e-6)
    with pytest.raises(BundleError, match=r"own format .ORTM., not in ONNX"):
        Scan(data)
    monkeypatch.setattr(onnx_scan, "_ORT_MAGIC", b"none")
    with pytest.raises(BundleError, match="not an ONNX file"):
        Scan(data)
    with pytest.raises(BundleError, match=r"onnxruntime refuses it: .*[Pp]rotobuf"):
        session.open_session(ort_format, CARD)


def test_the_loader_reads_both_formats_at_once_as_what_was_scanned(ort_format):
    loaded = session.open_session(both(ort_format), CARD)
    action = session.run(loaded, {"state": np.ones((1, 6), np.float32)})
    np.testing.assert_allclose(action, np.tanh([[0.6, 0.6]]), atol=1e-6)


def node_of(data, number):
    """The bytes of a graph's first field of this number, with the field's head."""
    parsed = onnx.load_model_from_string(data).graph
    part = {1: parsed.node[0], 5: parsed.initializer[0], 11: parsed.input[0]}[number]
    return tag(number, part.SerializeToString()), part


def grown(number, extra):
    """GOOD with more bytes in the graph's first node, weight or input."""
    old, part = node_of(GOOD, number)
    new = tag(number, part.SerializeToString() + extra)
    graph = onnx.load_model_from_string(GOOD).graph.SerializeToString()
    assert graph.count(old) == 1
    return GOOD.replace(tag(7, graph), tag(7, graph.replace(old, new)))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (GOOD + tag(26, b"x"), "a model has no field 26"),
        (GOOD + tag(13, b"x"), "a model has no field 13"),
        (GOOD + tag(2, bytes(8), wire=1), "name of a model is of the wire type 1"),
        (GOOD + tag(1, b"\x08", wire=0), "it holds 2 ir_versions"),
        (GOOD + tag(2, b"\xff\xfe"), "not UTF-8"),
        (GOOD + tag(14, tag(1, b"a") + tag(2, b"b") + tag(1, b"c")), "it holds 2 keys"),
        (grown(1, tag(4, b"Relu")), "it holds 2 op_types"),
        (grown(1, tag(21, b"x")), "a node has no field 21"),
        (grown(5, tag(2, b"\x07", wire=0)), "it holds 2 data_types"),
        (grown(5, tag(9, bytes(48))), "it holds 2 raw_datas"),
        (grown(11, tag(2, tag(4, b""))), "a type has no field 4"),
        (grown(11, tag(2, tag(1, b""))), "it holds 2 types"),
    ],
)
def test_a_field_that_another_reader_could_take_otherwise_is_refused(data, fault):
    with pytest.raises(BundleError, match=fault):
        Scan(data)


def test_weights_in_two_halves_that_protobuf_would_merge_are_refused():
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.full(2, np.nan, np.float32))
    )
    value = constant.attribute[0].t
    # the first is whole numbers, the second an empty tensor; together they are NaN
    numbers, floats = TensorProto(), TensorProto(data_type=TensorProto.FLOAT)
    numbers.CopyFrom(value)
    numbers.data_type = TensorProto.INT32
    constant.attribute[0].ClearField("t")
    rest = constant.attribute[0].SerializeToString()
    halves = tag(5, numbers.SerializeToString()) + tag(5, floats.SerializeToString())
    merged = onnx.AttributeProto.FromString(rest + halves)
    assert np.isnan(numpy_helper.to_array(merged.t)).all()
    constant.ClearField("attribute")
    node = constant.SerializeToString() + tag(5, rest + halves)
    made = model().graph.SerializeToString() + tag(1, node)
    data = GOOD.replace(tag(7, model().graph.SerializeToString()), tag(7, made))
    assert data != GOOD
    with pytest.raises(BundleError, match="it holds 2 ts"):
        Scan(data)


@pytest.mark.parametrize(
    "kind", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.STRING]
)
def test_weights_of_a_type_that_is_not_looked_into_are_refused(kind):
    made = model()
    made.graph.initializer.append(helper.make_tensor("odd", kind, [1], [b"x" if kind == 8 else 1]))
    with pytest.raises(BundleError, match=r"type|written as another|no field 6"):
        Scan(made.SerializeToString())


def test_settings_of_onnxruntime_in_the_metadata_are_refused():
    made = model()
    made.metadata_props.add(key="ort_config", value='{"session_options": {}}')
    with pytest.raises(BundleError, match=r"'ort_config'.* settings of onnxruntime"):
        Scan(made.SerializeToString())


# A bounded cost.


def noise(name, **attributes):
    return model(helper.make_node(name, [], ["r"], shape=[2], **attributes), result="r")


def drop():
    node = helper.make_node("Dropout", ["state", "half", "yes"], ["r"])
    return model(node, weights={"half": np.float32(0.5), "yes": np.array(True)}, result="r")


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (noise("RandomNormal"), "RandomNormal"),
        (noise("RandomUniform"), "RandomUniform"),
        (model(helper.make_node("RandomNormalLike", ["h"], ["r"]), result="r"), "RandomNormalLike"),
        (model(helper.make_node("Bernoulli", ["h"], ["r"]), result="r"), "Bernoulli"),
        (model(helper.make_node("Multinomial", ["h"], ["r"]), result="r"), "Multinomial"),
        (drop(), "Dropout"),
        (model(helper.make_node("NonZero", ["h"], ["r"]), result="r"), "NonZero"),
        (model(helper.make_node("Unique", ["h"], ["r"]), result="r"), "Unique"),
        (model(helper.make_node("Compress", ["h", "h"], ["r"]), result="r"), "Compress"),
        (model(helper.make_node("SequenceConstruct", ["h"], ["r"]), result="r"), "SequenceCons"),
    ],
)
def test_an_operator_of_chance_or_of_unknown_size_is_refused(made, name):
    with pytest.raises(BundleError, match=f"uses the operator '{name}.* drawn at random"):
        Bundle(made.SerializeToString())


@pytest.mark.parametrize("operator", sorted(onnx_scan._SIZES))
def test_no_observation_decides_on_a_size(operator):
    sizes = onnx_scan._SIZES[operator]
    for at in sizes:
        inputs = ["state"] * (max(sizes) + 1)
        for i in sizes:
            inputs[i] = "seen" if i == at else "size"
        cast = helper.make_node("Cast", ["h"], ["seen"], to=TensorProto.INT64)
        made = model(
            cast,
            helper.make_node(operator, inputs, ["r"]),
            weights={"size": np.array([2], np.int64)},
            result="r",
        )
        with pytest.raises(BundleError, match=f"an observation decides how much {operator}"):
            Scan(made.SerializeToString())


def test_a_size_may_follow_from_the_shape_of_an_observation():
    made = model(
        helper.make_node("Shape", ["state"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "two"], ["size"], axis=0),
        helper.make_node("Expand", ["one", "size"], ["r"]),
        weights={
            "first": np.array([0], np.int64),
            "two": np.array([2], np.int64),
            "one": np.zeros(1, np.float32),
        },
        result="r",
    )
    action = Bundle(made.SerializeToString())(np.ones((5, 6)))
    np.testing.assert_allclose(action, np.tanh(np.full((5, 2), 0.6)), atol=1e-6)


def test_nodes_out_of_order_cannot_hide_what_they_depend_on():
    made = model(helper.make_node("Identity", ["h"], ["r"]), result="r")
    nodes = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([nodes[0], *nodes[2:], nodes[1]])
    with pytest.raises(BundleError, match="'r' is used before anything makes it"):
        Scan(made.SerializeToString())


def test_a_name_that_is_made_twice_is_refused():
    made = model(helper.make_node("Identity", ["w"], ["h"]))
    with pytest.raises(BundleError, match="'h' is made twice"):
        Scan(made.SerializeToString())


def test_the_lists_of_operators_hold_operators_of_onnx_alone():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert set(onnx_scan._SIZES) < onnx_scan._OPERATORS <= known


@pytest.mark.parametrize("place", ["op_type", "domain", "input", "output", "metadata"])
def test_a_name_of_megabytes_does_not_fill_the_terminal(place):
    name, made = "n" * 2_000_000, model()
    node = made.graph.node[0]
    if place == "metadata":
        made.metadata_props.add(key=name)
        made.metadata_props.add(key=name)
    elif place in ("input", "output"):
        node.input[0] = name if place == "input" else node.input[0]
        made.graph.node.append(helper.make_node("Identity", ["h"], [name]))
        made.graph.node.append(helper.make_node("Identity", ["h"], [name]))
    else:
        setattr(node, place, name)
    with pytest.raises(BundleError, match=r"'n{80}'") as caught:
        Bundle(made.SerializeToString())
    assert len(str(caught.value)) < 500
