"""A robot behind ROS 2, as a YAML file describes it: joint targets out, measured joints in.

`--robot ros2:FILE.yaml`. What stands in the file is in `ros2_config`; the way to the ROS 2 graph is
rosbridge's websocket protocol (`ros2_rosbridge`), which needs no ROS on this computer, or rclpy
(`ros2_rclpy`). When what is sent and what may be trusted is as for ROS 1 (`ros_robot`).

Stopped, the robot keeps the place where it is: its measured joints become the targets. A link that
is lost ends all commands until the next reset, even if it comes back at once; meanwhile it is tried
again, so that a stop can still go out.
"""

import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from real.drivers import external
from real.drivers.ros2_config import TRAJECTORY, GroupConfig, Ros2Config, read_robot
from real.drivers.ros2_link import STATE, Publisher, Subscriber, Transport, positions, trajectory
from real.drivers.ros2_rclpy import Rclpy
from real.drivers.ros2_rosbridge import Rosbridge
from real.drivers.ros_robot import Link, RosConfig, RosRobot
from real.robot import RobotError


class Ros2Robot(RosRobot):
    """The robot; see the module's docstring and `real.robot.Robot`."""

    called, part = "the robot", "robot"

    def __init__(
        self,
        config: Ros2Config,
        *,
        also: Sequence[external.External] = (),
        transport: Transport | None = None,
    ) -> None:
        """Describe a robot without connecting to it.

        also: values from beside its joints. transport: in place of the configuration's.
        """
        self.config, self.transport = config, transport
        self._groups = tuple(config.groups.values())
        joints = config.joints
        self.joints = tuple(joint.name for joint in joints)
        self._lost = ""
        self._strangers: list[list[str]] = [[] for _ in self._groups]
        self._velocities = np.full(len(joints), np.nan)
        step = 1.0 / config.rate
        super().__init__(
            RosConfig(
                control_dt=step,
                start=tuple(joint.start for joint in joints),
                patience=config.patience,
                stale=2.0 if config.stale is None else config.stale * config.rate,
                trust_stamps=config.trust_stamps,
            ),
            [feature.feature for feature in config.features],
            also,
            tuple(joint.channel for joint in joints),
            [group.state for group in self._groups],
            start_speed=np.array([joint.speed for joint in joints]),
            tolerance=np.array([joint.tolerance for joint in joints]),
            counts=[len(group.joints) for group in self._groups],
        )

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Go to the start pose slowly; a link that came back is used again.

        Raises:
            RobotError: as of `RosRobot.reset`.
        """
        if self._link is not None and not self._link.rospy.lost:
            self._lost = ""
        super().reset(start)

    def hold(self) -> None:
        """Publish the last target once more, unless the link was lost since it was sent."""
        if not self._lost:
            super().hold()

    def _open_link(self) -> Link:
        config = self.config
        transport = self.transport or (
            Rclpy() if config.transport == "rclpy" else Rosbridge(config.host, config.port)
        )
        self._lost, self._strangers = "", [[] for _ in self._groups]
        transport.open(config.patience, functools.partial(self._on_lost, transport))
        try:
            publishers = self._open(transport)
            for i, group in enumerate(self._groups):
                transport.subscribe(group.state, STATE, functools.partial(self._on_state, i))
        except BaseException:
            transport.close()
            raise
        return Link(transport, publishers, tuple(Subscriber(transport) for _ in self._groups))

    def _open(self, rospy: Any) -> dict[str, Any]:
        for group in self._groups:
            rospy.advertise(group.command, group.type)
        return {group.command: Publisher(rospy, group.command) for group in self._groups}

    def _await_robot(self, link: Link) -> None:
        try:
            super()._await_robot(link)
        except RobotError as error:
            heard = zip(self._groups, self._strangers, self._states, strict=True)
            for group, names, state in heard:
                if names and state is None:
                    raise RobotError(
                        f"{group.state} names none of {_names(group)}, it has {names}: set `ros` "
                        "of the joints"
                    ) from error
            if link.rospy.lost:
                raise RobotError(link.rospy.lost) from error
            raise

    def _on_lost(self, transport: Transport) -> None:
        """Take no commands until the next reset; runs in the transport's thread."""
        self._lost = f"{transport.lost}; reset {self.called} once it is back"
        self._halted = None

    def _connected(self) -> Link:
        link = super()._connected()
        if self._lost:
            raise RobotError(self._lost)
        return link

    def _on_state(self, part: int, message: Any) -> None:
        """Note a state, unless it is of other joints."""
        names = message.get("name")
        if isinstance(names, list) and not set(_names(self._groups[part])) & {*map(str, names)}:
            self._strangers[part] = [*map(str, names)][:20]
            return
        super()._on_state(part, message)

    def _hear(self, message: Any) -> tuple[float, float]:
        now, age = time.monotonic(), 0.0
        try:
            stamp = message["header"]["stamp"]
            seconds = stamp["sec"] + 1e-9 * stamp["nanosec"]
            age = time.time() - seconds if seconds else 0.0
        except (KeyError, TypeError):
            pass  # it has no stamp, and is new
        self.received.add(self.received.count + 1, now, max(0.0, age))
        return now, age

    def _read(self, part: int, message: Any) -> np.ndarray:
        group = self._groups[part]
        names, values = message.get("name"), message.get("position")
        if not (isinstance(names, list) and isinstance(values, list) and len(names) == len(values)):
            raise RobotError("a state must have as many positions as names")
        speeds = message.get("velocity")
        has_speeds = isinstance(speeds, list) and len(speeds) == len(names)
        found, velocities = [], []
        for joint in group.joints:
            if (count := names.count(joint.ros)) != 1:
                raise RobotError(f"{joint.ros} is there {count} times; it has {names[:20]}")
            at = names.index(joint.ros)
            value = values[at]
            if not isinstance(value, int | float) or not np.isfinite(value):
                raise RobotError(f"{joint.ros} of this state is {value}")
            found.append(joint.from_ros(value))
            speed = speeds[at] if has_speeds else None
            is_number = isinstance(speed, int | float)
            velocities.append(joint.sign * speed / joint.factor if is_number else np.nan)
        self._velocities[self._slices[part]] = velocities
        return np.array(found)

    def _write(self, link: Link, part: int, target: np.ndarray, *, is_start: bool) -> None:
        group = self._groups[part]
        values = [j.to_ros(float(x)) for j, x in zip(group.joints, target, strict=True)]
        if group.type == TRAJECTORY:
            message = trajectory(_names(group), values, group.reach or self.control_dt)
        else:
            message = positions(values)
        self._halted = None  # also if only a part of it goes out
        link.publishers[group.command].publish(message)

    def _confirm(self, link: Link) -> None:
        link.rospy.confirm()

    def _values(self, joints: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        found = {
            "position": joints,
            "velocity": self._velocities.copy(),
            "target": target,
            "error": target - joints,
        }
        values = {}
        for wanted in self.config.features:
            parts = [found[kind][list(wanted.joints)] for kind in wanted.of]
            value = np.concatenate(parts).astype(np.float32).reshape(wanted.feature.shape)
            if not np.isfinite(value).all():
                raise RobotError(
                    f"the feature {wanted.feature.name!r} needs velocities, which the states on "
                    f"{', '.join(dict.fromkeys(self._topics))} do not have"
                )
            values[wanted.feature.name] = value
        return values


def _names(group: GroupConfig) -> list[str]:
    return [joint.ros for joint in group.joints]


def robot_of(address: str, *, also: Sequence[external.External] = ()) -> Ros2Robot:
    """Return the driver of the robot that a YAML file describes.

    Raises:
        ValueError: no file is named, or it is not as it should be.
    """
    if not address:
        raise ValueError("the robot's file is missing: say ros2:FILE.yaml")
    return Ros2Robot(read_robot(pathlib.Path(address)), also=also)
