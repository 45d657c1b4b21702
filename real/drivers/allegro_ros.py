"""The Allegro hand behind ROS 1 topics: joint targets out, measured joints in.

Sixteen joints in the hardware's order, index, middle, ring, thumb, as in
`tasks/robots/allegro/description.py`. States are read by the joints' names wherever the hand's node
gives any, and by position otherwise. On which topics is in `allegro_topics`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style.features import Feature
from real.drivers import external, ros
from real.drivers.allegro_topics import TOPICS, Topics, in_order
from real.drivers.ros_robot import Link, RosConfig, RosRobot
from tasks.robots.allegro import description
from tasks.robots.allegro.description import HOME, JOINTS, fingertips


@dataclass(frozen=True, kw_only=True)
class AllegroConfig(RosConfig):
    """How to drive a hand."""

    topics: Topics = TOPICS["penspin"]
    control_dt: float = description.CONTROL_DT
    action_scale: float = description.ACTION_SCALE
    """Radians that a joint's target moves for an action of 1."""
    start: tuple[float, ...] = HOME
    start_speed: float = 0.5
    """How fast a joint goes there, rad/s."""
    tolerance: float = 0.2
    """How near to it a joint must come, rad: a pen on the fingertips pushes back."""


class AllegroRos(RosRobot):
    """The hand; see `real.robot.Robot`. It observes `proprio`, joints then targets, and fingertips.

    Where its node takes the word, a stop makes it limp.
    """

    called, part = "the hand", "hand"
    joints = JOINTS

    def __init__(
        self, config: AllegroConfig | None = None, *, also: Sequence[external.External] = ()
    ) -> None:
        """Describe a hand without connecting to it.

        also: sensors beside the hand's own joints.
        """
        self.config = config = config or AllegroConfig()
        own = (Feature("proprio", (32,), "rad"), Feature("fingertips", (4, 3), "m"))
        super().__init__(
            config,
            own,
            also,
            description.actions(config.action_scale),
            [config.topics.state],
            start_speed=config.start_speed,
            tolerance=config.tolerance,
        )

    def _open(self, rospy: Any) -> dict[str, Any]:
        topics, self._message = self.config.topics, ros.messages("sensor_msgs").JointState
        send = {"queue_size": topics.queue_size, "tcp_nodelay": True}
        publishers = {
            topics.command: rospy.Publisher(
                topics.command, self._message, latch=topics.latch, **send
            )
        }
        if topics.words:
            self._word = ros.messages("std_msgs").String
            publishers[topics.words] = rospy.Publisher(topics.words, self._word, **send)
        return publishers

    def _read(self, part: int, message: Any) -> np.ndarray:
        return in_order(message.name, message.position, self.config.topics.names)

    def _write(self, link: Link, part: int, target: np.ndarray, *, is_start: bool) -> None:
        topics, message = self.config.topics, self._message()
        message.header.stamp = link.rospy.Time.from_sec(time.time())
        message.header.frame_id = topics.start_frame_id if is_start else topics.frame_id
        message.name = list(topics.names if topics.command_name is None else topics.command_name)
        message.position = target.tolist()
        link.publishers[topics.command].publish(message)

    def _values(self, joints: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "proprio": np.concatenate((joints, target)).astype(np.float32),
            "fingertips": fingertips(joints).astype(np.float32),
        }

    def _let_go(self, link: Link) -> bool:
        topics = self.config.topics
        if not topics.words:
            return False
        link.publishers[topics.words].publish(self._word(topics.off))
        return True


def penspin_hand(namespace: str, *, also: Sequence[external.External] = ()) -> AllegroRos:
    """Return the driver of a hand behind PenSpin's node, in a ROS namespace; empty for none."""
    return AllegroRos(AllegroConfig(topics=TOPICS["penspin"].within(namespace)), also=also)


def wonik_hand(namespace: str, *, also: Sequence[external.External] = ()) -> AllegroRos:
    """Return the same behind allegro-hand-ros, the node of Wonik."""
    return AllegroRos(AllegroConfig(topics=TOPICS["allegro_hand_ros"].within(namespace)), also=also)
