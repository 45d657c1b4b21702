"""ALOHA's two ViperX 300S arms: channels, limits, home, bases; without torch or MuJoCo.

Fourteen channels in the order of the actions: the left arm's six joints from the base outwards, its
gripper, then the same of the right arm. The names are LeRobot's for ALOHA. A gripper's number is
the way of one of its fingers in m: 0.002 is closed, 0.037 open, as MuJoCo Playground has it.
`normalize_gripper` turns it into the 0 (closed) to 1 (open) that the stock ALOHA programs use.

The tasks, the driver and the card of a policy read these numbers here. `aloha.xml` beside it stays
a model that opens alone, so joints, limits and frames stand there too, and
`tests/tasks/robots/test_aloha_model.py` and `test_aloha_kinematics.py` hold both equal. Gains and
masses are the model's alone.
"""

from collections.abc import Callable

import numpy as np

from penspin_style.features import ActionChannel, Feature

ROBOT = "aloha"
SIDES = ("left", "right")
ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
GRIPPER = "gripper"
"""The finger that is commanded; `right_finger` of the same hand follows it."""
CHANNELS = (*ARM, GRIPPER)
"""Of one arm."""
JOINTS = tuple(f"{side}_{name}" for side in SIDES for name in CHANNELS)
UNITS = ("rad",) * len(ARM) + ("m",)
"""Of one arm's channels."""
GRIPPER_CLOSED, GRIPPER_OPEN = 0.002, 0.037
"""m, the range of a gripper's command."""
FINGER_TRAVEL = 0.041
"""m, how far a finger can slide."""
ARM_LOWER = (-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, GRIPPER_CLOSED)
ARM_UPPER = (3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, GRIPPER_OPEN)
ARM_HOME = (0.0, -0.4, 1.5, 0.0, -0.73, 0.0, GRIPPER_OPEN)
"""Of one arm: rad, the gripper's in m; both arms have the same."""
LOWER, UPPER, HOME = ARM_LOWER * 2, ARM_UPPER * 2, ARM_HOME * 2
START = tuple(0.25 if name.endswith("_waist") else x for name, x in zip(JOINTS, HOME, strict=True))
"""Where the insertion of the peg begins, and the robot: the arms face what lies before them."""
CONTROL_DT = 0.05
"""s between two commands of the tasks that go to the robot."""
ACTION_SCALE = 0.02
"""rad, and m of a gripper, that a target moves for an action of 1: as published."""
BASES = {
    "left": ((-0.469, -0.019, 0.02), 0.0),
    "right": ((0.469, -0.019, 0.02), np.pi),
}
"""m and rad, where each arm stands in the world, and its turn about the vertical."""
SWITCH_HEIGHT = 0.17
"""m in the world, of the middles of both hands' fingertips above which the objects are up."""
PROPRIOCEPTION = (
    *(Feature(f"{side}_qpos", (len(CHANNELS) + 1,), "1") for side in SIDES),
    *(Feature(f"{side}_command_error", (len(CHANNELS),), "1") for side in SIDES),
    *(Feature(f"{side}_tracking_error", (len(CHANNELS) + 1,), "1") for side in SIDES),
    Feature("fingertips", (len(SIDES), 3), "m"),
    Feature("has_switched", (1,), "1"),
)
"""What `proprioception` computes of joints and targets alone."""

_X, _Y, _Z = np.eye(3)
_LINKS = (  # m and axis: the frame of each joint of an arm, seen from the one before
    ((0.0, 0.0, 0.079), _Z),
    ((0.0, 0.0, 0.04805), _Y),
    ((0.05955, 0.0, 0.3), _Y),
    ((0.2, 0.0, 0.0), _X),
    ((0.1, 0.0, 0.0), _Y),
    ((0.069744, 0.0, 0.0), _X),
)
_HAND = (0.035, 0.0, 0.0)  # m, the gripper's base seen from the last link
_HAND_TURNS = ((_Y, 1.57), (_Z, -1.57))  # its turns, one after the other; cut, as published
_FINGERS = (  # m: a finger seen from the gripper's base; its turn, w, x, y, z; its tip
    ((0.0191, -0.0141637, 0.0211727), (0.5, -0.5, -0.5, 0.5), (0.0175, -0.0827, 0.0228)),
    ((-0.0191, -0.0141637, 0.0211727), (0.5, 0.5, 0.5, 0.5), (0.0175, 0.0827, 0.0228)),
)


def actions(
    sides: tuple[str, ...] = SIDES,
    *,
    scale: float = ACTION_SCALE,
    gripper_scale: float | None = None,
    lower: dict[str, float] | None = None,
) -> tuple[ActionChannel, ...]:
    """Return the targets of the arms' channels, seven for each of `sides`.

    scale: rad that a joint's target moves for an action of 1; gripper_scale: m that a gripper's
    does, `scale` by default. lower: lower limits other than the robot's, by the channel's name.

    Raises:
        ValueError: `lower` names a channel that there is not.
    """
    lower = lower or {}
    if unknown := sorted(set(lower) - set(JOINTS)):
        raise ValueError(f"lower: there are no channels {unknown}, there are {JOINTS}")
    step = dict.fromkeys(ARM, scale) | {GRIPPER: scale if gripper_scale is None else gripper_scale}
    rows = list(zip(CHANNELS, UNITS, ARM_LOWER, ARM_UPPER, strict=True))
    return tuple(
        ActionChannel(name, unit, step[channel], lower.get(name, low), high, "delta")
        for side in sides
        for channel, unit, low, high in rows
        for name in (f"{side}_{channel}",)
    )


