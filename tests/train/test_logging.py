"""Where a run's numbers go, and that nothing on that way ends the run."""

import errno
import os
import threading

import pytest

from penspin_style.train.faults import FaultyRunError
from penspin_style.train.logging import CSVLog, Progress, Trackers
from tests.support import training
from tests.support.training import rows

ITERATION = 4 * 4
SMALL = (
    *("task=panda_lift_cube", "num_envs=4", "algo.horizon=4", "eval_every=0", "final_episodes=2"),
    *("checkpoint_every=1", "video=false", f"total_samples={3 * ITERATION}"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


def log(path, count):
    csv = CSVLog(path)
    for i in range(1, count + 1):
        csv.write({"iteration": i, "samples": 10 * i, "env/return": 0.5 * i})
    return csv


# metrics.csv


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (b"2,20,1.0", b"2,20", [1, 3, 4]),  # cut
        (b"2,20,1.0", b"2,20,1.0,7", [1, 3, 4]),
        (b"2,20,1.0", b"2,2\xff0,1.0", [1, 3, 4]),
        (b"2,20,1.0", b"\0\0\0\0\0\0", [1, 3, 4]),
        (b"2,20,1.0", b"two,20,1.0", [1, 3, 4]),
        (b"2,20,1.0", b",20,1.0", [1, 3, 4]),
        (b"2,20,1.0", b'2,"20,1.0', [1, 3, 4]),
        (b"3,30,1.5", b"1,30,1.5", [1, 2, 4]),  # the order says that this is not the row of 1
        (b"iteration,", b"iter\xffation", []),
        (b"4,40,2.0\r\n", b"4,4", [1, 2, 3]),  # a power cut
    ],
)
def test_a_damaged_log_keeps_its_whole_rows_and_is_set_aside(tmp_path, old, new, kept):
    path = tmp_path / "metrics.csv"
    log(path, 4)
    damaged = path.read_bytes().replace(old, new)
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    csv = CSVLog(path)
    message = csv.truncate(9)
    aside = tmp_path / "metrics.damaged.csv"
    assert f"{len(kept)} whole rows are kept" in message and str(aside) in message
    assert aside.read_bytes() == damaged
    csv.write({"iteration": 5, "samples": 50, "env/return": 2.5})
    assert [int(line.split(",")[0]) for line in path.read_text().split()[1:]] == [*kept, 5]
    path.write_bytes(path.read_bytes() + b"x")
    csv.truncate(9)
    assert (tmp_path / "metrics.damaged-1.csv").exists() and aside.read_bytes() == damaged


def test_a_whole_log_is_cut_without_a_word(tmp_path):
    csv = log(tmp_path / "metrics.csv", 4)
    assert csv.truncate(2) == ""
    assert csv.last() == {"iteration": "2", "samples": "20", "env/return": "1.0"}
    csv.path.unlink()
    csv.write({"iteration": 3})  # somebody has removed it: it begins anew
    assert csv.last()["iteration"] == "3"


def test_a_resume_with_a_damaged_log_goes_on(tmp_path, capsys):
    run = training.fit(tmp_path, *SMALL, "loggers=[csv]", f"total_samples={2 * ITERATION}")
    path = run.folder / "metrics.csv"
    path.write_bytes(path.read_bytes().replace(b"\n1,", b"\n1;"))
    resumed = training.make(tmp_path, *SMALL, "loggers=[csv]", "resume=true")
    assert resumed.fit() == 0
    assert "1 damaged lines; 1 whole rows are kept" in capsys.readouterr().err
    assert [row["iteration"] for row in rows(resumed)] == list("23")


# Trackers.


class Broken:
    """A tracker whose thread or call fails."""

    def __init__(self, error, at):
        self.error, self.at, self.calls = error, at, 0
        self.go, self.experiment = threading.Event(), self
        self.thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        if at == "thread":
            self.thread.start()

    def _work(self):
        self.go.wait()
        raise self.error

    def log_metrics(self, row, step):
        self.calls += 1
        if self.at == "thread":
            self.go.set()
            self.thread.join()
            raise self.error
        if self.at == "log" and self.calls == 2:
            raise self.error

    def close(self):
        if self.at == "close":
            raise self.error


ERRORS = (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("login"), KeyError("x"))


