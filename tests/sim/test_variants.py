"""Shapes that differ between worlds, at rest at heights that are known by hand, on both engines."""

import math

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.sim.randomize import Randomize, Randomizer, per_env_fields
from penspin_style.sim.sim import make_sim
from penspin_style.sim.variants import FIELDS, Shape, Variants, add_shapes

ENGINES = ("mujoco", "warp")
CUBE = 0.02  # m, half of its edge
BALL = 0.03  # m, its radius
BAR = (0.06, 0.02, 0.012)  # m, half of its edges
TILT = math.radians(30)  # of the bar in its own frame
LEG = 0.035  # m, from the stool's origin to the floor
HEIGHTS = (CUBE, BALL, BAR[2], LEG)
NAMES = ("cube", "ball", "bar", "stool")


def box(half, at=(0.0, 0.0, 0.0), turn=None):
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
    corners = corners if turn is None else corners @ turn.T
    return corners + at


def ball():
    """200 points of a sphere, evenly spread."""
    i = np.arange(200) + 0.5
    z, angle = 1 - i / 100, math.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - z**2)
    return BALL * np.stack((ring * np.cos(angle), ring * np.sin(angle), z), axis=1)


def hulls():
    """Vertices of the hulls of each shape."""
    c, s = math.cos(TILT), math.sin(TILT)
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    legs = [box((0.006, 0.05, 0.02), at=(x, 0, 0.02 - LEG)) for x in (-0.05, 0.05)]
    return {
        "cube": [box((CUBE, CUBE, CUBE))],
        "ball": [ball()],
        "bar": [box(BAR, turn=about_y)],
        "stool": [box((0.06, 0.06, 0.005), at=(0, 0, 0.01)), *legs],
    }


def scene(*, floor="plane", only=None):
    """A world with an object that may be any of the shapes; only: the first of them."""
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.005
    if floor == "plane":
        spec.worldbody.add_geom(
            name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1], condim=4
        )
    else:  # a body of many geoms, so that MuJoCo C looks for contacts in the trees of both bodies
        planks = spec.worldbody.add_body(name="planks")
        for i in range(8):
            planks.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=[0.05, 0.4, 0.05],
                pos=[0.1 * i - 0.35, 0, -0.05],
            )
    shapes = []
    for name, parts in hulls().items():
        meshes = tuple(f"{name}_{i}" for i in range(len(parts)))
        for mesh, vertices in zip(meshes, parts, strict=True):
            spec.add_mesh(name=mesh).uservert = vertices.ravel().tolist()
        moment = 0.1 * 0.03**2
        shapes.append(Shape(name, 0.1, (moment, moment, moment), meshes[0], meshes))
    shapes = [s for s in shapes if s.name == only] + [s for s in shapes if s.name != only]
    body = spec.worldbody.add_body(name="object", pos=[0, 0, 0.08])
    body.add_freejoint(name="object")
    add_shapes(
        spec, body, shapes, hull={"solref": [0.01, 1], "condim": 4, "friction": [1, 0.01, 0]}
    )
    return spec.compile()


def make(engine, *, fields=(), **settings):
    """One world for each of `NAMES`."""
    per_env = tuple(dict.fromkeys((*FIELDS, *fields)))
    sim = make_sim(scene(**settings), 4, "cpu", per_env=per_env, engine=engine, njmax=256)
    variants = Variants(sim, "object", NAMES)
    everywhere = torch.ones(4, dtype=torch.bool)
    variants.write(torch.arange(4), everywhere)
    sim.set_const()
    return sim, variants


