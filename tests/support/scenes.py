"""Small scenes that the tests of both engines share."""

import pathlib

import mujoco
import torch

PANDA_XML = pathlib.Path(__file__).parents[2] / "tasks" / "robots" / "panda" / "panda.xml"

# Boxes fall on a floor and on each other, and a piston throws them about: contacts come and go.
STACK = """
<mujoco model="stack">
  <option timestep="0.002" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 .1"/>
    <body name="low" pos="0 0 .14" euler="4 7 0"><freejoint/>
      <geom name="low" type="box" size=".1 .1 .1"/></body>
    <body name="mid" pos=".02 .01 .34"><freejoint/>
      <geom name="mid" type="box" size=".08 .08 .08"/></body>
    <body name="top" pos=".01 -.02 .5"><freejoint/>
      <geom name="top" type="sphere" size=".06"/></body>
    <body name="piston" pos="-.25 0 .3">
      <joint name="piston" type="slide" axis="1 0 0" damping="5" range="-.1 .5"/>
      <geom name="piston" type="capsule" fromto="-.1 0 0 0 0 0" size=".04" mass=".5"/>
    </body>
  </worldbody>
  <actuator><position name="piston" joint="piston" kp="400" ctrlrange="-.1 .5"/></actuator>
</mujoco>
"""

# An arm on a rail closes its two fingers on a box. Every kind of state and every stage of sensor.
GRIPPER = """
<mujoco model="gripper">
  <option timestep="0.002" integrator="implicitfast" gravity="0 0 -3"/>
  <size nuserdata="2"/>
  <worldbody>
    <light name="lamp" pos="0 0 2" dir="0 0 -1"/>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <geom name="bump" type="box" pos=".5 .5 .1" size=".1 .1 .1"/>
    <body name="target" mocap="true" pos="-.5 0 .5"><site name="target"/></body>
    <body name="arm" pos="0 0 .2">
      <joint name="shoulder" axis="0 0 1" damping=".5" armature=".01" stiffness="1"/>
      <geom name="arm" type="capsule" fromto="0 0 0 .2 0 0" size=".02" mass=".4"/>
      <camera name="wrist" pos=".1 0 .1"/>
      <body name="hand" pos=".2 0 0">
        <joint name="wrist" axis="0 1 0" damping=".3" armature=".01" frictionloss=".02"/>
        <geom name="hand" type="box" size=".02 .05 .02" pos=".02 0 0" mass=".2"/>
        <body name="left" pos=".08 .026 0">
          <joint name="left" type="slide" axis="0 -1 0" range="0 .04" damping="2"/>
          <geom name="left" type="box" size=".03 .005 .02" mass=".05" friction="1 .01 .001"/>
          <site name="left" type="box" size=".05 .01 .04"/>
        </body>
        <body name="right" pos=".08 -.026 0">
          <joint name="right" type="slide" axis="0 1 0" range="0 .04" damping="2"/>
          <geom name="right" type="box" size=".03 .005 .02" mass=".05" friction="1 .01 .001"/>
        </body>
      </body>
    </body>
    <body name="box" pos=".28 0 .2" simple="false"><freejoint name="box"/>
      <geom name="box" type="box" size=".02 .02 .02" mass=".05" friction="1 .01 .001"/></body>
  </worldbody>
  <tendon><fixed name="width"><joint joint="left" coef="1"/><joint joint="right" coef="1"/></fixed>
  </tendon>
  <actuator>
    <position name="shoulder" joint="shoulder" kp="5" ctrlrange="-.3 .3" delay=".006" nsample="8"/>
    <position name="wrist" joint="wrist" kp="5" ctrlrange="-.2 .2" dampratio="1"/>
    <general name="left" joint="left" ctrlrange="0 .04" gainprm="100" biastype="affine"
             biasprm="0 -100 -1" dyntype="filter" dynprm=".02"/>
    <position name="right" joint="right" kp="100" ctrlrange="0 .04"/>
  </actuator>
  <sensor>
    <touch name="touch" site="left"/>
    <jointpos name="late" joint="shoulder" delay=".004" nsample="6"/>
    <jointpos joint="shoulder"/><jointvel joint="shoulder"/>
    <framepos objtype="site" objname="left"/><framelinvel objtype="body" objname="box"/>
    <gyro site="left"/><accelerometer site="left"/><actuatorfrc actuator="left"/>
  </sensor>
  <keyframe>
    <key name="bent" time=".5" qpos=".3 .2 .01 .02 .28 0 .2 1 0 0 0" qvel=".1 0 0 0 0 0 0 0 0 0"
         act=".01" ctrl=".3 .2 .01 .02" mpos="-.4 .1 .6"/>
  </keyframe>
</mujoco>
"""


