"""The recorder: what it acknowledged is there and whole, what it lost it says, it never waits."""

import errno
import gc
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest

from penspin_style.data.episodes import atomic_file
from penspin_style.data.episodes import recorder as recorder_module
from penspin_style.data.episodes.episode import (
    Channel,
    Episode,
    Header,
    Recorder,
    RecorderError,
    episodes,
)
from tests.support.recording import CARD, MORE, columns, header, rows

ROOT = pathlib.Path(__file__).parents[3]
STUCK = 30.0  # s that a slow disk takes for one write
DISK = ("open", "pwrite", "pread", "ftruncate", "fsync", "rename")
"""Every call of `os` through which an episode reaches the disk."""


class FaultyDisk:
    """Count the calls that touch the disk; number `fail_at` fails, or all from it on."""

    def __init__(self, patch, fail_at=None, error=errno.ENOSPC, *, lasting=False):
        self.calls = []
        self.fail_at, self.error, self.lasting = fail_at, error, lasting
        for name in DISK:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name, real):
        def call(*args, **kwargs):
            k = len(self.calls)
            self.calls.append(name)
            failing = self.fail_at is not None and (
                k == self.fail_at or (self.lasting and k > self.fail_at)
            )
            if not failing:
                return real(*args, **kwargs)
            if name == "pwrite":  # a full disk takes a part
                real(args[0], args[1][: len(args[1]) // 2], *args[2:])
            raise OSError(self.error, f"{os.strerror(self.error)} at call {k}, {name}")

        return call


def record(recorder, steps=70, first=0, success=True):
    for row in rows(steps, recorder.header, first):
        recorder.append(row, wait=True)
    return recorder.finish(success)


def visible(folder):
    return sorted(path.name for path in folder.iterdir())


def test_finish_returns_only_after_file_and_folder_were_flushed(tmp_path, monkeypatch):
    with Recorder(tmp_path, header()) as recorder:
        with monkeypatch.context() as patch:
            disk = FaultyDisk(patch)
            path = record(recorder)
        assert path.exists()
    assert disk.calls[-5:] == ["pwrite", "fsync", "rename", "open", "fsync"]
    assert disk.calls.count("open") == 2  # the hidden file, the folder


@pytest.mark.parametrize(("error", "lasting"), [(errno.EIO, False), (errno.ENOSPC, True)])
def test_a_disk_error_at_any_call_is_raised_and_leaves_no_half_episode(
    tmp_path, monkeypatch, error, lasting
):
    small = Header.of_card(CARD, source="real", robot="cart")
    with Recorder(tmp_path, small) as recorder:
        kept = [record(recorder, 3)]
        with monkeypatch.context() as patch:
            disk = FaultyDisk(patch)
            kept.append(record(recorder, 5))
        count = len(disk.calls)
        assert count > 50
        for k in range(count):
            with monkeypatch.context() as patch:
                disk = FaultyDisk(patch, k, error, lasting=lasting)
                with pytest.raises(RecorderError, match=r"of \d+ rows in .* is lost: .*at call "):
                    record(recorder, 5)
            assert len(disk.calls) > k
            recorder.abort()
            for path in set(episodes(tmp_path)) - set(kept):
                # renamed, but neither the flush nor the way back worked: whole all the same
                assert lasting and k >= count - 2
                assert Episode.open(path)["sent"].tolist() == columns(5)["sent"].tolist()
                path.unlink()
        kept.append(record(recorder, 5))  # the disk is well again
    assert visible(tmp_path) == sorted(path.name for path in kept)
    assert [Episode.open(path).steps for path in kept] == [3, 5, 5]


def test_what_the_kernel_refuses_to_write_is_raised_too(tmp_path):
    code = """
import resource, sys, pathlib
from penspin_style.data.episodes.episode import Recorder, RecorderError
from tests.support.recording import header, rows
recorder = Recorder(pathlib.Path(sys.argv[1]), header())
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for row in rows(300):
        recorder.append(row, wait=True)
    recorder.finish(True)
except RecorderError as error:
    print(error)
"""
    said = run(code, tmp_path)
    assert "rows in" in said.stdout and "is lost: [Errno 27] File too large" in said.stdout
    assert visible(tmp_path) == []


def run(code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_an_interpreter_that_ends_in_the_middle_of_an_episode_ends_well(tmp_path):
    code = """
import sys, pathlib
from penspin_style.data.episodes.episode import Recorder
from tests.support.recording import header, rows
recorder = Recorder(pathlib.Path(sys.argv[1]), header())
for row in rows(30):
    recorder.append(row)
"""
    said = run(code, tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert visible(tmp_path) == []


@pytest.fixture
def slow_disk(monkeypatch):
    """The disk takes nothing until the event is set."""
    awake, real = threading.Event(), os.pwrite

    def pwrite(*args):
        awake.wait(STUCK)
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    # h5py has one lock, which the writer holds meanwhile: what earlier tests left is freed before
    gc.collect()
    gc.disable()
    yield awake
    awake.set()
    gc.enable()


def test_append_does_not_wait_for_the_disk(tmp_path, slow_disk):
    with Recorder(tmp_path, header()) as recorder:
        began = time.monotonic()
        for row in rows(200):
            recorder.append(row)
        assert recorder.rows == 200
        assert time.monotonic() - began < STUCK  # nothing was written yet
        slow_disk.set()
        assert Episode.open(recorder.finish(True)).steps == 200


def test_images_are_written_without_deflating_while_many_rows_wait(tmp_path, slow_disk):
    with Recorder(tmp_path, header(), queue=120) as recorder:
        for row in rows(100):
            recorder.append(row)
        slow_disk.set()
        path = recorder.finish(True)
    np.testing.assert_array_equal(
        Episode.open(path)["observation/eye_rgb"], columns(100)["observation/eye_rgb"]
    )
    with h5py.File(path) as file:
        data = file["observation/eye_rgb"]
        np.testing.assert_array_equal(data[:], columns(100)["observation/eye_rgb"])
        sizes = [data.id.get_chunk_info_by_coord((t, 0, 0, 0)).size for t in range(100)]
    assert max(sizes[:20]) > 8 * 8 * 3 > 4 * max(sizes[60:])


def test_a_disk_that_cannot_keep_up_is_said_at_once_and_nothing_is_published(tmp_path, slow_disk):
    with Recorder(tmp_path, header(), queue=5) as recorder:
        with pytest.raises(RecorderError, match=r"of [56] rows in .*: the disk cannot keep up: 5 "):
            for row in rows(20):
                recorder.append(row)
        with pytest.raises(RecorderError, match="cannot keep up"):
            recorder.append(next(rows(1)))
        slow_disk.set()
        with pytest.raises(RecorderError, match="cannot keep up"):
            recorder.finish(True)
        assert visible(tmp_path) == []
        path = record(recorder)
    assert visible(tmp_path) == [path.name]


def test_a_fault_is_raised_at_the_next_append(tmp_path, monkeypatch):
    with Recorder(tmp_path, header()) as recorder:
        recorder.append(next(rows(1)))
        monkeypatch.setattr(os, "pwrite", broken)
        with pytest.raises(RecorderError, match=r"is lost: \[Errno 28\] No space left"):
            for t, row in enumerate(rows(5000), 1):
                recorder.append({**row, "time": 0.05 * t}, wait=True)
        recorder.abort()
    assert visible(tmp_path) == []


def broken(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_no_error_of_the_disk_is_not_swallowed_either(tmp_path, monkeypatch):
    def run_out(*_):
        raise MemoryError("no more")

    with Recorder(tmp_path, header()) as recorder:
        monkeypatch.setattr(recorder_module, "deflate", run_out)
        recorder.append(next(rows(1)))
        with pytest.raises(RecorderError, match=r"of 1 rows in .* is lost: MemoryError: no more"):
            recorder.finish(True)
    assert visible(tmp_path) == []


def test_an_aborted_episode_and_one_left_unfinished_leave_nothing(tmp_path):
    with Recorder(tmp_path, header()) as recorder:
        recorder.append(next(rows(1)))
        recorder.abort()
        assert recorder.rows == 0 and visible(tmp_path) == []
        recorder.abort()
        recorder.append(next(rows(1)))
    assert visible(tmp_path) == []


def test_arrays_may_be_used_again_after_append(tmp_path):
    given = {name: np.copy(value) for name, value in next(rows(1)).items()}
    with Recorder(tmp_path, header()) as recorder:
        for t in range(1, 4):
            given["time"] = 0.1 * t
            given["sent"][:] = t
            given["observation/eye_rgb"][:] = t
            recorder.append(given)
        episode = Episode.open(recorder.finish(None))
    assert episode["sent"][:, 0].tolist() == [1.0, 2.0, 3.0]
    assert episode["observation/eye_rgb"][:, 0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sent": None}, r"row 1: missing \['sent'\], unknown \[\]"),
        ({"qpos": 1.0}, r"row 1: missing \[\], unknown \['qpos'\]"),
        ({"sent": np.zeros(3)}, r"row 1, sent: shape \(3,\), must be \(2,\)"),
        ({"sent": [0.0, np.nan]}, "row 1, sent: nan is not finite"),
        ({"sent": [-np.inf, 0.0]}, "row 1, sent: -inf is not finite"),
        ({"observation/joint_pos": [1e39, 0.0]}, "row 1, observation/joint_pos: inf is not finite"),
        ({"action": [0.0, 1.01]}, r"row 1, action: 1.00999.* is not in \[-1, 1\]"),
        ({"action": [np.nan, 0.0]}, r"row 1, action: nan is not in"),
        ({"observation/eye_rgb": np.zeros((8, 8, 3))}, "eye_rgb: float64, must be uint8"),
        ({"observation/depth": np.full((4, 4), -1)}, "depth: int64, must be uint16"),
        ({"sent": ["a", "b"]}, "row 1, sent: <U1, must be float64"),
        ({"time": 0.0}, r"row 1: time is 0.0 s after 0.0 s; it must increase"),
        ({"time": np.nan}, "row 1, time: nan is not finite"),
    ],
)
def test_a_row_that_cannot_be_stored_is_refused_and_the_episode_goes_on(
    tmp_path, change, complaint
):
    first, second = rows(2)
    wrong = {k: v for k, v in {**second, **change}.items() if v is not None}
    with Recorder(tmp_path, header()) as recorder:
        recorder.append(first)
        with pytest.raises(ValueError, match=complaint):
            recorder.append(wrong)
        recorder.append(second)
        assert Episode.open(recorder.finish(True)).steps == 2


def test_an_episode_without_a_row_cannot_be_finished(tmp_path):
    with Recorder(tmp_path, header()) as recorder:
        with pytest.raises(ValueError, match="no row to finish"):
            recorder.finish(True)
        recorder.append(next(rows(1)))
        with pytest.raises(ValueError, match="facts must be finite JSON"):
            recorder.finish(True, {"x": float("nan")})
        recorder.finish(True)
        with pytest.raises(ValueError, match="no row to finish"):
            recorder.finish(True)
    with pytest.raises(ValueError, match="queue must be >= 1"):
        Recorder(tmp_path, header(), queue=0)


def test_an_episode_of_too_many_rows_is_refused_where_it_grows_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "MAX_STEPS", 2)
    with Recorder(tmp_path, header()) as recorder:
        first, second, third = rows(3)
        recorder.append(first)
        recorder.append(second)
        with pytest.raises(ValueError, match="an episode has at most 2 rows; finish it"):
            recorder.append(third)
        assert Episode.open(recorder.finish(True)).steps == 2


def test_stages_of_dead_recorders_are_removed_and_those_of_living_ones_are_not(tmp_path):
    with Recorder(tmp_path, header()) as living:
        living.append(next(rows(1)))
        while not atomic_file.stages(tmp_path):
            time.sleep(0.01)
        (mine,) = atomic_file.stages(tmp_path)
        dead = tmp_path / ".stage-0123456789abcdef.h5"
        dead.write_bytes(b"half")
        (tmp_path / "notes.txt").write_text("mine")
        Recorder(tmp_path, header())
        assert visible(tmp_path) == [mine.name, "notes.txt"]
        path = living.finish(True)
    assert visible(tmp_path) == sorted([path.name, "notes.txt"])


def test_a_published_name_is_never_written_over(tmp_path):
    taken = tmp_path / "episode.h5"
    taken.write_bytes(b"mine")
    with (
        atomic_file.stage_file(tmp_path) as file,
        pytest.raises(FileExistsError, match=r"episode\.h5 exists already"),
    ):
        file.write(b"other")
        file.publish(taken)
    assert taken.read_bytes() == b"mine" and visible(tmp_path) == ["episode.h5"]


def test_recorders_and_readers_of_many_threads_do_not_hinder_each_other(tmp_path):
    def work(number, out):
        with Recorder(tmp_path, header()) as recorder:
            for _ in range(3):
                path = record(recorder, 40, first=number)
                out.append(
                    (Episode.open(path)["sent"][:, 0], columns(40, first=number)["sent"][:, 0])
                )

    found = [[] for _ in range(4)]
    threads = [threading.Thread(target=work, args=(i, out)) for i, out in enumerate(found)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(out) for out in found] == [3] * 4
    for read, written in itertools.chain(*found):
        np.testing.assert_array_equal(read, written)
    assert len(episodes(tmp_path)) == 12 == len(visible(tmp_path))


def test_memory_does_not_grow_with_the_episode(tmp_path):
    head = header(more=(*MORE, Channel("observation/eye2_rgb", (64, 64, 3), "uint8")))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)  # does not deflate: 12 kB a row
    row = next(rows(1, head))
    with Recorder(tmp_path, head, queue=32) as recorder:
        sizes = []
        for t in range(1500):
            row |= {"time": 0.02 * t, "observation/eye2_rgb": noise[t % 16]}
            recorder.append(row, wait=True)
            if t in (400, 1499):
                sizes.append(resident())
        path = recorder.finish(True)
    assert path.stat().st_size > 1500 * 12_288
    assert sizes[1] - sizes[0] < 5 * 2**20


def test_a_recorder_killed_at_random_moments_loses_nothing_that_it_acknowledged():
    script = ROOT / "tests" / "soak" / "kill_recorder.py"
    said = subprocess.run(
        [sys.executable, script, "8"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, said.stderr
    count = json.loads(said.stdout)
    assert (count["kills"], count["lost"], count["half accepted"]) == (8, 0, 0)
    assert count["acknowledged"] > 0 and count["hidden files left"] == 0


def resident():
    """Bytes of this process in memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
