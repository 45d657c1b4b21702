"""A crate, carts, a puck and a ball whose numbers are randomised, on the CPU engine."""

import mujoco
import torch

from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.randomize import Randomize, Randomizer, per_env_fields

H = 0.01
XML = f"""
<mujoco>
  <option timestep="{H}" gravity="0 0 -10"/>
  <worldbody>
    <geom name="floor" type="plane" size="9 9 .1" friction=".1"/>
    <body name="cart" pos="0 0 5">
      <joint name="rail" type="slide" axis="1 0 0" damping="2" armature=".5"/>
      <geom name="cart" type="box" size=".1 .1 .1" mass="1.5"/>
    </body>
    <body name="crate" pos="0 0 9"><freejoint name="crate"/>
      <geom name="crate" type="box" size=".1 .2 .3" mass="3"/></body>
    <body name="puck" pos="3 0 .05"><freejoint name="puck"/>
      <geom name="puck" type="box" size=".1 .1 .05" mass="1"/></body>
    <body name="ball" pos="-3 0 .4"><freejoint name="ball"/>
      <geom name="ball" type="sphere" size=".1" mass="1"/></body>
  </worldbody>
  <actuator>
    <general name="servo" joint="rail" gainprm="50" biastype="affine" biasprm="0 -50 -1"
             delay="{2 * H}" nsample="8"/>
    <motor name="spare" joint="rail" gear="0"/>
  </actuator>
  <sensor>
    <jointpos name="late" joint="rail" delay="{H}" nsample="6"/>
    <jointpos name="prompt" joint="rail"/>
  </sensor>
</mujoco>
"""
MODEL = mujoco.MjModel.from_xml_string(XML)
CART, CRATE, PUCK, BALL = (MODEL.body(n).id for n in ("cart", "crate", "puck", "ball"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(*rows, num_envs=5, model=MODEL, control_dt=0.05):
    sim = BatchSim(model, num_envs, per_env=per_env_fields(rows), nthread=1)
    return sim, Randomizer(sim, rows, control_dt)


def everyone(sim):
    return torch.ones(sim.num_envs, dtype=torch.bool)


def restart(sim, randomizer, rng=None, mask=None):
    """What the environment does at a reset."""
    rng = rng or seeded()
    mask = everyone(sim) if mask is None else mask
    randomizer.reset_model(mask, rng)
    sim.reset(mask)
    randomizer.reset_state(mask, rng)
    sim.forward(mask)


def ready(*rows, **kwargs):
    sim, randomizer = make(*rows, **kwargs)
    randomizer.startup(seeded(1))
    restart(sim, randomizer, seeded(2))
    return sim, randomizer


def unlike(values):
    """Whether every environment has a value of its own."""
    return len(set(values.flatten().tolist())) == values.numel()


def velocity(sim, joint, component=0):
    return sim.data.qvel[:, MODEL.joint(joint).dofadr[0] + component]


def same(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


MANY = (
    Randomize("body_mass", "box|arm", 0.5, 2.0, "scale"),
    Randomize("geom_friction", "box|left", 0.4, 1.4, column=0),
    Randomize("dof_damping", "shoulder|wrist", 0.5, 2.0, "scale"),
    Randomize("dof_armature", "wrist", 0.0, 0.02, "add"),
    Randomize("dof_frictionloss", "wrist", 0.0, 0.05),
    Randomize("actuator_gainprm", "right", 0.7, 1.3, "scale", column=0),
    Randomize("actuator_delay", "shoulder", 0.0, 0.016),
    Randomize("sensor_delay", "late", 0.0, 0.012),
    Randomize("geom_size", "box", 0.9, 1.1, "scale"),
    Randomize("body_ipos", "box", -0.003, 0.003, "add"),
    Randomize("jnt_range", "left", 0.001, 0.003, column=1),
    Randomize("opt.gravity", low=-0.5, high=0.5, operation="add"),
    Randomize("opt.wind", low=0.0, high=0.0),
)
