"""Contacts drawn on a page, and what its commands do to a world."""

import contextlib
import types

import mujoco
import numpy as np
import pytest

from penspin_style.sim.batch_sim import BatchSim
from penspin_style.viewer.touch import Commands, Contacts, forces

MASS = 0.5
XML = f"""<mujoco>
  <worldbody>
    <geom type="plane" size="2 2 1"/>
    <body name="ball" pos="0 0 .1"><freejoint/><geom size=".1" mass="{MASS}"/></body>
    <body name="goal" mocap="true" pos="1 0 .5">
      <geom size=".05" contype="0" conaffinity="0"/>
    </body>
    <body name="cart" pos="0 1 1">
      <joint type="slide" axis="1 0 0"/>
      <geom size=".1" mass="1"/>
    </body>
  </worldbody>
</mujoco>"""


class _Thing:
    """A thing on the page: what it was given, and what happens to it."""

    def __init__(self, **given):
        self.__dict__.update(given)

    def on_click(self, function):
        self.press = lambda: function(None)

    on_update = on_click


class _Page:
    """viser's server, as far as it is used here."""

    def __init__(self):
        self.gui = self.scene = self
        self.made = {}

    def __getattr__(self, method):
        def add(name, *options, **given):
            self.made[name] = _Thing(value=given.pop("initial_value", None), **given)
            return self.made[name]

        return add

    @contextlib.contextmanager
    def add_folder(self, name):
        yield


@pytest.fixture
def sim():
    made = BatchSim(mujoco.MjModel.from_xml_string(XML), 2)
    made.step(200)  # the ball comes to rest
    return made


def test_a_ball_at_rest_is_borne_by_its_weight(sim):
    page = _Page()
    contacts = Contacts(page, sim)
    contacts.draw(1, np.zeros(3))
    assert "/contacts" not in page.made  # nobody has asked
    page.made["contacts"].value = True
    contacts.draw(1, np.array([0.0, 3.0, 0.0]))
    ((start, end),) = page.made["/contacts"].points
    scale = sim.model.vis.map.force
    assert end - start == pytest.approx([0, 0, scale * MASS * 9.81], abs=0.02 * scale * MASS * 9.81)
    assert start == pytest.approx([0, 3, 0], abs=2e-3)


def test_what_touches_nothing_has_no_lines(sim):
    model = sim.model
    data = mujoco.MjData(model)
    data.qpos[2] = 1.0
    mujoco.mj_forward(model, data)
    assert forces(model, data).shape == (0, 2, 3)


def test_a_push_moves_the_object_of_one_world_alone(sim):
    page = _Page()
    commands = Commands(page, sim, 1.0)
    assert page.made["object"] and [*commands.things] == ["ball", "goal"]  # no cart on a rail
    page.made["push"].press()
    commands.apply(1, np.zeros(3))
    speed = np.linalg.norm(sim.data.qvel[1, :2].numpy())
    assert (
        speed == pytest.approx(0.5, abs=1e-3) and np.abs(sim.data.qvel[0, :2].numpy()).max() < 1e-3
    )
    commands.apply(1, np.zeros(3))  # once is once
    assert np.linalg.norm(sim.data.qvel[1, :2].numpy()) == pytest.approx(speed)


@pytest.mark.parametrize("name", ["ball", "goal"])
def test_what_is_dragged_stands_where_the_handle_is(sim, name):
    page = _Page()
    commands = Commands(page, sim, 1.0)
    page.made["object"].value, page.made["drag"].value = name, True
    offset = np.array([0.0, 3.0, 0.0])
    commands.apply(1, offset)
    handle, body = page.made["/drag"], sim.model.body(name).id
    before = sim.data.xpos[1, body].numpy().copy()
    assert handle.visible and handle.position == pytest.approx(before + offset, abs=1e-6)
    handle.position = np.array([0.3, 3.4, 0.8])
    handle.press()
    commands.apply(1, offset)
    assert sim.data.xpos[1, body].numpy() == pytest.approx([0.3, 0.4, 0.8], abs=1e-6)
    assert np.abs(sim.data.xpos[0, body].numpy() - before).max() < 1e-3
    page.made["drag"].value = False
    commands.apply(1, offset)
    assert not handle.visible


def test_a_model_without_objects_has_no_panel():
    page = _Page()
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>")
    commands = Commands(page, types.SimpleNamespace(model=model), 1.0)
    commands.apply(0, np.zeros(3))
    assert not page.made
