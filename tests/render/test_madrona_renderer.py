"""Madrona's adapter, with a double of the package's interface that our own ray tracer backs."""

import re

import mujoco
import pytest
import torch

from penspin_style.__main__ import main
from penspin_style.render import madrona_renderer
from penspin_style.render.madrona_renderer import MadronaRenderer, load_package
from penspin_style.render.renderer import View, check_renderer, make_renderer
from penspin_style.sim.batch_sim import BatchSim

pytest.importorskip("jax")
pytest.importorskip("mujoco.mjx")

from penspin_style.sim.mjx_sim import MjxSim
from tests.support.madrona_double import make_double

SCENE = """
<mujoco>
  <asset><material name="blue" rgba="0 0 1 1"/></asset>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1"/>
    <camera name="side" pos="0 -2 .5" xyaxes="1 0 0 0 0 1"/>
    <camera name="unused" pos="0 0 9"/>
    <camera name="top" pos="0 0 3" fovy="60"/>
    <geom name="floor" type="box" size="3 3 .05" rgba=".5 .5 .5 1" contype="0" conaffinity="0"/>
    <body pos="0 0 .5"><joint name="slide" type="slide" axis="1 0 0"/>
      <geom name="ball" type="sphere" size=".3" material="blue" contype="0" conaffinity="0"/></body>
  </worldbody>
</mujoco>
"""
NEEDS = r"sim.renderer=madrona needs a GPU and madrona_mjx, built from source \(github.com\S+\)"
INSTEAD = "sim.renderer=warp draws the same, with sim.engine=mujoco or warp"
VIEWS = (View("top", 24, 32), View("side", 24, 32, rgb=False))


@pytest.fixture(scope="module")
def sims():
    model = mujoco.MjModel.from_xml_string(SCENE)
    fields = ("geom_rgba",)
    return MjxSim(model, 3, "cpu", per_env=fields), BatchSim(model, 3, per_env=fields, nthread=1)


@pytest.fixture
def mjx(sims):
    sim = sims[0]
    sim.params.geom_rgba.copy_(torch.from_numpy(sim.model.geom_rgba.copy()))
    sim.data.qpos[:, 0] = torch.tensor([-0.5, 0.0, 0.6])
    sim.forward()
    return sim


def expected(sims):
    mjx, batch = sims
    batch.data.qpos.copy_(mjx.data.qpos)
    batch.params.geom_rgba.copy_(mjx.params.geom_rgba)
    batch.forward()
    return make_renderer(batch, VIEWS, nthread=1).render()


def test_cameras_shapes_and_units_are_the_contracts(sims, mjx):
    double = make_double(mjx.model)
    images = MadronaRenderer(mjx, VIEWS, batch_renderer=double, geom_groups=(0, 1)).render()
    asked = double.made[-1].asked
    assert asked["enabled_cameras"].tolist() == [0, 2]  # sorted: views are matched by id
    assert asked["enabled_geom_groups"].tolist() == [0, 1] and asked["num_worlds"] == 3
    assert (asked["batch_render_view_width"], asked["batch_render_view_height"]) == (32, 24)
    want = expected(sims)
    assert {k: {*v} for k, v in images.items()} == {"top": {"rgb", "depth"}, "side": {"depth"}}
    for camera, kinds in images.items():
        for kind, image in kinds.items():
            assert image.is_contiguous() and image.dtype == want[camera][kind].dtype
            assert torch.equal(image, want[camera][kind]), (camera, kind)
    assert images["top"]["depth"][0, 0, 0] == pytest.approx(3.0 - 0.05, abs=1e-4)  # the floor's
    assert (images["side"]["depth"][0] != images["side"]["depth"][2]).any()


def test_a_distance_along_the_ray_becomes_planar(sims, mjx):
    double = make_double(mjx.model, distance=True)
    raw = MadronaRenderer(mjx, VIEWS, batch_renderer=double).render()
    corner = raw["top"]["depth"][0, 0, 0].item()
    assert corner > 3.5
    images = MadronaRenderer(mjx, VIEWS, batch_renderer=double, depth_is="distance").render()
    for camera in ("top", "side"):
        assert torch.allclose(images[camera]["depth"], expected(sims)[camera]["depth"], atol=1e-4)


def test_colours_are_drawn_where_they_differ_from_the_materials(sims, mjx):
    double = make_double(mjx.model)
    renderer = MadronaRenderer(mjx, VIEWS, batch_renderer=double)
    drawn = double.made[-1]
    assert drawn.material.tolist() == [[-2, 0]] * 3 and drawn.inits == 1
    before = renderer.render()["top"]["rgb"].clone()
    mjx.params.geom_rgba[1, 1, :3] = torch.tensor([1.0, 0.0, 0.0])
    after = renderer.render()["top"]["rgb"]
    assert drawn.material.tolist() == [[-2, 0], [-2, -2], [-2, 0]] and drawn.inits == 2
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.equal(after[1], before[1])
    assert torch.equal(after, expected(sims)["top"]["rgb"])


