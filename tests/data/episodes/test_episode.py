"""Episodes: what is read is what was written, and other readers of HDF5 find it too."""

import dataclasses
import json
import os

import h5py
import numpy as np
import pytest

from penspin_style.data.episodes import untrusted_hdf5
from penspin_style.data.episodes.episode import (
    Channel,
    Episode,
    EpisodeError,
    Header,
    Recorder,
    commands,
    episodes,
    write_episode,
)
from penspin_style.features import PolicyCard
from tests.support.recording import CARD, JOINTS, MORE, columns, header, rows

STEPS = 70  # more than one block, and a part of another


@pytest.fixture
def path(tmp_path):
    return write_episode(tmp_path, header(), columns(STEPS), True)


def test_an_episode_reads_back_bit_for_bit(path):
    episode = Episode.open(path)
    assert (episode.steps, episode.success) == (STEPS, True)
    read, written = vars(episode.header).copy(), vars(header()).copy()
    channels, given = (sorted(kept.pop("channels"), key=str) for kept in (read, written))
    assert channels == given and read == written
    for name, column in columns(STEPS).items():
        values = episode[name]
        assert values.dtype == column.dtype
        np.testing.assert_array_equal(values, column)
    assert sorted(episode.keys()) == sorted(columns(1))
    assert episode.keys()[0] == "time"


@pytest.mark.parametrize("steps", [1, 63, 64, 65, 128])
def test_any_number_of_rows_fills_blocks_or_parts_of_them(tmp_path, steps):
    episode = Episode.open(write_episode(tmp_path, header(), columns(steps), None))
    assert episode.steps == steps and episode.success is None
    assert len(episode["observation/eye_rgb"]) == len(episode["sent"]) == steps


def test_a_plain_reader_of_hdf5_finds_the_documented_layout(path):
    with h5py.File(path) as file:
        attributes = dict(file.attrs)
        assert {
            k: v.item() for k, v in attributes.items() if k in ("format", "steps", "success")
        } == {
            "format": 1,
            "steps": STEPS,
            "success": 1,
        }
        assert attributes["control_dt"] == 0.05 and attributes["task"] == b"cart"
        assert attributes["source"] == b"twin" and json.loads(attributes["facts"]) == {"seed": 3}
        assert PolicyCard.from_json(file["card"][()].decode()) == CARD
        for name, column in columns(STEPS).items():
            np.testing.assert_array_equal(file[name][:], column)
        assert file["action"].dtype == np.float32 and file["sent"].dtype == np.float64
        assert json.loads(file["sent"].attrs["names"]) == list(JOINTS)
        assert file["sent"].attrs["unit"] == b"rad" and file["action"].attrs["unit"] == b"1"
        images = file["observation/eye_rgb"]
        assert images.chunks == (1, 8, 8, 3)
        assert (images.compression, images.shuffle) == ("gzip", True)
        depth = file["observation/depth"]  # HDF5's own filters undo our shuffle of two bytes
        assert depth.shuffle and depth.dtype == np.uint16


def test_no_value_in_the_file_is_a_pointer_into_a_heap(path):
    with h5py.File(path) as file:
        kinds = [file["card"].id.get_type()]
        file.visititems(lambda _, o: kinds.extend(o.attrs.get_id(k).get_type() for k in o.attrs))
        kinds += [file.attrs.get_id(k).get_type() for k in file.attrs]
    texts = [k for k in kinds if isinstance(k, h5py.h5t.TypeStringID)]
    assert len(texts) > 10 and not any(k.is_variable_str() for k in texts)


def test_an_image_of_one_colour_still_inflates_to_no_more_than_the_bound(tmp_path):
    head = header(more=(*MORE, Channel("observation/black", (64, 64, 3), "uint8")))
    given = columns(3, head)
    given["observation/black"][:] = 0
    path = write_episode(tmp_path, head, given, True)
    with h5py.File(path) as file:
        stored = file["observation/black"].id.get_storage_size()
        assert not file["observation/black"][:].any()
    assert 3 * 64 * 64 * 3 / 250 < stored < 3 * 64 * 64 * 3 / 7  # one bit for a byte, and a table
    assert not Episode.open(path)["observation/black"].any()


