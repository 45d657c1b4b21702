"""A training in two processes: exact resume, in any number of processes, and a rank that dies.

`PENSPIN_FULL=1 pytest tests/train/test_run_parallel.py -m slow -s` kills a rank ten times.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from penspin_style.__main__ import main
from penspin_style.train.checkpoint import Checkpoints
from tests.support import training
from tests.support.ranks import run_ranks
from tests.support.small_run import environment, wait_for
from tests.support.training import manifest, rows, untimed

pytestmark = [pytest.mark.forks, pytest.mark.usefixtures("one_thread")]

SMALL = (
    *("task=panda_lift_cube", "num_envs=4", "algo.horizon=8", "algo.hidden=[16]"),
    *("algo.critic_hidden=[16]", "eval_every=2", "eval_episodes=2", "final_episodes=2"),
    *("checkpoint_every=1", "loggers=[csv]", "video=false", "keep_last=9"),
    *("sim.nthread=1", "learn_threads=1"),
)
EACH = 4 * 8


def fit(out, count, *overrides):
    """Train on `count` ranks; return the exit codes."""
    return run_ranks(count, lambda _: training.make(out, *SMALL, *overrides).fit(quiet=True))


def made(out, *overrides):
    """The run in `out`, to look at."""
    run = training.make(out, *SMALL, "resume=true", *overrides)
    run._lock.close()
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    total = f"total_samples={4 * 2 * EACH}"
    assert fit(out, 2, total) == [0, 0]
    return made(out, total)


def test_two_ranks_write_one_run(whole):
    assert [int(row["samples"]) for row in rows(whole)] == [64, 128, 192, 256]
    state = whole.checkpoints.newest()[1]
    assert list(state["ranks"]) == ["1"]
    other = state["ranks"]["1"]
    assert set(other["algo"]) == {"rng"}
    assert set(other["env"]) == set(state["env"])
    assert (other["env"]["qpos"] if "qpos" in other["env"] else other["env"]["sim"]).shape[0] == 4
    assert not (other["env"]["sim"] == state["env"]["sim"]).all()
    # normalisers have seen the rows of both: the first roots and every step, of 2 x 4 environments
    assert state["algo"]["policy"]["normalizer.count"] == 2 * 4 * (1 + 4 * 8)
    assert (whole.folder / "policy" / "card.json").exists()
    assert not (whole.folder / "changes.jsonl").exists()


def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, whole):
    def stopped(rank):
        run = training.make(tmp_path, *SMALL, f"total_samples={4 * 2 * EACH}")
        log = run._log

        def stop(*args):
            log(*args)
            if run.iteration == 2 and rank == 1:  # a signal that comes to one of them alone
                signal.raise_signal(signal.SIGTERM)

        run._log = stop
        return run.fit(quiet=True)

    assert run_ranks(2, stopped) == [4, 4]
    total = f"total_samples={4 * 2 * EACH}"
    assert fit(tmp_path, 2, total, "resume=true") == [0, 0]
    resumed = made(tmp_path, total)
    for i in (2, 3, 4):
        assert manifest(resumed, i) == manifest(whole, i)
    assert untimed(resumed) == untimed(whole)


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_and_says_what_changed(tmp_path, before, now, capfd):
    assert fit(tmp_path, before, f"total_samples={2 * before * EACH}") == [0] * before
    total = 2 * before * EACH + 2 * now * EACH

    def resume(_):
        return training.make(tmp_path, *SMALL, f"total_samples={total}", "resume=true").fit()

    assert run_ranks(now, resume) == [0] * now
    said = (
        "the episodes of the 1 others are dropped" if now == 1 else "1 of them begin new episodes"
    )
    err = capfd.readouterr().err
    assert (
        f"{now} processes go on, there were {before}: an iteration has {now * EACH} samples "
        f"instead of {before * EACH}; {said}"
    ) in err
    run = made(tmp_path, f"total_samples={total}")
    assert run.checkpoints.newest()[1]["run"]["samples"] == total
    assert [int(row["iteration"]) for row in rows(run)] == [1, 2, 3, 4]
    (line,) = (run.folder / "changes.jsonl").read_text().splitlines()
    assert json.loads(line)["changes"]["processes"] == [str(before), str(now)]


def test_grpo_learns_in_two_processes(tmp_path):
    own = ("algo=grpo", "algo.group_size=2", "algo.horizon=3", "algo.hidden=[16]")
    overrides = (*(o for o in SMALL if "algo." not in o), *own, f"total_samples={2 * 2 * 4 * 3}")

    def train(_):
        return training.make(tmp_path, *overrides).fit(quiet=True)

    assert run_ranks(2, train) == [0, 0]
    run = training.make(tmp_path, *overrides, "resume=true")
    run._lock.close()
    assert [row["samples"] for row in rows(run)] == ["24", "48"]
    assert run.checkpoints.newest()[1]["run"]["iteration"] == 2


def test_an_algorithm_that_learns_in_one_process_alone_is_refused(tmp_path, monkeypatch, capsys):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert main(["train", "task=panda_lift_cube", "algo=sac", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        "penspin: algo=sac trains in one process, and torchrun has started 2; leave torchrun out, "
        "or choose among grpo, ppo\n"
    )
    assert not list(tmp_path.iterdir())


# A rank that dies.


def kill_one(out, *, resume, victim):
    """Kill a rank of a training under torchrun; return the seconds until all have ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command += ["-m", "penspin_style", "train", *SMALL, f"out={out}", "keep_last=3"]
    command += ["total_samples=1000000000", "eval_every=0", *(["resume=true"] if resume else [])]
    with (out / "err").open("w") as err:
        launcher = subprocess.Popen(command, env=environment(), stderr=err, cwd=out)
    checkpoints = Checkpoints(out / "panda_lift_cube" / "run" / "checkpoints")
    before = newest(checkpoints)
    try:
        wait_for(lambda: newest(checkpoints) > before + 1 or launcher.poll() is not None)
        assert launcher.poll() is None, (out / "err").read_text()
        pids = children(launcher.pid)
        assert len(pids) == 2
        began = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)
        assert launcher.wait(timeout=60) != 0
        for pid in pids:
            wait_for(lambda pid=pid: not pathlib.Path(f"/proc/{pid}").exists(), seconds=60)
        return time.monotonic() - began
    finally:
        launcher.kill()
        launcher.wait()


