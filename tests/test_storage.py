import errno
import os
import pathlib
import socket
import time

import pytest

from penspin_style import storage
from tests.support import faulty_disk

FILES = {"weights.bin": bytes(range(256)) * 4, "values.json": b'{"a": [1, 2.5, null]}'}
FACTS = {"iteration": 7, "score": 0.25, "note": "Überprüfung"}


def publish(target):
    with storage.publish(target, FACTS) as stage:
        for name, content in FILES.items():
            (stage / name).write_bytes(content)


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.fixture
def target(tmp_path):
    publish(tmp_path / "published")
    return tmp_path / "published"


def test_a_published_folder_has_its_files_its_facts_and_no_stage_beside_it(target):
    manifest = storage.verify(target)
    assert {k: manifest[k] for k in FACTS} == FACTS
    assert set(manifest["sha256"]) == set(FILES)
    assert {k: v for k, v in contents(target).items() if k != storage.MANIFEST} == FILES
    assert [f.name for f in target.parent.iterdir()] == ["published"]


def test_a_published_folder_is_never_written_over(target):
    before = contents(target)
    with pytest.raises(FileExistsError, match="published exists"):
        publish(target)
    assert contents(target) == before


def test_an_error_while_filling_publishes_nothing(tmp_path):
    with (
        pytest.raises(KeyError, match="halfway"),
        storage.publish(tmp_path / "target", FACTS) as stage,
    ):
        (stage / "weights.bin").write_bytes(b"half")
        raise KeyError("halfway")
    assert not list(tmp_path.iterdir())


def test_files_then_stage_are_flushed_before_the_rename_and_the_parents_after(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        calls = faulty_disk.FaultyDisk(patch).calls
        publish(tmp_path / "new" / "run" / "target")
    rename = next(i for i, (name, _) in enumerate(calls) if name == "rename")
    stage = calls[rename][1]
    flushed_before = [path for name, path in calls[:rename] if name == "fsync"]
    assert set(flushed_before) >= {stage / name for name in (*FILES, storage.MANIFEST)}
    assert flushed_before[-1] == stage
    # a folder's name is in its parent: without these the first checkpoint could vanish
    assert {tmp_path, tmp_path / "new"} <= set(flushed_before)
    assert [path for _, path in calls[rename + 1 :]] == [tmp_path / "new" / "run"]


def calls_of(monkeypatch, work):
    """How many calls an undisturbed `work` makes."""
    with monkeypatch.context() as patch:
        disk = faulty_disk.FaultyDisk(patch)
        work()
    return len(disk.calls)


@pytest.mark.parametrize("error", faulty_disk.ERRORS)
def test_a_disk_error_at_any_call_publishes_nothing_and_leaves_nothing(
    tmp_path, monkeypatch, error
):
    count = calls_of(monkeypatch, lambda: publish(tmp_path / "0" / "target"))
    # folder and parent flush, stage, 2 writes, 2 flushes, manifest and flush, stage, rename, parent
    assert count == 12
    for k in range(count):
        folder = tmp_path / f"{error}{k}"
        with monkeypatch.context() as patch:
            disk = faulty_disk.FaultyDisk(patch, k, getattr(errno, error))
            with pytest.raises(OSError, match=f"at call {k},"):
                publish(folder / "target")
        assert len(disk.calls) >= k + 1
        assert not folder.exists() or not list(folder.iterdir()), disk.calls[k]
        publish(folder / "target")  # the next attempt is not hindered
        storage.verify(folder / "target")


@pytest.mark.parametrize("error", faulty_disk.ERRORS)
def test_a_disk_that_fails_for_good_leaves_nothing_that_a_reader_believes_and_is_not_whole(
    tmp_path, monkeypatch, error
):
    seen = []
    for k in range(12):
        folder = tmp_path / str(k)
        with monkeypatch.context() as patch:
            faulty_disk.FaultyDisk(patch, k, getattr(errno, error), lasting=True)
            with pytest.raises(OSError, match=r"at call \d+,"):
                publish(folder / "target")
        if (folder / "target").exists():
            storage.verify(folder / "target")
            seen.append(k)
    assert seen == [11]  # renamed, whole, but neither flushed nor taken back


@pytest.mark.parametrize("error", faulty_disk.ERRORS)
def test_a_disk_error_at_any_call_of_write_file_leaves_the_old_content_or_the_new(
    tmp_path, monkeypatch, error
):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"old")
    count = calls_of(monkeypatch, lambda: storage.write_file(path, b"old"))
    assert count == 4  # write, flush, replace, parent
    for k in range(count):
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            faulty_disk.FaultyDisk(patch, k, getattr(errno, error))
            with pytest.raises(OSError, match=f"at call {k},"):
                storage.write_file(path, b"new")
        assert path.read_bytes() == (b"new" if k == 3 else b"old")
        assert [f.name for f in tmp_path.iterdir()] == ["metrics.csv"]


def test_what_killed_writers_left_is_removed_and_nothing_else(target):
    parent = target.parent
    (parent / ".stage-killed" / "deep").mkdir(parents=True)
    (parent / ".stage-killed" / "weights.bin").write_bytes(b"half")
    (parent / ".stage-metrics.csv-killed").write_bytes(b"half")
    (parent / "notes.txt").write_text("mine")
    storage.remove_stages(parent)
    storage.remove_stages(parent / "absent")
    assert sorted(f.name for f in parent.iterdir()) == ["notes.txt", "published"]


