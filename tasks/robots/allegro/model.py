"""The Allegro hand as PenSpin uses it: its world, its pen, its joint orders, its fingertips.

Two orders of the sixteen joints exist, and mixing them up gives no error, only nonsense:

    MuJoCo    index, middle, ring, thumb   here, in the model, and on the hardware ("allegro")
    hora      index, thumb, middle, ring   PenSpin's policies and stored grasps

Inside a finger both count from the palm outwards. `to_hora` and `from_hora` are the only places
that convert.
"""

import functools
import pathlib
from typing import TypeVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from tasks.robots.allegro.description import FINGERS, FROM_HORA, JOINTS, TIPS, TO_HORA
from tasks.robots.scenery import add_scenery, look_at

TACTILE = (
    *(f"touch_{f}_{link}" for f in FINGERS[:3] for link in ("proximal", "medial", "distal")),
    "touch_th_medial",
    "touch_th_distal",
    "touch_palm",
    *(f"touch_{tip}_{side}" for tip in TIPS for side in ("top", "front", "back", "left", "right")),
)
"""Touch sensors, and the sites of the same names: 12 on links and palm, then 5 on every fingertip.

Fingers count in MuJoCo's order. PenSpin's twelfth channel names a link that its hand does not
have; the palm, whose patch it has but does not read, is meant.
"""
PEN = "pen"
BAND_PLACE, BAND_LONG = 0.55, 0.12
"""Where the band on the pen sits and half its length, both in halves of the pen's length."""
BAND_WIDE = 1.02
"""The band's radius, in the pen's."""

CAP = 0.5
"""What a capsule pen of `simplify` is longer than the cylinder at each end, in radii."""
_NEVER_MET = tuple(
    f"hand_{link}" for link in ("palm", "ff_base", "mf_base", "rf_base", "th_base", "th_proximal")
)
_MODEL = pathlib.Path(__file__).with_name("allegro.xml")
Array = TypeVar("Array", Tensor, np.ndarray)


def to_hora(x: Array) -> Array:
    """Permute the last axis (..., 16) from MuJoCo's order of joints to hora's; a copy.

    Raises:
        ValueError: the last axis is not sixteen long.
    """
    return _permuted(x, TO_HORA)


def from_hora(x: Array) -> Array:
    """Permute the last axis (..., 16) from hora's order of joints to MuJoCo's; a copy.

    Raises:
        ValueError: the last axis is not sixteen long.
    """
    return _permuted(x, FROM_HORA)


def _permuted(x: Array, order: tuple[int, ...]) -> Array:
    if not x.ndim or x.shape[-1] != len(order):
        raise ValueError(
            f"the last axis must hold the {len(order)} joints, the shape is {tuple(x.shape)}"
        )
    return x[..., list(order)]


def scene() -> mujoco.MjSpec:
    """Return a world with the hand, a floor, light and the cameras `view` and `top`.

    The palm faces up at z = 0.5 m and the fingers point along the world's -y.
    """
    spec = mujoco.MjSpec.from_file(str(_MODEL))
    world = spec.worldbody
    add_scenery(
        spec,
        floor=((0.66, 0.69, 0.72), (0.60, 0.63, 0.66)),
        half_size=2.0,
        is_solid=False,  # a pen that falls ends the episode long before
        light_pos=(-0.5, -0.6, 2.0),
        light_dir=(0.25, 0.3, -1.0),
        light_specular=0.1,
        shadowsize=4096,
    )
    world.add_geom(
        name="stand",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[0, 0.131, 0.26],
        size=[0.03, 0.01, 0.26],
        rgba=[0.55, 0.57, 0.60, 1.0],
        contype=0,
        conaffinity=0,
    )
    view, focus = np.array([-0.17, -0.30, 0.95]), np.array([-0.008, -0.010, 0.585])
    world.add_camera(name="view", pos=view, xyaxes=look_at(view, focus), fovy=25)
    world.add_camera(name="top", pos=[0, 0, 1.1], xyaxes=[-1, 0, 0, 0, -1, 0], fovy=30)
    spec.visual.headlight.ambient = [0.30] * 3
    spec.visual.headlight.diffuse = [0.20] * 3
    spec.visual.headlight.specular = [0.1] * 3
    return spec


def add_pen(spec: mujoco.MjSpec, radius: float, half_length: float, mass: float) -> None:
    """Add a free body `pen`: a solid cylinder along its z, with a band that shows it spin.

    radius, half_length: m; mass: kg.

    One geom `pen` collides. Contacts have three dimensions (`condim` 3): PhysX, which PenSpin ran
    on, has no torsional friction either, and a fourth would cost one or two rows of constraints at
    each contact. The band is drawn only, and near enough to the middle to stay on shorter pens.
    """
    body = spec.worldbody.add_body(name=PEN, pos=[-0.01, -0.01, 0.62], quat=[1, 0, -1, 0])
    body.add_freejoint(name=PEN)
    across = mass * (3 * radius**2 + (2 * half_length) ** 2) / 12
    body.mass, body.inertia = mass, [across, across, mass * radius**2 / 2]
    # Within a micrometre of the origin the centre of mass counts as in it, the body as "simple",
    # and both engines then refuse to move the centre per environment.
    body.ipos = [2e-6, 0, 0]
    body.explicitinertial = True
    cylinder = mujoco.mjtGeom.mjGEOM_CYLINDER
    body.add_geom(
        name=PEN,
        type=cylinder,
        size=[radius, half_length, 0],
        mass=0,
        contype=1,
        conaffinity=1,
        condim=3,
        friction=[1, 0.005, 0.0001],
        rgba=[0.95, 0.77, 0.25, 1],
    )
    body.add_geom(
        name="pen_band",
        type=cylinder,
        pos=[0, 0, BAND_PLACE * half_length],
        size=[BAND_WIDE * radius, BAND_LONG * half_length, 0],
        mass=0,
        contype=0,
        conaffinity=0,
        group=2,
        rgba=[0.80, 0.15, 0.15, 1],
    )


