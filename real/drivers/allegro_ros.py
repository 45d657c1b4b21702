"""The Allegro hand behind ROS 1 topics: joint targets out, measured joints in.

Sixteen joints in the hardware's order, index, middle, ring, thumb, as in
`tasks/robots/allegro/description.py`. States are read by the joints' names wherever the hand's node
gives any, and by position otherwise. On which topics is in `allegro_topics`.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penspin_style.features import Feature
from real.drivers import external, ros
from real.drivers.allegro_topics import TOPICS, Topics, in_order
from real.drivers.described import Described
from real.drivers.start_pose import start_pose
from real.robot import Observation, RobotError, check_target, stop_surely
from tasks.robots.allegro import description
from tasks.robots.allegro.description import HOME, JOINTS, LOWER, UPPER, fingertips

LIMITS = {name: (low, high) for name, low, high in zip(JOINTS, LOWER, UPPER, strict=True)}
"""rad, of the joints."""
_TURN = 0.005
"""Seconds that a stop waits for a target that is being published."""


@dataclass(frozen=True)
class AllegroConfig:
    """How to drive a hand."""

    topics: Topics = TOPICS["penspin"]
    control_dt: float = description.CONTROL_DT
    """Seconds between two commands."""
    action_scale: float = description.ACTION_SCALE
    """Radians that a joint's target moves for an action of 1."""
    start: tuple[float, ...] = HOME
    """The start pose, rad."""
    start_speed: float = 0.5
    """How fast a joint goes there, rad/s."""
    tolerance: float = 0.2
    """How near to it a joint must come, rad: a pen on the fingertips pushes back."""
    patience: float = 5.0
    """Seconds to wait for the hand's node, and for the joints to arrive."""
    stale: float = 2.0
    """Control periods after which a measurement is too old; one more is waited for a newer one."""
    trust_stamps: bool = True
    """Whether messages say when they were measured; needs the two computers' clocks in step.
    Without it a measurement is as old as its message."""


@dataclass(frozen=True)
class _State:
    joints: np.ndarray  # (16,) rad, in the order of JOINTS
    measured_at: float  # s, monotonic
    received_at: float


@dataclass
class _Link:
    """What there is only while connected."""

    rospy: Any
    command: Any
    state: Any
    words: Any = None
    message: Callable[..., Any] = field(default=lambda: None)
    word: Callable[..., Any] = field(default=lambda: None)