def rest(sim, seconds=1.0):
    sim.reset()
    sim.forward()
    sim.step(round(seconds / sim.timestep))
    assert sim.faults.tolist() == [0] * 4
    return sim.data.qpos[:, 2].tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_four_shapes_rest_at_their_heights_whatever_is_drawn_anew(engine):
    row = Randomize("body_mass", names="object", operation="scale", low=0.5, high=2.0)
    sim, _ = make(engine, fields=per_env_fields([row]))
    assert rest(sim) == pytest.approx(HEIGHTS, abs=6e-4)
    rng = torch.Generator().manual_seed(0)
    Randomizer(sim, [row], 0.02).reset_model(torch.ones(4, dtype=torch.bool), rng)
    mass = sim.params.body_mass[:, sim.model.body("object").id]
    assert len(mass.unique()) == 4
    assert rest(sim) == pytest.approx(HEIGHTS, abs=6e-4)
    sim.set_const()
    assert rest(sim) == pytest.approx(HEIGHTS, abs=6e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_shapes_rest_on_a_body_of_many_geoms(engine):
    sim, _ = make(engine, floor="planks")
    assert rest(sim) == pytest.approx(HEIGHTS, abs=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_world_moves_as_a_model_of_that_shape_alone(engine):
    """The same fall in MuJoCo's own loop, with a model in which the shape was compiled."""
    sim, _ = make(engine)
    sim.reset()
    sim.forward()
    sim.step(60)  # 0.3 s: landed, and the bar is toppling
    for world, name in enumerate(NAMES):
        model = scene(only=name)
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data, 60)
        assert sim.data.qpos[world].tolist() == pytest.approx(data.qpos.tolist(), abs=2e-3)


def test_only_masked_worlds_change_their_shapes():
    sim, variants = make("mujoco")
    before = {name: sim.params[name].clone() for name in FIELDS}
    mask = torch.tensor([True, False, False, True])
    variants.write(torch.tensor([3, 3, 3, 0]), mask)
    sim.set_const(mask)
    for name, value in before.items():
        assert torch.equal(sim.params[name][1:3], value[1:3]), name
    assert not torch.equal(sim.params.geom_dataid[0], before["geom_dataid"][0])
    assert rest(sim) == pytest.approx([LEG, BALL, BAR[2], CUBE], abs=6e-4)


def test_a_hull_that_a_shape_does_not_have_lies_within_its_first():
    sim, _ = make("mujoco")
    model = sim.model
    geoms = [model.geom(f"object_hull_{i}").id for i in range(3)]
    speck = model.mesh("object_nothing").id
    assert (sim.params.geom_dataid[:, geoms] == speck).tolist() == [
        *[[False, True, True]] * 3,
        [False, False, False],
    ]
    at = sim.params.geom_pos[:3][:, geoms]
    assert torch.equal(at[:, 0], at[:, 1]) and torch.equal(at[:, 0], at[:, 2])


def test_parked_shapes_touch_nothing():
    model = scene()
    parked = [model.body(f"object/{name}").id for name in NAMES]
    kinds = model.geom_contype[np.isin(model.geom_bodyid, parked)]
    assert not (kinds[:, None] & model.geom_conaffinity[None]).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mesh_per_environment_without_its_bounds_is_refused(engine):
    with pytest.raises(ValueError, match=r"must hold geom_pos, geom_quat, .*geom_rbound too"):
        make_sim(scene(), 2, per_env=("geom_dataid",), engine=engine)
    sim = make_sim(scene(), 2, per_env=("body_mass",), engine="mujoco")
    with pytest.raises(ValueError, match="per_env to hold geom_dataid"):
        Variants(sim, "object", NAMES)


def test_shapes_need_hulls_and_names_of_their_own():
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name="object")
    one = Shape("one", 1.0, (1.0, 1.0, 1.0), "mesh", ("mesh",))
    for shapes in (
        (),
        (one, one),
        (Shape("nothing", 1.0, (1.0,) * 3, "mesh", ("mesh",)),),
        (Shape("bare", 1.0, (1.0, 1.0, 1.0), "mesh", ()),),
    ):
        with pytest.raises(ValueError, match="hulls and names of their own"):
            add_shapes(spec, body, shapes)
