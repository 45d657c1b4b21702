"""The Allegro hand: joints, limits, gains and fingertips, in numpy, without torch or MuJoCo.

Sixteen joints in the hardware's order, which is MuJoCo's too: index, middle, ring, thumb, each from
the palm outwards. The task, the driver, the data's converter and the card of a policy read these
numbers here. `allegro.xml` beside it stays a model that opens alone, so joints, limits, gains and
frames stand there too, and `tests/tasks/robots/test_allegro_model.py` holds both equal.
"""

import numpy as np

from penspin_style.features import ActionChannel

ROBOT = "allegro"
FINGERS = ("ff", "mf", "rf", "th")
"""Index, middle, ring, thumb."""
JOINTS = tuple(f"{finger}j{i}" for finger in FINGERS for i in range(4))
LOWER = (-0.5585, -0.27924, -0.27924, -0.27924) * 3 + (0.27924, -0.331603, -0.27924, -0.27924)
UPPER = (0.5585, 1.727825, 1.727825, 1.727825) * 3 + (1.57075, 1.1518833, 1.727825, 1.76273055)
"""rad, those of PenSpin's policies; wider than the hand's own."""
HOME = (
    *(-0.0578, 0.8993, 0.7449, 0.4767),
    *(0.0299, 1.2735, 0.1415, 0.2507),
    *(0.1457, 1.0319, 1.0376, 0.3283),
    *(1.3089, 0.5699, 0.7037, 0.3857),
)
"""rad, where PenSpin's hand begins: the pen lies on the fingertips."""
KP = 3.0  # N·m/rad
KD = 0.1  # N·m·s/rad
TORQUE_LIMIT = 0.7  # N·m
CONTROL_DT = 0.05
"""s between two commands."""
ACTION_SCALE = 1 / 24
"""rad that a joint's target moves for an action of 1."""
TIPS = tuple(f"{finger}_tip" for finger in FINGERS)
"""Sites at the centres of the round fingertips."""
TO_HORA = (0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11)
"""Where each joint of hora's order, index, thumb, middle, ring, stands in ours."""
FROM_HORA = (0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5, 6, 7)
"""Where each joint of our order stands in hora's, that of PenSpin's policies and grasps."""
PALM_POS = (0.0, 0.0, 0.5)
"""m, in PenSpin's world."""

_PALM_QUAT = (0.5, 0.5, -0.5, 0.5)  # w, x, y, z
_UP = (1.0, 0.0, 0.0, 0.0)
_SPREAD, _FLEX, _OPPOSE = (0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)
_LINKS = (((0.0, 0.0, 0.0164), _UP), ((0.0, 0.0, 0.054), _UP), ((0.0, 0.0, 0.0384), _UP))
_FRAMES = (  # of the four links of each finger, seen from the link before
    (((0.0, 0.0435, -0.001542), (0.9990482, -0.04361941, 0.0, 0.0)), *_LINKS),
    (((0.0, 0.0, 0.0007), _UP), *_LINKS),
    (((0.0, -0.0435, -0.001542), (0.9990482, 0.04361941, 0.0, 0.0)), *_LINKS),
    (
        ((-0.0182, 0.019333, -0.045987), (0.4777141, -0.5213341, -0.5213341, -0.4777141)),
        ((-0.027, 0.005, 0.0399), _UP),
        ((0.0, 0.0, 0.0177), _UP),
        ((0.0, 0.0, 0.0514), _UP),
    ),
)
_AXES = (*((_SPREAD, _FLEX, _FLEX, _FLEX),) * 3, (_OPPOSE, _SPREAD, _FLEX, _FLEX))
_TIPS = (0.0267, 0.0267, 0.0267, 0.0423)  # m along the last link, the middle of the round tip


def actions(scale: float = ACTION_SCALE) -> tuple[ActionChannel, ...]:
    """Return the sixteen joints' targets; scale: rad that one moves for an action of 1."""
    rows = zip(JOINTS, LOWER, UPPER, strict=True)
    return tuple(ActionChannel(name, "rad", scale, low, high, "delta") for name, low, high in rows)


def fingertips(qpos: np.ndarray) -> np.ndarray:
    """Return the middles of the fingertips (..., 4, 3) in PenSpin's world, m, fingers in order.

    The palm faces up at z = 0.5 m there and the fingers point along -y.

    qpos: (..., 16) joint angles, rad.

    Raises:
        ValueError: the last axis is not sixteen long.
    """
    qpos = np.asarray(qpos, float)
    if not qpos.ndim or qpos.shape[-1] != len(JOINTS):
        raise ValueError(f"qpos must be (..., {len(JOINTS)}), its shape is {qpos.shape}")
    tips = []
    for finger, (frames, axes, tip) in enumerate(zip(_FRAMES, _AXES, _TIPS, strict=True)):
        place = np.array([0.0, 0.0, tip])
        for link in (3, 2, 1, 0):
            position, quat = frames[link]
            turned = _turn(place, np.array(axes[link]), qpos[..., 4 * finger + link, None])
            place = position + turned @ _matrix(quat).T
        tips.append(PALM_POS + place @ _matrix(_PALM_QUAT).T)
    return np.stack(tips, axis=-2)


def _turn(v: np.ndarray, axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return vectors (..., 3) turned about a unit axis by angles (..., 1): Rodrigues."""
    along = (v @ axis)[..., None] * axis
    return along + np.cos(angle) * (v - along) + np.sin(angle) * np.cross(axis, v)


def _matrix(quat: tuple[float, float, float, float]) -> np.ndarray:
    """Return the rotation matrix of a quaternion w, x, y, z of any length but 0."""
    w, x, y, z = np.array(quat) / np.linalg.norm(quat)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
