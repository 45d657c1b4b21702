"""LeRobotDataset v3.0: its readers find what LeRobot 0.4.4 and 0.6.1 would have written."""

import itertools
import json
import re
import sys

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from penspin_style.data.episodes.episode import Channel, write_episode
from penspin_style.data.formats import lerobot
from penspin_style.data.formats.statistics import NumberSummary
from tests.support.lerobot_columns import EXACT, STATE
from tests.support.robots import CHANNELS, STEPS, SUCCESS, check_same, record

CAMERAS = {"observation.images.front_rgb": (16, 32), "observation.images.wrist_rgb": (9, 7)}
VIDEOS = ("observation/front_rgb", "observation/wrist_rgb")
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return record(tmp_path_factory.mktemp("episodes"))


@pytest.fixture(scope="module")
def dataset(episodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "dataset"
    lerobot.write(episodes, folder, task="Push the cart.", valid=0.3)
    return folder


def read_json(folder, name):
    return json.loads((folder / name).read_text())


# There and back.


def test_every_number_comes_back_bit_for_bit_and_images_as_the_codec_leaves_them(episodes, dataset):
    restored = list(lerobot.restore(dataset))
    for recording, episode in zip(restored, episodes, strict=True):
        videos = check_same(recording, episode, but=VIDEOS)
        for found, wanted in videos.values():
            assert found.dtype == np.uint8 and found.shape == wanted.shape
            away = np.abs(found.astype(int) - wanted)
            assert away.mean() < 5 and away.max() < 50
            nearest = [np.abs(wanted.astype(int) - image).mean((1, 2, 3)) for image in found]
            assert np.argmin(nearest, 1).tolist() == list(range(len(wanted)))


def test_what_was_restored_can_be_recorded_again(dataset, tmp_path):
    for recording in lerobot.restore(dataset):
        write_episode(tmp_path, *recording)
    assert len(list(tmp_path.iterdir())) == len(STEPS)


def test_features_have_the_names_and_the_order_that_lerobot_expects(episodes, dataset):
    first = 0
    for number, (found, episode) in enumerate(zip(lerobot.read(dataset), episodes, strict=True)):
        n = episode.steps
        state = [episode[f"observation/{name}"].reshape(n, -1) for name in STATE]
        np.testing.assert_array_equal(
            found["observation.state"], np.concatenate(state, 1).astype(np.float32)
        )
        for key, own in EXACT.items():
            wanted = episode[own]
            assert found[key].dtype == wanted.dtype
            np.testing.assert_array_equal(found[key].reshape(wanted.shape), wanted)
        frame = np.arange(n)
        last = frame == n - 1
        indices = {
            "frame_index": frame,
            "episode_index": np.full(n, number),
            "index": frame + first,
            "task_index": np.zeros(n),
            "timestamp": (frame / 20).astype(np.float32),
            "next.done": last,
            "next.success": last & bool(SUCCESS[number]),
        }
        for key, wanted in indices.items():
            np.testing.assert_array_equal(found[key][:, 0], wanted, err_msg=key)
        assert set(found) == {*EXACT, *indices, "observation.state", *CAMERAS}
        first += n


# The layout, written down from LeRobot's own files.


def number(dtype, shape=(1,), names=None):
    return {"dtype": dtype, "shape": list(shape), "names": names}


def video(height, width, pixels):
    found = number("video", (height, width, 3), ["height", "width", "channels"])
    found["info"] = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": pixels,
        "video.is_depth_map": False,
        "video.fps": 20,
        "video.channels": 3,
        "has_audio": False,
    }
    return found


def test_info_describes_the_dataset(dataset):
    joints = ["left", "right"]
    state = ["count", "joint_pos.left", "joint_pos.right", "joint_vel.left", "joint_vel.right"]
    assert read_json(dataset, "meta/info.json") == {
        "codebase_version": "v3.0",
        "robot_type": "cart",
        "total_episodes": 4,
        "total_frames": 25,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 20,
        "splits": {"train": "0:3", "valid": "3:4"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "observation.state": number("float32", (6,), [*state, "on"]),
            "observation.images.front_rgb": video(16, 32, "yuv420p"),
            "observation.images.wrist_rgb": video(9, 7, "yuv444p"),
            "observation.depth": number("float32", (4, 5)),
            "observation.mask": number("uint8", (4, 5)),
            "observation.points": number("float64", (3, 3)),
            "action": number("float32", (2,), joints),
            "target": number("float64", (2,), joints),
            "sent": number("float64", (2,), joints),
            "measure.turns": number("float64"),
            "exact.count": number("int64"),
            "exact.joint_vel": number("float64", (2,), joints),
            "time": number("float64"),
            "next.done": number("bool"),
            "next.success": number("bool"),
            "timestamp": number("float32"),
            "frame_index": number("int64"),
            "episode_index": number("int64"),
            "index": number("int64"),
            "task_index": number("int64"),
        },
    }


