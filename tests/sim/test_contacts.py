"""Contact forces on both engines against weights and grips that are known by hand."""

import math

import mujoco
import pytest
import torch

from penspin_style.sim.contacts import Contact
from penspin_style.sim.sim import make_sim

G, MASS, GRIP = 9.81, 0.4, 7.0
REST = f"""
<mujoco>
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <geom name="wall" type="box" size=".1 .1 .1" pos="2 0 .1"/>
    <body name="box" pos="0 0 .0999">
      <freejoint/><geom name="box" type="box" size=".1 .1 .1" mass="{MASS}"/>
    </body>
    <body name="top" pos="0 0 .2498">
      <freejoint/><geom name="top" type="box" size=".05 .05 .05" mass="{MASS}"/>
    </body>
  </worldbody>
</mujoco>
"""
# fingers that close along x, turned by a sixth of a turn about z
HELD = f"""
<mujoco>
  <option timestep="0.002" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <worldbody>
    <body name="hand" pos="0 0 1" euler="0 0 60">
      <body name="left" pos="-.07 0 0">
        <joint name="l" type="slide" axis="1 0 0" damping="20"/>
        <geom name="left" type="box" size=".02 .03 .03" mass=".1"/>
      </body>
      <body name="right" pos=".07 0 0">
        <joint name="r" type="slide" axis="-1 0 0" damping="20"/>
        <geom name="right" type="box" size=".02 .03 .03" mass=".1"/>
      </body>
    </body>
    <body name="box" pos="0 0 1" euler="0 0 60">
      <freejoint/><geom name="box" type="box" size=".05 .02 .02" mass="{MASS}"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="l" ctrlrange="0 100"/><motor joint="r" ctrlrange="0 100"/>
  </actuator>
</mujoco>
"""


def simulate(xml, contacts, engine, num_envs=2):
    spec = mujoco.MjSpec.from_string(xml)
    for contact in contacts:
        contact.add_to(spec)
    sim = make_sim(spec.compile(), num_envs, "cpu", engine=engine, nconmax=64, njmax=256)
    return sim, [contact.view(sim) for contact in contacts]


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_what_rests_is_pushed_up_by_its_weight(engine):
    below = Contact("below", ("box", "top"), ("floor", "wall"))
    between = Contact("between", ("top",), ("box",))
    sim, (below, between) = simulate(REST, (below, between), engine)
    sim.step(300)
    assert below.touching.tolist() == [[True, False]] * 2
    assert between.touching.tolist() == [[True]] * 2
    weight = torch.tensor([[[0.0, 0.0, 2 * MASS * G], [0.0, 0.0, 0.0]]] * 2)
    torch.testing.assert_close(below.force, weight, atol=0.02, rtol=0.0)
    assert below.pair_force.shape == (2, 2, 2, 3)
    torch.testing.assert_close(below.pair_force[:, :, 0], weight, atol=0.02, rtol=0.0)
    assert not below.pair_force[:, :, 1].any()
    up = torch.tensor([[[0.0, 0.0, MASS * G]]] * 2)
    torch.testing.assert_close(between.force, up, atol=0.02, rtol=0.0)


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_a_held_box_pushes_each_finger_back_and_hangs_from_both(engine):
    fingers = Contact("fingers", ("left", "right"), ("box",))
    box = Contact("held", ("box",), ("left", "right"))
    sim, (fingers, box) = simulate(HELD, (fingers, box), engine)
    sim.data.ctrl[0] = GRIP
    sim.step(100)
    assert fingers.touching.tolist() == [[True, True], [False, False]]
    # the grip acts along the fingers' axis, each carries half of the weight
    x, y = math.cos(math.pi / 3) * GRIP, math.sin(math.pi / 3) * GRIP
    z = -MASS * G / 2
    wanted = torch.tensor([[-x, -y, z], [x, y, z]])
    torch.testing.assert_close(fingers.force[0], wanted, atol=0.1, rtol=0.0)
    torch.testing.assert_close(box.force[0, 0], -fingers.force[0].sum(dim=0), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(box.pair_force[0, 0], -fingers.force[0], atol=1e-4, rtol=0.0)
    assert not fingers.force[1].any()


def test_both_engines_say_the_same():
    said = []
    for engine in ("mujoco", "warp"):
        fingers = Contact("fingers", ("left", "right"), ("box",))
        sim, (fingers,) = simulate(HELD, (fingers,), engine)
        sim.data.ctrl[:] = torch.tensor([[GRIP], [2 * GRIP]])
        sim.step(60)
        said.append((fingers.force.clone(), fingers.touching))
    torch.testing.assert_close(said[0][0], said[1][0], atol=5e-3, rtol=0.0)
    assert torch.equal(said[0][1], said[1][1])


def test_a_view_is_live_and_after_a_forward_of_the_state_as_it_is():
    below = Contact("below", ("box",), ("floor",))
    sim, (below,) = simulate(REST, (below,), "mujoco")
    sim.forward()
    assert below.touching.all()
    sim.data.qpos[0, 2] = 0.5  # lifted
    sim.forward()
    assert below.touching[:, 0].tolist() == [False, True]
    assert not below.force[0].any()


def test_geoms_that_are_not_there_are_refused_by_name():
    spec = mujoco.MjSpec.from_string(REST)
    with pytest.raises(ValueError, match=r"contact 'x': there is no geom 'flor'; there are \['box"):
        Contact("x", ("box",), ("flor",)).add_to(spec)
    with pytest.raises(ValueError, match="contact 'x': a group is empty"):
        Contact("x", (), ("floor",)).add_to(spec)
    sim, _ = simulate(REST, (), "mujoco")
    with pytest.raises(ValueError, match="'x' is not in the model: call add_to"):
        Contact("x", ("box",), ("floor",)).view(sim)
