"""The ROS 1 topics of ALOHA's two follower arms behind Interbotix' `xs_sdk` nodes.

| topic of an arm, as `/puppet_left` | message | holds |
| --- | --- | --- |
| `joint_states` | sensor_msgs/JointState | six joints and the gripper's motor, rad; fingers, m |
| `commands/joint_group` | interbotix_xs_msgs/JointGroupCommand | of `arm`: six joints, rad |
| `commands/joint_single` | interbotix_xs_msgs/JointSingleCommand | of `gripper`: its motor, rad |

A gripper is read at its `left_finger` and told in its motor's angle, both linear in how far it is
open, as in the stock ALOHA programs: the same numbers as theirs come in and go out. Between the
ends a finger's way is not linear in the angle, so that both openings agree only there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from real.drivers import ros
from real.robot import RobotError
from tasks.robots.aloha.description import ARM, gripper_position, normalize_gripper

GROUP_KIND, GROUP = "interbotix_xs_msgs/JointGroupCommand", "string name\nfloat32[] cmd\n"
SINGLE_KIND, SINGLE = "interbotix_xs_msgs/JointSingleCommand", "string name\nfloat32 cmd\n"
GROUP_NAME, SINGLE_NAME, FINGER = "arm", "gripper", "left_finger"
FINGER_CLOSED, FINGER_OPEN = 0.01844, 0.05800
"""m, `left_finger` of a follower."""
MOTOR_CLOSED, MOTOR_OPEN = -0.6213, 1.4910
"""rad, the gripper's motor of a follower."""
STATE_NAMES = (*ARM, SINGLE_NAME, FINGER, "right_finger")


@dataclass(frozen=True)
class ArmTopics:
    """Where an arm's node speaks and listens."""

    state: str
    group: str
    single: str


def arm_topics(name: str, namespace: str = "") -> ArmTopics:
    """Return the topics of the arm whose node has this name, as `puppet_left`.

    Raises:
        ValueError: ROS has no such namespace.
    """
    parts = ("joint_states", "commands/joint_group", "commands/joint_single")
    return ArmTopics(*(ros.namespaced(namespace, f"/{name}/{part}") for part in parts))


def read_arm(names: Sequence[str], positions: Sequence[float]) -> np.ndarray:
    """Return the channels (7,) of a joint state: rad, and m of the gripper.

    Raises:
        RobotError: one of the arm's joints is missing or there twice; not one position for each;
            one is not finite.
    """
    if len(names) != len(positions):
        raise RobotError(f"a state has {len(names)} names and {len(positions)} positions")
    wanted = (*ARM, FINGER)
    counts = {name: list(names).count(name) for name in wanted}
    if odd := [f"{name} is there {n} times" for name, n in counts.items() if n != 1]:
        raise RobotError(
            f"this state is not a ViperX arm's: {', '.join(odd)}; it has {', '.join(names)}"
        )
    place = dict(zip(names, positions, strict=True))
    values = np.array([place[name] for name in wanted], float)
    if not np.isfinite(values).all():
        name = wanted[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise RobotError(f"{name} of this state is {place[name]}")
    opening = (values[-1] - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)
    values[-1] = gripper_position(opening)
    return values


def motor_angle(gripper: float) -> float:
    """Return the angle of a gripper's motor, rad, of the channel's m."""
    return float(MOTOR_CLOSED + normalize_gripper(np.array(gripper)) * (MOTOR_OPEN - MOTOR_CLOSED))


def gripper_of(angle: float) -> float:
    """Return the gripper's channel, m, of its motor's angle, rad."""
    return float(gripper_position(np.array(angle - MOTOR_CLOSED) / (MOTOR_OPEN - MOTOR_CLOSED)))


def state_of(arm: np.ndarray) -> list[float]:
    """Return the positions of `STATE_NAMES` of channels (7,), as an arm's node says them."""
    opening = float(normalize_gripper(arm[-1]))
    finger = FINGER_CLOSED + opening * (FINGER_OPEN - FINGER_CLOSED)
    return [*arm[:-1].tolist(), motor_angle(arm[-1]), finger, -finger]