def test_a_removed_folder_disappears_with_one_rename(target, monkeypatch):
    with monkeypatch.context() as patch:
        calls = faulty_disk.FaultyDisk(patch).calls
        storage.remove(target)
    assert [name for name, _ in calls] == ["rename"]
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("name", [*FILES, storage.MANIFEST])
def test_every_flipped_bit_is_found_and_the_file_is_named(target, name):
    path = target / name
    whole = path.read_bytes()
    step = max(1, len(whole) // 97)
    flips = [(i, 1 << (i % 8)) for i in range(0, len(whole), step)]
    assert len(flips) > 20
    for i, bit in flips:
        path.write_bytes(whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :])
        with pytest.raises(storage.DamagedError, match=name):
            storage.verify(target)
    path.write_bytes(whole)
    storage.verify(target)


def _truncate(path):
    for n in (0, 1, path.stat().st_size // 2, path.stat().st_size - 1):
        os.truncate(path, n)
        yield


def _lengthen(path):
    with path.open("ab") as file:
        file.write(b"\n")
    yield


def _delete(path):
    path.unlink()
    yield


def _become_a_folder(path):
    path.unlink()
    path.mkdir()
    yield


@pytest.mark.parametrize("damage", [_truncate, _lengthen, _delete, _become_a_folder])
@pytest.mark.parametrize("name", [*FILES, storage.MANIFEST])
def test_a_file_cut_lengthened_deleted_or_replaced_is_found_and_named(target, name, damage):
    times = 0
    for _ in damage(target / name):
        times += 1
        with pytest.raises(storage.DamagedError, match=name):
            storage.verify(target)
    assert times


def test_an_extra_file_is_found_and_named(target):
    (target / "extra.bin").write_bytes(b"")
    with pytest.raises(storage.DamagedError, match=r"extra\.bin is not in the manifest"):
        storage.verify(target)


def test_swapped_files_are_found_and_named(target):
    first, second = (target / name for name in FILES)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(storage.DamagedError, match=r"values\.json does not match"):
        storage.verify(target)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '"x"', '{"sha256": 3}', "{", "\xff", "NaN"])
def test_a_manifest_of_another_kind_is_damaged_and_not_a_crash(target, text):
    (target / storage.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(storage.DamagedError, match=r"manifest\.json"):
        storage.verify(target)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_only_a_regular_file_is_read_and_nothing_is_waited_for(tmp_path, kind):
    path = tmp_path / "policy.onnx"
    listener = socket.socket(socket.AF_UNIX)
    make = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "socket": lambda: listener.bind(str(path)),
        "folder": path.mkdir,
    }
    make[kind]()
    began = time.monotonic()
    with listener, pytest.raises(OSError, match=r"regular file|No such device"):
        storage.read_file(path, 100)
    assert time.monotonic() - began < 1


def test_a_file_is_read_up_to_its_limit_and_a_sparse_one_costs_nothing(tmp_path):
    (tmp_path / "whole").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to("whole")
    assert storage.read_file(tmp_path / "link", 100) == b"x" * 100
    assert storage.read_file(tmp_path / "link", 2**60) == b"x" * 100  # a limit costs no memory
    with pytest.raises(OSError, match="whole is larger than 99 bytes"):
        storage.read_file(tmp_path / "whole", 99)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 2**42)
    with pytest.raises(OSError, match=f"larger than {2**40} bytes"):
        storage.read_file(tmp_path / "sparse", 2**40)
    # what grows while it is read says that it is empty
    with pytest.raises(OSError, match="larger than 10 bytes"):
        storage.read_file(pathlib.Path("/proc/self/maps"), 10)


@pytest.mark.parametrize("read", [storage.verify, storage.read_verified])
@pytest.mark.parametrize("name", ["weights.bin", "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_published_folder_with_a_pipe_or_a_device_in_it_is_damaged(target, read, name, kind):
    (target / name).unlink()
    if kind == "pipe":
        os.mkfifo(target / name)
    else:
        (target / name).symlink_to("/dev/zero")
    with pytest.raises(storage.DamagedError, match=f"{name} is .*not a regular file"):
        read(target, limit=2**20)


def test_a_published_folder_gives_the_bytes_that_were_checked(target):
    manifest, contents = storage.read_verified(target, limit=1024)
    assert (manifest, contents) == (storage.verify(target), FILES)
    with pytest.raises(storage.DamagedError, match=r"weights.bin is .*larger than 1023 bytes"):
        storage.read_verified(target, limit=1023)
    with pytest.raises(storage.DamagedError, match=r"weights.bin is larger than 1023 bytes"):
        storage.verify(target, limit=1023)


def test_a_manifest_nested_without_end_is_damaged(target):
    (target / storage.MANIFEST).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(storage.DamagedError, match="missing or unreadable"):
        storage.verify(target)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"task": "a", "run": "", "task": "b"}', "the key 'task' twice"),
        ('[{"deep": {"x": 1, "x": 1}}]', "the key 'x' twice"),
        ("[1, NaN]", "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ("[1e999]", "holds 1e999"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a":' * 64 + "{}" + "}" * 64, "nested more than 64 deep"),
        ("[1" + "0" * 5000 + "]", "digits"),
        ("{", "Expecting"),
        (b"\xff", "decode"),
    ],
)
def test_json_that_two_readers_could_read_in_two_ways_is_refused(text, fault):
    with pytest.raises(ValueError, match=fault):
        storage.parse_json(text)
    assert storage.parse_json("[" * 64 + "]" * 64)
    assert storage.parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
