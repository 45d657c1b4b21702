"""The shapes of reward terms at the points where they can be worked out."""

import math

import pytest
import torch

from penspin_style.env.rewards import near, progress, tolerance


def values(function, *points):
    return function(torch.tensor(points)).tolist()


def test_near_is_one_at_zero_and_falls_like_tanh():
    got = values(lambda d: near(d, 5.0), 0.0, 0.2, 100.0)
    assert got == pytest.approx([1.0, 1.0 - math.tanh(1.0), 0.0])
    # tanh(x) = 1/2 at x = ln(3)/2
    assert values(lambda d: near(d, 2.0), 0.25 * math.log(3.0)) == pytest.approx([0.5])


def test_progress_is_linear_between_start_and_goal_and_clipped_outside():
    got = values(lambda z: progress(z, 0.1, 0.5), 0.0, 0.1, 0.2, 0.5, 0.9)
    assert got == pytest.approx([0.0, 0.0, 0.25, 1.0, 1.0])


def test_progress_runs_downwards_too():
    assert values(lambda z: progress(z, 2.0, 1.0), 2.5, 1.75, 0.0) == pytest.approx([0, 0.25, 1])


def test_tolerance_is_one_inside_and_has_the_stated_value_at_the_margin():
    def shape(x):
        return tolerance(x, -1.0, 1.0, 0.5, value_at_margin=0.2)

    assert values(shape, -1.0, 0.0, 1.0) == [1.0, 1.0, 1.0]
    assert values(shape, -1.5, 1.5) == pytest.approx([0.2, 0.2])
    # a gaussian: half the margin gives the fourth root, twice the margin the fourth power
    assert values(shape, 1.25, 2.0) == pytest.approx([0.2**0.25, 0.2**4])


def test_tolerance_without_margin_is_a_window():
    got = values(lambda x: tolerance(x, 0.0, 1.0, 0.0), -0.1, 0.0, 0.5, 1.0, 1.1)
    assert got == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_tolerance_falls_to_a_tenth_by_default():
    assert values(lambda x: tolerance(x, 0.0, 0.0, 2.0), 2.0) == pytest.approx([0.1])


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: near(x.abs(), 3.0),
        lambda x: progress(x, -1.0, 1.0),
        lambda x: tolerance(x, -0.2, 0.3, 0.7),
    ],
)
def test_shapes_stay_within_zero_and_one_keep_shape_and_type(shape):
    x = torch.linspace(-5, 5, 200).view(10, 20)
    got = shape(x)
    assert got.shape == x.shape and got.dtype == torch.float32
    assert got.min() >= 0.0 and got.max() <= 1.0
