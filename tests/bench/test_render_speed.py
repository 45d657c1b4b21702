"""The benchmark of rendering, on a few frames: what it reports, not how much."""

import pytest
import torch

from penspin_style.bench import render as bench_render
from penspin_style.config import TrainConfig
from penspin_style.render.renderer import View
from penspin_style.sim.sim import make_sim
from tasks.panda.lift_cube import PandaLiftCube
from tests.support import rays

CONFIG = TrainConfig(task=PandaLiftCube.Config(), num_envs=8, device="cpu")


def test_it_reports_frames_per_second_and_ratios_with_their_spread():
    views = [View("view", 16, 16)]
    report = bench_render.render(CONFIG, PandaLiftCube, views, rounds=2, steps=1)
    assert report["num_envs"] == 8 and report["views"] == 1
    for name in ("render", "threads", "bare"):
        low, median, high = report[f"{name}_frames_per_s"]
        assert 0 < low <= median <= high
    for name in ("ratio", "threads_ratio"):
        low, high = report[f"{name}_spread"]
        assert 0 < low <= report[name] <= high


def test_the_bare_engine_draws_the_same_images():
    sim = make_sim(rays.table(), 5, per_env=("cam_fovy", "geom_rgba", "geom_size"))
    sim.params.cam_fovy[:] *= 1.0 + 0.1 * torch.arange(5)[:, None]
    sim.params.geom_size[:, rays.BALL, 0] *= 1.0 + 0.1 * torch.arange(5)
    sim.set_const()
    sim.forward()
    draw, context = bench_render.bare(sim, [View("top", 24, 24, rgb=False)])
    draw()
    depth = context.depth_data.numpy().reshape(5, 24, 24)
    for env in range(5):
        want = rays.Image(sim, env, "top", 24, 24)
        assert (abs(depth[env] - want.depth) < 1e-4).mean() > 0.99


def test_a_task_that_draws_nothing_is_refused():
    with pytest.raises(ValueError, match="list images in an observation group"):
        bench_render.render(CONFIG, PandaLiftCube, rounds=1, steps=1)