def test_a_header_of_a_card_lists_its_features_without_history():
    channels = {c.name: c for c in header(more=()).channels}
    assert channels == {
        "observation/joint_pos": Channel("observation/joint_pos", (2,), "float32", "rad"),
        "observation/on": Channel("observation/on", ()),
        "observation/eye_rgb": Channel("observation/eye_rgb", (8, 8, 3), "uint8"),
        "action": Channel("action", (2,), "float32", "1", JOINTS),
        "target": Channel("target", (2,), "float64", "rad", JOINTS),
        "sent": Channel("sent", (2,), "float64", "rad", JOINTS),
    }
    assert header().control_dt == CARD.control_dt and header().task == "cart"


def test_an_episode_needs_no_card(tmp_path):
    head = Header("cart", "real", "cart", 0.05, commands(CARD))
    episode = Episode.open(write_episode(tmp_path, head, columns(2, head), False))
    assert episode.header.card is None and episode.success is False
    assert dict(episode.header.facts) == {}


def test_the_facts_of_the_end_join_those_of_the_beginning(tmp_path):
    with Recorder(tmp_path, header()) as recorder:
        for row in rows(2):
            recorder.append(row)
        path = recorder.finish(True, {"turns": 1.25, "seed": 4})
    assert Episode.open(path).header.facts == {"seed": 4, "turns": 1.25}


def test_a_folder_lists_its_episodes_in_the_order_of_their_numbers(tmp_path):
    names = ("demo_10.h5", "demo_2.h5", "demo_1.h5", ".stage-x.h5", "notes.txt")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.h5").mkdir()
    assert [p.name for p in episodes(tmp_path)] == ["demo_1.h5", "demo_2.h5", "demo_10.h5"]


def test_episodes_of_one_recorder_sort_as_they_were_recorded(tmp_path):
    with Recorder(tmp_path, header()) as recorder:
        made = []
        for first in range(5):
            for row in rows(2, first=first):
                recorder.append(row)
            made.append(recorder.finish(True))
    assert episodes(tmp_path) == made
    assert [Episode.open(p)["measure/turns"][0] for p in made] == [0.0, 0.01, 0.02, 0.03, 0.04]


def test_an_unknown_column_is_named_with_those_there_are(path):
    with pytest.raises(KeyError, match=r"no 'observation/qpos', it has \['time'"):
        Episode.open(path)["observation/qpos"]


def test_every_flipped_bit_is_refused_or_changes_nothing_that_is_read(path):
    whole = path.read_bytes()
    truth = {key: column.tobytes() for key, column in columns(STEPS).items()}
    rng = np.random.default_rng(0)
    refused = 0
    places = rng.integers(0, len(whole), 60)
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            episode = Episode.open(path)
            assert {key: episode[key].tobytes() for key in truth} == truth, place
            assert (episode.success, episode.steps) == (True, STEPS), place
        except EpisodeError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 18  # the rest lies in what HDF5 leaves unused


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_off_is_refused(path, part):
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(EpisodeError, match=rf"{path.name}: is (not an HDF5|damaged)"):
        Episode.open(path)


def test_a_file_that_is_absent_or_a_folder_is_refused(tmp_path):
    with pytest.raises(EpisodeError, match=r"absent\.h5: .*No such file"):
        Episode.open(tmp_path / "absent.h5")
    with pytest.raises(EpisodeError, match="is not a file"):
        Episode.open(tmp_path)


def test_a_folder_that_is_not_there_holds_no_episodes(tmp_path):
    assert episodes(tmp_path / "absent") == []


def test_a_file_exchanged_after_it_was_opened_is_refused(tmp_path, path):
    episode = Episode.open(path)
    head = header(more=(Channel("measure/turns", (), "float32"),))
    os.replace(write_episode(tmp_path, head, columns(STEPS, head), True), path)
    with pytest.raises(EpisodeError, match=r"measure/turns: has changed since it was opened"):
        episode["measure/turns"]


