"""Several environments side by side in one video."""

import numpy as np
import pytest
import torch

from penspin_style.__main__ import main
from penspin_style.env.env import Env
from penspin_style.render.gl_renderer import NoOpenGLError
from penspin_style.viewer.tiles import shoot_tiles
from tasks.panda.lift_cube import TASK

POLICY = "outputs/pretrained/panda_lift_cube"


@pytest.fixture
def make_env():
    return lambda n, seed: Env(TASK(TASK.Config(episode_length=4)), n, seed=seed, nthread=1)


def still(root):
    return torch.zeros(*root.batch_size, 4)


def test_tiles_show_each_environment_and_one_that_has_ended_stays(make_env):
    try:
        shot = shoot_tiles(make_env, still, seed=3, tiles=3, size=64, info=False)
    except NoOpenGLError as error:
        pytest.skip(str(error))
    assert [frame.shape for frame in shot.frames] == [(64, 64, 3)] * 5
    first = shot.frames[0]
    tiles = first[:32, :32], first[:32, 32:], first[32:, :32]
    assert all(tile.std() > 1.0 for tile in tiles)
    assert (tiles[0] != tiles[1]).any() and (tiles[1] != tiles[2]).any()
    assert not first[32:, 32:].any()  # there is no fourth
    np.testing.assert_array_equal(shot.frames[4], shot.frames[3])  # the limit was reached
    told = shoot_tiles(make_env, still, seed=3, tiles=3, size=64, info=True)
    assert (told.frames[1] != shot.frames[1]).any()
    np.testing.assert_array_equal(told.frames[4][:32, :32], told.frames[3][:32, :32] // 2)


def test_tiles_that_nobody_could_see_are_refused(make_env):
    with pytest.raises(ValueError, match="size 40: 9 tiles of it are too small to see"):
        shoot_tiles(make_env, still, seed=0, tiles=9, size=40, info=False)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tiles", "4"], "--tiles: it is of a video; add --video OUT.mp4"),
        (["--fps", "30"], "--fps: it is of a video; add --video OUT.mp4"),
        (["--info", "--video", "a.mp4"], "--info: it is written into tiles; add --tiles N"),
        (["--tiles", "4", "--video", "a.mp4", "--successful"], "--tiles: no --strip, --views or"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, says, capsys):
    assert main(["play", POLICY, *flags]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
