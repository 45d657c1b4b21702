"""Recorded roll-outs: what is read is what was written, and what is damaged is refused."""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from penspin_style import storage
from penspin_style.data.rollouts import LABEL, Rollouts, RolloutWriter, shuffled
from penspin_style.features import Feature, Input
from tests.damage import cut, lose

INPUTS = (
    Input("student", (Feature("x", (2,), "m", history=2), Feature("on", ()))),
    Input("eye_rgb", (Feature("eye_rgb", (4, 6, 3), "1", "uint8"),)),
    Input("eye_depth", (Feature("eye_depth", (4, 6), "m", history=2),)),
)
SIZES = (5, 3, 4)
FACTS = {"task": "cart", "policy": "cart/run", "control_dt": 0.1 + 0.2, "seed": 3}
REMEDY = r"record anew with penspin record"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(first, n, naction=2):
    """Rows that all tensors number alike, from `first` on."""
    number = torch.arange(first, first + n)

    def numbered(*shape, scale=1.0):
        return (scale * number.view(-1, *(1 for _ in shape))).expand(n, *shape).clone()

    return {
        "student": numbered(5).float(),
        "eye_rgb": numbered(4, 6, 3).to(torch.uint8),
        "eye_depth": numbered(2, 4, 6).float(),
        LABEL: numbered(naction, scale=0.01).float(),
    }


def record(folder, sizes=SIZES):
    writer, first = RolloutWriter(folder, INPUTS, FACTS), 0
    for n in sizes:
        writer.add({**rows(first, n), "ignored": torch.zeros(n)})
        first += n
    writer.close()


@pytest.fixture
def folder(tmp_path):
    record(tmp_path / "recording")
    return tmp_path / "recording"


def edit_card(folder, **changes):
    path = folder / "card.json"
    card = json.loads(path.read_text())
    for key, value in changes.items():
        if value is KeyError:
            del card[key]
        else:
            card[key] = value(card[key]) if callable(value) else value
    path.write_text(json.dumps(card))


# What was written is read.


def test_a_recording_is_read_back_bit_for_bit(folder):
    recording = Rollouts(folder)
    assert recording.inputs == INPUTS
    assert (recording.rows, recording.shards, recording.naction) == (12, 3, 2)
    assert recording.sizes == list(SIZES)
    assert {k: recording.facts[k] for k in FACTS} == FACTS
    first = 0
    for index, n in enumerate(SIZES):
        read, written = recording.shard(index), rows(first, n)
        assert read.keys() == written.keys()
        for name, value in written.items():
            assert torch.equal(read[name], value) and read[name].dtype == value.dtype
        first += n


