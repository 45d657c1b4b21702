"""The Allegro hand with a pen."""

import mujoco
import pytest

from tasks.robots.allegro import model as allegro
from tests.support.allegro_hand import PEN_RADIUS


@pytest.fixture(scope="module")
def model():
    spec = allegro.scene()
    allegro.add_pen(spec, PEN_RADIUS, 0.068, 0.015)
    return spec.compile()


@pytest.fixture
def data(model):
    return mujoco.MjData(model)
