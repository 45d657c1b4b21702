"""OpenGL, against rays cast by hand; then the ray tracer against OpenGL, on fifty scenes."""

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.render.gl_renderer import GLRenderer, NoOpenGLError, choose_platform
from penspin_style.render.renderer import View, make_renderer
from penspin_style.sim.randomize import Randomizer, per_env_fields
from penspin_style.sim.sim import make_sim
from tasks.panda.lift_cube import PandaLiftCube
from tasks.robots.scenery import look_at
from tests.support import rays

SIZE = 64
LOOKS = list(rays.LOOKS.values())

# Three of each shape that MuJoCo has, without mass or meeting.
CROWD = """
<mujoco model="crowd">
  <visual><quality numslices="64" numstacks="32" offsamples="0"/><map znear=".005"/></visual>
  <statistic extent="2" center="0 0 .5"/>
  <asset>
    <mesh name="wedge" vertex="0 0 0  .4 0 0  0 .3 0  .4 .3 0  0 0 .3  0 .3 .3"/>
    <mesh name="top" vertex=".2 0 0  0 .2 0  -.2 0 0  0 -.2 0  0 0 .3  0 0 -.1"/>
  </asset>
  <worldbody>
    <light type="directional" pos="0 0 3" dir=".2 .1 -1" diffuse=".3 .3 .3"/>
    <light type="spot" pos=".3 .2 2.5" dir="-.1 -.1 -1" cutoff="35" exponent="5"
           diffuse=".6 .5 .4" ambient=".05 0 .1" attenuation="1 .1 .05"/>
    <camera name="front" pos="2.2 0 1" xyaxes="0 1 0 -.25 0 1"/>
    <camera name="above" pos=".3 -.4 2.6" euler="8 6 20" fovy="55"/>
    <geom name="floor" type="plane" size="3 3 .1" rgba=".6 .6 .6 1"/>
    {bodies}
  </worldbody>
</mujoco>
"""
SHAPES = ("sphere", "capsule", "cylinder", "ellipsoid", "box")


@pytest.fixture(scope="module", autouse=True)
def opengl():
    try:
        choose_platform()
    except NoOpenGLError as error:
        pytest.skip(str(error))


def crowd():
    body = '<body name="{0}"><freejoint/><geom name="{0}" {1} contype="0" conaffinity="0"/></body>'
    kinds = [
        *((f"{s}{i}", f'type="{s}" size=".1 .1 .1"') for s in SHAPES for i in range(3)),
        *((m, f'type="mesh" mesh="{m}"') for m in ("wedge", "top")),
    ]
    bodies = "".join(body.format(name, what) for name, what in kinds)
    return mujoco.MjModel.from_xml_string(CROWD.format(bodies=bodies))


def scatter_crowd(sim):
    """Give every environment a scene of its own: sizes, places, turns and cameras."""
    rng = np.random.default_rng(11)
    n, nbody = sim.num_envs, sim.model.nbody - 1
    qpos = np.zeros((n, nbody, 7))
    qpos[..., :3] = rng.uniform((-0.9, -0.9, 0.05), (0.9, 0.9, 1.1), (n, nbody, 3))
    turn = rng.normal(size=(n, nbody, 4))
    qpos[..., 3:] = turn / np.linalg.norm(turn, axis=-1, keepdims=True)
    sim.data.qpos.copy_(torch.from_numpy(qpos.reshape(n, -1)))
    first, last = sim.model.geom("sphere0").id, sim.model.geom("box2").id + 1
    sizes = rng.uniform(0.06, 0.22, (n, last - first, 3))
    sim.params.geom_size[:, first:last] = torch.from_numpy(sizes)
    sim.params.cam_pos[:] += torch.from_numpy(rng.uniform(-0.3, 0.3, (n, 2, 3)))
    sim.params.cam_fovy[:] = torch.from_numpy(rng.uniform(35.0, 70.0, (n, 2)))
    sim.set_const()
    sim.forward()
    return sim


def panda_scene():
    """The lifting task's world with two cameras as a robot has them, evenly lit."""
    spec = PandaLiftCube(PandaLiftCube.Config()).spec()
    eye, focus = np.array([1.2, 0.1, 0.75]), np.array([0.42, 0.0, 0.1])
    spec.worldbody.add_camera(name="front", pos=eye, xyaxes=look_at(eye, focus), fovy=40)
    spec.body("hand").add_camera(
        name="wrist", pos=[0.08, 0, 0.03], xyaxes=[0, 1, 0, 0.94, 0, 0.34], fovy=62
    )
    spec.visual.quality.offsamples = 0
    # ambient, headlight and lamp add up to less than white: OpenGL clips light before the texture
    spec.visual.headlight.diffuse = [0.04] * 3
    spec.visual.headlight.specular = [0.0] * 3
    spec.light("top").specular = [0.0] * 3
    return spec.compile()