def test_the_file_that_was_looked_at_is_the_one_that_is_read(path, monkeypatch):
    """Also where its name is another file's by the time HDF5 opens it."""
    real = untrusted_hdf5.h5py.File
    other = path.with_name("other.h5")

    def late(name, *args, **kwargs):
        other.write_bytes(b"something else")
        os.replace(other, path)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(untrusted_hdf5.h5py, "File", late)
    with untrusted_hdf5.opened(path) as file:
        assert "time" in file
    assert path.read_bytes() == b"something else"


@pytest.mark.parametrize("text", ["a\x1b[2J", "two\nlines", "\u202eodd", "\ud800"])
def test_a_text_that_a_terminal_would_act_on_is_stored_in_no_header(text):
    for change in ({"task": text}, {"robot": text}):
        with pytest.raises(ValueError, match="that can be printed"):
            dataclasses.replace(header(), **change)
    for change in ({"unit": text}, {"names": (text,), "shape": (1,)}):
        with pytest.raises(ValueError, match="that can be printed"):
            Channel(**{"name": "observation/x", "shape": (), **change})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "qpos"}, "must be action, target, sent, observation/NAME"),
        ({"name": "observation/../x"}, "must be action"),
        ({"name": "observation/"}, "must be action"),
        ({"dtype": "float16"}, "type 'float16' is not one of"),
        ({"dtype": "object"}, "type 'object' is not one of"),
        ({"shape": (0,)}, "must be up to 4 sizes > 0"),
        ({"shape": (2, 2, 2, 2, 2)}, "must be up to 4 sizes > 0"),
        ({"shape": (10_000, 10_000)}, "400000000 bytes a row"),
        ({"shape": (2,), "names": ("a",)}, "1 names for shape"),
        ({"unit": "x" * 65}, "its unit must be a text of up to 64 bytes"),
        ({"unit": "\ud800"}, "its unit must be a text"),
        ({"shape": (3,), "names": ("n" * 9000, "a", "b")}, "its names together may have 8192"),
    ],
)
def test_a_channel_that_cannot_be_stored_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Channel(**{"name": "observation/x", "shape": (), **changes})


def test_a_measure_is_one_number():
    with pytest.raises(ValueError, match="a measure is one number"):
        Channel("measure/turns", (2,))


GOOD = {
    "task": "cart",
    "source": "sim",
    "robot": "r",
    "control_dt": 0.1,
    "channels": commands(CARD),
}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"source": "video"}, "source 'video' is not one of"),
        ({"control_dt": float("nan")}, "control_dt must be positive, is nan"),
        ({"control_dt": 0.0}, "control_dt must be positive"),
        ({"channels": commands(CARD)[:2]}, r"needs the channels \['sent'\]"),
        ({"channels": (*commands(CARD), MORE[0], MORE[0])}, r"\['observation/depth'\] are listed"),
        ({"channels": (*commands(CARD), Channel("time", ()))}, r"\['time'\] are listed"),
        (
            {"channels": (*commands(CARD)[:2], Channel("sent", (3,), "float64"))},
            r"must be \(naction,\) alike",
        ),
        (
            {"channels": (*commands(CARD)[:2], Channel("sent", (2,), "float32"))},
            "'sent' must be float64, is float32",
        ),
        (
            {"card": dataclasses.replace(CARD, actions=CARD.actions[:1])},
            "the card has 1 actions, not 2",
        ),
        ({"facts": {"x": float("inf")}}, "facts must be finite JSON"),
        ({"facts": {"x": np.zeros(1)}}, "facts must be finite JSON"),
        ({"facts": {"x": "y" * 40_000}}, "facts have 400"),
        ({"task": "x" * 300}, "task must be a text of up to 256 bytes"),
        ({"robot": "a\0"}, "robot must be a text"),
    ],
)
def test_a_header_that_no_episode_can_have_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Header(**{**GOOD, **changes})


def test_columns_of_other_lengths_are_refused_and_leave_no_file(tmp_path):
    given = columns(3)
    given["sent"] = given["sent"][:2]
    with pytest.raises(ValueError, match="must have one length"):
        write_episode(tmp_path / "out", header(), given, True)
    given["sent"] = np.full((3, 2), np.nan)
    with pytest.raises(ValueError, match=r"row 0, sent: nan is not finite"):
        write_episode(tmp_path / "out", header(), given, True)
    assert not list((tmp_path / "out").iterdir())
