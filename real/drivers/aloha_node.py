"""ALOHA's follower arms' ROS nodes without the arms: our twin, or joints that only follow.

    python -m real.drivers.aloha_node                # joints that follow their targets
    python -m real.drivers.aloha_node --twin aloha   # the simulated arms and their task

It listens and speaks on the topics of both real arms' nodes, and keeps to real time. It says
`ready` once it is there, and at its end (SIGINT, SIGTERM) one line of JSON: what came, what was
sent, what the twin measured.
"""

import argparse
import contextlib
import functools
import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from penspin_style.system import interrupt
from real.drivers import aloha_topics, ros
from real.drivers.aloha_ros import AlohaConfig
from real.drivers.aloha_topics import ArmTopics, arm_topics, gripper_of, state_of
from real.drivers.followers import Followers
from real.rate import Rate
from real.robot import RobotError, StoppedError
from tasks.robots.aloha.description import ARM, CHANNELS, HOME, JOINTS, LOWER, UPPER

RATE = 100.0
"""States per second of each arm; a real arm's node sends as many."""


class Arms(Protocol):
    """What moves behind the topics."""

    def command(self, target: np.ndarray) -> None:
        """Follow targets (14,) from now on."""

    def joints(self) -> np.ndarray:
        """Return the channels as they are now, (14,)."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what they have to say at the end."""
        ...


class TwinArms:
    """The twin of a task with both arms, in real time."""

    def __init__(self, name: str) -> None:
        """Build it and begin an episode.

        Raises:
            UsageError: there is no such twin.
            RobotError: its channels are not the arms'.
        """
        from real.twin.robot import SimRobot, load_twin

        self.robot = SimRobot(load_twin(name, realtime=True))
        theirs = tuple(channel.name for channel in self.robot.channels)
        if theirs != JOINTS:
            raise RobotError(f"the twin {name!r} moves {theirs}, the arms have {JOINTS}")
        self._low = np.array([channel.low for channel in self.robot.channels])
        self._high = np.array([channel.high for channel in self.robot.channels])
        self.robot.connect()
        self.robot.reset()
        self._target = self.robot.target

    def command(self, target: np.ndarray) -> None:
        """Follow targets (14,) from now on, as fast as the task's controller may."""
        self._target = np.clip(target, self._low, self._high)
        self._approach()

    def joints(self) -> np.ndarray:
        """Return the measured channels, (14,)."""
        self._approach()
        measured = self.robot.observe().measured
        if measured is None:
            raise RobotError("the twin does not measure its joints")
        return measured

    def facts(self) -> dict[str, Any]:
        """Return what the task measures."""
        return {"measures": self.robot.measures()}

    def _approach(self) -> None:
        """Command the targets again, as long as one action did not reach them."""
        if np.abs(self.robot.target - self._target).max() > 1e-6:
            with contextlib.suppress(StoppedError):
                self.robot.command(self._target)


class AlohaNode:
    """The topics of both arms' nodes."""

    def __init__(self, arms: Arms, topics: Sequence[ArmTopics], rate: float = RATE) -> None:
        """Become a ROS node.

        topics: of the left and the right arm. rate: states of each per second.

        Raises:
            RosError: no ROS, or no master.
        """
        self.arms, self.rate = arms, rate
        self.received = dict.fromkeys([t for a in topics for t in (a.group, a.single)], 0)
        self.refused, self.sent = 0, 0
        self._lock = threading.Lock()
        self._target = arms.joints()
        self._rospy, msgs = ros.start_node("arms"), ros.messages("sensor_msgs")
        self._message = msgs.JointState
        group = ros.define(aloha_topics.GROUP_KIND, aloha_topics.GROUP)
        single = ros.define(aloha_topics.SINGLE_KIND, aloha_topics.SINGLE)
        self._states = [
            self._rospy.Publisher(t.state, msgs.JointState, queue_size=10, tcp_nodelay=True)
            for t in topics
        ]
        self._ears = []
        for i, t in enumerate(topics):
            for topic, kind, heard in (
                (t.group, group, self._on_group),
                (t.single, single, self._on_single),
            ):
                heard = functools.partial(heard, topic, i * len(CHANNELS))
                self._ears.append(self._rospy.Subscriber(topic, kind, heard, tcp_nodelay=True))

    def spin(self, over: threading.Event | interrupt.Stop) -> None:
        """Move the arms and send their states until it is over."""
        rate = Rate(1.0 / self.rate)
        while not over.is_set():
            with self._lock:
                joints = self.arms.joints()
            stamp = self._rospy.Time.from_sec(time.time())
            for publisher, arm in zip(self._states, np.split(joints, 2), strict=True):
                message = self._message()
                message.header.stamp = stamp
                message.name = list(aloha_topics.STATE_NAMES)
                message.position = state_of(arm)
                if publisher.get_num_connections():
                    publisher.publish(message)
                    self.sent += 1
            rate.wait()

    def close(self) -> None:
        """Leave the topics."""
        for end in (*self._states, *self._ears):
            end.unregister()

    def facts(self) -> dict[str, Any]:
        """Return what came, what was sent, what the arms say."""
        return {
            "targets": {**self.received, "refused": self.refused},
            "states_sent": self.sent,
            **self.arms.facts(),
        }

    def _on_group(self, topic: str, first: int, message: Any) -> None:
        is_arm = message.name == aloha_topics.GROUP_NAME and len(message.cmd) == len(ARM)
        self._follow(topic, first, np.array(message.cmd, float) if is_arm else None)

    def _on_single(self, topic: str, first: int, message: Any) -> None:
        is_gripper = message.name == aloha_topics.SINGLE_NAME
        values = np.array([gripper_of(message.cmd)]) if is_gripper else None
        self._follow(topic, first + len(ARM), values)

    def _follow(self, topic: str, first: int, values: np.ndarray | None) -> None:
        """Follow targets of some channels; None and what is not finite is no target."""
        self.received[topic] += 1
        if values is None or not np.isfinite(values).all():
            self.refused += 1
            return
        with self._lock:
            self._target[first : first + len(values)] = values
            self.arms.command(self._target)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT, SIGTERM or SIGHUP; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m real.drivers.aloha_node", description=main.__doc__
    )
    parser.add_argument("--namespace", default="", help="ROS namespace of both arms")
    parser.add_argument("--twin", metavar="NAME", help="a twin with two arms; default: no physics")
    parser.add_argument("--rate", type=float, default=RATE, help="states per second of each arm")
    args = parser.parse_args(argv)
    if not 1.0 <= args.rate <= 1000.0:
        parser.error(f"--rate must be in [1, 1000], got {args.rate:g}")
    with interrupt.asking("the node ends") as over:
        return _run(args, over)


def _run(args: argparse.Namespace, over: interrupt.Stop) -> int:
    try:
        arms = TwinArms(args.twin) if args.twin else Followers(HOME, LOWER, UPPER)
        topics = [arm_topics(name, args.namespace) for name in AlohaConfig().names]
        node = AlohaNode(arms, topics, args.rate)
    except (RobotError, ValueError) as error:
        print(f"aloha_node: {error}", file=sys.stderr)
        return 2
    print("ready", flush=True)
    node.spin(over)
    node.close()
    print(json.dumps(node.facts()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