def types_of(path):
    return {field.name: str(field.type) for field in pq.read_schema(path)}


def test_the_columns_of_numbers_have_the_types_that_lerobot_writes(dataset):
    vector, matrix = "fixed_size_list<element: {}>[{}]", "list<element: list<element: {}>>"
    assert types_of(dataset / DATA) == {
        "observation.state": vector.format("float", 6),
        "observation.depth": matrix.format("float"),
        "observation.mask": matrix.format("uint8"),
        "observation.points": matrix.format("double"),
        "action": vector.format("float", 2),
        "target": vector.format("double", 2),
        "sent": vector.format("double", 2),
        "measure.turns": "double",
        "exact.count": "int64",
        "exact.joint_vel": vector.format("double", 2),
        "time": "double",
        "next.done": "bool",
        "next.success": "bool",
        "timestamp": "float",
        "frame_index": "int64",
        "episode_index": "int64",
        "index": "int64",
        "task_index": "int64",
    }
    with pq.ParquetFile(dataset / DATA) as file:  # one row group an episode, as LeRobot records
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == list(STEPS)


def test_the_table_of_episodes_says_where_each_is(dataset):
    rows = pq.read_table(dataset / EPISODES).to_pylist()
    begin = 0
    for number, (row, n) in enumerate(zip(rows, STEPS, strict=True)):
        wanted = {
            "episode_index": number,
            "tasks": ["Push the cart."],
            "length": n,
            "dataset_from_index": begin,
            "dataset_to_index": begin + n,
        }
        places = ["data", "meta/episodes", *(f"videos/{key}" for key in CAMERAS)]
        wanted |= {f"{p}/{name}": 0 for p in places for name in ("chunk_index", "file_index")}
        for key in CAMERAS:
            wanted[f"videos/{key}/from_timestamp"] = begin / 20
            wanted[f"videos/{key}/to_timestamp"] = (begin + n) / 20
        assert {k: v for k, v in row.items() if not k.startswith(("stats/", "penspin/"))} == wanted
        begin += n
    kinds = types_of(dataset / EPISODES)
    assert kinds["tasks"] == "list<element: string>" and kinds["length"] == "int64"
    assert kinds["stats/action/mean"] == "list<element: double>"
    assert kinds["stats/action/count"] == "list<element: int64>"
    key = "stats/observation.images.front_rgb/mean"
    assert kinds[key] == "list<element: list<element: list<element: double>>>"


def test_tasks_are_found_by_their_sentence(dataset, episodes, tmp_path):
    tasks = pd.read_parquet(dataset / "meta/tasks.parquet")
    assert tasks.loc["Push the cart."].task_index == 0 and tasks.index.name == "task"
    others = record(tmp_path / "e", steps=(2, 2), success=(True, True), task="other")
    lerobot.write([*episodes[:1], *others], tmp_path / "two")
    tasks = pd.read_parquet(tmp_path / "two/meta/tasks.parquet")
    assert list(tasks.index) == ["cart", "other"] and list(tasks.task_index) == [0, 1]
    found = [f["task_index"][0, 0] for f in lerobot.read(tmp_path / "two")]
    assert found == [0, 1, 1] and read_json(tmp_path / "two", "meta/info.json")["total_tasks"] == 2


def test_an_episodes_instruction_is_its_task_unless_another_is_given(tmp_path):
    told = {"instruction": "Push it left."}
    made = record(tmp_path / "e", steps=(2,), success=(True,), facts=told)
    for name, task, wanted in (("a", None, "Push it left."), ("b", "Go.", "Go.")):
        lerobot.write(made, tmp_path / name, task=task)
        assert list(pd.read_parquet(tmp_path / name / "meta/tasks.parquet").index) == [wanted]


# Statistics.


def check_stats(found, values, axis, shape, count):
    expected = {
        "min": values.min(axis),
        "max": values.max(axis),
        "mean": values.mean(axis),
        "std": values.std(axis),
        **{f"q{p:02d}": np.quantile(values, p / 100, axis) for p in (1, 10, 50, 90, 99)},
    }
    assert set(found) == {*expected, "count"} and list(found["count"]) == [count]
    for name, wanted in expected.items():
        assert np.shape(found[name]) == shape
        np.testing.assert_allclose(np.ravel(found[name]), np.ravel(wanted), rtol=1e-9, atol=1e-12)


