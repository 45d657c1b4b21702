"""ALOHA as the tasks use it: one or two arms at a table, the objects, the joints."""

import math
import pathlib
from collections.abc import Sequence

import mujoco
import numpy as np

from penspin_style.features import Joint
from tasks.robots.aloha.description import (
    ARM_HOME,
    ARM_LOWER,
    ARM_UPPER,
    BASES,
    CHANNELS,
    SIDES,
    UNITS,
)
from tasks.robots.scenery import add_scenery, look_at

TABLE_Z = 0.0008
"""m, the table's surface in the world."""
FINGER_GEOMS = ("left_finger_top", "left_finger_bottom", "right_finger_top", "right_finger_bottom")
"""The capsules of one hand's fingers, without the side's prefix; `palm` is the hand's fifth."""
HAND_BODIES = ("base_link", "gripper_base", "left_finger_link", "right_finger_link")
"""The bodies of one arm that can touch objects, and its base."""
PICK_BOX_HALF = (0.048, 0.0125, 0.0125)  # m
PICK_BOX_MASS = 0.05  # kg
HANDOVER_BOX_HALF = (0.02, 0.015, 0.03)  # m
PEG_HALF = (0.048, 0.01, 0.01)  # m
PEG_MASS = 0.044  # kg
WALL, LINER, BACK = 0.016, 0.016, 0.006  # kg, of each part of the socket

_MODEL = pathlib.Path(__file__).with_name("aloha.xml")
_BOX = mujoco.mjtGeom.mjGEOM_BOX
_OPTIONS = ("timestep", "integrator", "cone", "impratio", "iterations", "ls_iterations")
_ALUMINIUM = (0.62, 0.64, 0.66, 1.0)
_BLACK = (0.12, 0.12, 0.13, 1.0)
# rails of the frame, m: lower and upper corner; `True` where there is one on each side
_RAILS = (
    ((-0.44, -0.381, 1.02), (0.44, -0.341, 1.04), False),
    ((0.42, -0.381, 0.02), (0.44, -0.341, 1.02), True),
    ((0.42, -0.641, 0.0), (0.44, 0.359, 0.02), True),
    ((0.59, -0.381, 0.02), (0.61, -0.361, 0.62), True),
    ((0.44, -0.381, 0.6), (0.59, -0.361, 0.62), True),
    ((-0.61, -0.401, -0.02), (0.61, -0.381, 0.0), False),
)


def scene(sides: Sequence[str] = SIDES, *, published_finger: bool = False) -> mujoco.MjSpec:
    """Return a world with the arms of `sides`, the table `table`, its frame, lights and cameras.

    Cameras: `view` for videos, `overhead_cam`, and `wrist_cam_SIDE` of each arm. Names of an arm's
    parts begin with its side: `left_gripper`.

    published_finger: keep upstream's slip in `right_finger_bottom`, see `aloha.xml`.
    """
    spec = mujoco.MjSpec()
    _add_table(spec)
    for side in sides:
        _add_arm(spec, side, published_finger=published_finger)
    return spec


def _add_arm(spec: mujoco.MjSpec, side: str, *, published_finger: bool) -> None:
    """Put an arm at its base, and a light that follows its gripper."""
    arm = mujoco.MjSpec.from_file(str(_MODEL))
    for name in _OPTIONS:  # a world keeps its own options
        setattr(spec.option, name, getattr(arm.option, name))
    if published_finger:
        geom = arm.geom("right_finger_bottom")
        geom.fromto[1] = -geom.fromto[1]
    pos, yaw = BASES[side]
    frame = spec.worldbody.add_frame(pos=pos, quat=[math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])
    spec.attach(arm, prefix=f"{side}_", frame=frame)
    spec.camera(f"{side}_wrist_cam").name = f"wrist_cam_{side}"
    spec.worldbody.add_light(
        name=f"{side}_spot",
        mode=mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODYCOM,
        targetbody=f"{side}_gripper_link",
        pos=[math.copysign(0.5, pos[0]), 0.0, 1.0],
        cutoff=55.0,
        diffuse=[0.35] * 3,
        specular=[0.3] * 3,
        castshadow=False,
    )


