"""The genuine LeRobot reads what we export, and finds the episodes that went in.

LeRobot pins its own torch and numpy, so it is in an environment of its own: say its Python.
"""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

from penspin_style.data.episodes.episode import Episode, write_episode
from penspin_style.data.formats import lerobot
from tests.support.lerobot_columns import EXACT, STATE
from tests.support.robots import columns, header

PYTHON = os.environ.get("PENSPIN_LEROBOT_PYTHON", "")
READER = """
import json, sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

data = LeRobotDataset("local/episodes", root=sys.argv[1], video_backend="pyav")
rows = [data[i] for i in range(len(data))]
found = {k: np.stack([np.asarray(r[k]) for r in rows]) for k in rows[0] if k != "task"}
np.savez(sys.argv[2], **found)
facts = {"fps": data.fps, "episodes": data.num_episodes, "tasks": [row["task"] for row in rows]}
print(json.dumps(facts))
"""
STEPS = (7, 12, 1, 5)
TOLD = ("Push the cart.", "Pull the cart.", "Push the cart.", "Stop.")
CAMERAS = ("front_rgb", "wrist_rgb")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="PENSPIN_LEROBOT_PYTHON names no Python with lerobot")
def test_the_genuine_lerobot_finds_every_value_that_was_exported(tmp_path):
    episodes = []
    for i, (steps, told) in enumerate(zip(STEPS, TOLD, strict=True)):
        head = header(facts={"seed": i, "instruction": told})
        path = write_episode(tmp_path / "episodes", head, columns(steps, i), success=i % 2 == 0)
        episodes.append(Episode.open(path))
    lerobot.write(episodes, tmp_path / "dataset")
    facts, found = read(tmp_path)
    assert (facts["fps"], facts["episodes"]) == (20, len(STEPS))
    assert facts["tasks"] == [told for told, n in zip(TOLD, STEPS, strict=True) for _ in range(n)]
    frames = np.concatenate([np.arange(n) for n in STEPS])
    np.testing.assert_array_equal(found["frame_index"], frames)
    np.testing.assert_array_equal(found["episode_index"], np.repeat(np.arange(len(STEPS)), STEPS))
    np.testing.assert_array_equal(found["timestamp"], (frames / 20).astype(np.float32))
    parts = [joined(episodes, f"observation/{name}") for name in STATE]
    state = np.concatenate([part.reshape(len(frames), -1) for part in parts], 1)
    np.testing.assert_array_equal(found["observation.state"], state.astype(np.float32))
    for key, own in EXACT.items():
        wanted = joined(episodes, own)
        if wanted.dtype == np.float64:  # LeRobot makes a float32 tensor of every floating column
            wanted = wanted.astype(np.float32)
        np.testing.assert_array_equal(found[key].reshape(wanted.shape), wanted, err_msg=key)
    for camera in CAMERAS:
        wanted = joined(episodes, f"observation/{camera}").transpose(0, 3, 1, 2)
        images = found[f"observation.images.{camera}"]
        assert images.dtype == np.float32 and images.shape == wanted.shape  # channels first
        away = np.abs(images * 255 - wanted)
        print(camera, "differs by", away.mean(), "on average, at most", away.max(), "of 255")
        assert away.mean() < 5 and away.max() < 50  # what the codec loses
        for n, start in zip(STEPS, np.cumsum((0, *STEPS)), strict=False):
            own = wanted[start : start + n].astype(float)
            nearest = [np.abs(own - i * 255).mean((1, 2, 3)).argmin() for i in images[start:][:n]]
            assert nearest == list(range(n))  # each image is that of its own step


def read(folder: pathlib.Path) -> tuple[dict, dict]:
    """What the other Python reads of `dataset`: its facts, and every column, (frames, ...)."""
    argv = [PYTHON, "-c", READER, str(folder / "dataset"), str(folder / "found.npz")]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(folder / "found.npz") as file:
        return json.loads(done.stdout.splitlines()[-1]), dict(file)


def joined(episodes: list[Episode], name: str) -> np.ndarray:
    """Return a column of all episodes, one after the other."""
    return np.concatenate([episode[name] for episode in episodes])
