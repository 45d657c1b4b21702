"""A policy without torch: what it answers, and which observations and robots it refuses."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from penspin_style.deploy.bundle import Bundle, BundleError, ObservationError
from penspin_style.features import Feature
from tests.support.bundles import FEATURES, ROOT


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
