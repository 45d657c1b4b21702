"""ALOHA's two ViperX 300S arms: channels, limits, home, bases; without torch or MuJoCo.

Fourteen channels in the order of the actions: the left arm's six joints from the base outwards, its
gripper, then the same of the right arm. The names are LeRobot's for ALOHA. A gripper's number is
the way of one of its fingers in m: 0.002 is closed, 0.037 open, as MuJoCo Playground has it.
`normalize_gripper` turns it into the 0 (closed) to 1 (open) that the stock ALOHA programs use.

The tasks, the driver and the card of a policy read these numbers here. `aloha.xml` beside it stays
a model that opens alone, so joints and limits stand there too, and
`tests/tasks/robots/test_aloha_model.py` holds both equal. Gains and masses are the model's alone.
"""

from collections.abc import Callable

import numpy as np

from penspin_style.features import ActionChannel

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
CONTROL_DT = 0.05
"""s between two commands of the tasks that go to the robot."""
ACTION_SCALE = 0.02
"""rad, and m of a gripper, that a target moves for an action of 1: as published."""
BASES = {
    "left": ((-0.469, -0.019, 0.02), 0.0),
    "right": ((0.469, -0.019, 0.02), np.pi),
}
"""m and rad, where each arm stands in the world, and its turn about the vertical."""


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


def _with_grippers(channels: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    n = len(CHANNELS)
    channels = np.array(channels, float)
    if not channels.ndim or not channels.shape[-1] or channels.shape[-1] % n:
        raise ValueError(f"channels must be (..., {n}) or (..., {2 * n}), got {channels.shape}")
    channels[..., n - 1 :: n] = convert(channels[..., n - 1 :: n])
    return channels
