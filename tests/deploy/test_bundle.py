"""The robot's side of an exported policy: no torch, no hostile file, no wrong observation."""

import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from penspin_style.deploy.bundle import CARD_KEY, MAX_BYTES, Bundle, BundleError, ObservationError
from penspin_style.deploy.export import export
from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard
from penspin_style.nets.gaussian_policy import GaussianPolicy

ROOT = pathlib.Path(__file__).parents[2]
FEATURES = (
    Feature("joint_pos", (4,), "rad", history=3),
    Feature("pen_pos", (3,), "m"),
    Feature("grip", (), "N"),
)
CARD = PolicyCard(
    task="spin",
    inputs=(Input("student", FEATURES),),
    actions=(
        ActionChannel("finger", "rad", 0.04, -0.5, 1.5, "delta"),
        ActionChannel("thumb", "rad", 0.08, -0.25, 1.25, "absolute"),
    ),
    joints=(Joint("index_0", "rad", -0.5, 1.5, 3.0, 0.1, 0.25),),
    control_dt=0.05,
    run="runs/spin-7",
)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    rng = torch.Generator().manual_seed(0)
    policy = GaussianPolicy("student", 16, 2, hidden=(32,), activation="elu", init_std=1.0, rng=rng)
    with torch.no_grad():
        policy.net[-1].weight.mul_(60.0)
        policy.normalizer.mean.normal_(0.0, 2.0, generator=rng)
    path = tmp_path_factory.mktemp("bundle") / "policy.onnx"
    export(policy, CARD, path, samples=74)
    return path


@pytest.fixture(scope="module")
def bundle(onnx_file):
    return Bundle.load(onnx_file)


@pytest.fixture
def named():
    rng = np.random.default_rng(3)
    return {
        "pen_pos": rng.normal(size=3),
        "joint_pos": rng.normal(size=(3, 4)).astype(np.float32),
        "grip": np.float32(0.5),
    }


# What it answers.


def test_named_features_are_joined_in_the_cards_order_whatever_their_own(bundle, named):
    vector = np.concatenate([named["joint_pos"].ravel(), named["pen_pos"], [named["grip"]]])
    action = bundle(named)
    assert action.shape == (2,)
    assert action.dtype == np.float32
    assert bundle({"student": vector.astype(np.float32)}).tobytes() == action.tobytes()
    assert bundle(vector).tobytes() == action.tobytes()
    assert np.abs(bundle(np.roll(vector, 1)) - action).max() > 0.01


def test_a_batch_gives_one_action_a_row(bundle):
    x = np.random.default_rng(0).normal(size=(5, 16))
    actions = bundle({"student": x})
    assert actions.shape == (5, 2)
    for row, action in zip(x, actions, strict=True):
        np.testing.assert_allclose(bundle(row), action, rtol=0, atol=1e-6)
    rows = {
        "joint_pos": x[:, :12].reshape(5, 3, 4),
        "pen_pos": x[:, 12:15],
        "grip": x[:, 15],
    }
    assert bundle(rows).tobytes() == actions.tobytes()
    one = {"joint_pos": x[:1, :12], "pen_pos": x[:1, 12:15], "grip": x[:1, 15]}
    assert bundle(one).shape == (1, 2)


def test_two_sessions_answer_the_same_bits(onnx_file, bundle):
    other = Bundle.load(onnx_file)
    x = np.random.default_rng(1).normal(size=(64, 16)) * 5.0
    assert other(x).tobytes() == bundle(x).tobytes()
    assert other.sha256 == bundle.sha256


def test_an_action_never_exceeds_one_even_by_a_rounding(bundle):
    x = np.random.default_rng(2).normal(size=(4000, 16)) * 100.0
    raw = bundle._session.run(["action"], {"student": x.astype(np.float32)})[0]
    assert np.abs(raw).max() > 0.9999
    assert np.abs(bundle(x)).max() <= 1.0


NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "safetensors", "tensordict", "mujoco"):
            raise ImportError(f"{name} is not on this robot")

