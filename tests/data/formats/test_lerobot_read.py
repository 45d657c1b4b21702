"""Reading LeRobotDataset v3.0: TorchRL's reader of ours, ours of others' and of what is damaged."""

import json
import os
import shutil
import sys
import types
import warnings
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penspin_style.data.episodes.layout import DataWarning
from penspin_style.data.formats import lerobot, lerobot_read, parquet
from penspin_style.data.formats.video import VideoWriter
from tests.support.robots import STEPS, camera_frames, record
from tests.support.work import at_most

CAMERAS = ("observation.images.front_rgb", "observation.images.wrist_rgb")
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
INFO = "meta/info.json"
FRONT = "videos/observation.images.front_rgb/chunk-000/file-000.mp4"
FROM = "videos/observation.images.front_rgb/from_timestamp"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    made = record(tmp_path_factory.mktemp("episodes"))
    folder = tmp_path_factory.mktemp("lerobot") / "dataset"
    lerobot.write(made, folder, task="Push the cart.", valid=0.3)
    return folder


def number(dtype, shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "names": None}


# TorchRL's reader.


class Rows:
    """What TorchRL asks of Hugging Face's `datasets`, which is not installed: a plain table."""

    def __init__(self, table):
        self.table, self.column_names = table, table.column_names

    def with_format(self, kind):
        assert kind == "torch"
        return self

    def __getitem__(self, name):
        return self.table[name].to_pylist()


