"""What a film says besides its pictures."""

import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.viewer.video import _write, caption
from tests.support import measured, toy


def test_a_film_tells_the_time_and_the_tasks_own_figure():
    env = Env(measured.TASK(measured.TASK.Config()), 2)
    assert caption(env) == "0.0 s  travel 0.00"
    start = env.sim.data.qpos[:, 0].clone()
    push = torch.tensor([[0.0], [1.0]])
    for _ in range(3):
        env.step_and_maybe_reset(env.current().set("action", push))
    moved = (env.sim.data.qpos[1, 0] - start[1]).item()
    assert abs(moved) > 0.01
    assert caption(env, 1) == f"{3 * env.cfg.control_dt:.1f} s  travel {moved:.2f}"


def test_a_task_that_is_judged_by_success_alone_has_no_caption():
    assert caption(Env(toy.TASK(toy.TASK.Config()), 1)) == ""


@pytest.mark.parametrize("text", ["", "9.9 s  turns -1.25"])
def test_a_caption_stays_in_the_lower_left_corner(text):
    frame = np.full((160, 160, 3), 100, np.uint8)
    _write(frame, text)
    rows, columns = np.nonzero((frame != 100).any(axis=2))
    assert (len(rows) > 0) == bool(text)
    if text:
        assert rows.min() > 130 and columns.max() < 120 and columns.min() < 12
