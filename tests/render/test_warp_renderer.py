"""The ray tracer on Warp's CPU device, against rays cast by hand."""

import gc
import types
import weakref

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.render import warp_renderer
from penspin_style.render.renderer import View, make_renderer
from penspin_style.render.warp_renderer import WarpRenderer
from penspin_style.sim.randomize import Randomize, Randomizer, per_env_fields
from penspin_style.sim.sim import make_sim
from tests.support import rays

ROWS = {
    **rays.LOOKS,
    "light_pos": Randomize("light_pos", "lamp", -0.4, 0.4, operation="add", when="startup"),
    "light_dir": Randomize("light_dir", "sun", 0.2, 0.6, operation="turn", when="startup"),
}
VIEWS = (View("top", 40, 48, segmentation=True), View("side", 33, 32, segmentation=True))
NUM_ENVS = 4


def scatter(sim, seed=0):
    """Lay box and ball somewhere else in every environment, the box turned."""
    rng = np.random.default_rng(seed)
    qpos = np.tile(sim.model.qpos0, (sim.num_envs, 1))
    qpos[:, [0, 1, 7, 8]] += rng.uniform(-0.15, 0.15, (sim.num_envs, 4))
    qpos[:, 3:7] = rng.normal(size=(sim.num_envs, 4))
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    sim.data.qpos.copy_(torch.from_numpy(qpos))
    sim.forward()
    return sim


def check(sim, images, views=VIEWS, *, shadows=False):
    """All pixels are what rays by hand say, but for those of float32 at an edge."""
    for view in views:
        for env in range(sim.num_envs):
            want = rays.Image(sim, env, view.camera, view.height, view.width, shadows=shadows)
            got = {name: image[env].cpu().numpy() for name, image in images[view.camera].items()}
            same = got["segmentation"] == want.segmentation
            assert same.mean() > 0.997
            off = abs(got["depth"] - want.depth)[same]
            assert off.max() < 5e-4 and (off < 1e-5).mean() > 0.997  # rays that graze the ball
            close = (abs(got["rgb"].astype(int) - want.rgb) <= 1).all(-1)
            assert close[same].mean() > (0.985 if shadows else 0.997)


@pytest.fixture(scope="module")
def tables():
    """A table per engine, with everything that a row could vary, and its renderer."""
    made = {}
    for engine in ("mujoco", "warp"):
        per_env = per_env_fields(tuple(ROWS.values()))
        sim = make_sim(rays.table(), NUM_ENVS, engine=engine, per_env=per_env)
        made[engine] = sim, make_renderer(sim, VIEWS), {n: sim.params[n].clone() for n in per_env}
    return made


@pytest.fixture(params=["mujoco", "warp"])
def table(tables, request):
    sim, renderer, initial = tables[request.param]
    for name, value in initial.items():
        sim.params[name].copy_(value)
    sim.set_const()
    return scatter(sim), renderer


@pytest.fixture(scope="module")
def plain():
    """A table on which nothing differs but poses."""
    return scatter(make_sim(rays.table(), 13), seed=1)


# What is drawn.


def test_from_above_floor_box_and_ball_are_as_far_as_their_heights_say(plain):
    plain.reset()
    plain.forward()
    image = make_renderer(plain, [View("top", 201, 201, segmentation=True)]).render()["top"]
    depth, ids = image["depth"][0], image["segmentation"][0]
    per_metre = 100.5 / (2.0 * np.tan(np.radians(25)))  # pixels, on the floor
    assert depth[100, 100] == pytest.approx(2.0) and ids[100, 100] == rays.FLOOR
    top = 2.0 - 0.3  # the box's centre is at 0.2 m, its half height 0.1 m
    column, row = (100 + at * per_metre * 2.0 / top for at in (0.3, -0.1))
    assert depth[round(row), round(column)] == pytest.approx(top, abs=1e-6)
    assert ids[round(row), round(column)] == rays.BOX
    column = 100 - 0.3 * per_metre * 2.0 / 1.7
    # the ball's top is at 0.45 m, but this ray meets it a little before
    assert depth[100, round(column)] == pytest.approx(1.553, abs=2e-3)
    assert ids[100, round(column)] == rays.BALL
    scatter(plain, seed=1)


def test_depth_segmentation_and_colour_are_those_of_rays_by_hand(plain):
    check(plain, make_renderer(plain, VIEWS).render())


def test_nothing_is_black_at_no_depth_and_collision_shapes_are_not_drawn(plain):
    image = make_renderer(plain, [View("up", segmentation=True)]).render()["up"]
    assert (image["segmentation"] == -1).all()
    assert not image["depth"].any() and not image["rgb"].any()


def test_shadows_take_a_lights_whole_share(plain):
    check(plain, make_renderer(plain, VIEWS, shadows=True).render(), shadows=True)