sys.meta_path.insert(0, Refuse())
import numpy as np
from penspin_style.deploy.bundle import Bundle
b = Bundle.load(sys.argv[1])
x = np.random.default_rng(1).normal(size=(7, 16))
print(b(x).tobytes().hex(), len(b.describe()) > 0, "torch" in sys.modules)
"""


def test_a_bundle_runs_on_a_computer_without_torch_and_without_onnx(onnx_file, bundle):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_TORCH, str(onnx_file)],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    want = bundle(np.random.default_rng(1).normal(size=(7, 16)))
    assert done.stdout.split() == [want.tobytes().hex(), "True", "False"]


def test_the_description_tells_names_units_scales_and_limits(bundle):
    lines = bundle.describe().splitlines()
    assert "control_dt  0.05 s (20 Hz)" in lines
    cells = [line.split() for line in lines]
    assert ["student", "joint_pos", "(4,)", "3", "rad", "float32"] in cells
    assert ["student", "grip", "()", "1", "N", "float32"] in cells
    assert ["thumb", "rad", "absolute", "0.08", "-0.25", "1.25"] in cells
    assert ["index_0", "rad", "-0.5", "1.5", "0.25", "3", "0.1"] in cells


# What it refuses: observations.


def with_value(**change):
    def edit(named):
        return {**named, **change}

    return edit


def without(name, **change):
    def edit(named):
        return {**{k: v for k, v in named.items() if k != name}, **change}

    return edit


BAD_OBSERVATIONS = [
    (with_value(pen_pos=np.array([0.0, np.nan, 0.0])), r"'pen_pos'.*pen_pos\[1\] is nan"),
    (with_value(pen_pos=np.array([0.0, 0.0, -np.inf])), r"pen_pos\[2\] is -inf"),
    (with_value(pen_pos=np.array([1e300, 0.0, 0.0])), r"pen_pos\[0\] is inf"),
    (with_value(pen_pos=np.full(4, np.nan)), r"'pen_pos', \(3,\) .*got \(4,\)"),
    (with_value(pen_pos=np.zeros(4)), r"'pen_pos', \(3,\) float32 in \[m\].*got \(4,\)"),
    (with_value(joint_pos=np.zeros((4, 3))), r"'joint_pos', \(3, 4\) float32 in \[rad\]"),
    (with_value(joint_pos=np.zeros(4)), r"'joint_pos', \(3, 4\).*got \(4,\)"),
    (with_value(grip=np.zeros((2, 2))), r"'grip', \(\) float32 in \[N\].*got \(2, 2\)"),
    (with_value(pen_pos=np.zeros((0, 3))), r"'pen_pos'.*got \(0, 3\)"),
    (with_value(pen_pos=np.zeros(3, np.uint8)), r"'pen_pos'.*got uint8; give real numbers"),
    (with_value(pen_pos=np.zeros(3, np.int64)), "'pen_pos'.*got int64"),
    (with_value(pen_pos=np.zeros(3, bool)), "'pen_pos'.*got bool"),
    (with_value(pen_pos=np.zeros(3, complex)), "'pen_pos'.*got complex128"),
    (with_value(pen_pos=np.array([None] * 3)), "'pen_pos'.*got object"),
    (with_value(pen_pos="0.1"), "'pen_pos'.*got <U3"),
    (with_value(pen_pos=[[1.0], [1.0, 2.0]]), "'pen_pos'.*not an array"),
    (with_value(pen_pos=np.zeros((2, 3))), r"'pen_pos'.*a batch of 2, where .* no batch axis"),
    (without("grip"), r"lacks 'grip', \(\) float32 in \[N\]"),
    (without("pen_pos", pen_pose=np.zeros(3)), r"lacks 'pen_pos'.*nearest: 'pen_pose'"),
    (with_value(grips=np.zeros(1)), r"does not read 'grips' \(nearest: 'grip'\); leave it out"),
    (with_value(student=np.zeros(16)), "does not read 'pen_pos', 'joint_pos', 'grip'"),
    (lambda _: {"studnet": np.zeros(16)}, r"lacks 'student', \(16,\).*nearest: 'studnet'"),
    (lambda _: {}, r"lacks 'student'.*its features: joint_pos, pen_pos, grip"),
    (lambda _: {"student": np.zeros(15)}, r"'student', \(16,\) float32 in \[rad, m, N\].*\(15,\)"),
    (lambda _: np.zeros((2, 2, 16)), r"'student', \(16,\).*got \(2, 2, 16\)"),
    (lambda _: np.where(np.arange(32) == 29, np.nan, 0.0).reshape(2, 16), r"pen_pos\[1\] is nan"),
]


@pytest.mark.parametrize(("edit", "message"), BAD_OBSERVATIONS)
def test_a_wrong_observation_is_refused_by_the_name_of_the_feature(bundle, named, edit, message):
    assert bundle(named).shape == (2,)
    with pytest.raises(ObservationError, match=message):
        bundle(edit(named))


# What it refuses: robots.


def test_a_robot_that_offers_more_than_is_read_fits(bundle):
    robot = {f.name: dataclasses.replace(f, history=1) for f in FEATURES}
    robot["camera_time"] = Feature("camera_time", (), "s")
    bundle.check_features(robot)


def test_every_way_in_which_a_robot_does_not_fit_is_listed(bundle):
    robot = {
        "joint_pos": Feature("joint_pos", (16,), "deg"),
        "pen_position": Feature("pen_position", (3,), "m"),
        "grip": Feature("grip", (), "N", dtype="uint8"),
    }
    with pytest.raises(BundleError) as caught:
        bundle.check_features(robot)
    assert str(caught.value).splitlines() == [
        "the robot does not fit the policy of spin:",
        "  joint_pos: the policy was trained with shape (4,), the robot has (16,)",
        "  joint_pos: the policy was trained with unit rad, the robot has deg",
        "  pen_pos: not offered (nearest: 'pen_position')",
        "  grip: the policy was trained with type float32, the robot has uint8",
    ]


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
