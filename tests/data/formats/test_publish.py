"""Datasets are whole under their name, or not there: kills, full disks, two writers."""

import contextlib
import signal
import subprocess
import sys
import textwrap

import pytest

from penspin_style.data.formats import lerobot
from penspin_style.data.formats.publish import stage_folder
from tests.support.robots import columns, record


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return record(tmp_path_factory.mktemp("episodes"))


@pytest.fixture(scope="module")
def dataset(episodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "dataset"
    lerobot.write(episodes, folder, task="Push the cart.", valid=0.3)
    return folder


def test_nothing_is_written_over(episodes, dataset):
    before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*")}
    with pytest.raises(FileExistsError, match=r"dataset exists already"):
        lerobot.write(episodes, dataset)
    assert {p: p.stat().st_mtime_ns for p in dataset.rglob("*")} == before
    assert [p.name for p in dataset.parent.iterdir()] == ["dataset"]


def test_an_episode_that_turns_out_damaged_leaves_no_dataset(tmp_path):
    made = record(tmp_path / "e", steps=(3, 40), success=(True, True))
    data = bytearray(made[1].path.read_bytes())
    column = columns(40, 1)["sent"].tobytes()
    data[data.index(column[:64]) + 8] ^= 1
    made[1].path.write_bytes(data)
    with pytest.raises(ValueError, match=r"sent: does not match its checksum"):
        lerobot.write(made, tmp_path / "out/d")
    assert list((tmp_path / "out").iterdir()) == []


def child(code, *args, **kwargs):
    """Run code that finds episodes in argv[1] and writes to argv[2]."""
    start = """
        import os, pathlib, resource, signal, sys
        from penspin_style.data.formats import lerobot
        from penspin_style.data.episodes.episode import Episode, episodes
        found = [Episode.open(path) for path in episodes(sys.argv[1])]
    """
    text = textwrap.dedent(start) + textwrap.dedent(code)
    command = [sys.executable, "-c", text, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def test_a_killed_writer_leaves_nothing_that_a_reader_finds_and_the_next_cleans_up(
    episodes, tmp_path
):
    said = child(
        """
        lerobot._Dataset.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        lerobot.write(found, pathlib.Path(sys.argv[2]))
        """,
        episodes[0].path.parent,
        tmp_path / "d",
    )
    assert said.returncode == -signal.SIGKILL, said.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".stage-d-")
    lerobot.write(episodes, tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(episodes, tmp_path):
    said = child(
        """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for size in (1, 500, 3_000, 9_000, 20_000, 31_000):  # of the largest file that fits
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            out = pathlib.Path(sys.argv[2]) / str(size)
            try:
                lerobot.write(found, out / "d")
                print(size, "written")
            except OSError as error:
                print(size, type(error).__mro__[-4].__name__, list(out.iterdir()))
        """,
        episodes[0].path.parent,
        tmp_path,
    )
    lines = said.stdout.splitlines()
    assert said.returncode == 0 and len(lines) == 6, said.stderr
    assert [line.partition(" ")[2] for line in lines] == ["OSError []"] * 6


def test_the_stage_of_a_living_writer_is_left_alone(tmp_path):
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(stage_folder(tmp_path / "d"))
        (one / "mine").write_text("1")
        two = stack.enter_context(stage_folder(tmp_path / "d"))
        assert (one / "mine").exists() and one != two