def stack() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(STACK)


def gripper(edit=lambda spec: None) -> mujoco.MjModel:
    spec = mujoco.MjSpec.from_string(GRIPPER)
    edit(spec)
    return spec.compile()


def panda() -> mujoco.MjModel:
    """The Panda over a floor with a box on it."""
    spec = mujoco.MjSpec.from_file(str(PANDA_XML))
    world = spec.worldbody
    world.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05])
    box = world.add_body(name="box", pos=[0.5, 0, 0.03])
    box.add_freejoint()
    box.add_geom(name="box", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.03] * 3, mass=0.1, condim=3)
    return spec.compile()


def controls(model: mujoco.MjModel, num_envs: int, step: int) -> torch.Tensor:
    """Smooth controls that differ between environments, (num_envs, nu), within the ranges."""
    env = torch.arange(num_envs, dtype=torch.float64)[:, None]
    low, high = torch.from_numpy(model.actuator_ctrlrange).T
    low = torch.where(low == high, -0.1, low)
    high = torch.where(low < high, high, 0.2)
    phase = 0.02 * step + 0.7 * env + 0.9 * torch.arange(model.nu)
    return low + (high - low) * (0.5 + 0.2 * torch.sin(phase))


def _edit(kind: str, name: str, **values):
    def edit(spec: mujoco.MjSpec) -> None:
        thing = spec.option if kind == "option" else getattr(spec, kind)(name)
        for key, value in values.items():
            setattr(thing, key, value)

    return edit


# what differs -> (the edit that a model of its own would get, the fields it changes)
VARIANTS = {
    "mass": (_edit("geom", "hand", mass=0.3), ("body_mass", "body_inertia", "actuator_biasprm")),
    "centre": (_edit("geom", "box", pos=[0.004, 0.002, -0.003]), ("body_ipos", "geom_pos")),
    "gravity": (_edit("option", "", gravity=[0, 0, -4.5]), ("opt.gravity",)),
    "damping": (_edit("joint", "shoulder", damping=[0.9, 0, 0]), ("dof_damping",)),
    "armature": (
        _edit("joint", "wrist", armature=0.03),
        ("dof_armature", "actuator_biasprm"),  # dampratio makes kv follow the inertia
    ),
    "frictionloss": (_edit("joint", "shoulder", frictionloss=0.05), ("dof_frictionloss",)),
    "friction": (_edit("geom", "box", friction=[1.3, 0.02, 0.001]), ("geom_friction",)),
    "size": (_edit("geom", "box", size=[0.02, 0.022, 0.025]), ("geom_size", "body_inertia")),
    "gain": (
        _edit("actuator", "right", gainprm=[150] + [0] * 9, biasprm=[0, -150] + [0] * 8),
        ("actuator_gainprm", "actuator_biasprm"),
    ),
    "delay": (_edit("actuator", "shoulder", delay=0.012), ("actuator_delay",)),
    "sensor delay": (_edit("sensor", "late", delay=0.008), ("sensor_delay",)),
    "range": (_edit("joint", "left", range=[0, 0.002]), ("jnt_range",)),
}
VARIED = tuple(sorted({field for _, fields in VARIANTS.values() for field in fields}))


def write_variant(sim, env: int, edited: mujoco.MjModel, fields: tuple[str, ...]) -> None:
    """Give one environment the values that the edited model was compiled with."""
    for name in fields:
        owner = edited.opt if name.startswith("opt.") else edited
        value = getattr(owner, name.removeprefix("opt."))
        sim.params[name][env] = torch.as_tensor(value.copy()).to(sim.params[name])
    sim.set_const()
    sim.reset()
    sim.forward()
