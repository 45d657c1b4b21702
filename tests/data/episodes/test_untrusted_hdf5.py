"""Hostile files: each is refused for what is wrong with it, soon, in little memory."""

import pathlib
import re
import subprocess
import sys
import time

import pytest

from penspin_style.data import check as check_module
from penspin_style.data.check import MEMORY, check, verify
from penspin_style.data.episodes.episode import EpisodeError
from tests.support import hostile, hostile_contents, hostile_packs

LONGEST = 5.0  # s


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What is said of every file, and after how long."""
    folder = tmp_path_factory.mktemp("hostile")
    assert hostile.is_good(folder / "good.h5")
    paths = [folder / f"{name}.h5" for name in hostile.FILES]
    for path, (make, _) in zip(paths, hostile.FILES.values(), strict=True):
        make(path)
    paths.insert(paths.index(folder / "twice_the_same.h5"), folder / "original.h5")
    found, began = {}, time.monotonic()
    for result in verify(paths):
        now = time.monotonic()
        found[result.file.stem] = (result, now - began)
        began = now
    return found


def test_there_are_enough_of_them():
    assert len(hostile.FILES) >= 90
    where = {make.__module__ for make, _ in hostile.FILES.values()}
    assert where == {m.__name__ for m in (hostile, hostile_contents, hostile_packs)}


@pytest.mark.parametrize("name", hostile.FILES)
def test_a_hostile_file_is_refused_for_what_is_wrong_with_it(results, name):
    result, seconds = results[name]
    assert result.facts is None
    _, said = hostile.FILES[name]
    assert str(result.fault).startswith(str(result.file))
    assert re.search(said, str(result.fault)), result.fault
    assert seconds < LONGEST


def test_the_good_file_among_them_is_not_refused(results):
    result, _ = results["original"]
    assert result.fault is None and result.facts.steps == hostile.STEPS
    assert result.facts.columns["sent"] == "(2,) float64 [rad]"


def test_nobody_was_killed_for_it(results):
    said = " ".join(str(v.fault) for v, _ in results.values())
    assert "crashes" not in said and "takes more than" not in said and "MemoryError" not in said


LOOK = """
import pathlib, resource, sys
from penspin_style.data.check import verify
for result in verify([pathlib.Path(line) for line in sys.stdin.read().splitlines()]):
    pass
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_the_child_stays_below_its_limit_of_memory(results):
    """Asked by a small process: a child's peak begins with what its parent had when it forked."""
    paths = "\n".join(str(result.file) for result, _ in results.values())
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        input=paths,
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1024 * int(done.stdout) < MEMORY == 512 * 2**20


def test_the_limit_of_memory_holds():
    code = "from penspin_style.data import check; check._limit(); bytearray(600 * 2**20)"
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert died.returncode == 1 and "MemoryError" in died.stderr


CRASH = """
import json, os, signal, sys, time
items = json.loads(sys.stdin.readline())["items"]
for path, _ in items:
    if "crash" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in path:
        time.sleep(60)
    print(json.dumps({"key": "k", "row": 3, "what": "is bad"}), flush=True)
"""


def test_a_file_that_kills_or_stops_the_child_costs_one_result(tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "_CHILD", (sys.executable, "-c", CRASH))
    paths = [tmp_path / f"{name}.h5" for name in ("a", "crash", "b", "hang", "c", "crash2", "d")]
    said = [str(v.fault).removeprefix(str(tmp_path)) for v in verify(paths, patience=1.5)]
    assert said == [
        "/a.h5: k, row 3: is bad",
        "/crash.h5: crashes the HDF5 library (SIGSEGV); it is damaged or hostile",
        "/b.h5: k, row 3: is bad",
        "/hang.h5: takes more than 2 s to check; it is damaged or hostile",
        "/c.h5: k, row 3: is bad",
        "/crash2.h5: crashes the HDF5 library (SIGSEGV); it is damaged or hostile",
        "/d.h5: k, row 3: is bad",
    ]


def test_a_fault_names_file_key_and_row(tmp_path):
    path = tmp_path / "x.h5"
    hostile.FILES["nan"][0](path)
    with pytest.raises(EpisodeError) as caught:
        check(path)
    error = caught.value
    assert (error.file, error.key, error.row) == (path, "sent", 7)
