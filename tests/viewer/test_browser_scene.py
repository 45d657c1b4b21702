"""The shapes of a model as triangles: their sizes, sides, places and colours."""

import mujoco
import numpy as np
import pytest

from penspin_style.viewer.bodies import Bodies
from penspin_style.viewer.scene import INFINITE, shapes
from tasks.panda.lift_cube import TASK
from tests.support.page import Page

XML = """<mujoco>
  <worldbody>
    <geom type="plane" size="2 3 1" rgba="0 1 0 1"/>
    <body pos="0 0 5">
      <geom type="{kind}" size="{size}" {more} rgba="1 0 0 .5"/>
      <geom type="sphere" size="9" group="3"/>
      <geom type="sphere" size="9" rgba="0 0 0 0"/>
    </body>
  </worldbody>
</mujoco>"""

FLOOR = '<mujoco><worldbody><geom type="plane" {}/><geom size="1"/></worldbody></mujoco>'


def only(kind, size, more=""):
    model = mujoco.MjModel.from_xml_string(XML.format(kind=kind, size=size, more=more))
    plane, shape = shapes(model)
    assert (plane.body, plane.color, plane.opacity) == (0, (0, 255, 0), 1.0)
    assert np.abs(plane.vertices).max(axis=0).tolist() == [2.0, 3.0, 0.0]
    assert (shape.body, shape.color) == (1, (255, 0, 0))
    assert shape.opacity == pytest.approx(0.5, abs=0.005)
    return shape


def volume(shape):
    """By the divergence theorem: positive only if all triangles face outwards."""
    a, b, c = shape.vertices[shape.faces].astype(float).transpose(1, 0, 2)
    return float((np.cross(a, b) * c).sum() / 6)


@pytest.mark.parametrize(
    ("kind", "size", "exact"),
    [
        ("box", "1 2 3", 48.0),
        ("sphere", "2", 4 / 3 * np.pi * 8),
        ("ellipsoid", "1 2 3", 4 / 3 * np.pi * 6),
        ("cylinder", "1 2", np.pi * 4),
        ("capsule", "1 2", np.pi * 4 + 4 / 3 * np.pi),
    ],
)
def test_a_kind_has_its_volume_and_faces_outwards(kind, size, exact):
    shape = only(kind, size)
    # inscribed polygons of 24 sides are a little smaller
    assert 0.95 * exact < volume(shape) <= exact * 1.000001


def test_a_shape_stands_where_its_geom_is_in_the_body():
    shape = only("box", ".1 .2 .3", 'pos="1 0 0" euler="0 0 90"')
    low, high = shape.vertices.min(axis=0), shape.vertices.max(axis=0)
    assert low == pytest.approx([0.8, -0.1, -0.3], abs=1e-6)
    assert high == pytest.approx([1.2, 0.1, 0.3], abs=1e-6)


def test_the_meshes_of_a_robot_are_drawn_where_mujoco_has_them():
    model = TASK(TASK.Config()).spec().compile()
    found = shapes(model)
    assert len(found) > 10 and {s.body for s in found} <= set(range(model.nbody))
    for shape in found:
        assert shape.faces.max() < len(shape.vertices) and np.isfinite(shape.vertices).all()
        radius = np.linalg.norm(shape.vertices, axis=1).max()
        own = [g for g in range(model.ngeom) if model.geom_bodyid[g] == shape.body]
        reach = [np.linalg.norm(model.geom_pos[g]) + model.geom_rbound[g] for g in own]
        assert shape.body == 0 or radius <= max(reach) + 1e-4


@pytest.mark.parametrize(
    ("plane", "is_floor"),
    [
        ('size="0 0 1" pos="0 0 -1"', True),
        ('size="2 3 1"', False),
        ('size="0 3 1"', False),
        ('size="0 0 1" euler="0 90 0"', False),
    ],
)
def test_a_level_plane_without_end_is_a_floor(plane, is_floor):
    found = shapes(mujoco.MjModel.from_xml_string(FLOOR.format(plane)))
    assert [shape.is_floor for shape in found] == ([True, False] if is_floor else [False])


def test_one_floor_lies_below_all_worlds():
    model = mujoco.MjModel.from_xml_string(FLOOR.format('size="0 0 1"'))
    page = Page("", 0, False)
    bodies = Bodies(page, model, 9, "")
    floor, ball = page.meshes.values()
    assert ball.batched_positions.shape == (9, 3)
    corners = floor.vertices + floor.batched_positions
    beyond = np.array([INFINITE, INFINITE, 0.0])
    assert corners.min(axis=0) == pytest.approx(bodies.offsets.min(axis=0) - beyond)
    assert corners.max(axis=0) == pytest.approx(bodies.offsets.max(axis=0) + beyond)
    bodies.draw([4], np.ones((1, model.nbody, 3)), np.ones((1, model.nbody, 4)))
    assert ball.batched_positions.tolist() == (bodies.offsets[[4]] + 1).tolist()
    assert (floor.vertices + floor.batched_positions == corners).all()
