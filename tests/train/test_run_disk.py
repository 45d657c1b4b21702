"""A disk that is full at one write of a training, at each in turn, and from each on.

Never worse than: a warning, and the last good checkpoint loads. `PENSPIN_FULL=1 pytest
tests/train/test_run_disk.py -s` tries every call and prints a table of the kinds of files.
"""

import collections
import errno
import os
import pathlib
import re

import pytest

from penspin_style.__main__ import main
from penspin_style.algo.ppo import PPO
from penspin_style.train.checkpoint import Checkpoints
from tests.support.faulty_disk import FaultyDisk

FULL = os.environ.get("PENSPIN_FULL") == "1"
ITERATION = 4 * 4
SMALL = (
    *("task=panda_lift_cube", "num_envs=4", "algo.horizon=4", "eval_every=1", "eval_episodes=2"),
    *("final_episodes=2", "checkpoint_every=1", "video=false", "loggers=[csv,tensorboard]"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


class EveryWrite(FaultyDisk):
    """Also rows that are appended, and TensorBoard's records."""

    def __init__(self, monkeypatch, fail_at=None, *, lasting=False):
        super().__init__(monkeypatch, fail_at, errno.ENOSPC, lasting=lasting)
        from tensorboard.summary.writer.record_writer import RecordWriter

        opened, write = pathlib.Path.open, RecordWriter.write

        def append(path, mode="r", **kwargs):
            if "a" in mode:
                self._wrap("open", lambda *_: None)(path)
            return opened(path, mode, **kwargs)

        def record(writer, data):
            self._wrap("record", lambda *_: None)("tensorboard/events")
            return write(writer, data)

        monkeypatch.setattr(pathlib.Path, "open", append)
        monkeypatch.setattr(RecordWriter, "write", record)


def kind(name, path):
    """What a call writes: a file's name without numbers, or the folder that is renamed."""
    parts = [re.sub(r"\.stage-(.*)-[0-9a-f]{32}$", r"\1", p) for p in path.parts]
    parts = ["" if re.fullmatch(r"\.stage-[0-9a-f]{32}|\d{8}", p) else p for p in parts]
    tail = parts[parts.index("run") :] if "run" in parts else parts
    file = "/".join(p for p in tail if p).replace("run/", "")
    return re.sub(r"\d{8}-env\d+", "N", file) or "run", name


def train(out, monkeypatch, capfd, fail_at=None, *, lasting=False):
    """Train two iterations, one with a fault, from nothing; return (calls, code, stderr)."""
    act, count = PPO.act, []

    def spoiled(self, td):
        td = act(self, td)
        count.append(0)
        if len(count) == 2:
            td["action"][0] = float("nan")
        return td

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "act", spoiled)
        patch.setattr("penspin_style.train.faults.MAX_SHARE", 1.0)
        disk = EveryWrite(patch, fail_at, lasting=lasting)
        code = main(["train", "name=run", *SMALL, f"out={out}", f"total_samples={2 * ITERATION}"])
    return disk.calls, code, capfd.readouterr().err


def check(out, calls, code, err, k):
    """Check that nothing is worse than it must be; return what happened, in a word."""
    assert "Traceback" not in err, err
    checkpoints = Checkpoints(out / "panda_lift_cube" / "run" / "checkpoints")
    if checkpoints.published():
        folder, _, messages = checkpoints.newest()
        assert not messages
    if code == 0:
        assert folder.name == "00000002"
        silent = calls[k][0] in ("fsync", "rename", "mkdir") and ".stage-" in str(calls[k][1])
        assert "warning" in err or silent, (calls[k], err)
        return "warned"
    assert "No space left on device" in err
    if code == 3:
        return "exit 3"
    assert code == 2 and not (out / "panda_lift_cube" / "run" / "metrics.csv").exists()
    return "exit 2, before the first iteration"


@pytest.mark.timeout(7200 if FULL else 600)
@pytest.mark.parametrize(
    "lasting",
    [
        pytest.param(False, id="once", marks=pytest.mark.slow),
        pytest.param(True, id="from there on"),
    ],
)
def test_a_full_disk_at_any_write_of_a_training_costs_no_checkpoint(
    tmp_path, monkeypatch, capfd, lasting
):
    calls, code, _ = train(tmp_path / "whole", monkeypatch, capfd)
    assert code == 0
    kinds = collections.Counter(kind(name, pathlib.Path(path))[0] for name, path in calls)
    wanted = {"config.yaml", "git.txt", "git.diff", "versions.json", "score.txt", "metrics.csv"}
    wanted |= {"faults/model.xml", "faults/N-ACTION.npz", "tensorboard/events", "policy"}
    found = " ".join(kinds)
    assert all(name in found for name in wanted), found
    table = collections.defaultdict(collections.Counter)
    last = {}
    for k, (name, path) in enumerate(calls):
        last.setdefault(kind(name, pathlib.Path(path)), k)
    picked = range(len(calls)) if FULL else sorted(last.values())[::12]
    for k in picked:
        out = tmp_path / str(k)
        seen, code, err = train(out, monkeypatch, capfd, k, lasting=lasting)
        if k >= len(seen):
            continue  # TensorBoard's thread was not as far this time
        what = check(out, seen, code, err, k)
        table[kind(seen[k][0], pathlib.Path(seen[k][1]))[0]][what] += 1
    with capfd.disabled():
        print(f"\n{'from there on' if lasting else 'once'}: {len(picked)} of {len(calls)} calls")
        for file, outcomes in sorted(table.items()):
            print(f"| {file} | {', '.join(f'{v} {n}' for n, v in outcomes.items())} |")