def test_highlights_only_brighten_what_faces_between_light_and_eye():
    spec = mujoco.MjSpec.from_string(rays.TABLE)
    spec.light("sun").specular = [0.5] * 3
    sim = make_sim(spec.compile(), 1)
    views = [View("top", 41, 41, depth=False)]
    dull, bright = (
        make_renderer(sim, views, highlights=h).render()["top"]["rgb"][0].int()
        for h in (False, True)
    )
    assert (bright >= dull).all()
    # half of the sun's 0.5, as materials reflect 0.5 unless they say otherwise
    assert (bright - dull)[20, 20].tolist() == pytest.approx([64] * 3, abs=1)
    assert (bright - dull)[0, 0].max() < 20
    shines = [
        warp_renderer.context_settings(sim, views, warp_renderer.Look(highlights=h))
        for h in (False, True)
    ]
    assert [settings["enable_specular"] for settings in shines] == [False, True]


def test_what_no_light_or_material_has_is_compiled_away_unless_environments_differ_in_it(plain):
    fields = ("mat_emission", "light_ambient", "light_specular", "cam_intrinsic")
    varied = make_sim(rays.table(), 2, per_env=fields)
    names = ("specular", "emission", "per_light_ambient")
    for sim, wanted in ((plain, False), (varied, True)):
        settings = warp_renderer.context_settings(sim, VIEWS)
        assert [settings[f"enable_{name}"] for name in names] == [wanted] * 3
        assert settings["use_precomputed_rays"] is not wanted


def test_each_image_has_its_shape_and_type_and_is_overwritten_by_the_next_call(plain):
    views = [View("top", 8, 12), View("side", 5, 3, rgb=False), View("up", 4, 4, depth=False)]
    renderer = make_renderer(plain, views)
    first = renderer.render()
    kinds = {c: {k: (tuple(t.shape), t.dtype) for k, t in i.items()} for c, i in first.items()}
    assert kinds == {
        "top": {
            "rgb": ((13, 8, 12, 3), torch.uint8),
            "depth": ((13, 8, 12), torch.float32),
        },
        "side": {"depth": ((13, 5, 3), torch.float32)},
        "up": {"rgb": ((13, 4, 4, 3), torch.uint8)},
    }
    assert all(t.is_contiguous() for images in first.values() for t in images.values())
    assert renderer.render()["side"]["depth"] is first["side"]["depth"]


# What differs between environments.


@pytest.mark.parametrize("field", ROWS)
def test_a_row_of_the_table_changes_each_environments_own_images(table, field):
    sim, renderer = table
    before = {c: i["rgb"].clone() for c, i in renderer.render().items()}
    Randomizer(sim, [ROWS[field]], 0.1).startup(torch.Generator().manual_seed(3))
    sim.forward()
    images = renderer.render()
    check(sim, images)
    changes = [(images[c]["rgb"] != before[c]).flatten(1).any(1) for c in before]
    assert torch.stack(changes).any(0).all()
    values = sim.params[field].flatten(1)
    assert len(torch.unique(values, dim=0)) == NUM_ENVS


def test_all_rows_at_once_draw_alike_on_both_engines(tables):
    drawn = {}
    for engine, (sim, renderer, _) in tables.items():
        randomizer = Randomizer(sim, tuple(ROWS.values()), 0.1)
        randomizer.startup(torch.Generator().manual_seed(4))
        if engine == "warp":  # engines draw in their own precision
            for name in sim.params.__dir__():
                sim.params[name].copy_(tables["mujoco"][0].params[name])
            sim.set_const()
        drawn[engine] = renderer_images(scatter(sim, seed=5), renderer)
        check(sim, drawn[engine])
    for camera, images in drawn["mujoco"].items():
        for name, image in images.items():
            other = drawn["warp"][camera][name]
            far = (image.double() - other.double()).abs() > (1e-5 if name == "depth" else 1)
            assert far.double().mean() < 1e-3, (camera, name)


def renderer_images(sim, renderer):
    return {c: {k: t.clone() for k, t in i.items()} for c, i in renderer.render().items()}


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_lights_are_switched_and_materials_exchanged_per_environment(engine):
    sim = make_sim(rays.table(), 3, engine=engine, per_env=("light_active", "geom_matid"))
    renderer = make_renderer(sim, VIEWS)
    sim.params.light_active[0, 0] = 0
    sim.params.light_active[1, :] = 0
    sim.params.geom_matid[2, rays.FLOOR] = sim.model.material("paint").id
    scatter(sim)
    for _ in range(3):
        check(sim, renderer.render())
    floor = renderer.render()["top"]["rgb"][1, 0, 0]
    assert floor.tolist() == [51, 38, 25]  # 255 * 0.25 * (0.8, 0.6, 0.4), no light but ambient


def test_a_lens_that_differs_equals_rays_computed_per_environment(monkeypatch):
    sim = scatter(make_sim(rays.table(), 4, per_env=("cam_fovy",)))
    sim.params.cam_fovy[:] *= torch.tensor([0.5, 0.9, 1.1, 1.6], dtype=torch.float64)[:, None]
    stretched = make_renderer(sim, VIEWS).render()
    frames = sim.data.cam_xmat.clone()
    monkeypatch.setattr(warp_renderer, "_varies", lambda sim, views: "rays")
    computed = make_renderer(sim, VIEWS).render()
    for camera, images in stretched.items():
        for name, image in images.items():
            far = (image.double() - computed[camera][name].double()).abs()
            assert (far > (2e-5 if name == "depth" else 1)).double().mean() < 1e-3
    assert torch.equal(sim.data.cam_xmat, frames)
    check(sim, computed)