def _add_table(spec: mujoco.MjSpec) -> None:
    """Add floor, light, the table with its frame, and the cameras that stand still."""
    add_scenery(
        spec,
        floor=((0.80, 0.82, 0.84), (0.74, 0.76, 0.79)),
        half_size=2.5,
        is_solid=False,
        light_pos=(0.3, -0.4, 2.2),
        light_dir=(-0.12, 0.25, -1.0),
        light_specular=0.2,
        shadowsize=4096,
    )
    spec.geom("floor").pos = [0.0, 0.0, -0.75]
    world = spec.worldbody
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[0.0, 0.0, TABLE_Z],
        size=[0.61, 0.37, 0.1],
        rgba=[0.05, 0.05, 0.05, 1.0],
        group=2,
    )
    _draw(spec, (-0.61, -0.381, -0.0155), (0.61, 0.381, 0.0), _BLACK)
    for x, y in ((-0.57, -0.34), (-0.57, 0.34), (0.57, -0.34), (0.57, 0.34)):
        _draw(spec, (x - 0.025, y - 0.025, -0.75), (x + 0.025, y + 0.025, -0.0155), _BLACK)
    for low, high, both in _RAILS:
        _draw(spec, low, high, _ALUMINIUM)
        if both:
            _draw(spec, (-high[0], *low[1:]), (-low[0], *high[1:]), _ALUMINIUM)
    for x in (-0.43, 0.43):  # the braces from the rails to the posts
        world.add_geom(
            type=_BOX,
            pos=[x, -0.233, 0.127],
            size=[0.01, 0.14, 0.01],
            quat=[math.cos(math.pi / 8), -math.sin(math.pi / 8), 0.0, 0.0],
            rgba=_ALUMINIUM,
            group=2,
            contype=0,
            conaffinity=0,
            mass=0,
        )
    _draw(spec, (-0.04, -0.361, 1.04), (0.04, -0.29, 1.05), _BLACK)
    _draw(spec, (-0.021, -0.345, 1.03), (0.021, -0.303, 1.053), _BLACK)
    view, focus = np.array([0.0, -0.84, 0.72]), np.array([0.0, 0.0, 0.18])
    world.add_camera(name="view", pos=view, xyaxes=look_at(view, focus), fovy=60)
    world.add_camera(
        name="overhead_cam",
        pos=[0.0, -0.303794, 1.02524],
        quat=[0.976332, 0.216277, 0.0, 0.0],
        fovy=58.00833,
    )
    spec.visual.headlight.ambient = [0.35] * 3
    spec.visual.headlight.diffuse = [0.25] * 3
    spec.visual.headlight.specular = [0.1] * 3
    spec.visual.map.znear = 0.01
    spec.visual.map.shadowclip = 3.0  # the light's shadows end far outside the image


def _draw(
    spec: mujoco.MjSpec,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    rgba: tuple[float, ...],
) -> None:
    """Add a box between two corners, m, that is there for the eye only."""
    lower, upper = np.array(low), np.array(high)
    spec.worldbody.add_geom(
        type=_BOX,
        pos=(lower + upper) / 2,
        size=(upper - lower) / 2,
        rgba=rgba,
        group=2,
        contype=0,
        conaffinity=0,
        mass=0,
    )


def add_pick_box(spec: mujoco.MjSpec, name: str = "box") -> None:
    """Add a bar that one arm learns to pick: a free body, joint and geom of that name.

    Sites: `NAME_grip`, where it is grasped, and `NAME_end`, its far end.
    """
    body = _add_free_body(spec, name, (-0.1, 0.0, PICK_BOX_HALF[2]))
    body.add_geom(
        name=name,
        type=_BOX,
        size=PICK_BOX_HALF,
        mass=PICK_BOX_MASS,
        rgba=[0.0, 1.0, 0.0, 1.0],
        condim=4,
        friction=[1, 0.03, 0.001],
        group=2,
    )
    _add_sites(body, **{f"{name}_grip": (-0.02, 0, 0), f"{name}_end": (0.048, 0, 0)})


def add_handover_box(spec: mujoco.MjSpec) -> None:
    """Add the box that goes from hand to hand: the free body, joint and geom `box`.

    Sites: `box_top`, where the left hand takes it, and `box_bottom` for the right one.
    """
    body = _add_free_body(spec, "box", (0.2, 0.2, HANDOVER_BOX_HALF[2]))
    _add_part(body, "box", (0, 0, 0), HANDOVER_BOX_HALF, (1, 0, 0, 1), mass=0.044)
    _add_sites(body, box_top=(0, 0, 0.02), box_bottom=(0, 0, -0.02))