def simplify(spec: mujoco.MjSpec) -> None:
    """Make the world of hand and pen cheap: for trainings that are evaluated in the full one.

    A capsule pen of nearly the same length, 5 steps of 10 ms, damped joints in place of friction
    loss; no touch sensors, nothing that is only drawn, nor the links that a held pen never meets.
    """
    for sensor in list(spec.sensors):
        spec.delete(sensor)
    for site in list(spec.sites):
        if site.name.startswith("touch_"):
            spec.delete(site)
    for geom in list(spec.geoms):
        if geom.name in _NEVER_MET or not (geom.name.startswith("hand_") or geom.name == PEN):
            spec.delete(geom)
    for geom in spec.geoms:
        if geom.name == PEN:
            geom.type = mujoco.mjtGeom.mjGEOM_CAPSULE
            radius, half, _ = geom.size
            geom.size = [radius, half - CAP * radius, 0]
    for joint in spec.joints:
        if joint.type == mujoco.mjtJoint.mjJNT_HINGE:
            joint.frictionloss, joint.damping = 0.0, [0.02, 0, 0]
    option = spec.option
    option.timestep = 0.01
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST


class Kinematics:
    """Where the fingertips are, from the joints alone.

    The constants of the four chains are read from the model once. With v the tip seen from link
    k, its place seen from the parent is p + B (v cos q + a x v sin q + a (a.v) (1 - cos q)), with
    p and B the link's frame and a its joint's axis: one product with a constant matrix for all
    four fingers, links from the tip to the palm.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        frames, maps = np.empty((4, 4, 3, 1)), np.empty((4, 4, 9, 3))  # link, finger
        for i, name in enumerate(JOINTS):
            finger, link = divmod(i, 4)
            joint = model.joint(name)
            body = model.body(int(joint.bodyid[0]))
            turn, position, axis = np.empty(9), body.pos.copy(), joint.axis
            mujoco.mju_quat2Mat(turn, body.quat)
            turn = turn.reshape(3, 3)
            if link == 0:  # the palm stands still: seen from the world
                palm = data.body(int(body.parentid[0]))
                base = palm.xmat.reshape(3, 3)
                turn, position = base @ turn, palm.xpos + base @ position
            along = np.outer(axis, axis)
            cross = np.cross(axis, np.eye(3)).T
            parts = (turn @ (np.eye(3) - along), turn @ cross, turn @ along)
            frames[link, finger, :, 0] = position
            maps[link, finger] = np.concatenate(parts)
        tips = np.stack([model.site(name).pos for name in TIPS])[..., None]
        self._frames = torch.as_tensor(frames, dtype=dtype, device=device)
        self._maps = torch.as_tensor(maps, dtype=dtype, device=device)
        self._tips = torch.as_tensor(tips, dtype=dtype, device=device)  # (4, 3, 1)

    def fingertips(self, qpos: Tensor) -> Tensor:
        """Return the centres of the fingertips (..., 4, 3) in the world, m, in the order `TIPS`.

        qpos: (..., 16) joint angles in MuJoCo's order, rad.

        Raises:
            ValueError: the last axis is not sixteen long.
        """
        if not qpos.ndim or qpos.shape[-1] != len(JOINTS):
            raise ValueError(f"qpos must be (..., 16), its shape is {tuple(qpos.shape)}")
        # the batch comes last in between, where products and sums with it cost a third
        angles = qpos.to(self._tips).reshape(-1, len(JOINTS)).t().contiguous()
        sine = torch.sin(angles).unflatten(0, (4, 4))[:, :, None]  # (finger, link, 1, n)
        cosine = torch.cos(angles).unflatten(0, (4, 4))[:, :, None]
        place = self._tips
        for link in (3, 2, 1, 0):
            across, cross, along = torch.bmm(self._maps[link], place).split(3, dim=1)
            place = torch.addcmul(self._frames[link] + along, across, cosine[:, link])
            place = torch.addcmul(place, cross, sine[:, link])
        return place.permute(2, 0, 1).reshape(*qpos.shape[:-1], 4, 3)


def fingertips(qpos: Tensor) -> Tensor:
    """Return the centres of the fingertips (..., 4, 3) in PenSpin's world, m, in the order `TIPS`.

    qpos: (..., 16) joint angles in MuJoCo's order, rad. See `Kinematics`; the model is read once.

    Raises:
        ValueError: the last axis is not sixteen long.
    """
    return _kinematics(qpos.device, qpos.dtype).fingertips(qpos)


@functools.cache
def _kinematics(device: torch.device, dtype: torch.dtype) -> Kinematics:
    return Kinematics(mujoco.MjModel.from_xml_path(str(_MODEL)), device=device, dtype=dtype)