def normalize_gripper(position: np.ndarray) -> np.ndarray:
    """Return how far grippers are open, 0 to 1, of a finger's way in m; not clipped."""
    return (np.asarray(position, float) - GRIPPER_CLOSED) / (GRIPPER_OPEN - GRIPPER_CLOSED)


def gripper_position(opening: np.ndarray) -> np.ndarray:
    """Return a finger's way in m of how far a gripper is open, 0 to 1; not clipped."""
    return GRIPPER_CLOSED + np.asarray(opening, float) * (GRIPPER_OPEN - GRIPPER_CLOSED)


def normalize(channels: np.ndarray) -> np.ndarray:
    """Return channels (..., 7 n) with the grippers 0 to 1 instead of in m; a copy.

    Raises:
        ValueError: the last axis is no multiple of seven.
    """
    return _with_grippers(channels, normalize_gripper)


def denormalize(channels: np.ndarray) -> np.ndarray:
    """Return channels (..., 7 n) with the grippers in m instead of 0 to 1; a copy.

    Raises:
        ValueError: the last axis is no multiple of seven.
    """
    return _with_grippers(channels, gripper_position)


def fingertips(channels: np.ndarray) -> np.ndarray:
    """Return the middles between the fingertips of each hand, (..., n, 3) m in the world.

    channels: (..., 14), or (..., 7) of the left arm alone: rad, and m of the one finger that is
        measured; the other one mirrors it.

    Raises:
        ValueError: the last axis is neither.
    """
    n = len(CHANNELS)
    channels = np.asarray(channels, float)
    if not channels.ndim or channels.shape[-1] not in (n, n * len(SIDES)):
        raise ValueError(f"channels must be (..., {n}) or (..., {2 * n}), got {channels.shape}")
    arms = np.split(channels, channels.shape[-1] // n, axis=-1)
    places = [_fingertips(arm) for arm in arms]
    for i, (pos, yaw) in enumerate(BASES[side] for side in SIDES[: len(arms)]):
        places[i] = pos + _turn(places[i], _Z, np.array([yaw]))
    return np.stack(places, axis=-2)


def has_switched(channels: np.ndarray, before: bool = False) -> bool:
    """Return whether both hands are above `SWITCH_HEIGHT`, or have been before.

    channels: (14,), what is measured now.
    """
    return before or bool((fingertips(channels)[..., 2] > SWITCH_HEIGHT).all())


def proprioception(
    channels: np.ndarray, targets: np.ndarray, *, switched: bool
) -> dict[str, np.ndarray]:
    """Return the features of `PROPRIOCEPTION`, float32, as the tasks compute them.

    channels: (14,) as measured, targets: (14,) that are followed; rad, and m of the grippers.
    switched: what `has_switched` said.
    """
    values = {"fingertips": fingertips(channels), "has_switched": np.array([switched])}
    measured = dict(zip(SIDES, np.split(np.asarray(channels, float), 2), strict=True))
    followed = dict(zip(SIDES, np.split(np.asarray(targets, float), 2), strict=True))
    for side, arm in measured.items():
        values[f"{side}_qpos"] = np.append(arm, arm[-1])  # both fingers
        error = followed[side] - arm
        values[f"{side}_command_error"] = error
        values[f"{side}_tracking_error"] = -np.append(error, error[-1])
    return {f.name: values[f.name].astype(f.dtype) for f in PROPRIOCEPTION}


def _fingertips(arm: np.ndarray) -> np.ndarray:
    """Return the middle between one hand's fingertips, (..., 3) m in its base's frame."""
    slide = arm[..., -1:] * _Z
    tips = [
        np.array(pos) + (np.array(tip) - slide) @ _matrix(turn).T for pos, turn, tip in _FINGERS
    ]
    place = np.mean(tips, axis=0)
    for axis, angle in reversed(_HAND_TURNS):
        place = _turn(place, axis, np.array([angle]))
    place = _HAND + place
    for joint in reversed(range(len(ARM))):
        pos, axis = _LINKS[joint]
        place = pos + _turn(place, axis, arm[..., joint : joint + 1])
    return place


def _turn(v: np.ndarray, axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return vectors (..., 3) turned about a unit axis by angles (..., 1): Rodrigues."""
    along = (v @ axis)[..., None] * axis
    return along + np.cos(angle) * (v - along) + np.sin(angle) * np.cross(axis, v)


def _matrix(quat: tuple[float, float, float, float]) -> np.ndarray:
    """Return the rotation matrix of a unit quaternion w, x, y, z."""
    w, x, y, z = quat
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _with_grippers(channels: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    n = len(CHANNELS)
    channels = np.array(channels, float)
    if not channels.ndim or not channels.shape[-1] or channels.shape[-1] % n:
        raise ValueError(f"channels must be (..., {n}) or (..., {2 * n}), got {channels.shape}")
    channels[..., n - 1 :: n] = convert(channels[..., n - 1 :: n])
    return channels
