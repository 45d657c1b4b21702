"""The shipped pixel student: camera images in, actions out, on a computer without torch."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from penspin_style.deploy.bundle import Bundle
from penspin_style.nets.policy import load_policy

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "outputs" / "pretrained" / "panda_lift_cube_vision"
IMAGES = ("front_rgb", "front_depth", "wrist_rgb", "wrist_depth")


def draw(card, n, seed):
    """Observations as cameras and joints might give them."""
    rng = np.random.default_rng(seed)
    out = {}
    for given in card.inputs:
        dtype, shape = given.tensor
        if dtype == "uint8":
            out[given.name] = rng.integers(0, 256, (n, *shape), np.uint8)
        elif given.is_image:
            out[given.name] = rng.uniform(0.0, 2.0, (n, *shape)).astype(np.float32)
        else:
            out[given.name] = rng.uniform(-0.3, 0.6, (n, *shape)).astype(np.float32)
    return out


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(FOLDER / "policy.onnx")


def test_it_reads_seven_numbers_and_what_two_cameras_give(bundle):
    inputs = {i.name: i.tensor for i in bundle.card.inputs}
    assert inputs == {
        "student": ("float32", (7,)),
        "front_rgb": ("uint8", (32, 32, 3)),
        "front_depth": ("float32", (32, 32)),
        "wrist_rgb": ("uint8", (32, 32, 3)),
        "wrist_depth": ("float32", (32, 32)),
    }
    features = [f.name for i in bundle.card.inputs for f in i.features]
    assert not [name for name in features if "box" in name]
    assert set(bundle.card.preprocessing) == set(IMAGES)
    assert "average down to 32 x 32" in bundle.card.preprocessing["wrist_rgb"]


def test_the_file_acts_as_the_weights_beside_it(bundle):
    policy, card = load_policy(FOLDER / "policy")
    seen = draw(card, 64, seed=3)
    with torch.no_grad():
        wanted = policy.act(*(torch.from_numpy(seen[i.name]) for i in card.inputs)).numpy()
    assert np.abs(bundle(seen) - wanted).max() <= 1e-5
    assert bundle.card.network["activation"] == card.network["activation"] == "relu"


def test_it_runs_in_plain_onnxruntime_where_torch_cannot_be_imported(bundle, tmp_path):
    seen = draw(bundle.card, 4, seed=5)
    np.savez(tmp_path / "seen.npz", **seen)
    code = f"""
import sys
sys.modules["torch"] = None  # an import of it raises
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(FOLDER / "policy.onnx")!r})
seen = dict(np.load({str(tmp_path / "seen.npz")!r}))
np.save({str(tmp_path / "action.npy")!r}, session.run(None, seen)[0])
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert np.allclose(np.load(tmp_path / "action.npy"), bundle(seen), atol=1e-6)


def test_a_real_cameras_other_types_are_refused(bundle):
    seen = draw(bundle.card, 1, seed=7)
    with pytest.raises(ValueError, match=r"front_rgb.*uint8.*got float32"):
        bundle({**seen, "front_rgb": seen["front_rgb"].astype(np.float32)})
    with pytest.raises(ValueError, match="wrist_depth"):
        bundle({**seen, "wrist_depth": (1000 * seen["wrist_depth"]).astype(np.uint16)})
