"""ROS 2 topics through rclpy, where ROS 2 is installed for this Python and its setup is sourced.

The node has a context and an executor of its own, in a thread, and leaves signals alone. States are
asked for as sensor data are, best effort and the newest few, which any publisher can serve; targets
are sent reliably, which the controllers ask for.
"""

import importlib
import threading
from collections.abc import Callable
from typing import Any

from real.drivers.ros2_link import Message
from real.robot import RequestError, RobotError

INSTALL = (
    "source /opt/ros/*/setup.bash of a ROS 2 for this Python first, or say transport: rosbridge, "
    "which needs no ROS here"
)
_CONFIRM = 0.25
"""Seconds until what was published must be acknowledged."""


class Rclpy:
    """A node of ROS 2; see `real.drivers.ros2_link.Transport`."""

    def __init__(self) -> None:
        self.lost = "the ROS 2 node is not open"
        self._node: Any = None
        self._publishers: dict[str, tuple[Any, str]] = {}

    def open(self, patience: float, on_lost: Callable[[], object]) -> None:
        """Become a node.

        Raises:
            RobotError: rclpy is not installed.
        """
        rclpy = _module("rclpy")
        self._context = rclpy.context.Context()
        quiet = _module("rclpy.signals").SignalHandlerOptions.NO
        rclpy.init(context=self._context, signal_handler_options=quiet)
        self._node = rclpy.create_node("penspin", context=self._context)
        self._executor = _module("rclpy.executors").SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._on_lost, self.lost = on_lost, ""
        self._thread = threading.Thread(target=self._spin, name="rclpy", daemon=True)
        self._thread.start()

    def subscribe(self, topic: str, kind: str, heard: Callable[[Message], object]) -> None:
        """Have a function called with each joint state of a topic."""
        quality = _module("rclpy.qos").qos_profile_sensor_data
        self._node.create_subscription(
            _type(kind), topic, lambda message: heard(_state(message)), quality
        )

    def advertise(self, topic: str, kind: str) -> None:
        """Say that messages of a type will be published."""
        self._publishers[topic] = self._node.create_publisher(_type(kind), topic, 1), kind

    def publish(self, topic: str, message: Message) -> None:
        """Publish one.

        Raises:
            RobotError: the node is closed.
        """
        if self.lost:
            raise RobotError(self.lost)
        publisher, kind = self._publishers[topic]
        publisher.publish(_filled(_type(kind)(), message))

    def listeners(self, topic: str) -> int | None:
        """Return how many listen."""
        return self._publishers[topic][0].get_subscription_count()

    def confirm(self) -> None:
        """Wait until who listens has acknowledged what was published.

        Raises:
            RobotError: they have not.
        """
        limit = _module("rclpy.duration").Duration(seconds=_CONFIRM)
        for topic, (publisher, _) in self._publishers.items():
            if not publisher.wait_for_all_acked(limit):
                raise RobotError(f"who listens to {topic} acknowledges nothing")

    def get_published_topics(self) -> list[tuple[str, str]]:
        """Return the topics of the graph and their first types."""
        return [(name, kinds[0]) for name, kinds in self._node.get_topic_names_and_types()]

    def close(self) -> None:
        """Leave the graph; again is no error."""
        if self._node is None:
            return
        self.lost = "the ROS 2 node is not open"
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(2.0)
        self._node.destroy_node()
        self._context.try_shutdown()
        self._node = None
        self._publishers.clear()

    def _spin(self) -> None:
        try:
            self._executor.spin()
            why = "the ROS 2 node was shut down"
        except Exception as error:  # of rclpy, or of who hears a message
            why = f"the ROS 2 node has failed: {error!r}"
        if not self.lost:
            self.lost = why
            self._on_lost()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RequestError(f"transport rclpy needs {name} ({error}): {INSTALL}") from error


def _type(kind: str) -> Any:
    """Return the class of a type, as std_msgs/msg/Float64MultiArray."""
    package, _, name = kind.split("/")
    return getattr(_module(f"{package}.msg"), name)


def _state(message: Any) -> dict[str, Any]:
    """Return a sensor_msgs/JointState as plain values."""
    stamp = message.header.stamp
    return {
        "header": {"stamp": {"sec": stamp.sec, "nanosec": stamp.nanosec}},
        "name": list(message.name),
        "position": list(message.position),
        "velocity": list(message.velocity),
    }


def _filled(made: Any, message: Message) -> Any:
    """Return a ROS message that holds the values of a plain one."""
    for key, value in message.items():
        if isinstance(value, dict):
            _filled(getattr(made, key), value)
        elif key == "points":
            kind = _type("trajectory_msgs/msg/JointTrajectoryPoint")
            made.points = [_filled(kind(), point) for point in value]
        else:
            setattr(made, key, value)
    return made