class AllegroRos(Described):
    """The hand; see `real.robot.Robot`.

    received: what is known of the state messages, sent: how many targets were published.
    """

    called = "the hand"
    joints = JOINTS

    def __init__(
        self, config: AllegroConfig | None = None, *, also: Sequence[external.External] = ()
    ) -> None:
        """Describe a hand without connecting to it.

        also: sensors beside the hand's own joints.
        """
        self.config = config or AllegroConfig()
        own = (Feature("proprio", (32,), "rad"), Feature("fingertips", (4, 3), "m"))
        channels = description.actions(self.config.action_scale)
        super().__init__(own, also, channels, self.config.control_dt)
        self.received = ros.Tally()
        self.sent = 0
        self._turn = threading.RLock()  # of what is published; not waited for to stop
        self._halted: int | None = None  # what was `sent` when a stop was last confirmed
        self._heard = threading.Condition()
        self._state: _State | None = None
        self._fault = ""
        self._link: _Link | None = None

    def connect(self) -> None:
        """Become a ROS node and wait for the hand's; again is no error.

        Raises:
            RosError: no ROS, or no master.
            RobotError: nobody publishes joint states, or listens to targets.
        """
        if self._link is not None:
            return
        topics = self.config.topics
        rospy, msgs = ros.start_node("penspin"), ros.messages("sensor_msgs")
        self._state, self._fault, self.received, self.sent = None, "", ros.Tally(), 0
        send = {"queue_size": topics.queue_size, "tcp_nodelay": True}
        link = _Link(
            rospy,
            rospy.Publisher(topics.command, msgs.JointState, latch=topics.latch, **send),
            rospy.Subscriber(topics.state, msgs.JointState, self._on_state, tcp_nodelay=True),
            message=msgs.JointState,
        )
        if topics.words:
            link.word = ros.messages("std_msgs").String
            link.words = rospy.Publisher(topics.words, link.word, **send)
        try:
            self._await_hand(link)
            self.sensors.start()
        except RobotError:
            _unregister(link)
            raise
        self._link, self._halted = link, None

    def disconnect(self) -> None:
        """Make the hand limp as far as its node allows, and leave; again is no error.

        Raises:
            RobotError: nobody listens to it any more, so that the hand may still move.
        """
        link = self._link
        if link is None:
            return
        try:
            stop_surely(self.stop)
            time.sleep(0.1)  # what was sent last is on its way in another thread
        finally:
            self._link = self._target = None
            self.sensors.close()
            _unregister(link)

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Go to the start pose at `start_speed`.

        start: `qpos` (16,) rad in place of the configuration's, or single joints by name.

        Raises:
            RobotError: not connected, an unknown name, a pose outside the limits, or a joint does
                not arrive.
        """
        goal = start_pose(start, self.config.start, LIMITS)
        self._connected()
        self._stopped, self._target = "", None
        begin = np.clip(self._fresh().joints, self._low, self._high)
        duration = np.abs(goal - begin).max() / self.config.start_speed
        steps = max(1, int(np.ceil(duration / self.control_dt)))
        for share in np.linspace(0.0, 1.0, steps + 1)[1:]:
            self._send(begin + share * (goal - begin), self.config.topics.start_frame_id)
            time.sleep(self.control_dt)
        self._arrive(goal)

    def observe(self) -> Observation:
        """Return the newest measurement: `proprio`, joints then targets, and `fingertips`.

        Before the first reset the joints stand in for the targets.

        Raises:
            RobotError: not connected; the last message is no joint state, or too old.
        """
        state = self._fresh()
        target = state.joints if self._target is None else self._target
        values = {
            "proprio": np.concatenate((state.joints, target)).astype(np.float32),
            "fingertips": fingertips(state.joints).astype(np.float32),
            **self.sensors.read(),
        }
        return Observation(values, state.measured_at, state.joints.copy())

    def command(self, target: np.ndarray) -> np.ndarray:
        """Publish targets (16,) rad, clipped to the joints' limits; return what was published.

        Raises:
            StoppedError: the hand is stopped.
            RobotError: not connected or not reset, not 16 finite numbers, or nobody listens.
        """
        wanted = check_target(target, self.channels)
        if self._target is None:
            raise RobotError("reset the hand before the first command")
        return self._send(np.clip(wanted, self._low, self._high), self.config.topics.frame_id)

    def hold(self) -> None:
        """Publish the last target once more, unless one is being published; again is no error."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self._link is not None and self._target is not None and not self._stopped:
                self._publish(self._link, self._target, self.config.topics.frame_id)
        finally:
            self._turn.release()

    def stop(self) -> None:
        """Make the measured joints the targets and, where its node takes the word, the hand limp.

        Again is no error, and publishes nothing that has been heard.

        Raises:
            RobotError: nobody listens; or it is not known where the joints are, and the node knows
                no word: it keeps its last targets.
        """
        self._stopped = self._stopped or "the hand was stopped; reset it to go on"
        link = self._link
        if link is None or self._halted == self.sent:
            return
        has_turn = self._turn.acquire(timeout=_TURN)
        try:
            self._halt(link)
        finally:
            if has_turn:
                self._turn.release()

    def _halt(self, link: _Link) -> None:
        """Publish what stops the hand."""
        topics, state = self.config.topics, self._state
        limit = (self.config.stale + 1.0) * self.control_dt
        is_known = state is not None and time.monotonic() - state.measured_at <= limit
        ends = {topics.command: link.command}
        try:
            if state is not None and is_known:
                here = np.clip(state.joints, self._low, self._high)
                self._publish(link, here, topics.frame_id)
                self._target = here
        finally:  # last, for a target makes the hand stiff again
            sent = self.sent
            if link.words is not None:
                ends[topics.words] = link.words
                link.words.publish(link.word(topics.off))
        if deaf := [topic for topic, end in ends.items() if not end.get_num_connections()]:
            raise RobotError(f"nobody listens to {', '.join(deaf)}: the hand may still move")
        if not is_known and link.words is None:
            raise RobotError(f"no new state on {topics.state}: the hand keeps its last targets")
        self._halted = sent

    def _send(self, target: np.ndarray, frame_id: str) -> np.ndarray:
        link = self._connected()
        self._check_running()
        if not link.command.get_num_connections():
            raise RobotError(f"nobody listens to {self.config.topics.command} any more")
        with self._turn:
            self._check_running()
            self._publish(link, target, frame_id)
            if self._stopped:  # by somebody who did not wait, and perhaps before this target
                self._halt(link)
                self._check_running()
            self._target = target
            return target.copy()

    def _publish(self, link: _Link, target: np.ndarray, frame_id: str) -> None:
        topics = self.config.topics
        message = link.message()
        message.header.stamp = link.rospy.Time.from_sec(time.time())
        message.header.frame_id = frame_id
        message.name = list(topics.names if topics.command_name is None else topics.command_name)
        message.position = target.tolist()
        link.command.publish(message)
        self.sent += 1

    def _on_state(self, message: Any) -> None:
        """Note a state; runs in one of rospy's threads."""
        now, age = self.received.hear(message)
        topics, trusts = self.config.topics, self.config.trust_stamps
        try:
            joints = in_order(message.name, message.position, topics.names)
            if trusts and -age > self.config.stale * self.control_dt:
                raise RobotError(
                    f"this state is stamped {-age:.3f} s in the future: set the two computers' "
                    "clocks, or trust_stamps=False"
                )
        except RobotError as error:
            self._fault = f"{topics.state}: {error}"
        else:
            self._state = _State(joints, now - max(0.0, age) if trusts else now, now)
            self._fault = ""
        with self._heard:
            self._heard.notify_all()

    def _fresh(self) -> _State:
        """Return the newest state if it is fit for use; wait for it up to a control period.

        After a hiccup of this process what came meanwhile is still on its way through it.
        """
        self._connected()
        limit, topic = self.config.stale * self.control_dt, self.config.topics.state

        def is_fresh() -> bool:
            state = self._state
            return state is not None and time.monotonic() - state.measured_at <= limit

        with self._heard:
            fresh = self._heard.wait_for(lambda: self._fault or is_fresh(), self.control_dt)
        state, fault, now = self._state, self._fault, time.monotonic()
        if fault:
            raise RobotError(fault)
        if state is None:
            raise RobotError(f"no joint state has come on {topic}")
        if not fresh:
            raise RobotError(
                f"the newest state on {topic} was measured {now - state.measured_at:.3f} s ago and "
                f"came {now - state.received_at:.3f} s ago, the limit is {limit:g} s. If it keeps "
                "coming the two computers' clocks differ: set them, or trust_stamps=False"
            )
        return state

    def _connected(self) -> _Link:
        if self._link is None:
            raise RobotError("the hand is not connected: call connect() first")
        return self._link

    def _await_hand(self, link: _Link) -> None:
        """Wait for the first state and for somebody who takes targets."""
        topics, until = self.config.topics, time.monotonic() + self.config.patience
        with self._heard:
            come = self._heard.wait_for(
                lambda: self._state or self._fault, max(0.0, until - time.monotonic())
            )
        if self._fault:
            raise RobotError(self._fault)
        if not come:
            there = sorted(name for name, _ in link.rospy.get_published_topics())
            why = "its publisher is silent" if topics.state in there else f"there are {there}"
            raise RobotError(
                f"no joint state came on {topics.state} within {self.config.patience:g} s: {why}. "
                "Start the hand's node, or choose other topics"
            )
        time.sleep(0.2)  # a second publisher is connected to in a thread of its own
        if (publishers := link.state.get_num_connections()) > 1:
            raise RobotError(
                f"{publishers} nodes publish {topics.state}; one hand has one: end the others, or "
                "give each hand a namespace"
            )
        wanted = {topics.command: link.command}
        if link.words is not None:
            wanted[topics.words] = link.words  # a stop needs it
        for topic, end in wanted.items():
            while not end.get_num_connections():
                if time.monotonic() > until:
                    raise RobotError(
                        f"nobody listens to {topic} within {self.config.patience:g} s: the hand's "
                        "node takes its targets, or its words, from another topic"
                    )
                time.sleep(0.01)

    def _arrive(self, goal: np.ndarray) -> None:
        until = time.monotonic() + self.config.patience
        while True:
            self._check_running()
            off = np.abs(self._fresh().joints - goal)
            if off.max() <= self.config.tolerance:
                return
            if time.monotonic() > until:
                worst = int(np.argmax(off))
                raise RobotError(
                    f"the hand did not reach its start within {self.config.patience:g} s: "
                    f"{JOINTS[worst]} is {off[worst]:.2f} rad away. Is it switched on, and nothing "
                    "in its way?"
                )
            time.sleep(self.control_dt)


def penspin_hand(namespace: str) -> AllegroRos:
    """Return the driver of a hand behind PenSpin's node, in a ROS namespace; empty for none."""
    return AllegroRos(AllegroConfig(topics=TOPICS["penspin"].within(namespace)))


def wonik_hand(namespace: str) -> AllegroRos:
    """Return the same behind allegro-hand-ros, the node of Wonik."""
    return AllegroRos(AllegroConfig(topics=TOPICS["allegro_hand_ros"].within(namespace)))


def _unregister(link: _Link) -> None:
    for end in (link.state, link.command, link.words):
        if end is not None:
            end.unregister()