def children(pid):
    """The ranks that a launcher has started, in order."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            stat, env = (folder / "stat").read_text(), (folder / "environ").read_bytes()
        except OSError:
            continue
        rank = re.search(rb"(?:^|\0)RANK=(\d+)", env)
        if int(stat.rsplit(")", 1)[1].split()[1]) == pid and rank:
            found[int(rank[1])] = int(folder.name)
    return [found[k] for k in sorted(found)]


def newest(checkpoints):
    published = checkpoints.published()
    return int(published[-1].name) if published else -1


def check_kills(out, count):
    checkpoints = Checkpoints(out / "panda_lift_cube" / "run" / "checkpoints")
    seconds = []
    for k in range(count):
        seconds.append(kill_one(out, resume=k > 0, victim=1 - k % 2))
        folder, state, messages = checkpoints.newest()
        assert messages == [] and state["run"]["iteration"] == int(folder.name) > 0
    print(f"\n{count} ranks killed: all ended after at most {max(seconds):.1f} s")
    assert max(seconds) <= 60.0
    last = newest(checkpoints)
    total = f"total_samples={2 * EACH * (last + 1)}"
    assert fit(out, 2, total, "keep_last=3", "eval_every=0", "resume=true") == [0, 0]


def test_a_rank_that_is_killed_ends_all_and_the_last_checkpoint_goes_on(tmp_path):
    check_kills(tmp_path, 1)


@pytest.mark.slow
def test_a_rank_is_killed_ten_times(tmp_path):
    check_kills(tmp_path, 10)
