"""Robots behind ROS topics: what their drivers share. Joint targets out, measured joints in.

A robot is one part or several: a hand, two arms, an arm and its gripper. Each part has a topic of
its measured joints; the channels are the parts', one part after the other. A driver says which
topics there are and what stands in their messages; when what is sent and what may be trusted is the
same for all. Topics are those of ROS 1, unless a driver opens others (`_open_link`).
"""

import functools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from penspin_style.features import ActionChannel, Feature
from real.drivers import external, ros
from real.drivers.described import Described
from real.drivers.start_pose import start_pose
from real.robot import Observation, RobotError, check_target, stop_surely

_TURN = 0.005
"""Seconds that a stop waits for a target that is being published."""


@dataclass(frozen=True, kw_only=True)
class RosConfig:
    """How to drive a robot behind ROS topics."""

    control_dt: float
    """Seconds between two commands."""
    start: tuple[float, ...]
    """The start pose, in the channels' units."""
    patience: float = 5.0
    """Seconds to wait for the robot's nodes, and for the joints to arrive."""
    stale: float = 2.0
    """Control periods after which a measurement is too old; one more is waited for a newer one."""
    trust_stamps: bool = True
    """Whether messages say when they were measured; needs the two computers' clocks in step.
    Without it a measurement is as old as its message."""


@dataclass(frozen=True, eq=False)
class State:
    """Joints as they were measured."""

    joints: np.ndarray
    """In the channels' order and units."""
    measured_at: float
    received_at: float
    """s, monotonic."""


@dataclass(frozen=True)
class Link:
    """What there is only while connected."""

    rospy: Any
    """Or what stands in for it: of it only `get_published_topics` is asked here."""
    publishers: Mapping[str, Any]
    """Topic -> publisher; all of them must be listened to."""
    subscribers: tuple[Any, ...]
    """The subscribers of the parts' states."""


