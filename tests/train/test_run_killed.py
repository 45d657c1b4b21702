"""A training that is killed or told to end loses no checkpoint.

`PENSPIN_FULL=1 pytest tests/train/test_run_killed.py -k sigkill -s` kills 20 times instead of 4 and
prints what the kills hit.
"""

import os
import random
import re
import signal
import time

import numpy as np
import pytest

from penspin_style.__main__ import main
from penspin_style.system import interrupt
from penspin_style.train.checkpoint import Checkpoints
from tests.support.small_run import ITERATION, SMALL, fit, make, wait_for
from tests.support.training import manifest, rows

pytestmark = pytest.mark.usefixtures("one_thread")


FULL = os.environ.get("PENSPIN_FULL") == "1"


# Killed and interrupted.


def test_sigkill_at_any_moment_loses_at_most_the_iteration_under_way(tmp_path, spawn):
    """One child after the other continues the run and is killed, every other inside a save."""
    kills, seed = (20 if FULL else 4), int(os.environ.get("PENSPIN_SEED", "0"))
    draw = random.Random(seed)
    checkpoints = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints")
    newest = in_save = damaged = lost = 0
    overrides = ("eval_every=0", "total_samples=1000000000")
    for kill in range(kills):
        child = spawn(tmp_path, *overrides, *(["resume=true"] if kill else []))
        first = newest
        wait_for(lambda c=child, f=first: _iteration(checkpoints) > f or c.poll() is not None)
        assert child.poll() is None, child.stderr.read()
        time.sleep(draw.uniform(0.1, 3.0 if FULL else 1.0))
        if kill % 2:
            wait_for(lambda: any(checkpoints.folder.glob(".stage-*")))
        seen = _iteration(checkpoints)
        child.kill()
        child.communicate()
        in_save += any(checkpoints.folder.glob(".stage-*"))
        folder, state, messages = checkpoints.newest()
        damaged += len(messages)
        newest = int(folder.name)
        lost += newest < seen
        assert state["run"]["iteration"] == newest > first
    total = newest + 2
    last = make(tmp_path, "eval_every=0", f"total_samples={total * ITERATION}", "resume=true")
    assert last.fit(quiet=True) == 0
    print(
        f"\nsigkill, seed {seed}: {kills} kills, {in_save} inside a save, {damaged} damaged, "
        f"{lost} lost, {newest} iterations, resumed {kills} of {kills}"
    )
    assert (damaged, lost) == (0, 0)
    assert in_save >= kills // 4
    assert [int(row["iteration"]) for row in rows(last)] == list(range(1, total + 1))
    whole = fit(tmp_path / "whole", "eval_every=0", f"total_samples={total * ITERATION}")
    assert manifest(last, total) == manifest(whole, total)


def _iteration(checkpoints):
    published = checkpoints.published()
    return int(published[-1].name) if published else -1


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, marks=() if n == signal.SIGTERM else pytest.mark.slow)
        for n in interrupt.SIGNALS
    ],
)
def test_a_signal_saves_the_iteration_under_way_and_exits_with_4(tmp_path, spawn, number, capsys):
    overrides = ("total_samples=1000000000", "num_envs=64", "algo.horizon=40")
    checkpoints = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints")
    seconds, newest = [], 0
    for k in range(20 if FULL else 1):
        child = spawn(tmp_path, *overrides, *(["resume=true"] if k else []))
        wait_for(lambda c=child, n=newest: _iteration(checkpoints) > n or c.poll() is not None)
        if k == 0:
            _check_that_the_folder_is_taken(tmp_path, overrides, capsys)
        began = time.monotonic()
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        seconds.append(time.monotonic() - began)
        assert child.returncode == 4
        iteration = int(re.search(rf"signal {int(number)}: saved iteration (\d+)", err)[1])
        folder, _, messages = checkpoints.newest()
        assert (int(folder.name), messages) == (iteration, [])
        assert iteration > newest
        newest = iteration
    middle, most = np.median(seconds), max(seconds)
    print(f"\n{len(seconds)} {number.name}: exit 4, median {middle:.2f} s, at most {most:.2f} s")
    assert most <= 20.0


def _check_that_the_folder_is_taken(out, overrides, capsys):
    """Two more processes want it: one to continue the run, one to begin another."""
    for word, says in (("resume=true", "another process trains"), ("seed=0", "holds a run")):
        assert main(["train", "name=run", *SMALL, *overrides, f"out={out}", word]) == 2
        printed, err = capsys.readouterr()
        assert printed == "" and err.count("\n") == 1 and says in err


def test_a_second_signal_ends_the_process_at_once_and_harms_no_checkpoint(tmp_path, spawn):
    # an iteration of minutes: the first signal alone would wait for its end
    child = spawn(tmp_path, "total_samples=1000000000", "algo.horizon=100000")
    checkpoints = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints")
    wait_for(lambda: _iteration(checkpoints) == 0 or child.poll() is not None)
    time.sleep(1.0)  # let the iteration begin
    child.send_signal(signal.SIGTERM)
    assert child.stderr.readline() == (
        "signal 15: saving after this iteration; a second signal ends at once\n"
    )
    time.sleep(0.1)
    assert child.poll() is None
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    took = time.monotonic() - began
    print(f"\nsecond SIGTERM: exit {child.returncode} after {took:.2f} s")
    assert child.returncode == 128 + signal.SIGTERM
    assert took < 2.0
    assert checkpoints.newest()[2] == []