def scatter_panda(sim):
    rng = np.random.default_rng(12)
    n = sim.num_envs
    home = np.array([0.0, -0.2245, 0.0, -2.4686, 0.0, 2.2441, 0.785, 0.04, 0.04])
    qpos = sim.data.qpos.numpy()
    qpos[:, :9] = home
    qpos[:, :7] += rng.uniform(-0.4, 0.4, (n, 7))
    qpos[:, 7:9] = rng.uniform(0.0, 0.04, (n, 1))
    qpos[:, 9:11] = rng.uniform((0.3, -0.2), (0.5, 0.2), (n, 2))
    sim.forward()
    return sim


def overlap(ours, theirs):
    """Intersection over union, the mean over the geoms that cover at least twenty pixels."""
    ratios = []
    for geom in np.union1d(ours, theirs):
        one, other = ours == geom, theirs == geom
        if np.count_nonzero(one | other) >= 20:
            ratios.append(np.count_nonzero(one & other) / np.count_nonzero(one | other))
    return np.mean(ratios)


def compare(sim, cameras):
    """Overlap and share of depths within 5 mm, (cameras, num_envs); mean difference of colour."""
    views = [View(camera, SIZE, SIZE, segmentation=True) for camera in cameras]
    images = make_renderer(sim, views).render()
    overlaps, depths, colours = [], [], []
    for camera in cameras:
        ours = {name: image.numpy() for name, image in images[camera].items()}
        with GLRenderer(sim, camera, height=SIZE, width=SIZE, shadows=False) as gl:
            for env in range(sim.num_envs):
                theirs = gl.depth(env)
                common = (ours["depth"][env] > 0) & (theirs > 0)
                near = abs(ours["depth"][env] - theirs)[common] < 5e-3
                overlaps.append(overlap(ours["segmentation"][env], gl.segmentation(env)))
                depths.append(near.mean())
                colours.append(abs(ours["rgb"][env].astype(int) - gl.render(env)).mean())
    shape = (len(cameras), sim.num_envs)
    return [np.array(values).reshape(shape) for values in (overlaps, depths, colours)]


# OpenGL itself.


def test_opengl_draws_each_environments_own_parameters():
    sim = make_sim(rays.table(), 3, per_env=(*per_env_fields(LOOKS), "light_active"))
    sim.params.light_active[:, sim.model.light("lamp").id] = 0  # a point, which OpenGL ignores
    Randomizer(sim, LOOKS, 0.1).startup(torch.Generator().manual_seed(2))
    sim.data.qpos[:, :2] += 0.1 * torch.arange(3)[:, None]
    sim.forward()
    for camera in ("top", "side"):
        with GLRenderer(sim, camera, height=61, width=64, shadows=False) as gl:
            for env in (0, 2, 1):
                want = rays.Image(sim, env, camera, 61, 64)
                depth, ids, rgb = gl.depth(env), gl.segmentation(env), gl.render(env)
                same = ids == want.segmentation
                assert same.mean() > 0.99
                assert np.array_equal(depth == 0, ids < 0)
                assert (abs(depth - want.depth)[same] < 5e-3).mean() > 0.99
                # light is computed at corners only, so colours are near, not equal
                assert abs(rgb.astype(int) - want.rgb)[same].mean() < 4


def test_opengl_draws_larger_than_the_model_says_and_leaves_the_model_alone():
    sim = make_sim(rays.table(), 1, per_env=("geom_rgba",))
    sim.params.geom_rgba[0, rays.BALL, :3] = torch.tensor([0.0, 1.0, 0.0])
    width = sim.model.vis.global_.offwidth + 64
    with GLRenderer(sim, "top", height=16, width=width) as gl:
        assert gl.render().shape == (16, width, 3)
        assert gl.depth().dtype == np.float32 and gl.segmentation().shape == (16, width)
    assert sim.model.geom_rgba[rays.BALL].tolist() == pytest.approx([0.9, 0.3, 0.1, 1.0])
    with pytest.raises(ValueError, match="no camera 'front'"):
        GLRenderer(sim, "front")


# The ray tracer and OpenGL.


def test_fifty_scenes_look_alike_in_the_ray_tracer_and_in_opengl():
    shapes = scatter_crowd(make_sim(crowd(), 40, per_env=("geom_size", "cam_pos", "cam_fovy")))
    robot = scatter_panda(make_sim(panda_scene(), 10))
    results = {
        "shapes": compare(shapes, ("front", "above")),
        "panda": compare(robot, ("view", "front", "wrist")),
    }
    for name, (overlaps, depths, colours) in results.items():
        print(
            f"\n{name}: {overlaps.shape[1]} scenes, {overlaps.shape[0]} cameras; overlap "
            f"{overlaps.mean():.4f} (worst {overlaps.min():.4f}); depth within 5 mm "
            f"{depths.mean():.4f} (worst {depths.min():.4f}); colour differs by "
            f"{colours.mean():.2f} (worst {colours.max():.2f}) of 255",
            end="",
        )
        assert overlaps.min() >= 0.95
        assert depths.min() >= 0.95
        assert colours.mean() < 5  # OpenGL computes light at corners only
    assert sum(overlaps.shape[1] for overlaps, _, _ in results.values()) == 50