class RosRobot(Described, ABC):
    """See the module's docstring and `real.robot.Robot`.

    received: what is known of the state messages, sent: how many targets were published.
    """

    part: ClassVar[str]
    """One part in messages, as `arm`."""
    joints: tuple[str, ...]

    def __init__(
        self,
        config: RosConfig,
        own: Iterable[Feature],
        also: Sequence[external.External],
        channels: tuple[ActionChannel, ...],
        states: Sequence[str],
        *,
        start_speed: np.ndarray | float,
        tolerance: np.ndarray | float,
        counts: Sequence[int] | None = None,
    ) -> None:
        """Describe a robot without connecting to it.

        own, also, channels: as of `Described`. states: topic of each part's measured joints.
        start_speed: of the way to the start, per channel, units/s; tolerance: how near to it a
            channel must come. counts: channels of each part; default as many for each.
        """
        super().__init__(own, also, channels, config.control_dt)
        self._config, self._topics = config, tuple(states)
        counts = counts or [len(channels) // len(self._topics)] * len(self._topics)
        ends = np.cumsum(counts).tolist()
        self._slices = [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]
        self._start_speed, self._tolerance = start_speed, tolerance
        self.received = ros.Tally()
        self.sent = 0
        self._turn = threading.RLock()  # of what is published; not waited for to stop
        self._halted: int | None = None  # what was `sent` when a stop was last confirmed
        self._heard = threading.Condition()
        self._forget()
        self._link: Link | None = None

    # What the drivers say.

    @abstractmethod
    def _open(self, rospy: Any) -> dict[str, Any]:
        """Return the publishers of what the robot is told, by topic."""

    @abstractmethod
    def _read(self, part: int, message: Any) -> np.ndarray:
        """Return the joints of a state message, in the part's channels' order and units.

        Raises:
            RobotError: it is no state of such a part.
        """

    @abstractmethod
    def _write(self, link: Link, part: int, target: np.ndarray, *, is_start: bool) -> None:
        """Publish a part's targets; is_start: on the way to the start pose."""

    @abstractmethod
    def _values(self, joints: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        """Return the robot's own features of measured joints and targets."""

    def _let_go(self, link: Link) -> bool:
        """Make the robot limp; return whether its nodes know how to."""
        return False

    def _open_link(self) -> Link:
        """Become a ROS node and open the topics.

        Raises:
            RosError: no ROS, or no master.
        """
        rospy, msgs = ros.start_node("penspin"), ros.messages("sensor_msgs")
        publishers = self._open(rospy)
        subscribers = [
            rospy.Subscriber(
                topic, msgs.JointState, functools.partial(self._on_state, i), tcp_nodelay=True
            )
            for i, topic in enumerate(self._topics)
        ]
        return Link(rospy, publishers, tuple(subscribers))

    def _hear(self, message: Any) -> tuple[float, float]:
        """Note that a state came; return when, s monotonic, and its age, s."""
        return self.received.hear(message)

    def _confirm(self, link: Link) -> None:
        """Check that what was published has gone out.

        Raises:
            RobotError: it has not.
        """

    # The robot.

    def connect(self) -> None:
        """Become a ROS node and wait for the robot's; sends nothing. Again is no error.

        Raises:
            RosError: no ROS, or no master.
            RobotError: nobody publishes joint states, or listens to targets.
        """
        if self._link is not None:
            return
        self._forget()
        link = self._open_link()
        try:
            self._await_robot(link)
            self.sensors.start()
        except RobotError:
            _unregister(link)
            raise
        self._link, self._halted = link, None

    def disconnect(self) -> None:
        """Stop the robot, make it limp as far as its nodes allow, and leave; again is no error.

        One that has been sent nothing since it was connected is sent nothing now.

        Raises:
            RobotError: nobody listens to it any more, so that it may still move.
        """
        link = self._link
        if link is None:
            return
        try:
            if self.sent:
                stop_surely(self.stop)
                time.sleep(0.1)  # what was sent last is on its way in another thread
        finally:
            self._link = self._target = None
            self.sensors.close()
            _unregister(link)

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Go to the start pose slowly.

        start: `qpos` (naction,) in place of the configuration's, or single joints by name.

        Raises:
            RobotError: not connected, an unknown name, a pose outside the limits, or a joint does
                not arrive.
        """
        limits = {name: (c.low, c.high) for name, c in zip(self.joints, self.channels, strict=True)}
        units = [c.unit for c in self.channels]
        goal = start_pose(start, self._config.start, limits, units)
        self._connected()
        self._stopped, self._target = "", None
        begin = np.clip(self._fresh().joints, self._low, self._high)
        duration = (np.abs(goal - begin) / self._start_speed).max()
        steps = max(1, int(np.ceil(duration / self.control_dt)))
        for share in np.linspace(0.0, 1.0, steps + 1)[1:]:
            self._send(begin + share * (goal - begin), is_start=True)
            time.sleep(self.control_dt)
        self._arrive(goal)

    def observe(self) -> Observation:
        """Return the newest measurement.

        Before the first reset the joints stand in for the targets.

        Raises:
            RobotError: not connected; the last message is no joint state, or too old.
        """
        state = self._fresh()
        target = state.joints if self._target is None else self._target
        values = {**self._values(state.joints, target), **self.sensors.read()}
        return Observation(values, state.measured_at, state.joints.copy())

    def command(self, target: np.ndarray) -> np.ndarray:
        """Publish targets (naction,), clipped to the channels' limits; return what was published.

        Raises:
            StoppedError: the robot is stopped.
            RobotError: not connected or not reset, no finite numbers, or nobody listens.
        """
        wanted = check_target(target, self.channels)
        if self._target is None:
            raise RobotError(f"reset {self.called} before the first command")
        return self._send(np.clip(wanted, self._low, self._high))

    def hold(self) -> None:
        """Publish the last target once more, unless one is being published; again is no error."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self._link is not None and self._target is not None and not self._stopped:
                self._publish(self._link, self._target)
        finally:
            self._turn.release()

    def stop(self) -> None:
        """Make the measured joints the targets and, where its nodes know how, the robot limp.

        Again is no error, and publishes nothing that has been heard.

        Raises:
            RobotError: nobody listens; or it is not known where the joints are, and the nodes
                cannot make it limp: it keeps its last targets.
        """
        self._stopped = self._stopped or f"{self.called} was stopped; reset it to go on"
        link = self._link
        if link is None or self._halted == self.sent:
            return
        has_turn = self._turn.acquire(timeout=_TURN)
        try:
            self._halt(link)
        finally:
            if has_turn:
                self._turn.release()

    def _halt(self, link: Link) -> None:
        """Publish what stops the robot; a part of which nothing is known keeps its targets."""
        limit = (self._config.stale + 1.0) * self.control_dt
        now, target = time.monotonic(), self._target
        here = np.full(len(self.channels), np.nan) if target is None else target.copy()
        known = [s is not None and now - s.measured_at <= limit for s in self._states]
        try:
            for part, (state, place) in enumerate(zip(self._states, self._slices, strict=True)):
                if state is not None and known[part]:
                    here[place] = np.clip(state.joints, self._low[place], self._high[place])
                    self._write(link, part, here[place], is_start=False)
            self.sent += any(known)
            if np.isfinite(here).all():
                self._target = here
        finally:  # last, for a target makes the joints stiff again
            sent = self.sent
            is_limp = self._let_go(link)
        if unheard := [
            topic for topic, end in link.publishers.items() if not end.get_num_connections()
        ]:
            raise RobotError(
                f"nobody listens to {', '.join(unheard)}: {self.called} may still move"
            )
        if not all(known) and not is_limp:
            silent = [t for t, is_known in zip(self._topics, known, strict=True) if not is_known]
            raise RobotError(
                f"no new state on {', '.join(silent)}: {self.called} keeps its last targets"
            )
        self._confirm(link)
        self._halted = sent

    def _send(self, target: np.ndarray, *, is_start: bool = False) -> np.ndarray:
        link = self._connected()
        self._check_running()
        if unheard := [
            topic for topic, end in link.publishers.items() if not end.get_num_connections()
        ]:
            raise RobotError(f"nobody listens to {unheard} any more")
        with self._turn:
            self._check_running()
            self._publish(link, target, is_start=is_start)
            if self._stopped:  # by somebody who did not wait, and perhaps before this target
                self._halt(link)
                self._check_running()
            self._target = target
            return target.copy()

    def _publish(self, link: Link, target: np.ndarray, *, is_start: bool = False) -> None:
        """Publish the targets of all parts, until a stop comes."""
        for part, place in enumerate(self._slices):
            self._write(link, part, target[place], is_start=is_start)
            if self._stopped:
                break
        self.sent += 1

    def _on_state(self, part: int, message: Any) -> None:
        """Note a state; runs in one of rospy's threads."""
        now, age = self._hear(message)
        trusts = self._config.trust_stamps
        try:
            joints = self._read(part, message)
            if trusts and -age > self._config.stale * self.control_dt:
                raise RobotError(
                    f"this state is stamped {-age:.3f} s in the future: set the two computers' "
                    "clocks, or trust_stamps=False"
                )
        except RobotError as error:
            self._faults[part] = f"{self._topics[part]}: {error}"
        else:
            self._states[part] = State(joints, now - max(0.0, age) if trusts else now, now)
            self._faults[part] = ""
        with self._heard:
            self._heard.notify_all()

    def _fresh(self) -> State:
        """Return the newest state if it is fit for use; wait for it up to a control period.

        After a hiccup of this process what came meanwhile is still on its way through it. Of
        several parts it is as old as the oldest.
        """
        self._connected()
        limit = self._config.stale * self.control_dt

        def is_fresh() -> bool:
            now = time.monotonic()
            return all(s is not None and now - s.measured_at <= limit for s in self._states)

        with self._heard:
            fresh = self._heard.wait_for(lambda: any(self._faults) or is_fresh(), self.control_dt)
        faults, states, now = [*self._faults], [*self._states], time.monotonic()
        if any(faults):
            raise RobotError(next(filter(None, faults)))
        known = [state for state in states if state is not None]
        if len(known) < len(states):
            raise RobotError(f"no joint state has come on {self._topics[states.index(None)]}")
        oldest = min(known, key=lambda state: state.measured_at)
        if not fresh:
            raise RobotError(
                f"the newest state on {self._topics[known.index(oldest)]} was measured "
                f"{now - oldest.measured_at:.3f} s ago and came {now - oldest.received_at:.3f} s "
                f"ago, the limit is {limit:g} s. If it keeps coming the two computers' clocks "
                "differ: set them, or trust_stamps=False"
            )
        joints = np.concatenate([state.joints for state in known])
        return State(joints, oldest.measured_at, oldest.received_at)

    def _connected(self) -> Link:
        if self._link is None:
            raise RobotError(f"{self.called} is not connected: call connect() first")
        return self._link

    def _forget(self) -> None:
        self._states: list[State | None] = [None] * len(self._topics)
        self._faults = [""] * len(self._topics)
        self.received, self.sent = ros.Tally(), 0

    def _await_robot(self, link: Link) -> None:
        """Wait for the first state of each part, and for somebody who takes targets."""
        patience = self._config.patience
        until = time.monotonic() + patience
        with self._heard:
            come = self._heard.wait_for(
                lambda: any(self._faults) or None not in self._states,
                max(0.0, until - time.monotonic()),
            )
        if any(self._faults):
            raise RobotError(next(filter(None, self._faults)))
        if not come:
            topic = self._topics[self._states.index(None)]
            there = sorted(name for name, _ in link.rospy.get_published_topics())
            why = "its publisher is silent" if topic in there else f"there are {there}"
            raise RobotError(
                f"no joint state came on {topic} within {patience:g} s: {why}. "
                f"Start the {self.part}'s node, or choose other topics"
            )
        time.sleep(0.2)  # a second publisher is connected to in a thread of its own
        for topic, subscriber in zip(self._topics, link.subscribers, strict=True):
            if (count := subscriber.get_num_connections()) > 1:
                raise RobotError(
                    f"{count} nodes publish {topic}; one {self.part} has one: end the others, "
                    f"or give each {self.part} a namespace"
                )
        for topic, end in link.publishers.items():  # a stop needs them all
            while not end.get_num_connections():
                if time.monotonic() > until:
                    raise RobotError(
                        f"nobody listens to {topic} within {patience:g} s: the {self.part}'s "
                        "node takes its targets, or its words, from another topic"
                    )
                time.sleep(0.01)

    def _arrive(self, goal: np.ndarray) -> None:
        until = time.monotonic() + self._config.patience
        while True:
            self._check_running()
            off = np.abs(self._fresh().joints - goal)
            if (off <= self._tolerance).all():
                return
            if time.monotonic() > until:
                worst = int(np.argmax(off / self._tolerance))
                raise RobotError(
                    f"{self.called} did not reach its start within {self._config.patience:g} s: "
                    f"{self.joints[worst]} is {off[worst]:.2g} {self.channels[worst].unit} away. "
                    "Is it switched on, and nothing in its way?"
                )
            time.sleep(self.control_dt)


def _unregister(link: Link) -> None:
    for end in (*link.subscribers, *link.publishers.values()):
        end.unregister()


def _unheard(link: Link) -> str:
    """Return the topics that nobody listens to, separated by commas."""
    return ", ".join(t for t, end in link.publishers.items() if not end.get_num_connections())
