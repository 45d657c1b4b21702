"""robomimic's HDF5: what its SequenceDataset looks for, bit for bit; nothing is believed."""

import errno
import json
import os

import h5py
import numpy as np
import pytest

from penspin_style.data.episodes.episode import Channel, EpisodeError, write_episode
from penspin_style.data.episodes.layout import DataWarning
from penspin_style.data.formats import robomimic
from tests.support.robots import CARD, CHANNELS, check_same, record

STEPS = (7, 3, 1, *(2 for _ in range(8)))  # eleven: demo_10 must not come after demo_1
SUCCESS = (True, False, None, *(True, False) * 4)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return record(tmp_path_factory.mktemp("episodes"), steps=STEPS, success=SUCCESS)


@pytest.fixture(scope="module")
def path(episodes, tmp_path_factory):
    path = tmp_path_factory.mktemp("robomimic") / "demos.hdf5"
    robomimic.write(episodes, path, valid=0.25, next_obs=True)
    return path


# There and back.


def test_episodes_come_back_bit_for_bit_in_the_order_of_their_numbers(episodes, path):
    for recording, episode in zip(robomimic.restore(path), episodes, strict=True):
        check_same(recording, episode)


def test_what_was_restored_can_be_recorded_again(path, tmp_path):
    for recording in robomimic.restore(path):
        write_episode(tmp_path, *recording)
    assert len(list(tmp_path.iterdir())) == len(STEPS)


# The layout, as robomimic's documents and its SequenceDataset have it.


def test_the_file_holds_what_robomimic_looks_for(episodes, path):
    with h5py.File(path, "r", swmr=True, libver="latest") as file:  # as robomimic opens it
        data = file["data"]
        assert data.attrs["total"] == sum(STEPS)
        assert json.loads(data.attrs["env_args"]) == {
            "env_name": "cart",
            "type": 2,
            "env_kwargs": {},
        }
        demos = sorted(data, key=lambda name: int(name[5:]))
        assert demos == [f"demo_{i}" for i in range(11)]
        for name, episode in zip(demos, episodes, strict=True):
            demo, n = data[name], episode.steps
            assert demo.attrs["num_samples"] == n
            actions = demo["actions"][()]
            assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
            np.testing.assert_array_equal(actions, episode["action"])
            last = np.arange(n) == n - 1
            assert demo["dones"].dtype == np.int64 and demo["rewards"].dtype == np.float64
            np.testing.assert_array_equal(demo["dones"], last)
            np.testing.assert_array_equal(demo["rewards"], last * (episode.success is True))
            for channel in CHANNELS:
                group, _, short = channel.name.rpartition("/")
                if group == "observation":
                    wanted = episode[channel.name].reshape(n, *(channel.shape or (1,)))
                    for key, rows in (("obs", range(n)), ("next_obs", [*range(1, n), n - 1])):
                        found = demo[key][short][()]
                        assert found.dtype == wanted.dtype
                        np.testing.assert_array_equal(found, wanted[list(rows)])
            assert demo["obs/front_rgb"].chunks == (1, 16, 32, 3)


def test_masks_split_the_trajectories(path):
    with h5py.File(path) as file:
        masks = {name: [text.decode() for text in file["mask"][name]] for name in file["mask"]}
        assert all(file["mask"][name].dtype.kind == "S" for name in masks)
    demos = {f"demo_{i}" for i in range(11)}
    assert len(masks["valid"]) == 3 and len(masks["train"]) == 8
    assert set(masks["valid"]) | set(masks["train"]) == demos
    good = [i for i, success in enumerate(SUCCESS) if success]
    assert masks["success"] == [f"demo_{i}" for i in good]


def masks_of(episodes, path, **given):
    robomimic.write(episodes, path, **given)
    with h5py.File(path) as file:
        return {name: list(file["mask"][name]) for name in file["mask"]}


