"""What the ROS 2 driver asks of the way to a ROS 2 graph: topics in and out, and whether it holds.

Messages are mappings of ROS 2's own field names and plain values, as rosbridge has them in JSON.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

Message = Mapping[str, Any]
STATE = "sensor_msgs/msg/JointState"


class Transport(Protocol):
    """One file beside this one each. Everything but `open` and `close` may come from any thread."""

    lost: str
    """Why it does not hold now; empty while it does."""

    def open(self, patience: float, on_lost: Callable[[], object]) -> None:
        """Open it within so many seconds.

        on_lost: called, from a thread of the transport's own, whenever it is lost.

        Raises:
            RobotError: a package is missing, or nobody answers; says what helps.
        """
        ...

    def subscribe(self, topic: str, kind: str, heard: Callable[[Message], object]) -> None:
        """Have a function called with each message of a topic, from a thread of its own."""
        ...

    def advertise(self, topic: str, kind: str) -> None:
        """Say that messages of a type will be published."""
        ...

    def publish(self, topic: str, message: Message) -> None:
        """Publish one, without waiting for who listens.

        Raises:
            RobotError: the link does not hold, or takes nothing.
        """
        ...

    def listeners(self, topic: str) -> int | None:
        """Return how many listen to a topic that is advertised here; None where nobody knows."""
        ...

    def confirm(self) -> None:
        """Wait, for a quarter of a second at most, until what was published is out of our hands.

        Raises:
            RobotError: it is not.
        """
        ...

    def get_published_topics(self) -> list[tuple[str, str]]:
        """Return the topics that somebody publishes, and their types; empty if nobody knows."""
        ...

    def close(self) -> None:
        """Close it; again is no error."""
        ...


class Publisher:
    """A topic that is published; what `RosRobot` knows of one."""

    def __init__(self, transport: Transport, topic: str) -> None:
        self.transport, self.topic = transport, topic

    def publish(self, message: Message) -> None:
        """Publish a message."""
        self.transport.publish(self.topic, message)

    def get_num_connections(self) -> int:
        """Return how many listen; 1 where nobody can say."""
        if self.transport.lost:
            return 0
        count = self.transport.listeners(self.topic)
        return 1 if count is None else count

    def unregister(self) -> None:
        """Do nothing: it ends with the transport."""


class Subscriber:
    """A topic that is heard."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def get_num_connections(self) -> int:
        """Return 1: in ROS 2 several nodes may publish the states of different joints."""
        return 1

    def unregister(self) -> None:
        """Close the transport, with which all topics end."""
        self.transport.close()


def trajectory(names: list[str], positions: list[float], reach: float) -> dict[str, Any]:
    """Return a trajectory_msgs/JointTrajectory of one point, which begins when it comes.

    reach: s until the point is reached.
    """
    whole = int(reach)
    after = {"sec": whole, "nanosec": round(1e9 * (reach - whole))}
    return {
        "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""},
        "joint_names": names,
        "points": [{"positions": positions, "time_from_start": after}],
    }


def positions(values: list[float]) -> dict[str, Any]:
    """Return a std_msgs/Float64MultiArray, as ros2_control's forward controllers take it."""
    return {"layout": {"dim": [], "data_offset": 0}, "data": values}