def test_the_files_are_plain_safetensors_and_a_card(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert names == [*(f"0000{i}.safetensors" for i in range(3)), "card.json"]
    assert load_file(folder / "00001.safetensors").keys() == rows(0, 1).keys()


def test_the_writer_counts_what_it_wrote(tmp_path):
    writer = RolloutWriter(tmp_path / "new" / "deep", INPUTS, {})
    assert (writer.rows, writer.shards) == (0, 0)
    writer.add(rows(0, 5))
    writer.add(rows(5, 2))
    assert (writer.rows, writer.shards) == (7, 2)


def test_a_row_without_an_input_is_not_written(tmp_path):
    writer = RolloutWriter(tmp_path / "r", INPUTS, {})
    short = rows(0, 2)
    del short["eye_depth"]
    with pytest.raises(KeyError, match="eye_depth"):
        writer.add(short)
    assert writer.shards == 0 and not list((tmp_path / "r").iterdir())


def test_a_recording_is_never_written_over(folder):
    with pytest.raises(ValueError, match=r"recording is not empty; choose another folder"):
        RolloutWriter(folder, INPUTS, FACTS)
    (folder.parent / "empty").mkdir()
    RolloutWriter(folder.parent / "empty", INPUTS, FACTS)


# Drawing from it.


def test_drawn_rows_belong_together_and_come_from_the_recording(folder):
    drawn = shuffled(Rollouts(folder), 200, seeded())
    number = drawn["student"][:, 0]
    expected = {name: value[number.long()] for name, value in rows(0, 12).items()}
    for name, value in expected.items():
        assert torch.equal(drawn[name], value)
    counts = torch.bincount(number.long(), minlength=12)
    assert len(counts) == 12 and counts.min() > 0


def test_as_many_rows_are_drawn_as_asked_whatever_the_shards_hold(folder):
    recording = Rollouts(folder)
    for count in (1, 3, 5, 12, 40):
        drawn = shuffled(recording, count, seeded(count))
        assert {len(value) for value in drawn.values()} == {count}


def test_within_a_shard_no_row_is_drawn_twice(tmp_path):
    record(tmp_path / "one", sizes=(12,))
    drawn = shuffled(Rollouts(tmp_path / "one"), 12, seeded(1))["student"][:, 0].tolist()
    assert sorted(drawn) == list(range(12)) != drawn


def test_the_generator_alone_decides_what_is_drawn(folder):
    recording = Rollouts(folder)
    torch.manual_seed(0)
    first = shuffled(recording, 9, seeded(4))
    torch.manual_seed(1)
    again, other = shuffled(recording, 9, seeded(4)), shuffled(recording, 9, seeded(5))
    assert torch.equal(first["student"], again["student"])
    assert not torch.equal(first["student"], other["student"])


# Damage.


def test_a_recording_that_was_not_closed_is_refused_with_the_remedy(tmp_path):
    writer = RolloutWriter(tmp_path / "r", INPUTS, FACTS)
    writer.add(rows(0, 2))
    with pytest.raises(
        ValueError, match=rf"r holds no complete recording \(FileNotFoundError.*{REMEDY}"
    ):
        Rollouts(tmp_path / "r")
    with pytest.raises(ValueError, match=rf"nowhere holds no complete recording .*{REMEDY}"):
        Rollouts(tmp_path / "nowhere")


def test_a_recording_of_nothing_is_refused(tmp_path):
    RolloutWriter(tmp_path / "r", INPUTS, FACTS).close()
    with pytest.raises(ValueError, match=rf"r: the card says 0 rows in 0 shards.*{REMEDY}"):
        Rollouts(tmp_path / "r")


def cut_header(path):
    path.write_bytes(path.read_bytes()[:40])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("hello")


@pytest.mark.parametrize("damage", [lose, cut, cut_header, empty, text])
def test_a_damaged_shard_is_named_before_anything_is_learned(folder, damage):
    damage(folder / "00001.safetensors")
    with pytest.raises(ValueError, match=rf"00001\.safetensors is damaged: .*{REMEDY}"):
        Rollouts(folder)


def edited(name, change):
    def edit(path):
        tensors = load_file(path)
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, path)

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edited("eye_rgb", None), r"'eye_rgb' is None None, the card says U8 \[3, 4, 6, 3\]"),
        (edited("eye_rgb", torch.Tensor.float), r"'eye_rgb' is F32 .*, the card says U8"),
        (edited("eye_rgb", lambda x: x[:, :2]), r"'eye_rgb' is U8 \[3, 2, 6, 3\], the card says"),
        (edited("student", torch.Tensor.double), r"'student' is F64 \[3, 5\], the card says F32"),
        (
            edited("student", lambda x: x[:2]),
            r"'student' is F32 \[2, 5\], the card says .*\[3, 5\]",
        ),
        (edited(LABEL, None), r"'label' is None None, the card says F32 \[0, 2\]"),
        (edited(LABEL, lambda x: x[:, :1]), r"'label' is F32 \[3, 1\], the card says F32 \[3, 2\]"),
        (edited(LABEL, torch.Tensor.long), r"'label' is I64 \[3, 2\], the card says F32"),
    ],
)
def test_a_shard_of_other_tensors_is_refused_by_name(folder, damage, message):
    damage(folder / "00001.safetensors")
    with pytest.raises(ValueError, match=rf"00001\.safetensors: {message}.*{REMEDY}"):
        Rollouts(folder)


