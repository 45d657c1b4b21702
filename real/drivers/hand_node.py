"""An Allegro hand's ROS node without the hand: our twin, or sixteen joints that only follow.

    python -m real.drivers.hand_node --topics penspin             # joints that follow their targets
    python -m real.drivers.hand_node --topics penspin --twin pen  # the simulated hand with its pen

It listens and speaks on the topics of the real hand's node, takes targets by position as that does,
and keeps to real time. It says `ready` once it is there, and at its end (SIGINT, SIGTERM) one line
of JSON: what came, what was sent, what the twin measured.
"""

import argparse
import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from penspin_style.system import interrupt
from real.drivers import ros
from real.drivers.allegro_topics import TOPICS, Topics
from real.drivers.followers import Followers
from real.rate import Rate
from real.robot import RobotError, StoppedError
from tasks.robots.allegro.description import HOME, JOINTS, LOWER, UPPER

_LOG = logging.getLogger(__name__)
RATE = 100.0
"""States per second; a real hand's node sends 300."""
PAUSE = 1.0
"""Seconds without a target after which the count of the latest ones begins anew."""


class Hand(Protocol):
    """What moves behind the topics."""

    def command(self, target: np.ndarray) -> None:
        """Follow targets (16,) rad from now on."""

    def joints(self) -> np.ndarray:
        """Return the joints as they are now, (16,) rad."""
        ...

    def begin(self) -> None:
        """Begin anew: the hand is in its start pose, somebody puts the pen on the fingertips."""

    def limp(self) -> None:
        """Follow nothing; waits for no other call."""

    def facts(self) -> dict[str, Any]:
        """Return what it has to say at the end."""
        ...


class TwinHand:
    """The twin of a task with the Allegro hand, in real time."""

    def __init__(self, name: str) -> None:
        """Build it and put the pen on the fingertips.

        Raises:
            UsageError: there is no such twin.
            RobotError: its channels are not the hand's joints.
        """
        from real.twin.robot import SimRobot, load_twin
        from tasks.pen import grasps

        self.robot = SimRobot(load_twin(name, realtime=True))
        theirs = tuple(channel.name for channel in self.robot.channels)
        if theirs != JOINTS:
            raise RobotError(f"the twin {name!r} moves {theirs}, the hand has {JOINTS}")
        cfg = self.robot.batch.cfg
        stored = grasps.load(getattr(cfg, "grasps", ""), getattr(cfg, "scales", [0.29]))[0]
        self._grasps = np.concatenate([np.asarray(g, float) for g in (grasps.canonical(), stored)])
        self._target = np.array(HOME)
        self.robot.connect()
        self.begin()

    def command(self, target: np.ndarray) -> None:
        """Follow targets (16,) rad from now on, as fast as the task's controller may."""
        self._target = target
        with contextlib.suppress(StoppedError):  # until it begins anew
            self.robot.command(target)

    def joints(self) -> np.ndarray:
        """Return the measured joints, (16,) rad."""
        measured = self.robot.observe().measured
        if measured is None:
            raise RobotError("the twin does not measure its joints")
        return measured

    def begin(self) -> None:
        """Put the pen there as in the stored grasp whose joints are nearest to the targets."""
        away = np.square(self._grasps[:, :16] - self._target).sum(axis=1)
        self.robot.reset({"qpos": self._grasps[int(np.argmin(away))]})

    def limp(self) -> None:
        """Let the motors only damp, until the next beginning."""
        self.robot.stop()

    def facts(self) -> dict[str, Any]:
        """Return what the task measures."""
        return {"measures": self.robot.measures()}