@pytest.mark.parametrize("at", ["start", "log", "thread", "close"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    tmp_path, monkeypatch, capsys, error, at
):
    made = []

    def make(*_):
        if at == "start":
            raise error
        made.append(Broken(error, at))
        return made[-1]

    monkeypatch.setattr("penspin_style.train.logging._make_tracker", make)
    said = []
    with Trackers(["csv", "tensorboard"], tmp_path, "run", said.append) as trackers:
        for i in range(4):
            trackers.log({"iteration": float(i)}, i)
    assert len(said) == 1 and said[0].startswith("warning: tensorboard has failed and is left out")
    assert [m.calls for m in made] == {"start": [], "log": [2], "thread": [1], "close": [4]}[at]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("good", [0, 1])
def test_the_disk_of_tensorboard_fills_up_and_the_training_ends_well(
    tmp_path, monkeypatch, capfd, good
):
    """As its own thread finds out: at the header that it begins with, or at the next write."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, calls = RecordWriter.write, []

    def full(self, data):
        calls.append(len(data))
        if len(calls) > good:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    run = training.make(tmp_path, *SMALL, "loggers=[csv,tensorboard]")
    assert run.fit() == 0
    err = capfd.readouterr().err
    assert err.count("warning: tensorboard has failed") == 1 and "No space left" in err
    assert "Traceback" not in err and "Exception in thread" not in err
    assert [row["iteration"] for row in rows(run)] == list("123")
    assert run.checkpoints.newest()[0].name == "00000003"


def test_the_checkpoint_is_there_before_a_tracker_is_told(tmp_path, monkeypatch):
    run = training.make(tmp_path, *SMALL, "loggers=[csv]")
    seen = []

    def note(self, row, step):
        seen.append((row["iteration"], run.checkpoints.published()[-1].name, len(rows(run))))

    monkeypatch.setattr(Trackers, "log", note)
    assert run.fit(quiet=True) == 0
    assert seen == [(i, f"{i:08d}", i) for i in (1, 2, 3)]


def test_a_policy_that_cannot_be_written_leaves_the_one_before_and_exits_with_3(
    tmp_path, monkeypatch
):
    run = training.fit(tmp_path, *SMALL, "loggers=[csv]")
    card = (run.folder / "policy" / "card.json").read_text()
    more = (f"total_samples={4 * ITERATION}", "loggers=[csv]", "resume=true")
    again = training.make(tmp_path, *SMALL, *more)
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("penspin_style.train.publish.save_policy", fail)
        with pytest.raises(FaultyRunError, match=r"all is trained, but .* could not be written"):
            again.fit(quiet=True)
    assert (run.folder / "policy" / "card.json").read_text() == card
    last = training.fit(tmp_path, *SMALL, *more)  # nothing is left to train, the policy is
    assert f"/samples{4 * ITERATION}" in (last.folder / "policy" / "card.json").read_text()


# What is shown.


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        (
            "success_rate",
            "success_once 96.0%  success_at_end 0.0%  evaluated success_once 95.0%  evaluated "
            "success_at_end 1.0%  return",
        ),
        (
            "success_at_end",
            "success_at_end 0.0%  success_once 96.0%  evaluated success_at_end 1.0%  "
            "evaluated success_once 95.0%  return",
        ),
        (
            "turns",
            "turns 0.46  success_once 96.0%  success_at_end 0.0%  evaluated turns 0.44  evaluated "
            "success_once 95.0%",
        ),
        (
            "return",
            "return 3.00  success_once 96.0%  success_at_end 0.0%  evaluated return 2.00  "
            "evaluated success_once 95.0%",
        ),
    ],
)
def test_what_a_task_scores_by_is_shown_first_and_by_its_name(score, shown, capsys):
    row = {"samples": 1e6, "time/samples_per_s": 100.0, "env/episode_len": 7.0, "eval/return": 2.0}
    row |= {"env/success_once": 0.96, "env/success_at_end": 0.0, "env/return": 3.0}
    row |= {"eval/success_once": 0.95, "eval/success_at_end": 0.01}
    row |= {"env/turns": 0.456, "eval/turns": 0.444}
    with Progress("a run", 2_000_000, score=score) as progress:
        progress.show(row)
    assert shown in " ".join(capsys.readouterr().err.split("\n"))


def test_a_progress_that_cannot_be_written_is_no_error(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as lost, Progress("a run", 10) as progress:
        progress.console.file = lost
        monkeypatch.setattr("penspin_style.system.interrupt.silence_lost", lambda: None)
        progress.say("x" * 100_000)
        progress.show({"samples": 1.0, "time/samples_per_s": 1.0})
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # what is left in the buffer goes there