# How it runs.


def test_threads_do_not_change_a_bit():
    per_env = per_env_fields(tuple(ROWS.values()))
    sim = make_sim(rays.table(), 13, per_env=per_env)
    Randomizer(sim, tuple(ROWS.values()), 0.1).startup(torch.Generator().manual_seed(6))
    renderers = [WarpRenderer(sim, VIEWS, nthread=n) for n in (1, 2, 3)]
    assert [len(r._chunks) for r in renderers] == [1, 2, 3]
    for seed in range(4):
        scatter(sim, seed)
        one, *others = (renderer_images(sim, renderer) for renderer in renderers)
        for other in others:
            for camera, images in one.items():
                assert all(torch.equal(image, other[camera][k]) for k, image in images.items())


def test_a_replayed_graph_draws_what_running_kernel_by_kernel_draws(table):
    sim, renderer = table
    for seed in range(3):
        scatter(sim, seed)
        sim.params.cam_fovy[:] *= 0.95
        replayed = renderer_images(sim, renderer)
        if seed == 2:
            eager = make_renderer(sim, VIEWS).render()
            for camera, images in replayed.items():
                assert all(torch.equal(image, eager[camera][k]) for k, image in images.items())
    assert all(chunk.graph is not None for chunk in renderer._chunks)


def test_drawing_leaves_the_simulation_as_it_is(table):
    sim, renderer = table
    before = sim.get_state(), {n: sim.data[n].clone() for n in warp_renderer.POSES}
    renderer.render()
    assert torch.equal(sim.get_state(), before[0])
    assert all(torch.equal(sim.data[name], value) for name, value in before[1].items())


def test_a_renderer_keeps_alive_the_simulation_whose_memory_it_reads():
    sim = scatter(make_sim(rays.table(), 2))
    renderer = make_renderer(sim, VIEWS)
    before, seen = weakref.ref(sim), renderer_images(sim, renderer)
    del sim
    gc.collect()
    assert before() is not None
    after = renderer.render()
    for camera, images in seen.items():
        assert all(torch.equal(image, after[camera][name]) for name, image in images.items())


def test_a_model_without_lights_and_materials_is_drawn():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><camera name="c" pos="0 0 1"/>'
        '<geom type="sphere" size=".1" rgba="1 .5 0 1"/></worldbody></mujoco>'
    )
    sim = make_sim(model, 2, per_env=("light_diffuse", "mat_rgba"))
    image = make_renderer(sim, [View("c", 9, 9)]).render()["c"]
    assert image["depth"][1, 4, 4] == pytest.approx(0.9)
    # the headlight: 0.1 ambient, 0.4 diffuse, and half of its 0.5 as highlight
    assert image["rgb"][0, 4, 4].tolist() == [191, 127, 63]


def test_errors_name_the_offender_and_the_remedy(plain):
    with pytest.raises(ValueError, match=r"no camera 'front'; it has \['top', 'side', 'up'\]"):
        make_renderer(plain, [View("front")])
    with pytest.raises(ValueError, match="two views of camera 'top'"):
        make_renderer(plain, [View("top"), View("top", 64, 64)])
    with pytest.raises(ValueError, match=r"at least one View; .*\['top', 'side', 'up'\]"):
        make_renderer(plain, [])
    with pytest.raises(ValueError, match=r"'top'.*at least 1 pixel, got 0 x 32"):
        View("top", height=0)
    with pytest.raises(ValueError, match="at least one of rgb, depth, segmentation"):
        View("top", rgb=False, depth=False)
    with pytest.raises(TypeError, match=r"not a SimpleNamespace; build .* make_sim"):
        make_renderer(types.SimpleNamespace(), [View("top")])


CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=CUDA)])
def test_a_gpu_draws_either_engine_and_waits_for_nothing(device):
    per_env = per_env_fields(tuple(ROWS.values()))
    cpu = make_sim(rays.table(), NUM_ENVS, per_env=per_env)
    Randomizer(cpu, tuple(ROWS.values()), 0.1).startup(torch.Generator().manual_seed(7))
    gpu = make_sim(rays.table(), NUM_ENVS, device, per_env=per_env)
    for name in per_env:
        gpu.params[name].copy_(cpu.params[name])
    gpu.set_const()
    for sim, where in ((cpu, device), (gpu, None)):
        renderer = make_renderer(sim, VIEWS, where)
        for seed in range(4):
            scatter(sim, seed)
            if seed == 3 and sim is gpu:
                torch.cuda.set_sync_debug_mode("error")
            try:
                images = renderer.render()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            check(sim, images)
    with pytest.raises(ValueError, match="is drawn there, not on cpu"):
        make_renderer(gpu, VIEWS, "cpu")