class HandNode:
    """The topics of a hand's node."""

    def __init__(self, hand: Hand, topics: Topics, rate: float = RATE) -> None:
        """Become a ROS node.

        rate: states per second.

        Raises:
            RosError: no ROS, or no master.
        """
        self.hand, self.topics, self.rate = hand, topics, rate
        self.received, self.latest = ros.Tally(), ros.Tally()
        self._heard_at = 0.0
        self.refused, self.sent = 0, 0
        self._lock = threading.Lock()
        self._frame_id = topics.frame_id
        self._is_off = False  # told to, and not yet done
        self._rospy, msgs = ros.start_node("hand"), ros.messages("sensor_msgs")
        self._message = msgs.JointState
        self._state = self._rospy.Publisher(
            topics.state, msgs.JointState, queue_size=10, tcp_nodelay=True
        )
        self._ends = [
            self._state,
            self._rospy.Subscriber(
                topics.command, msgs.JointState, self._on_target, tcp_nodelay=True
            ),
        ]
        if topics.words:
            word = ros.messages("std_msgs").String
            self._ends.append(self._rospy.Subscriber(topics.words, word, self._on_word))

    def spin(self, over: threading.Event | interrupt.Stop) -> None:
        """Move the hand and send states until it is over."""
        rate = Rate(1.0 / self.rate)
        while not over.is_set():
            self._go_limp()
            with self._lock:
                joints = self.hand.joints()
            message = self._message()
            message.header.stamp = self._rospy.Time.from_sec(time.time())
            message.name = list(self.topics.names)
            message.position = joints.tolist()
            if self._state.get_num_connections():
                self._state.publish(message)
                self.sent += 1
            rate.wait()

    def close(self) -> None:
        """Leave the topics."""
        for end in self._ends:
            end.unregister()

    def facts(self) -> dict[str, Any]:
        """Return what came, what was sent, what the hand says."""
        return {
            "targets": {**self.received.facts(), "refused": self.refused},
            "since_last_pause": self.latest.facts(),
            "states_sent": self.sent,
            **self.hand.facts(),
        }

    def _on_target(self, message: Any) -> None:
        now, age = self.received.hear(message)
        if now - self._heard_at > PAUSE:
            self.latest = ros.Tally()
        self._heard_at = now
        self.latest.add(message.header.seq, now, max(0.0, age))
        target = np.array(message.position, float)
        if target.shape != (len(JOINTS),) or not np.isfinite(target).all():
            self.refused += 1
            return
        with self._lock:
            before, self._frame_id = self._frame_id, message.header.frame_id
            if (
                self.topics.start_frame_id
                and before == self.topics.start_frame_id != self._frame_id
            ):
                self.hand.begin()
            self.hand.command(target)

    def _on_word(self, message: Any) -> None:
        if message.data == self.topics.off:
            self._is_off = True
            self._go_limp()

    def _go_limp(self) -> None:
        """Do what the last word asked for, without waiting for the hand; `spin` tries again."""
        if not self._is_off:
            return
        try:
            self.hand.limp()
            self._is_off = False
        except RobotError as error:
            _LOG.critical("the hand does not go limp: %s", error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT, SIGTERM or SIGHUP; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m real.drivers.hand_node", description=main.__doc__
    )
    parser.add_argument("--topics", choices=sorted(TOPICS), default="penspin")
    parser.add_argument("--namespace", default="", help="ROS namespace, for more than one hand")
    parser.add_argument("--twin", metavar="NAME", help="a twin with a hand; default: no physics")
    parser.add_argument("--rate", type=float, default=RATE, help="states per second")
    args = parser.parse_args(argv)
    if not 1.0 <= args.rate <= 1000.0:
        parser.error(f"--rate must be in [1, 1000], got {args.rate:g}")
    with interrupt.asking("the node ends") as over:
        return _run(args, over)


def _run(args: argparse.Namespace, over: interrupt.Stop) -> int:
    try:
        hand = TwinHand(args.twin) if args.twin else Followers(HOME, LOWER, UPPER)
        node = HandNode(hand, TOPICS[args.topics].within(args.namespace), args.rate)
    except (RobotError, ValueError) as error:
        print(f"hand_node: {error}", file=sys.stderr)
        return 2
    print("ready", flush=True)
    node.spin(over)
    node.close()
    print(json.dumps(node.facts()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
