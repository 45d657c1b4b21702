"""How objects lie and where they are gripped, against boxes and letters that are known by hand."""

import numpy as np
import pytest

from penspin_style.meshes.mesh import Mesh
from tasks.real2sim.resting import FINGER, LOWEST, PALM, rest

FACES = np.array(
    [
        *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
        *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
    ]
)


def box(half, at=(0.0, 0.0, 0.0), turn=None):
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
    corners = corners + at
    return Mesh(corners if turn is None else corners @ turn.T, FACES)


def matrix(quat):
    w, x, y, z = quat
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_a_flat_box_lies_as_it_is_and_is_taken_across_its_narrow_side():
    found = rest([box((0.03, 0.02, 0.01))])
    assert found.quat == pytest.approx((1, 0, 0, 0), abs=1e-9)
    assert (found.height, found.top) == pytest.approx((0.01, 0.02))
    assert found.width == pytest.approx(0.04)
    assert found.grasp == pytest.approx((0.0, 0.0, LOWEST - 0.01))


def test_a_box_that_is_narrow_the_other_way_is_turned_by_a_right_angle():
    found = rest([box((0.02, 0.03, 0.01))])
    assert found.width == pytest.approx(0.04)
    across = matrix(found.quat) @ np.array([1.0, 0, 0])
    assert abs(across[1]) == pytest.approx(1.0)


def test_a_box_that_stands_on_a_corner_of_its_frame_lies_down():
    axis = np.array([1.0, 1.0, 0.3]) / np.linalg.norm([1.0, 1.0, 0.3])
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + np.sin(0.7) * k + (1 - np.cos(0.7)) * k @ k
    found = rest([box((0.03, 0.02, 0.01), turn=turn)])
    assert found.height == pytest.approx(0.01, abs=1e-6)
    up = matrix(found.quat) @ turn @ np.array([0.0, 0, 1])
    assert abs(up[2]) == pytest.approx(1.0, abs=1e-6)
    lying = box((0.03, 0.02, 0.01), turn=turn).vertices @ matrix(found.quat).T
    assert lying[:, 2].min() == pytest.approx(-0.01, abs=1e-6)
    assert np.ptp(lying[:, 1]) == pytest.approx(0.04, abs=2e-3)  # as narrow as 5 degrees find it


def test_of_likely_sides_it_is_the_lowest_as_the_object_was_modelled():
    """A cup upside down would stand as well: wider at the rim."""
    floor, rim = box((0.02, 0.02, 0.002), (0, 0, -0.02)), box((0.025, 0.025, 0.002), (0, 0, 0.02))
    found = rest([floor, rim, box((0.01, 0.01, 0.02))])
    assert found.quat == pytest.approx((1, 0, 0, 0), abs=1e-9)
    assert found.height == pytest.approx(0.022)


def test_sizes_scale_and_the_hand_stays_what_it_is():
    small, large = (rest([box((0.02, 0.02, 0.024))], scale) for scale in (1.0, 1.5))
    assert (large.height, large.top, large.width) == pytest.approx((0.036, 0.072, 0.06))
    assert (small.height, small.top, small.width) == pytest.approx((0.024, 0.048, 0.04))
    assert small.grasp[2] == pytest.approx(0.0)  # at its middle
    assert large.grasp[2] == pytest.approx(0.072 - PALM - 0.036)  # the palm above its top


def test_what_narrows_upwards_is_taken_above_its_slope():
    """A bottle: between pads on its shoulder it would slip out below."""
    body, cap = box((0.02, 0.02, 0.02), (0, 0, -0.01)), box((0.009, 0.009, 0.01), (0, 0, 0.04))
    shoulder = box((0.02, 0.02, 0.01), (0, 0, 0.02))
    top = shoulder.vertices[:, 2] > 0.02
    shoulder.vertices[top, :2] *= 0.45
    found = rest([body, shoulder, cap])
    assert found.width == pytest.approx(0.018)
    # the pads' middle is 4 mm lower: all of the pad that must hold is on the cap
    assert 0.03 < found.grasp[2] < 0.055


def test_the_fingers_close_where_nothing_else_is_in_their_way():
    """A bar with a wide end: across the wide end the hand would have to open farther."""
    stem, head = box((0.02, 0.008, 0.01), (0.005, 0, 0)), box((0.006, 0.03, 0.01), (-0.021, 0, 0))
    found = rest([stem, head])
    assert found.width == pytest.approx(0.016, abs=1e-3)
    assert found.grasp[0] - FINGER > -0.015


def test_an_origin_outside_the_object_is_refused():
    with pytest.raises(ValueError, match="centre of mass is above none of its sides"):
        rest([box((0.01, 0.01, 0.01), (0.05, 0.05, 0.05))])
