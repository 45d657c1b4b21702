"""What a video says besides its images, and what it is written as."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from penspin_style.data.formats.video import read_video
from penspin_style.env.env import Env
from penspin_style.viewer.strip import inset_column
from penspin_style.viewer.video import Shot, caption, shoot, write, write_line
from tests.support import measured, robots, toy
from tests.support.toy_env import make, place, step


def test_a_video_tells_the_time_and_the_tasks_own_figure():
    env = Env(measured.TASK(measured.TASK.Config()), 2)
    assert caption(env) == "0.0 s  travel 0.00"
    start = env.sim.data.qpos[:, 0].clone()
    push = torch.tensor([[0.0], [1.0]])
    for _ in range(3):
        env.step_and_maybe_reset(env.current().set("action", push))
    moved = (env.sim.data.qpos[1, 0] - start[1]).item()
    assert abs(moved) > 0.01
    assert caption(env, 1) == f"{3 * env.cfg.control_dt:.1f} s  travel {moved:.2f}"


def test_a_task_whose_score_is_success_alone_has_no_caption():
    assert caption(Env(toy.TASK(toy.TASK.Config()), 1)) == ""


@pytest.mark.parametrize("text", ["", "9.9 s  turns -1.25"])
def test_a_caption_stays_in_the_lower_left_corner(text):
    frame = np.full((160, 160, 3), 100, np.uint8)
    write_line(frame, text)
    rows, columns = np.nonzero((frame != 100).any(axis=2))
    assert (len(rows) > 0) == bool(text)
    if text:
        assert rows.min() > 130 and columns.max() < 120 and columns.min() < 12


def test_a_video_holds_the_frames_of_all_episodes_and_the_strip_those_of_the_first(tmp_path):
    first, second = robots.camera_frames(9, 64, 48, 1), robots.camera_frames(3, 64, 48, 2)
    shots = [Shot(list(first), [], 7), Shot(list(second), [], 3)]
    video, strip = tmp_path / "x.mp4", tmp_path / "x.png"
    write(shots, video, strip, None, fps=1 / 0.05)
    found = read_video(video, (64, 48, 3), 0, 12, Fraction(20)).astype(int)
    assert abs(found - np.concatenate([first, second])).mean() < 8
    # frames 0 to 6, evenly: 0, 1.2, 2.4, 3.6, 4.8, 6
    wanted = np.concatenate([first[i] for i in (0, 1, 2, 4, 5, 6)], axis=1)
    np.testing.assert_array_equal(np.asarray(Image.open(strip)), wanted)


def test_a_video_without_frames_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"x\.mp4: a video needs at least one frame"):
        write([Shot([], [], 0)], tmp_path / "x.mp4", None, None, fps=20)
    assert list(tmp_path.iterdir()) == []


def test_what_the_student_sees_stands_beside_the_scene_each_under_its_name():
    red = np.zeros((2, 32, 32, 3), np.uint8)
    red[-1] = (255, 0, 0)  # the last of a history counts
    near = np.full((40, 20), 0.1, np.float32)
    column = inset_column({"front_rgb": red, "wrist_depth": near}, 240)
    assert column.shape == (240, 60, 3)
    is_red = (column == (255, 0, 0)).all(axis=2)
    rows, columns = np.nonzero(is_red)
    assert is_red.sum() == 32 * 32 and rows.max() < 120 and columns.max() < 60
    label = column[: rows.min()]
    assert (label < 100).any() and (column[120 : 120 + rows.min()] < 100).any()  # both are named


def test_an_image_larger_than_its_place_is_reduced():
    column = inset_column({"front_rgb": np.full((480, 640, 3), 7, np.uint8)}, 160)
    assert column.shape == (160, 40, 3)
    assert (column == 7).all(axis=2).sum() == 36 * 27


def test_episodes_of_a_video_are_drawn_in_one_environment_from_seeds_of_their_own():
    made = []

    def make_env(num_envs, seed):
        made.append(make(num_envs, seed=seed, episode_length=6, rail=9.0))
        return made[-1]

    still = lambda root: torch.zeros(1, 1)  # noqa: E731
    shots = shoot(make_env, still, seed=3, episodes=2, size=64)
    assert len(made) == 1 and [len(shot.frames) for shot in shots] == [6, 6]
    assert not np.array_equal(shots[0].frames[0], shots[1].frames[0])
    (alone,) = shoot(make_env, still, seed=4, episodes=1, size=64)
    assert np.array_equal(alone.frames[0], shots[1].frames[0])  # what a fresh one of it shows


def test_what_follows_the_end_of_an_episode_is_not_drawn():
    def make_env(num_envs, seed):
        env = make(num_envs, seed=seed, episode_length=20)
        place(env, 1.4)
        return env

    (shot,) = shoot(make_env, lambda root: torch.ones(1, 1), seed=3, episodes=1, size=64)
    env, steps = make_env(1, 3), 0
    while not bool(step(env, 1.0)["next", "terminated"]):
        steps += 1
    assert 1 <= steps <= 6 and len(shot.frames) == steps + 1
