"""How torch's threads wait for work: GNU OpenMP reads it from the environment when torch loads."""

import os
import subprocess
import sys

import pytest

ENTRANCES = (
    "penspin_style.__main__",
    "penspin_style.env.env",
    "tasks.pen.spin",
    "real.cli.finetune",
)


def run(code, **changes):
    """Standard output of a fresh interpreter whose environment bounds nothing yet."""
    bounds = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in bounds} | changes
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("module", ENTRANCES)
def test_every_entrance_bounds_the_spinning_before_torch_loads(module):
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch loads with", os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Watch())
import {module}, torch
"""
    assert run(code)[0] == "torch loads with 1000"


@pytest.mark.parametrize(
    ("name", "value", "spins"),
    [("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "ACTIVE", "None")],
)
def test_what_a_user_says_of_waiting_stays(name, value, spins):
    code = "import os, penspin_style; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run(code, **{name: value})[0] == spins


def test_torch_before_us_is_warned_of_where_a_second_thread_learns():
    code = """
import torch
from penspin_style.algo.algorithm import torch_threads
with torch_threads(1):
    pass
print("one thread", flush=True)
with torch_threads(2):
    print(torch.get_num_threads())
"""
    said, warned = run(code)
    assert said.splitlines() == ["one thread", "2"]
    assert "learn_threads=1" in warned and warned.count("UserWarning") == 1
    assert run(code, OMP_WAIT_POLICY="PASSIVE")[1] == ""