def test_statistics_are_those_that_numpy_finds_in_all_frames(episodes, dataset):
    stats, found = read_json(dataset, "meta/stats.json"), list(lerobot.read(dataset))
    rows = pq.read_table(dataset / EPISODES).to_pylist()
    for key in ("observation.state", "action", "time", "next.done", "index"):
        values = [f[key].astype(float) for f in found]
        check_stats(stats[key], np.concatenate(values), 0, values[0].shape[1:], 25)
        for row, own in zip(rows, values, strict=True):
            given = {
                n.rpartition("/")[2]: v for n, v in row.items() if n.startswith(f"stats/{key}/")
            }
            check_stats(given, own, 0, own.shape[1:], len(own))
    points = np.concatenate([e["observation/points"] for e in episodes])
    check_stats(stats["observation.points"], points, (0, 1), (3,), 25)
    for key in CAMERAS:  # of the images before the codec, in [0, 1], one number a colour
        values = [e[f"observation/{key.rpartition('.')[2]}"] / 255 for e in episodes]
        check_stats(stats[key], np.concatenate(values), (0, 1, 2), (3, 1, 1), 25)
        for row, own in zip(rows, values, strict=True):
            given = {
                n.rpartition("/")[2]: v for n, v in row.items() if n.startswith(f"stats/{key}/")
            }
            check_stats(given, own, (0, 1, 2), (3, 1, 1), len(own))


