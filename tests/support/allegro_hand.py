"""PenSpin's limits and grasps, and the measures of a hand that holds a pen."""

import mujoco
import numpy as np

from tasks.robots.allegro import model as allegro
from tasks.robots.allegro.description import LOWER, UPPER

# PenSpin's limits, in its own order: index, thumb, middle, ring.
SPREAD_LOW, FLEX_LOW, SPREAD_HIGH, FLEX_HIGH = -0.5585, -0.27924, 0.5585, 1.727825
HORA_LOWER = (
    *(SPREAD_LOW, FLEX_LOW, FLEX_LOW, FLEX_LOW, 0.27924, -0.331603, FLEX_LOW, FLEX_LOW),
    *(SPREAD_LOW, FLEX_LOW, FLEX_LOW, FLEX_LOW) * 2,
)
HORA_UPPER = (
    *(SPREAD_HIGH, FLEX_HIGH, FLEX_HIGH, FLEX_HIGH, 1.57075, 1.1518833, FLEX_HIGH, 1.76273055),
    *(SPREAD_HIGH, FLEX_HIGH, FLEX_HIGH, FLEX_HIGH) * 2,
)


# Its six grasps in that order, and the pen's quaternion (x, y, z, w); the pen's radius where tips
# nearly touch, and where its middle is.
GRASPS = {
    "thumb | index + middle + ring": (
        (
            *(0.0344, 1.0537, 0.5184, 0.2920, 1.4615, 0.2352, 0.7243, -0.0436),
            *(0.0974, 1.1978, 0.3126, 0.2979, 0.1340, 1.0228, 0.6625, 0.2327),
        ),
        (0, -0.7071, 0, 0.7071),
    ),
    "thumb | middle + ring": (
        (
            *(-0.0578, 0.8993, 0.7449, 0.4767, 1.3089, 0.5699, 0.7037, 0.3857),
            *(0.0299, 1.2735, 0.1415, 0.2507, 0.1457, 1.0319, 1.0376, 0.3283),
        ),
        (0, -0.7071, 0, 0.7071),
    ),
    "thumb + index | middle + ring": (
        (
            *(0.0031, 1.0689, 0.8180, 0.1929, 1.2988, 0.7557, 0.5802, 0.3827),
            *(0.0077, 1.2703, 0.1356, 0.3160, 0.1375, 1.3213, 0.5802, 0.2302),
        ),
        (0.2706, -0.6533, 0.2706, 0.6533),
    ),
    "index | middle": (
        (
            *(-0.1146, 1.1154, 0.4979, 0.1732, 0.8928, 1.1395, 0.5224, 1.1077),
            *(-0.1250, 1.2618, 0.1522, 0.7024, 0.0226, 1.2307, 0.7128, 0.1524),
        ),
        (0.5, -0.5, 0.5, 0.5),
    ),
    "index | thumb + middle": (
        (
            *(-0.0804, 1.3213, 0.3743, 0.0876, 1.2907, 0.7441, 0.4251, 0.3748),
            *(-0.1412, 1.3882, 0.4888, 0.1689, -0.0802, 1.2987, 0.6577, 0.1455),
        ),
        (0.653281, -0.270598, 0.653281, 0.270598),
    ),
    "thumb | index": (
        (
            *(-0.1346, 1.1048, 0.5053, 0.1029, 1.2654, 0.6378, 0.8787, 0.0611),
            *(-0.0573, 1.0228, 1.1360, 0.2587, 0.0253, 1.0228, 1.0845, 0.3828),
        ),
        (0, -0.7071, 0, 0.7071),
    ),
}
PEN_RADIUS, PEN_PLACE = 0.0114, (-0.01, -0.01, 0.62)
AWAY = {"index | middle", "index | thumb + middle"}  # where the ring finger stays clear


def assert_rounded(measured, expected):
    np.testing.assert_allclose(measured, expected, rtol=5.1e-7, atol=1e-12)


def assert_same_turn(measured, expected, label):
    sign = -1.0 if np.dot(measured, expected) < 0 else 1.0
    np.testing.assert_allclose(sign * measured, expected, rtol=0, atol=2e-7, err_msg=label)


def grasp(model, data, name, joints=None):
    hora, (x, y, z, w) = GRASPS[name]
    data.qpos[:16] = allegro.from_hora(np.array(hora)) if joints is None else joints
    data.qpos[16:] = (*PEN_PLACE, w, x, y, z)
    mujoco.mj_forward(model, data)


def tip_gaps(model, data):
    """Distance between the surfaces of every fingertip and of the pen, m."""
    pen = model.geom("pen").id
    balls = [model.geom(f"hand_{tip}").id for tip in allegro.TIPS]
    return np.array([mujoco.mj_geomDistance(model, data, ball, pen, 0.2, None) for ball in balls])


def colliding(model):
    """Names of the hand's geoms that can touch anything."""
    bits = model.geom_contype | model.geom_conaffinity
    names = [model.geom(i).name for i in np.flatnonzero(bits)]
    return [name for name in names if name != "pen"]


def random_joints(rng, count):
    return rng.uniform(LOWER, UPPER, size=(count, 16))