def test_the_seed_alone_draws_the_split(episodes, tmp_path):
    once, again, other = (
        masks_of(episodes, tmp_path / f"{i}.hdf5", valid=0.4, seed=seed)
        for i, seed in enumerate((1, 1, 2))
    )
    assert once == again != other
    assert set(masks_of(episodes, tmp_path / "all.hdf5", valid=0)) == {"train", "success"}
    few = masks_of(episodes[:2], tmp_path / "few.hdf5", valid=0.01)
    assert len(few["valid"]) == len(few["train"]) == 1
    one = masks_of(episodes[1:2], tmp_path / "one.hdf5")
    assert one == {"train": [b"demo_0"]}


def test_next_observations_are_left_out_unless_asked_for(episodes, tmp_path):
    robomimic.write(episodes[:1], tmp_path / "a.hdf5", env_args={"env_name": "Lift", "type": 1})
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert "next_obs" not in file["data/demo_0"]
        assert json.loads(file["data"].attrs["env_args"]) == {"env_name": "Lift", "type": 1}


def test_a_measured_reward_is_the_reward(tmp_path):
    channels = (*CHANNELS, Channel("measure/reward", ()))
    (made,) = record(tmp_path / "e", steps=(4,), success=(True,), channels=channels, card=None)
    robomimic.write([made], tmp_path / "a.hdf5")
    (demo,) = robomimic.read(tmp_path / "a.hdf5")
    np.testing.assert_array_equal(demo["rewards"], made["measure/reward"])
    check_same(next(robomimic.restore(tmp_path / "a.hdf5")), made)


def test_images_of_one_colour_stay_readable(tmp_path):
    """Their best compression would look like a bomb to a reader that bounds what it unfolds."""
    channels = (*CHANNELS[9:], Channel("observation/eye_rgb", (128, 128, 3), "uint8"))
    (made,) = record(tmp_path / "e", steps=(2,), success=(True,), channels=channels, card=None)
    flat = {key: made[key] for key in made.keys()}  # noqa: SIM118
    flat["observation/eye_rgb"] = np.full((2, 128, 128, 3), 7, np.uint8)
    (tmp_path / "flat").mkdir()
    own = write_episode(tmp_path / "flat", made.header, flat, None)
    flat_episode = type(made).open(own)
    robomimic.write([flat_episode], tmp_path / "a.hdf5", next_obs=True)
    check_same(next(robomimic.restore(tmp_path / "a.hdf5")), flat_episode)


# Others' files.