def test_beyond_fifty_thousand_rows_quantiles_are_of_evenly_spaced_rows():
    summary = NumberSummary()
    rng = np.random.default_rng(0)
    values = rng.permutation(200_000).astype(float).reshape(-1, 1)
    for part in np.array_split(values, 7):
        summary.add(part)
    stats = summary.total()
    assert stats["count"] == [200_000] and stats["max"] == [199_999]
    np.testing.assert_allclose(stats["mean"], [99_999.5])
    np.testing.assert_allclose(stats["std"], values.std(0))
    np.testing.assert_allclose(stats["q50"], [100_000], rtol=0.03)
    (kept,) = (np.concatenate(summary._kept),)
    np.testing.assert_array_equal(kept, values[:: len(values) // len(kept)][: len(kept)])
    assert 20_000 < len(kept) <= 50_000


def test_a_number_with_image_in_its_name_is_not_taken_for_a_camera(tmp_path):
    channels = (*CHANNELS, Channel("measure/image_error", (), "float64"))
    made = record(tmp_path / "e", steps=(2,), success=(True,), channels=channels)
    lerobot.write(made, tmp_path / "d")
    # LeRobot refuses statistics of such a name that are not (3, 1, 1)
    for key, stats in read_json(tmp_path / "d", "meta/stats.json").items():
        assert "image" not in key or np.shape(stats["mean"]) == (3, 1, 1)
    assert "measure.image_error" in next(lerobot.read(tmp_path / "d"))


# Files and chunks.


def test_frame_k_of_the_dataset_is_shown_at_k_over_fps_and_episodes_begin_with_a_key_frame(dataset):
    starts = [0, *itertools.accumulate(STEPS)][:-1]
    for key, (height, width) in CAMERAS.items():
        with av.open(str(dataset / f"videos/{key}/chunk-000/file-000.mp4")) as file:
            stream = file.streams.video[0]
            assert (stream.height, stream.width, stream.average_rate) == (height, width, 20)
            frames = [(float(f.pts * f.time_base), f.key_frame) for f in file.decode(stream)]
        times = [time for time, _ in frames]
        np.testing.assert_allclose(times, np.arange(25) / 20, rtol=0, atol=1e-9)
        assert all(frames[start][1] for start in starts)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    steps = (5, 4, 4, 7, 3, 5, 4)
    return record(tmp_path_factory.mktemp("many"), steps=steps, success=(None,) * 7)


def test_full_files_and_full_chunks_are_followed_by_the_next(many, tmp_path):
    limits = lerobot.Limits(files_per_chunk=2, data_mb=12_000 / 2**20, video_mb=1_500 / 2**20)
    lerobot.write(many, tmp_path / "d", limits=limits)
    for recording, episode in zip(lerobot.restore(tmp_path / "d"), many, strict=True):
        check_same(recording, episode, but=VIDEOS)
    rows = pq.read_table(tmp_path / "d" / EPISODES).to_pylist()
    for key in ("data", *(f"videos/{key}" for key in CAMERAS)):
        places = [(row[f"{key}/chunk_index"], row[f"{key}/file_index"]) for row in rows]
        files = sorted(set(places))
        assert files == [divmod(i, 2) for i in range(len(files))] and places == sorted(places)
        assert len(files) > 2 or "wrist" in key
        suffix = "parquet" if key == "data" else "mp4"
        found = sorted((tmp_path / "d" / key).glob(f"*/*.{suffix}"))
        named = [f"chunk-{chunk:03d}/file-{file:03d}.{suffix}" for chunk, file in files]
        assert [path.relative_to(tmp_path / "d" / key).as_posix() for path in found] == named
    front = "videos/observation.images.front_rgb"
    for _, of_file in itertools.groupby(rows, lambda row: row[f"{front}/file_index"]):
        frame = 0  # times are those within the file
        for row in of_file:
            assert row[f"{front}/from_timestamp"] == frame / 20
            frame += row["length"]


def test_a_file_stays_within_its_limit_and_the_table_of_episodes_is_cut_too(
    many, tmp_path, monkeypatch
):
    monkeypatch.setattr(lerobot, "_BATCH", 2)
    limits = lerobot.Limits(data_mb=18_000 / 2**20)
    lerobot.write(many, tmp_path / "d", limits=limits)
    files = [pq.read_metadata(p) for p in sorted((tmp_path / "d/data").rglob("*.parquet"))]
    assert len(files) > 1 and sum(file.num_row_groups for file in files) == 7
    assert max(file.num_row_groups for file in files) > 1
    for file in files:
        columns = [(i, j) for i in range(file.num_row_groups) for j in range(file.num_columns)]
        size = sum(file.row_group(i).column(j).total_compressed_size for i, j in columns)
        assert size <= 18_000 or file.num_row_groups == 1
    tables = sorted((tmp_path / "d/meta/episodes").rglob("*.parquet"))
    assert len(tables) == 4
    for number, path in enumerate(tables):
        rows = pq.read_table(path).to_pylist()
        assert {row["meta/episodes/file_index"] for row in rows} == {number}
    for recording, episode in zip(lerobot.restore(tmp_path / "d"), many, strict=True):
        check_same(recording, episode, but=VIDEOS)


# What is asked for.


def test_success_that_is_unknown_is_no_feature_but_is_remembered(tmp_path):
    made = record(tmp_path / "e", steps=(2, 3, 2), success=(True, None, False))
    lerobot.write(made, tmp_path / "d")
    assert "next.success" not in read_json(tmp_path / "d", "meta/info.json")["features"]
    assert [success for *_, success in lerobot.restore(tmp_path / "d")] == [True, None, False]


def test_a_robot_without_cameras_or_numbers_is_written_too(tmp_path):
    blind = tuple(c for c in CHANNELS if not c.name.startswith("observation/"))
    made = record(tmp_path / "e", steps=(3,), success=(True,), channels=blind, card=None)
    lerobot.write(made, tmp_path / "d", robot_type="blind")
    info = read_json(tmp_path / "d", "meta/info.json")
    assert info["video_path"] is None and info["robot_type"] == "blind"
    assert "observation.state" not in info["features"] and not (tmp_path / "d/videos").exists()
    check_same(next(lerobot.restore(tmp_path / "d")), made[0])


def test_a_rate_that_is_no_whole_number_is_kept(tmp_path):
    made = record(tmp_path / "e", steps=(3,), success=(True,), control_dt=0.08, card=None)
    lerobot.write(made, tmp_path / "d")
    assert read_json(tmp_path / "d", "meta/info.json")["fps"] == 12.5
    assert next(lerobot.read(tmp_path / "d"))["timestamp"][2, 0] == np.float32(0.16)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fps": 30}, r"fps=30 does not fit the episodes' control_dt of 0\.05 s, 20 Hz"),
        ({"fps": float("nan")}, r"fps=nan"),
        ({"fps": 0}, r"fps=0 does not fit"),
        ({"valid": 1.0}, r"valid=1\.0 must be a share"),
        ({"valid": float("nan")}, r"valid=nan must be a share"),
    ],
)
def test_invalid_settings_are_refused_and_nothing_is_left(episodes, tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        lerobot.write(episodes, tmp_path / "d", **asked)
    assert list(tmp_path.iterdir()) == []


def test_episodes_of_two_kinds_are_refused_by_name(episodes, tmp_path):
    (other,) = record(tmp_path / "e", steps=(2,), success=(True,), robot="arm", card=None)
    message = rf"{re.escape(str(other.path))} is of another kind than .*: robot differs"
    with pytest.raises(ValueError, match=message):
        lerobot.write([*episodes, other], tmp_path / "d")
    with pytest.raises(ValueError, match="at least one episode"):
        lerobot.write([], tmp_path / "d")


def test_two_channels_that_would_become_one_feature_are_refused(tmp_path):
    clash = (*CHANNELS, Channel("observation/images.front_rgb", (2, 2)))
    made = record(tmp_path / "e", steps=(2,), success=(True,), channels=clash)
    with pytest.raises(ValueError, match=r"both become \['observation\.images\.front_rgb'\]"):
        lerobot.write(made, tmp_path / "d")


def test_without_pyarrow_the_extra_is_named(episodes, dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    remedy = r"need pyarrow .*pip install 'penspin_style\[lerobot\]'"
    with pytest.raises(ValueError, match=remedy):
        lerobot.write(episodes, tmp_path / "d")
    with pytest.raises(ValueError, match=remedy):
        next(lerobot.read(dataset))
