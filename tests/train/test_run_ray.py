"""A training with workers on a real Ray, and workers that are killed.

`pytest tests/train/test_run_ray.py -m slow -s` kills five in one training.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import uuid

import pytest

from penspin_style.train.checkpoint import Checkpoints
from penspin_style.train.logging import _read
from tests.support.small_run import environment, wait_for

pytest.importorskip("ray", reason="launcher=ray needs Ray: the extra ray")
pytestmark = pytest.mark.clock

SMALL = (
    *("launcher=ray", "cluster.env=2", "cluster.learner=1", "name=run", "eval_every=0"),
    *("final_episodes=2", "loggers=[csv]", "video=false", "sim.nthread=1", "learn_threads=1"),
)
TOY = ("task=tests.support.toy", "num_envs=8", "algo.hidden=[16]", "algo.critic_hidden=[16]")
LIFT = ("task=panda_lift_cube", "num_envs=64", "algo.horizon=32", "checkpoint_every=5")


class Training:
    """A training in a process of its own, with a home folder of its own."""

    def __init__(self, out, *overrides):
        self.out, self.mark = out, uuid.uuid4().hex
        self.home = out / "home"
        self.home.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "penspin_style", "train", *SMALL, *overrides, f"out={out}"]
        env = {**environment(), "HOME": str(self.home), "PENSPIN_MARK": self.mark}
        self.files = [(out / name).open("w") for name in ("stdout", "stderr")]
        stdout, stderr = self.files
        self.child = subprocess.Popen(command, env=env, stdout=stdout, stderr=stderr, cwd=out)
        (self.task,) = (
            o.removeprefix("task=").rpartition(".")[2] for o in overrides if "task=" in o
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        for file in self.files:
            file.close()
        wait_for(lambda: not self.processes())

    @property
    def folder(self):
        return next(self.out.glob("*/run"))

    def rows(self):
        found = list(self.out.glob("*/run/metrics.csv"))
        return _read(found[0])[1] if found else []

    def until(self, condition):
        """Wait for rows of which something is true; return them."""
        wait_for(lambda: self.child.poll() is not None or condition(self.rows()))
        assert self.child.poll() is None, (self.out / "stderr").read_text()
        return self.rows()

    def processes(self, title=""):
        """The processes that this training has started and that bear a title, by id."""
        mark, found = f"PENSPIN_MARK={self.mark}".encode(), []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                name, env = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue
            if mark in env and name.startswith(title.encode()):
                found.append(int(folder.name))
        return sorted(found)

    def kill_worker(self, k):
        workers = self.processes("ray::RolloutWorker")
        assert workers, self.processes()
        os.kill(workers[k % len(workers)], signal.SIGKILL)


def last(rows, key):
    return float(rows[-1][f"ray/{key}"]) if rows else -1.0


def test_a_killed_worker_is_replaced_while_the_training_goes_on(tmp_path):
    before = set(pathlib.Path(tempfile.gettempdir()).glob("penspin-ray-*"))
    with Training(tmp_path, *TOY, "total_samples=1000000000", "checkpoint_every=1000") as run:
        run.until(lambda rows: last(rows, "workers") == 2)
        assert set(_listening(run.processes())) == {"127.0.0.1"}
        run.kill_worker(1)
        run.until(lambda rows: last(rows, "lost") == 1)
        run.until(lambda rows: last(rows, "workers") == 2)
        run.child.send_signal(signal.SIGTERM)
        assert run.child.wait(timeout=120) == 4
        rows = run.rows()
    each = 24 * 8
    assert last(rows, "corrupt_batches") == 0
    assert last(rows, "dropped_samples") in (0, each)  # killed between two batches, or in one
    assert float(rows[-1]["samples"]) == sum(float(row["ray/workers"]) * each for row in rows)
    err = (tmp_path / "stderr").read_text()
    assert re.search(
        r"warning: worker \d \(process \d+ on .*\) has died: \d+ samples are dropped, another is",
        err,
    )
    assert "Traceback" not in err and (tmp_path / "stdout").read_text() == ""
    state = Checkpoints(run.folder / "checkpoints").newest()[1]
    assert state["run"]["samples"] == float(rows[-1]["samples"])
    assert int(state["env"]["workers/lost"]) == 1
    assert list(run.home.iterdir()) == []
    assert set(pathlib.Path(tempfile.gettempdir()).glob("penspin-ray-*")) <= before


def _listening(pids):
    """The addresses on which processes listen, of IPv4 and IPv6."""
    sockets = set()
    for pid in pids:
        for file in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.update(re.findall(r"socket:\[(\d+)\]", os.readlink(file)))
            except OSError:
                continue
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                bytes_ = bytes.fromhex(fields[1].split(":")[0])[-4:]
                yield ".".join(str(b) for b in reversed(bytes_))


@pytest.mark.slow
def test_five_workers_are_killed_and_the_training_finishes(tmp_path):
    with Training(tmp_path, *LIFT, "total_samples=400000") as run:
        for k in range(5):
            run.until(lambda rows, k=k: last(rows, "lost") == k and last(rows, "workers") == 2)
            run.kill_worker(k)
            run.until(lambda rows, k=k: last(rows, "lost") == k + 1)
        assert run.child.wait(timeout=1800) == 0
        rows = run.rows()
    each = 32 * 64
    counts = {key: last(rows, key) for key in ("lost", "dropped_samples", "corrupt_batches")}
    print(f"\n{counts}, {len(rows)} iterations, {rows[-1]['samples']} samples")
    assert counts["lost"] == 5 and counts["corrupt_batches"] == 0
    assert counts["dropped_samples"] % each == 0 and 0 < counts["dropped_samples"] <= 5 * each
    assert float(rows[-1]["samples"]) == sum(float(row["ray/workers"]) * each for row in rows)
    assert (run.folder / "policy" / "card.json").exists()
    assert (tmp_path / "stderr").read_text().count("has died") == 5
    assert Checkpoints(run.folder / "checkpoints").newest()[2] == []