def add_peg(spec: mujoco.MjSpec) -> None:
    """Add the free body, joint and geom `peg`, 20 x 20 x 96 mm along x.

    Sites: `peg_end1` at +x, the tip that goes in; `peg_end2`; `peg_grip`.
    """
    body = _add_free_body(spec, "peg", (0.0, 0.0, 0.0))
    _add_part(body, "peg", (0, 0, 0), PEG_HALF, (1, 0, 0, 1), mass=PEG_MASS)
    _add_sites(body, peg_end1=(0.048, 0, 0), peg_end2=(-0.048, 0, 0), peg_grip=(-0.02, 0, 0))


def add_socket(spec: mujoco.MjSpec) -> None:
    """Add the free body and joint `socket`: four walls, a back, white liners that only weigh.

    The opening, 36 x 36 mm, faces +x. The liners double its mass, as published. Geoms:
    `socket_bottom`, `_top`, `_right` (-y), `_left`, `_back`. Sites: `socket_entrance`,
    `socket_rear` in the middle, `socket_grip`, and `socket_end1` where the peg's tip ends.
    """
    body = _add_free_body(spec, "socket", (0.0, 0.0, 0.0))
    blue, white = (0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0)
    walls = {
        "bottom": ((0, 0, -1), (1, 0, 0, 0), 0.022),
        "top": ((0, 0, 1), (0, 1, 0, 0), 0.022),
        "right": ((0, -1, 0), (1, -1, 0, 0), 0.018),
        "left": ((0, 1, 0), (1, 1, 0, 0), 0.018),
    }
    for name, (out, quat, half) in walls.items():
        _add_part(
            body,
            f"socket_{name}",
            [0.02 * x for x in out],
            (0.048, half, 0.002),
            blue,
            mass=WALL,
            quat=quat,
        )
    _add_part(body, "socket_back", (-0.044, 0, 0), (0.004, 0.018, 0.018), (1, 0, 0, 1), mass=BACK)
    for name, (out, quat, half) in walls.items():
        _add_part(
            body,
            f"socket_{name}_liner",
            [0.0199 * x for x in out],
            (0.047, min(half, 0.021), 0.002),
            white,
            mass=LINER,
            quat=quat,
            is_solid=False,
        )
    _add_sites(
        body,
        socket_entrance=(0.048, 0, 0),
        socket_rear=(0, 0, 0),
        socket_grip=(-0.02, 0, 0),
        socket_end1=(-0.048, 0, 0),
    )


def exclude_other_hand(spec: mujoco.MjSpec, side: str, body: str) -> None:
    """Let an object pass through an arm that has no business with it, as published."""
    for name in HAND_BODIES:
        spec.add_exclude(bodyname1=f"{side}_{name}", bodyname2=body)


def _add_free_body(
    spec: mujoco.MjSpec, name: str, pos: tuple[float, float, float]
) -> mujoco.MjsBody:
    body = spec.worldbody.add_body(name=name, pos=pos)
    body.add_freejoint(name=name)
    return body


def _add_part(
    body: mujoco.MjsBody,
    name: str,
    pos: Sequence[float],
    half: tuple[float, float, float],
    rgba: tuple[float, ...],
    *,
    mass: float,
    quat: Sequence[float] = (1, 0, 0, 0),
    is_solid: bool = True,
) -> None:
    """Add a box with the contact of the objects that are handed over or put together."""
    body.add_geom(
        name=name,
        type=_BOX,
        pos=pos,
        quat=quat,
        size=half,
        mass=mass,
        rgba=rgba,
        condim=4,
        friction=[1, 0.05, 0.001],
        solref=[0.01, 1],
        contype=int(is_solid),
        conaffinity=int(is_solid),
        group=2,
    )


def _add_sites(body: mujoco.MjsBody, **sites: tuple[float, float, float]) -> None:
    for name, pos in sites.items():
        body.add_site(name=name, pos=pos, group=4)


def joints(model: mujoco.MjModel, home: Sequence[float] = ARM_HOME * 2) -> tuple[Joint, ...]:
    """Return the actuated joints, seven for each arm; home: as many numbers, rad and m."""
    names = [model.actuator(i).name for i in range(model.nu)]
    gain, bias = model.actuator_gainprm[:, 0], model.actuator_biasprm[:, 2]
    arms = model.nu // len(CHANNELS)
    rows = zip(
        names,
        UNITS * arms,
        ARM_LOWER * arms,
        ARM_UPPER * arms,
        gain.tolist(),
        (0.0 - bias).tolist(),
        home,
        strict=True,
    )
    return tuple(Joint(*row) for row in rows)