def foreign(path, demos=(3, 1, 2)):
    """Write a file as robosuite's tools do, with what we have no use for."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(demos)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for i, n in enumerate(demos):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = n
            demo.attrs["model_file"] = "<mujoco/>"
            demo["actions"] = rng.uniform(-1, 1, (n, 7))
            demo["states"] = rng.normal(size=(n, 32)) if i else np.zeros((n, 0))
            demo["rewards"], demo["dones"] = np.zeros(n), np.zeros(n, np.int64)
            demo["obs/eef_pos"] = rng.normal(size=(n, 3))
            images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
            demo.create_dataset("obs/agentview_image", data=images, compression="gzip")
            demo.create_group("datagen_info")["object_poses"] = np.zeros((n, 4, 4))
        file["mask/train"] = np.array(["demo_0", "demo_2"], dtype="S8")
    return path


def test_a_file_of_robosuites_tools_is_read_but_not_restored(tmp_path):
    path = foreign(tmp_path / "lift.hdf5")
    with pytest.warns(DataWarning) as said:
        demos = list(robomimic.read(path))
    (text,) = [str(warning.message) for warning in said]  # once, not of every demo
    assert text.startswith(f"{path}: data/demo_0/datagen_info: is no column that robomimic or we")
    assert [len(demo["actions"]) for demo in demos] == [3, 1, 2]
    names = {"actions", "rewards", "dones", "obs/eef_pos", "obs/agentview_image"}
    assert set(demos[0]) == names and set(demos[1]) == {*names, "states"}
    with h5py.File(path) as file:
        for i, demo in enumerate(demos):
            for name, values in demo.items():
                np.testing.assert_array_equal(values, file[f"data/demo_{i}"][name][()])
                assert values.dtype == file[f"data/demo_{i}"][name].dtype
    with pytest.raises(EpisodeError, match=r"penspin: is missing: another program wrote the file"):
        next(robomimic.restore(path))


# Damage.


@pytest.fixture
def lift(tmp_path):
    return foreign(tmp_path / "lift.hdf5")


def edit(change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def replace(name, value, **kwargs):
    def change(file):
        del file[name]
        if callable(value):
            file[name] = value(file)
        else:
            file.create_dataset(name, data=value, **kwargs)

    return edit(change)


def attribute(owner, name, value):
    return edit(lambda file: file[owner].attrs.__setitem__(name, value))


def virtual(path):
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["x"] = np.zeros((3, 3))
    layout = h5py.VirtualLayout((3, 3), np.float64)
    layout[:] = h5py.VirtualSource(path.with_name("other.h5"), "x", (3, 3))
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/eef_pos"]
        file.create_virtual_dataset("data/demo_0/obs/eef_pos", layout)


def elsewhere(path):
    path.with_name("raw").write_bytes(bytes(72))
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/eef_pos"]
        file.create_dataset(
            "data/demo_0/obs/eef_pos", (3, 3), float, external=[(path.with_name("raw"), 0, 72)]
        )


def claim(file):
    """A terabyte that the file does not have."""
    file.create_dataset("data/demo_0/obs/big", (3, 2**20), np.float64, chunks=(1, 2**10))


def bomb(file):
    shape = (1000, 512, 512)
    data = np.zeros(shape[1:], np.uint8)
    made = file.create_dataset(
        "data/demo_0/obs/bomb", shape, np.uint8, chunks=(1, 512, 512), compression=9
    )
    for i in range(shape[0]):
        made[i] = data


POS = "data/demo_0/obs/eef_pos"
KEY = r"lift\.hdf5: data/demo_0/obs/eef_pos"


@pytest.mark.filterwarnings("ignore:.*datagen_info")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("hello"), r"is not an HDF5 file"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), r"is damaged or unreadable"),
        (lambda path: path.unlink(), r"is damaged or unreadable.*No such file"),
        (edit(lambda file: file.__delitem__("data")), r"data: is missing: this is no dataset of"),
        (edit(lambda file: file["data"].clear()), r"data: holds no demos"),
        (
            edit(lambda file: file.move("data/demo_1", "data/other")),
            r"data/other: is not named demo",
        ),
        (edit(lambda file: file.move("data/demo_1", "data/demo_-1")), r"is not named demo_NUMBER"),
        (replace("data/demo_1", np.zeros(3)), r"data/demo_1: is not a group"),
        (
            replace("data/demo_1", lambda file: h5py.SoftLink("/data/demo_0")),
            r"data/demo_1: is a link",
        ),
        (replace("data/demo_1", lambda file: h5py.SoftLink("/data")), r"data/demo_1: is a link"),
        (replace("data", lambda file: h5py.ExternalLink("/etc/passwd", "/")), r"data: is a link"),
        (replace(POS, lambda file: h5py.ExternalLink("o.h5", "x")), rf"{KEY}: is a link elsewhere"),
        (replace(POS, lambda file: h5py.SoftLink(f"/{POS}")), rf"{KEY}: is a link elsewhere"),
        (virtual, rf"{KEY}: keeps its values in other files"),
        (elsewhere, rf"{KEY}: keeps its values in other files"),
        (replace(POS, np.zeros((2, 3))), rf"{KEY}: has 2 rows, num_samples is 3"),
        (
            replace(POS, np.array([[0.0], [np.nan], [0.0]])),
            rf"{KEY}, row 1: nan at .* is not finite",
        ),
        (replace("data/demo_0/obs", np.zeros(3)), r"data/demo_0/obs: is not a group"),
        (
            edit(lambda file: file.__delitem__("data/demo_2/actions")),
            r"data/demo_2/actions: is miss",
        ),
        (edit(lambda file: file.__delitem__("data/demo_2/obs")), None),
        (edit(claim), r"obs/big: has 0 of the .* chunks"),
        (edit(bomb), r"obs/bomb: would unfold \d+ bytes to 262144000"),
        (attribute("data/demo_1", "num_samples", 2), r"demo_1/\w+: has 1 rows, num_samples is 2"),
        (attribute("data/demo_1", "num_samples", "1"), r"num_samples is not one number"),
        (attribute("data/demo_1", "num_samples", 1.0), r"num_samples is float64"),
        (attribute("data/demo_1", "num_samples", [1, 1]), r"num_samples is not one number"),
        (
            edit(lambda f: f["data/demo_1"].attrs.__delitem__("num_samples")),
            r"damaged or unreadable",
        ),
    ],
)
def test_what_is_damaged_or_hostile_is_refused_by_key(lift, damage, message):
    damage(lift)
    if message is None:  # a robot without senses is no fault
        assert len(list(robomimic.read(lift))) == 3
        return
    with pytest.raises(EpisodeError, match=message):
        list(robomimic.read(lift))


ACTIONS = "data/demo_0/actions"


@pytest.mark.filterwarnings("ignore:.*datagen_info")
@pytest.mark.parametrize(
    ("values", "kwargs", "message"),
    [
        (
            np.array(["a", "b", "c"], object),
            {"dtype": h5py.string_dtype()},
            "its type object is not",
        ),
        (np.zeros(3, [("a", "f8")]), {}, "its type .* is not one of"),
        (np.zeros((3, 3), complex), {}, "its type .* is not one of"),
        (np.zeros((3, 3), np.float16), {}, "its type float16 is not one of"),
        (np.zeros(3, bool), {}, "its type bool is not one of"),
        (1.0, {}, "is not a table with rows"),
        (np.zeros((3, 3)), {"compression": "lzf"}, "goes through the filters"),
        (lambda file: file["data/demo_0"], {}, "is not a dataset"),
    ],
)
def test_a_column_of_a_kind_that_is_not_read_is_named_and_left_out(lift, values, kwargs, message):
    replace(POS, values, **kwargs)(lift)
    with pytest.warns(DataWarning, match=rf"{KEY}: {message}.*; it is left out"):
        demos = list(robomimic.read(lift))
    assert [len(demo["actions"]) for demo in demos] == [3, 1, 2]
    assert "obs/eef_pos" not in demos[0] and demos[2]["obs/eef_pos"].shape == (2, 3)
    with h5py.File(lift) as file:
        np.testing.assert_array_equal(
            demos[0]["obs/agentview_image"], file["data/demo_0/obs/agentview_image"][()]
        )
    replace(ACTIONS, values, **kwargs)(lift)
    with pytest.raises(EpisodeError, match=f"{ACTIONS}: {message}"):  # no demo is whole without
        list(robomimic.read(lift))


@pytest.mark.filterwarnings("ignore:.*datagen_info")
def test_what_the_relatives_of_robomimic_add_is_named_and_left_out(lift):
    """As Isaac Lab, MimicGen and RoboCasa write it: states in groups, more actions, empty demos."""
    with h5py.File(lift, "r+") as file:
        for name, demo in file["data"].items():
            n = demo.attrs["num_samples"]
            del demo["states"]
            demo["states/articulation/robot/joint_position"] = np.zeros((n, 9))
            demo["initial_state/root_pose"] = np.zeros((1, 7))
            demo["actions_abs"] = np.zeros((n, 7))
            demo["obs/subtask/grasp"] = np.zeros((n, 1))
            assert name.startswith("demo_")
        file["data"].create_group("demo_3").attrs["num_samples"] = 0
        file["meta"] = 1
    with pytest.warns(DataWarning) as said:
        demos = list(robomimic.read(lift))
    assert len(demos) == 3
    names = {"actions", "rewards", "dones", "obs/eef_pos", "obs/agentview_image"}
    assert all(set(demo) == names for demo in demos)
    texts = [str(warning.message).removeprefix(f"{lift}: ").split(";")[0] for warning in said]
    assert [text for text in texts if "datagen_info" not in text] == [
        "meta: is nothing that robomimic or we know",
        "data/demo_0/actions_abs: is no column that robomimic or we know",
        "data/demo_0/initial_state: is no column that robomimic or we know",
        "data/demo_0/states: is not a dataset",
        "data/demo_0/obs/subtask: is not a dataset",
        "data/demo_3: has no steps",
    ]


def own_text(text):
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    return replace("penspin", data, dtype=h5py.string_dtype("utf-8", len(data)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (own_text(b"hello"), r"penspin: does not fit this file"),
        (own_text({"format": 2}), r"penspin: does not fit this file: .*format 2"),
        (own_text({"format": 1}), r"penspin: does not fit this file"),
        (own_text(b"[" * 100_000), r"penspin: does not fit this file"),
        (replace("penspin", "{}"), r"penspin: is not a text of fixed length"),
        (replace("penspin", np.zeros(3)), r"penspin: is not a text of fixed length"),
        (replace("penspin", lambda file: h5py.SoftLink("/data")), r"penspin: is a link elsewhere"),
        (attribute("data/demo_3", "source", "x"), r"source is not a text of fixed length"),
        (attribute("data/demo_3", "success", 5), r"penspin: does not fit this file: KeyError\(5\)"),
        (edit(lambda f: f["data/demo_3"].attrs.__delitem__("task")), r"data/demo_3: lacks an attr"),
        (
            edit(lambda f: f.__delitem__("data/demo_3/sent")),
            r"data/demo_3/sent: is missing, not fl",
        ),
        (replace("data/demo_3/sent", np.zeros((2, 3))), r"sent: is float64 \(2, 3\), not float64"),
    ],
)
def test_what_does_not_fit_our_episodes_is_not_restored(path, tmp_path, damage, message):
    copy = tmp_path / "copy.hdf5"
    copy.write_bytes(path.read_bytes())
    damage(copy)
    with pytest.raises(EpisodeError, match=message):
        list(robomimic.restore(copy))


# Whole or not at all.


def test_nothing_is_written_over(episodes, path):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"demos\.hdf5 exists already"):
        robomimic.write(episodes, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_wherever_the_disk_fills_up_there_is_one_clear_error_and_no_file(
    episodes, tmp_path, monkeypatch
):
    calls = []
    write, fsync = os.pwrite, os.fsync

    def failing(real):
        def call(*args):
            calls.append(real)
            if len(calls) > limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        return call

    monkeypatch.setattr(os, "pwrite", failing(write))
    monkeypatch.setattr(os, "fsync", failing(fsync))
    limit = 10**9
    robomimic.write(episodes[:2], tmp_path / "good.hdf5")
    total = len(calls)
    assert total > 20
    for limit in [0, 1, 2, *range(5, total, total // 10), total - 1]:  # noqa: B007
        calls.clear()
        with pytest.raises(OSError, match="No space left on device"):
            robomimic.write(episodes[:2], tmp_path / "bad.hdf5")
        assert [path.name for path in tmp_path.iterdir()] == ["good.hdf5"]


def test_a_damaged_episode_leaves_no_file(tmp_path):
    made = record(tmp_path / "e", steps=(2, 2), success=(True, True), card=CARD)
    made[1].path.write_bytes(made[1].path.read_bytes()[:-100])
    with pytest.raises(EpisodeError, match=r"episode-.*\.h5: is damaged"):
        robomimic.write(made, tmp_path / "out/a.hdf5")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("valid", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(episodes, tmp_path, valid):
    with pytest.raises(ValueError, match=rf"valid={valid} must be a share"):
        robomimic.write(episodes, tmp_path / "a.hdf5", valid=valid)
    with pytest.raises(ValueError, match="at least one episode"):
        robomimic.write([], tmp_path / "a.hdf5")
    assert list(tmp_path.iterdir()) == []
