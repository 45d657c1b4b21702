"""The scripts of docs/examples run, in a small size, on one core."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from penspin_style.deploy.bundle import Bundle

ROOT = pathlib.Path(__file__).parent.parent


def run(name, *arguments):
    """Run an example; return what it prints."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "examples" / name), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow  # a notebook's cart-pole is trained in the default run
def test_a_task_of_ones_own_is_trained_and_exported(tmp_path):
    small = "num_envs=32 total_samples=3200 eval_every=0 final_episodes=8 learn_threads=1"
    said = run("cartpole.py", f"out={tmp_path}", *small.split())
    assert "examples.cartpole: 100 episodes" in said
    bundle = Bundle.load(tmp_path / "examples.cartpole" / "cartpole" / "policy.onnx")
    (given,) = bundle.card.inputs
    assert [f.unit for f in given.features] == ["m", "m/s", "rad", "rad/s"]
    assert bundle.card.actions[0].scale == 10.0
    assert bundle(np.zeros(4, np.float32)).shape == (1,)


def test_a_served_policy_lifts_the_cube():
    said = run("serve_and_drive.py", "--episodes", "2")
    assert "serves panda_lift_cube, 20 Hz" in said
    assert "2 of 2 episodes succeeded" in said


def test_a_learner_of_ones_own_trains_on_the_vector_environment():
    said = run("gymnasium_ppo.py", "--samples", "8192", "--num-envs", "32", "--horizon", "32")
    returns = [float(x) for x in re.findall(r"return +(-?[\d.]+)", said)]
    assert len(returns) >= 3
    assert np.isfinite(returns).all()
    assert said.splitlines()[-1].split()[:2] == ["8192", "samples"]
