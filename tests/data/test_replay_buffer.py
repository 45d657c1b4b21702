"""A ring of samples, and its blocks as files that checkpoints share."""

import copy

import pytest
import torch
from tensordict import TensorDict

from penspin_style.data import replay as module
from penspin_style.data.replay import Replay
from penspin_style.storage import DamagedError
from penspin_style.train.checkpoint import Checkpoints

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)


def rows(first, n):
    x = torch.arange(first, first + n, dtype=torch.float32)
    image = x.to(torch.uint8)[:, None, None].expand(n, 2, 2)
    return TensorDict({"x": x, "next": {"image": image}}, batch_size=[n])


def filled(*sizes, capacity=10):
    made, count = Replay(capacity), 0
    for n in sizes:
        made.add(rows(count, n))
        count += n
    return made


def same(one, two):
    assert one.count == two.count and one.capacity == two.capacity
    for key, value in one.content.items(True, True):
        assert torch.equal(value, two.content[key]) and value.dtype == two.content[key].dtype


def test_the_newest_samples_stay_in_their_own_types():
    made = filled(3, 4, 6)
    assert len(made) == 10 and made.count == 13
    assert sorted(made.content["x"].tolist()) == list(range(3, 13))
    assert made.content["next", "image"].dtype == torch.uint8
    assert sorted(filled(25).content["x"].tolist()) == list(range(15, 25))


def test_samples_are_drawn_from_all_that_are_there_and_no_others():
    drawn = filled(3).sample(200, torch.Generator().manual_seed(0))
    assert set(drawn["x"].tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize("step", [1, 2, 3, 5, 11])
def test_a_block_has_a_new_version_exactly_when_its_rows_have_changed(step):
    made, seen = Replay(10), {}
    for count in range(0, 60, step):
        made.add(rows(count, step))
        for block, version in made.versions().items():
            content = tuple(made.block(block)["x"].tolist())
            assert seen.setdefault((block, version), content) == content
    changed = {block: {v for b, v in seen if b == block} for block in range(3)}
    for block in range(3):
        contents = {seen[block, version] for version in changed[block]}
        assert len(contents) == len(changed[block])  # and no version without a change


def state(replay):
    return {"algo": {"weights": torch.ones(2), "replay": replay}}


def test_checkpoints_share_the_files_of_blocks_that_have_not_changed(tmp_path):
    made, checkpoints = filled(9, capacity=100), Checkpoints(tmp_path / "checkpoints", keep_last=2)
    checkpoints.save(1, state(made), None)
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "replay").iterdir()}
    assert sorted(before) == [f"0000{k}-{n}.safetensors" for k, n in ((0, 4), (1, 8), (2, 9))]
    kept = copy.deepcopy(made)
    made.add(rows(9, 2))
    checkpoints.save(2, state(made), None)
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "replay").iterdir()}
    assert {*after} - {*before} == {"00002-11.safetensors"} and before.items() <= after.items()
    fresh = Checkpoints(tmp_path / "checkpoints", keep_last=2)
    same(fresh.load(tmp_path / "checkpoints" / "00000001")["algo"]["replay"], kept)
    same(fresh.newest()[1]["algo"]["replay"], made)
    made.add(rows(11, 1))
    checkpoints.save(3, state(made), None)
    names = {f.name for f in (tmp_path / "replay").iterdir()}
    assert "00002-9.safetensors" not in names and "00002-11.safetensors" in names


def test_a_full_ring_comes_back_and_goes_on_as_if_nothing_had_been(tmp_path):
    made = filled(7, 7, 5)
    Checkpoints(tmp_path / "checkpoints").save(1, state(made), None)
    read = Checkpoints(tmp_path / "checkpoints").newest()[1]["algo"]["replay"]
    for ring in (made, read):
        ring.add(rows(19, 4))
    same(read, made)


def test_an_empty_buffer_comes_back_empty(tmp_path):
    Checkpoints(tmp_path / "checkpoints").save(1, state(Replay(10)), None)
    assert len(Checkpoints(tmp_path / "checkpoints").newest()[1]["algo"]["replay"]) == 0


@pytest.mark.parametrize("fault", ["gone", "changed"])
def test_a_checkpoint_without_its_samples_is_damaged_and_the_one_before_is_taken(tmp_path, fault):
    made, checkpoints = filled(4), Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state(made), None)
    made.add(rows(4, 1))
    checkpoints.save(2, state(made), None)
    file = tmp_path / "replay" / "00001-5.safetensors"
    data = file.read_bytes()
    file.unlink() if fault == "gone" else file.write_bytes(data[:-1] + b"?")
    fresh = Checkpoints(tmp_path / "checkpoints")
    folder, found, messages = fresh.newest()
    assert folder.name == "00000001" and len(found["algo"]["replay"]) == 4
    assert "00001-5.safetensors" in messages[0]
    with pytest.raises(DamagedError):
        fresh.load(tmp_path / "checkpoints" / "00000002")


def test_a_file_of_another_run_of_the_same_name_is_written_anew(tmp_path):
    Checkpoints(tmp_path / "checkpoints").save(1, state(filled(4)), None)
    other = Replay(10)
    other.add(rows(40, 4))
    fresh = Checkpoints(tmp_path / "checkpoints")
    fresh.save(2, state(other), None)
    same(fresh.load(tmp_path / "checkpoints" / "00000002")["algo"]["replay"], other)


def test_buffers_of_another_capacity_do_not_mix():
    with pytest.raises(ValueError, match="a replay buffer of 10 samples, not 11"):
        Replay(11).take(filled(3), CPU)


def test_names_with_a_slash_and_nested_ones_come_back_as_they_were(tmp_path):
    made = Replay(6)
    seen = TensorDict({"seen/front": torch.rand(4, 3), "next": {"reward": torch.rand(4)}}, [4])
    made.add(seen)
    Checkpoints(tmp_path / "checkpoints").save(1, state(made), None)
    read = Checkpoints(tmp_path / "checkpoints").newest()[1]["algo"]["replay"]
    assert set(read.ring.keys(True, True)) == {"seen/front", ("next", "reward")}
    same(read, made)