@pytest.fixture
def hub(monkeypatch):
    """Stand-ins for huggingface_hub and datasets: a repository is a folder of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torchrl about itself
        from torchrl.data.datasets import lerobot as reader

    def load_dataset(kind, data_files, split):
        assert (kind, split) == ("parquet", "train")
        return Rows(pa.concat_tables([pq.read_table(path) for path in data_files]))

    fakes = {
        "huggingface_hub": {"snapshot_download": lambda name, repo_type: name},
        "datasets": {"load_dataset": load_dataset},
    }
    for name, members in fakes.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))
    monkeypatch.setattr(reader, "_has_hf_hub", True)
    monkeypatch.setattr(reader, "_has_datasets", True)
    return reader


def test_torchrl_reads_episodes_tasks_and_where_each_frame_of_video_is(hub, dataset, tmp_path):
    replay = hub.LeRobotExperienceReplay(
        str(dataset), root=tmp_path, download=True, batch_size=25, decode_video=False
    )
    rows = replay[:]
    ours = list(lerobot.read(dataset))
    for key, name in {
        ("observation", "state"): "observation.state",
        ("observation", "points"): "observation.points",
        "action": "action",
        "episode": "episode_index",
        ("next", "done"): "next.done",
    }.items():
        wanted = np.concatenate([f[name] for f in ours])
        found = rows[key].numpy().reshape(wanted.shape)
        np.testing.assert_array_equal(found, wanted.astype(found.dtype), err_msg=str(key))
    assert rows["language_instruction"] == ["Push the cart."] * 25
    snapshot = hub._LeRobotSnapshot(str(dataset))
    for key in CAMERAS:
        (path,), (count,) = snapshot.video_segments(key)
        assert path == str(dataset / f"videos/{key}/chunk-000/file-000.mp4") and count == 25


# Damage.


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "copy")


def edit_json(name, change):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def edit_table(name, change):
    def edit(folder):
        pq.write_table(change(pq.read_table(folder / name)), folder / name)

    return edit


def put(column, values, kind=None):
    """Replace a column of a table."""

    def change(table):
        given = values(table[column]) if callable(values) else values
        array = given if isinstance(given, pa.ChunkedArray | pa.Array) else pa.array(given, kind)
        return table.set_column(table.column_names.index(column), column, array)

    return change


def at(row, value):
    """Replace one value of a column."""

    def change(column):
        values = column.to_pylist()
        values[row] = value
        return pa.array(values, column.type)

    return change


def ragged(column):
    values = column.to_pylist()
    values[4][0] = values[4][0][:-1]
    values[5][0] = [*values[5][0], 0.0]
    return pa.array(values, column.type)


def lead_out(name):
    def edit(folder):
        path = folder / name
        outside = folder.parent / "outside"
        path.rename(outside)
        path.symlink_to(outside)

    return edit


def cut(name, keep):
    def edit(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:keep])

    return edit


def lose(name):
    return lambda folder: (folder / name).unlink()


def other_video(height, width, frames):
    def edit(folder):
        writer = VideoWriter(folder / FRONT, height, width, Fraction(20))
        writer.add(camera_frames(frames, height, width, 0))
        writer.close()

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose(INFO), r"info\.json is missing or unreadable"),
        (cut(INFO, 100), r"info\.json is missing or unreadable"),
        (edit_json(INFO, lambda i: i.update(codebase_version="v2.1")), r"version v2\.1; v3\.0"),
        (edit_json(INFO, lambda i: i.pop("features")), r"info\.json does not have the fields"),
        (edit_json(INFO, lambda i: i.update(fps="fast")), r"info\.json does not have the fields"),
        (edit_json(INFO, lambda i: i.update(fps=-20)), r"fps, total_episodes or total_frames"),
        (
            edit_json(INFO, lambda i: i.update(total_frames="25")),
            r"fps, total_episodes or total_fr",
        ),
        (edit_json(INFO, lambda i: i.update(total_episodes=10**9)), r"claims 1000000000 episodes"),
        (edit_json(INFO, lambda i: i.update(total_episodes=3)), r"lists 4 episodes, .* says 3"),
        (edit_json(INFO, lambda i: i.update(fps=1e-9)), r"fps, total_episodes or total_frames"),
        (edit_json(INFO, lambda i: i.update(total_frames=24)), r"lists 25 frames, .* says 24"),
        (edit_json(INFO, lambda i: i.update(total_episodes=5)), r"missing or there twice is 4"),
        (
            edit_json(INFO, lambda i: i.update(data_path="../{chunk_index}{file_index}")),
            r"info\.json keeps its files elsewhere",
        ),
        (
            edit_json(INFO, lambda i: i["features"].update({"../a": number("video", (2, 2, 3))})),
            r"'\.\./a' cannot be the name of a feature",
        ),
        (
            edit_json(INFO, lambda i: i["features"]["action"].update(shape=[2**40])),
            r"'action' has the shape",
        ),
        (
            edit_json(INFO, lambda i: i["features"]["action"].update(shape=[-2])),
            r"'action' has the shape",
        ),
        (
            edit_json(INFO, lambda i: i["features"]["action"].update(shape=[3])),
            r"'action' has lists of lengths \[2\], not 3",
        ),
        (
            edit_json(INFO, lambda i: i["features"]["action"].update(dtype="float64")),
            r"'action' is float with 0 gaps, not float64",
        ),
        (
            edit_json(INFO, lambda i: i["features"].update({"more": number("float32")})),
            r"has no columns \['more'\]",
        ),
        (edit_json(INFO, lambda i: i["features"].pop("index")), r"lists no features \['index'\]"),
        (
            edit_json(INFO, lambda i: i["features"]["index"].update(dtype="uint64")),
            r"lists no features \['index'\] of a type that is read",
        ),
        (lead_out(DATA), r"file-000\.parquet is a link elsewhere; links are never followed"),
        (lead_out(EPISODES), r"file-000\.parquet is a link elsewhere"),
        (lead_out(INFO), r"info\.json is a link elsewhere"),
        (lead_out("videos"), r"file-000\.mp4 is a link elsewhere"),
        (lose(DATA), r"file-000\.parquet is not a readable Parquet file"),
        (cut(DATA, 2000), r"file-000\.parquet is not a readable Parquet file"),
        (cut(EPISODES, 2000), r"file-000\.parquet is not a readable Parquet file"),
        (lose(EPISODES), r"lists 0 episodes, .* says 4; .* missing or there twice is 0"),
        (edit_table(DATA, lambda t: t.slice(0, 24)), r"ends 1 rows early"),
        (edit_table(DATA, lambda t: pa.concat_tables([t, t])), r"has rows of no episode"),
        (
            edit_table(DATA, put("observation.points", ragged)),
            r"'observation\.points' has lists of lengths",
        ),
        (edit_table(DATA, put("time", at(3, None))), r"'time' is double with 1 gaps"),
        (edit_table(DATA, put("time", at(9, float("nan")))), r"episode 1, frame 2: time is not"),
        (
            edit_table(DATA, put("action", at(4, [0.0, float("inf")]))),
            r"episode 0, frame 4: action",
        ),
        (
            edit_table(DATA, put("frame_index", at(8, 7))),
            r"episode 1, frame 1: frame_index is 7, not",
        ),
        (edit_table(DATA, put("episode_index", at(8, 0))), r"frame 1: episode_index is 0, not 1"),
        (edit_table(DATA, put("index", at(24, 25))), r"episode 3, frame 4: index is 25, not 24"),
        (
            edit_table(EPISODES, put("length", at(1, 13))),
            r"episode 1 claims 13 frames from 7 to 19",
        ),
        (edit_table(EPISODES, put("length", at(1, -12))), r"episode 1 claims -12 frames"),
        (edit_table(EPISODES, put("episode_index", at(1, 2))), r"missing or there twice is 1"),
        (edit_table(EPISODES, put("data/file_index", at(1, -1))), r"file of no legal number"),
        (edit_table(EPISODES, put("data/file_index", at(1, 1))), r"has rows of no episode"),
        (edit_table(EPISODES, put(FROM, at(0, float("nan")))), r"an episode begins at nan s"),
        (edit_table(EPISODES, put(FROM, at(1, 500.0))), r"file-000\.mp4 has no image at 500"),
        (lose(FRONT), r"file-000\.mp4 is not a readable video"),
        (cut(FRONT, 800), r"file-000\.mp4 is not a readable video"),
        (other_video(16, 32, 20), r"file-000\.mp4 has no image at 1\.0000 s"),
        (other_video(18, 32, 25), r"file-000\.mp4 is 32 x 18 pixels, not 32 x 16"),
    ],
)
def test_a_damaged_or_hostile_dataset_is_refused_by_file_and_row(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        list(lerobot.read(copy))


def test_a_table_that_claims_more_rows_than_an_episode_can_have_is_not_read(dataset, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_ROWS", 24)
    with pytest.raises(ValueError, match=r"says 25 rows, \d+ bytes unfolded; up to 24 rows"):
        next(lerobot.read(dataset))
    monkeypatch.setattr(parquet, "MAX_BYTES", 3000)
    with pytest.raises(ValueError, match=r"bytes unfolded; up to 24 rows and 3000 bytes are read"):
        next(lerobot.read(dataset))


def claim_steps(folder, steps):
    """Say that the last episode is as long, in every place but the data."""
    edit_json(INFO, lambda info: info.update(total_frames=20 + steps))(folder)
    edit_table(EPISODES, put("length", at(3, steps)))(folder)
    edit_table(EPISODES, put("dataset_to_index", at(3, 20 + steps)))(folder)


def test_an_episode_that_would_unfold_to_more_than_its_file_can_hold_is_refused(copy):
    claim_steps(copy, 900_000)
    message = r"file-000\.parquet would unfold \d+ bytes to \d+ in one episode, over 250 times"
    with pytest.raises(ValueError, match=message):
        list(lerobot.read(copy))


def test_a_video_that_would_unfold_to_more_than_it_can_hold_is_refused(copy, monkeypatch):
    monkeypatch.setattr(lerobot_read, "_SMALL", 10_000)
    assert len(list(lerobot.read(copy))) == len(STEPS)
    monkeypatch.setattr(lerobot_read, "_VIDEO_RATIO", 1)
    with pytest.raises(ValueError, match=r"file-000\.mp4 would unfold \d+ bytes to 10752 in one"):
        list(lerobot.read(copy))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose("meta/penspin.json"), r"has no meta/penspin\.json: another program wrote it"),
        (cut("meta/penspin.json", 50), r"penspin\.json is missing or unreadable"),
        (edit_json("meta/penspin.json", lambda o: o.update(format=9)), r"format 9, this version"),
        (
            edit_json("meta/penspin.json", lambda o: o.update(cards={})),
            r"does not fit this dataset",
        ),
        (
            edit_json("meta/penspin.json", lambda o: o["channels"][3].update(name="observation/a")),
            r"does not fit meta/info\.json: \['exact\.a', 'observation\.",
        ),
        (
            edit_table(EPISODES, put("penspin/success", at(0, 7))),
            r"does not fit this dataset \(KeyError\(7\)\)",
        ),
        (
            edit_table(EPISODES, put("penspin/task", lambda c: pa.array(range(len(c))))),
            r"\['penspin/task'\] are not text",
        ),
    ],
)
def test_what_is_not_ours_is_read_but_not_restored(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        list(lerobot.restore(copy))
    assert len(list(lerobot.read(copy))) == len(STEPS)


def test_a_dataset_as_lerobot_writes_it_is_read(tmp_path):
    """Written by hand as LeRobot 0.4.4 does, with its codec and without our columns."""
    features = {"observation.state": number("float32", (2,)), "action": number("float32", (1,))}
    features |= {
        k: number("int64") for k in ("frame_index", "episode_index", "index", "task_index")
    }
    info = {"codebase_version": "v3.0", "fps": 10, "total_episodes": 2, "total_frames": 5}
    info |= {"features": features, "splits": {"train": "0:2"}, "video_path": None}
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    (tmp_path / "meta/episodes/chunk-000").mkdir(parents=True)
    (tmp_path / "data/chunk-000").mkdir(parents=True)
    (tmp_path / INFO).write_text(json.dumps(info))
    state = pa.array([[i, -i] for i in range(5)], pa.list_(pa.float32(), 2))
    rows = {"observation.state": state, "action": pa.array(np.arange(5, dtype=np.float32))}
    rows |= {"frame_index": [0, 1, 2, 0, 1], "episode_index": [0, 0, 0, 1, 1]}
    rows |= {"index": list(range(5)), "task_index": [0] * 5, "note": list("abcde")}
    pq.write_table(pa.table(rows), tmp_path / DATA)
    where = {"length": [3, 2], "dataset_from_index": [0, 3], "dataset_to_index": [3, 5]}
    where |= {"episode_index": [0, 1], "data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    pq.write_table(pa.table(where), tmp_path / EPISODES)
    with pytest.warns(DataWarning, match=r"left out: 'note', not in meta/info\.json$"):
        first, second = lerobot.read(tmp_path)
    np.testing.assert_array_equal(first["observation.state"], [[0, 0], [1, -1], [2, -2]])
    np.testing.assert_array_equal(second["action"], [[3], [4]])
    with pytest.raises(ValueError, match="another program wrote it, use read"):
        next(lerobot.restore(tmp_path))


# What is not understood, and what contradicts itself.


def test_what_is_not_understood_is_named_and_the_rest_is_read(copy):
    more = {
        "language": number("string"),
        "observation.images.still": {**number("image", (3, 16, 32)), "names": None},
        "grip": number("float16"),
        "observation.images.depth": number("video", (16, 32, 1)),
        "observation.images.range": {
            **number("video", (16, 32, 3)),
            "info": {"video.is_depth_map": True},
        },
    }
    edit_json(INFO, lambda info: info["features"].update(more))(copy)
    edit_table(DATA, lambda t: t.append_column("mood", pa.array(["calm"] * 25)))(copy)
    with pytest.warns(DataWarning) as said:
        episodes = list(lerobot.read(copy))
    (text,) = [str(warning.message) for warning in said]
    assert text == (
        f"{copy}: left out: 'language', of type 'string'; "
        "'observation.images.still', of type 'image'; 'grip', of type 'float16'; "
        "'observation.images.depth', a video of shape (16, 32, 1), not (height, width, 3); "
        "'observation.images.range', depth, which the codec of a video spoils; "
        "'mood', not in meta/info.json"
    )
    assert [len(episode["action"]) for episode in episodes] == list(STEPS)
    assert not set(more) & set(episodes[0]) and set(CAMERAS) <= set(episodes[0])


def test_a_video_whose_shape_is_said_with_the_colours_first_is_read(copy, dataset):
    edit_json(INFO, lambda info: info["features"][CAMERAS[0]].update(shape=[3, 16, 32]))(copy)
    for theirs, ours in zip(lerobot.read(copy), lerobot.read(dataset), strict=True):
        np.testing.assert_array_equal(theirs[CAMERAS[0]], ours[CAMERAS[0]])


def test_time_stamps_that_contradict_the_rate_are_said_once(copy):
    half = edit_table(
        DATA, put("timestamp", lambda c: pa.array([t / 2 for t in c.to_pylist()], pa.float32()))
    )
    half(copy)
    with pytest.warns(DataWarning) as said:
        assert len(list(lerobot.read(copy))) == len(STEPS)
    (text,) = [str(warning.message) for warning in said]
    assert text == (
        f"{copy}: episode 0, frame 1: the time stamp 0.025 s contradicts the 20 frames a second of "
        "meta/info.json, which make it 0.05 s"
    )


@pytest.mark.parametrize(
    ("fps", "message"),
    [
        ("1e999999999", "fps is '1e999999999', not a number"),
        ("1/0", "fps is '1/0', not a number"),
        ("20", "fps is '20', not a number"),
        (True, "fps is True, not a number"),
        ([20], "not a number"),
        (None, "not a number"),
        (0, "fps, total_episodes or total_frames is not a number"),
        (1e300, "fps, total_episodes or total_frames is not a number"),
        (10**400, "fps, total_episodes or total_frames is not a number"),
    ],
)
def test_a_rate_that_is_none_is_refused_at_once(copy, fps, message):
    edit_json(INFO, lambda info: info.update(fps=fps))(copy)
    with at_most(1.0), pytest.raises(lerobot.LeRobotError, match=message):
        next(lerobot.read(copy))


@pytest.mark.parametrize("text", ['{"fps": 20, "fps": 10}', '{"fps": 1e999}', "[" * 100_000])
def test_an_info_that_readers_could_take_in_two_ways_is_refused(copy, text):
    (copy / INFO).write_text(text)
    with pytest.raises(lerobot.LeRobotError, match=r"info\.json is missing or unreadable"):
        next(lerobot.read(copy))


@pytest.mark.parametrize("name", [INFO, DATA, EPISODES, FRONT])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(ValueError, match="is not a regular file"):
        list(lerobot.read(copy))


def test_a_playlist_that_is_called_a_video_opens_nothing(copy, dataset):
    """FFmpeg would take it for one of HLS and open the files that it names."""
    secret = shutil.copy(dataset / FRONT, copy / "secret.mp4")
    (copy / FRONT).write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(ValueError, match=r"file-000\.mp4 is not a readable video"):
        list(lerobot.read(copy))
    (copy / FRONT).write_text(f"ffconcat version 1.0\nfile {secret}\n")
    with pytest.raises(ValueError, match=r"file-000\.mp4 is not a readable video"):
        list(lerobot.read(copy))