def test_images_are_the_same_memory_and_follow_the_simulation(mjx):
    double = make_double(mjx.model)
    renderer = MadronaRenderer(mjx, VIEWS, batch_renderer=double)
    first = renderer.render()["top"]["rgb"]
    kept = first.clone()
    assert torch.equal(renderer.render()["top"]["rgb"], kept)
    mjx.data.qpos[0, 0] = 1.0
    mjx.forward()
    again = renderer.render()["top"]["rgb"]
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(again[1:], kept[1:]) and not torch.equal(again[0], kept[0])
    assert double.made[-1].inits == 1


def test_one_renderer_of_the_package_exists_at_a_time(mjx):
    double = make_double(mjx.model)
    first = MadronaRenderer(mjx, VIEWS, batch_renderer=double)
    kept = first.render()["top"]["rgb"].clone()
    second = MadronaRenderer(mjx, VIEWS[:1], batch_renderer=double)  # as an evaluation does
    assert first._package is None and second._package is double.made[1]
    mjx.data.qpos[1, 0] = -0.4
    mjx.forward()
    again = first.render()["top"]["rgb"]
    assert second._package is None and len(double.made) == 3
    assert torch.equal(again[[0, 2]], kept[[0, 2]]) and not torch.equal(again[1], kept[1])
    assert torch.equal(second.render()["top"]["rgb"], again) and len(double.made) == 4


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ((View("top", 8, 8), View("side", 8, 16)), "all cameras in one size, got top 8 x 8, side"),
        ((View("top"), View("top")), "different cameras"),
        ((), "at least one"),
        ((View("behind"),), "no camera 'behind'; there are"),
        ((View("top", segmentation=True),), "no segmentation .top.; sim.renderer=warp"),
    ],
)
def test_views_that_it_cannot_draw_are_refused(mjx, views, said):
    with pytest.raises(ValueError, match=said):
        MadronaRenderer(mjx, views, batch_renderer=make_double(mjx.model))


def test_without_a_gpu_another_engine_is_named(sims, mjx):
    with pytest.raises(ValueError, match=f"{NEEDS}; the simulation is on cpu; {INSTEAD}"):
        MadronaRenderer(mjx, VIEWS)
    with pytest.raises(ValueError, match="of engine=mjx, not BatchSim"):
        MadronaRenderer(sims[1], VIEWS)
    with pytest.raises(ValueError, match=r"MjxSim does not compute light_xpos .* engine=mujoco"):
        make_renderer(mjx, VIEWS)


def test_sim_renderer_madrona_says_what_to_install_and_what_draws_the_same(sims, tmp_path, capsys):
    with pytest.raises(ValueError, match=rf"{NEEDS}, .* imported here \(No module .*; {INSTEAD}"):
        load_package(torch.device("cuda"))
    with pytest.raises(ValueError, match=INSTEAD):
        make_renderer(sims[0], VIEWS, name="madrona")
    words = ["task=panda_lift_cube_vision", "sim.renderer=madrona", f"out={tmp_path}", "device=cpu"]
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(f"{NEEDS}; .*; {INSTEAD}", error) and error.count("\n") == 1
    assert not [*tmp_path.iterdir()]
    assert main(["train", "sim.renderer=madrone"]) == 2
    assert "sim.renderer must be auto, warp or madrona" in capsys.readouterr().err


def test_other_engines_are_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(madrona_renderer, "load_package", lambda device: None)
    check_renderer("madrona", "mjx", torch.device("cuda"))
    with pytest.raises(ValueError, match=r"draws simulations of sim.engine=mjx, not of auto; sim"):
        check_renderer("madrona", "auto", torch.device("cuda"))


def test_a_package_of_another_interface_is_refused_by_the_parameter(mjx):
    class BatchRenderer:
        def __init__(self, m, gpu_id, num_worlds, width, height):
            pass

    with pytest.raises(ValueError, match=r"another interface: .*batch_render_view_height"):
        MadronaRenderer(mjx, VIEWS, batch_renderer=BatchRenderer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_real_package_draws_what_our_ray_tracer_does():
    pytest.importorskip("madrona_mjx")
    model = mujoco.MjModel.from_xml_string(SCENE)
    sim = MjxSim(model, 3, "cuda")
    sim.data.qpos[:, 0] = torch.tensor([-0.5, 0.0, 0.6], device="cuda")
    sim.forward()
    got = MadronaRenderer(sim, VIEWS).render()
    batch = BatchSim(model, 3, nthread=1)
    batch.data.qpos.copy_(sim.data.qpos.cpu())
    batch.forward()
    want = make_renderer(batch, VIEWS).render()
    for camera in ("top", "side"):
        error = (got[camera]["depth"].cpu() - want[camera]["depth"]).abs()
        assert error.median() < 0.01  # edges may differ
