"""ALOHA's two follower arms behind Interbotix' ROS 1 nodes: targets out, measured joints in.

Fourteen channels, the left arm's first, as in `tasks/robots/aloha/description.py`: rad, and m of
one finger's way for the grippers. Topics, and how a gripper's m become its motor's rad, are in
`aloha_topics`. Interbotix' packages need not be installed here, only where the arms' nodes run.

Stopped, the arms keep the place where they are: limp ones would fall. They do not let go what they
hold. What the wrist cameras see comes from beside the driver, by `also`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from real.drivers import aloha_topics, external, ros
from real.drivers.aloha_topics import arm_topics, motor_angle, read_arm
from real.drivers.ros_robot import Link, RosConfig, RosRobot
from tasks.robots.aloha import description
from tasks.robots.aloha.description import ARM, JOINTS, SIDES


@dataclass(frozen=True, kw_only=True)
class AlohaConfig(RosConfig):
    """How to drive the arms."""

    names: tuple[str, str] = ("puppet_left", "puppet_right")
    """What the left and the right arm's nodes are called."""
    namespace: str = ""
    """ROS namespace of both; empty for none."""
    control_dt: float = description.CONTROL_DT
    action_scale: float = description.ACTION_SCALE
    """rad that a joint's target moves for an action of 1."""
    gripper_scale: float = description.ACTION_SCALE
    """m that a gripper's does."""
    lower: Mapping[str, float] = field(default_factory=dict)
    """Lower limits other than the robot's, by the channel's name, as a policy's card has them."""
    start: tuple[float, ...] = description.START
    start_speed: float = 0.5
    """rad/s of a joint on the way to the start,"""
    start_grip_speed: float = 0.035
    """and m/s of a finger."""
    tolerance: float = 0.1
    """rad that a joint may be away from the start: servos without an integral part sag,"""
    grip_tolerance: float = 0.008
    """and m that a finger may be."""


class AlohaRos(RosRobot):
    """Both arms; see `real.robot.Robot`. It observes `description.PROPRIOCEPTION`.

    A measurement is as old as the older of the two arms'. `has_switched` is 1 from the moment on
    when both hands were above `SWITCH_HEIGHT`, until the next reset.
    """

    called, part = "the pair of arms", "arm"
    joints = JOINTS

    def __init__(
        self, config: AlohaConfig | None = None, *, also: Sequence[external.External] = ()
    ) -> None:
        """Describe the arms without connecting to them.

        also: values from beside them, as what the wrist cameras see.

        Raises:
            ValueError: ROS has no such namespace, both arms have one name, or `lower` names no
                channel.
        """
        self.config = config = config or AlohaConfig()
        if config.names[0] == config.names[1]:
            raise ValueError(f"both arms are called {config.names[0]!r}; give two names")
        self.topics = tuple(arm_topics(name, config.namespace) for name in config.names)
        channels = description.actions(
            scale=config.action_scale,
            gripper_scale=config.gripper_scale,
            lower=dict(config.lower),
        )
        super().__init__(
            config,
            description.PROPRIOCEPTION,
            also,
            channels,
            [topics.state for topics in self.topics],
            start_speed=_each(config.start_speed, config.start_grip_speed),
            tolerance=_each(config.tolerance, config.grip_tolerance),
        )
        self._has_switched = False

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Go to the start pose slowly; the hands have not switched then."""
        super().reset(start)
        self._has_switched = False

    def _open(self, rospy: Any) -> dict[str, Any]:
        self._group = ros.define(aloha_topics.GROUP_KIND, aloha_topics.GROUP)
        self._single = ros.define(aloha_topics.SINGLE_KIND, aloha_topics.SINGLE)
        kinds = {t.group: self._group for t in self.topics}
        kinds |= {t.single: self._single for t in self.topics}
        return {
            topic: rospy.Publisher(topic, kind, queue_size=3, tcp_nodelay=True)
            for topic, kind in kinds.items()
        }

    def _read(self, part: int, message: Any) -> np.ndarray:
        return read_arm(message.name, message.position)

    def _write(self, link: Link, part: int, target: np.ndarray, *, is_start: bool) -> None:
        topics = self.topics[part]
        group = self._group(name=aloha_topics.GROUP_NAME, cmd=target[:-1].tolist())
        single = self._single(name=aloha_topics.SINGLE_NAME, cmd=motor_angle(target[-1]))
        link.publishers[topics.group].publish(group)
        link.publishers[topics.single].publish(single)

    def _values(self, joints: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        self._has_switched = description.has_switched(joints, self._has_switched)
        return description.proprioception(joints, target, switched=self._has_switched)


def _each(joint: float, gripper: float) -> np.ndarray:
    return np.array([*(joint,) * len(ARM), gripper] * len(SIDES))


def two_arms(namespace: str, *, also: Sequence[external.External] = ()) -> AlohaRos:
    """Return the driver of ALOHA's followers, in a ROS namespace; empty for none."""
    return AlohaRos(AlohaConfig(namespace=namespace), also=also)