def test_a_flipped_bit_is_found_when_its_shard_is_read(folder):
    path = folder / "00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    recording = Rollouts(folder)
    recording.shard(0)
    with pytest.raises(ValueError, match=rf"00001\.safetensors does not match .*{REMEDY}"):
        recording.shard(1)
    with pytest.raises(ValueError, match="does not match its checksum"):
        shuffled(recording, 100, seeded())


def test_shards_that_were_swapped_or_are_of_another_recording_are_found(folder, tmp_path):
    record(tmp_path / "other", sizes=(5, 5, 2))
    (folder / "00000.safetensors").write_bytes((tmp_path / "other/00001.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"00000\.safetensors does not match its checksum"):
        Rollouts(folder).shard(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 13}, r"the card says 13 rows, there are \[5, 3, 4\]"),
        ({"shards": 2}, r"the card says 12 rows in 2 shards, with 3 checksums"),
        ({"shards": 2, "sha256": lambda s: s[:2]}, r"the card says 12 rows, there are \[5, 3\]"),
        ({"shards": 4, "sha256": lambda s: [*s, s[0]]}, r"00003\.safetensors is damaged"),
        ({"naction": 3}, r"'label' is F32 \[5, 2\], the card says F32 \[5, 3\]"),
        ({"inputs": KeyError}, r"holds no complete recording \(KeyError\('inputs'\)\)"),
        ({"sha256": KeyError}, r"holds no complete recording \(KeyError\('sha256'\)\)"),
        ({"rows": "many"}, r"holds no complete recording \(ValueError"),
        ({"inputs": 3}, r"holds no complete recording \(TypeError"),
        ({"inputs": [{"name": "student"}]}, r"holds no complete recording \(KeyError"),
    ],
)
def test_a_card_that_does_not_fit_its_shards_is_refused(folder, changes, message):
    edit_card(folder, **changes)
    with pytest.raises(ValueError, match=rf"{message}.*{REMEDY}"):
        Rollouts(folder)


@pytest.mark.parametrize("damage", [cut, empty, text])
def test_a_damaged_card_is_refused(folder, damage):
    damage(folder / "card.json")
    with pytest.raises(ValueError, match=rf"holds no complete recording .*{REMEDY}"):
        Rollouts(folder)


def test_the_checksums_are_those_of_the_files(folder):
    sums = json.loads((folder / "card.json").read_text())["sha256"]
    files = sorted(folder.glob("*.safetensors"))
    assert sums == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_a_full_disk_leaves_no_half_of_a_shard_and_no_card(tmp_path, monkeypatch):
    writer = RolloutWriter(tmp_path / "r", INPUTS, FACTS)
    writer.add(rows(0, 2))

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_flush_and_hash", full)
    with pytest.raises(OSError, match="No space"):
        writer.add(rows(2, 2))
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["00000.safetensors"]
    assert (writer.rows, writer.shards) == (2, 1)


@pytest.mark.parametrize("name", ["card.json", "00001.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_a_recording_is_not_waited_for(folder, name, kind):
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"is not a regular file.*{REMEDY}"):
        Rollouts(folder)


def test_a_shard_that_became_a_pipe_is_not_waited_for(folder):
    recording = Rollouts(folder)
    (folder / "00001.safetensors").unlink()
    os.mkfifo(folder / "00001.safetensors")
    with pytest.raises(ValueError, match=rf"is not a regular file.*{REMEDY}"):
        recording.shard(1)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"rows": 1, "rows": 2}', '{"rows": NaN}'])
def test_a_card_that_readers_could_take_in_two_ways_is_refused(folder, text):
    (folder / "card.json").write_text(text)
    with pytest.raises(ValueError, match=rf"no complete recording .*{REMEDY}"):
        Rollouts(folder)
