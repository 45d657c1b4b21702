"""The control loop of a robot: observe, get a target, send it, record; at the card's rate.

Where targets come from is a `TargetSource`: `PolicySource` asks a policy, `real.replay.replay`
repeats a trajectory. What keeps the robot safe meanwhile is around it (`real.control.safety`):
limits on what is sent, and a watchdog that holds and then stops the robot where no fresh command
comes. A step without an answer sends nothing. A stopped robot has lost its episode, which ends
there; the next one begins with a reset, as soon as the policy answers again.
"""

import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from penspin_style.data.episodes.episode import TIME, Channel, Header, Recorder, commands
from penspin_style.deploy.actions import Decoder
from penspin_style.deploy.history import Observer
from penspin_style.deploy.policy import NoActionError, Policy, next_action, set_deadline
from penspin_style.features import PolicyCard
from penspin_style.system import interrupt
from penspin_style.system.terminal import one_line
from real.control.match import check_policy
from real.control.safety import SafeRobot, Watchdog
from real.control.success import Label, SuccessCheck
from real.rate import STAGES, Latency, Rate
from real.robot import Observation, StoppedError

ANSWERED = "measure/answered"
"""1 in a control step that had a fresh target, 0 in one that kept the last."""
START = "start"
"""Fact of a trajectory: joint -> positions from which it began."""
RESERVE = 0.002
"""Seconds of a control step that are left for sending."""


@dataclass(frozen=True)
class Command:
    """What a source wants sent."""

    target: np.ndarray
    """(naction,), in the channels' units."""
    action: np.ndarray | None = None
    """(naction,) in [-1, 1], what it was decoded from; None: what is sent says it."""


class TargetSource(Protocol):
    """Where targets come from.

    One that can end an episode has `ended`, bool, which is looked at after every control step.
    """

    def check(self, robot: SafeRobot) -> None:
        """Check that the targets are for this robot.

        Raises:
            MismatchError: they are for other channels, or for another rate.
        """

    def begin(self) -> None:
        """Get ready for an episode, however long that takes; the robot rests meanwhile."""

    def next(self, observation: Observation, last: np.ndarray, deadline: float) -> Command | None:
        """Return what to send in this control step; None for nothing.

        last: (naction,) what the robot follows now.
        deadline: s, monotonic, by which it must be there; infinity in fast time.
        """

    def counts(self) -> dict[str, int]:
        """Return what went wrong in this episode, by name."""
        ...


class PolicySource:
    """Targets of a policy that sees what the robot measures: its actions, if they are in time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.observer, self.decoder = Observer(policy.card), Decoder(policy.card)
        self.unanswered = self.dropped = 0

    def check(self, robot: SafeRobot) -> None:
        """Check that the policy is for this robot."""
        check_policy(self.policy.card, robot)

    def begin(self) -> None:
        """Wait until the policy answers, to nothing but zeros; forget that and the last episode."""
        zeros = {i.name: np.zeros(i.tensor[1], i.tensor[0]) for i in self.policy.card.inputs}
        self._ask(zeros, float("inf"))
        self.policy.reset()
        self.observer.reset()
        self.unanswered = self.dropped = 0

    def next(self, observation: Observation, last: np.ndarray, deadline: float) -> Command | None:
        """Ask the policy. The history goes on also where no answer comes."""
        action = self._ask(self.observer(observation.values), deadline)
        if action is None:
            self.unanswered += 1
            return None
        action = np.clip(action, -1.0, 1.0)
        command = Command(self.decoder.decode(action, last), action)
        if time.monotonic() < deadline:
            return command
        self.dropped += 1  # it was in time, but this computer had other things to do
        return None

    def counts(self) -> dict[str, int]:
        """Return the steps without an action, and those whose action was too old to be sent.

        Also how often a connection to the policy had to be opened again, if there is one.
        """
        counts = {"unanswered": self.unanswered, "dropped": self.dropped}
        reconnects = getattr(self.policy, "reconnects", None)
        return counts if reconnects is None else {**counts, "reconnects": reconnects}

    def _ask(self, inputs: Mapping[str, np.ndarray], deadline: float) -> np.ndarray | None:
        """Return the action (naction,); None if it is not there in time."""
        set_deadline(self.policy, deadline)
        try:
            action = next_action(self.policy, inputs)
        except NoActionError:
            return None
        return action if time.monotonic() < deadline else None


@dataclass(frozen=True)
class Outcome:
    """What an episode came to."""

    steps: int
    success: bool | None
    """None where nobody can say."""
    measures: dict[str, float]
    """The robot's own, at the end; empty if it has none."""
    stopped: str
    """Why the robot was stopped in the middle of it, empty if it was not."""
    latency: Latency
    counts: dict[str, int]
    """`late_ticks`, `left_out` (periods), and what the source counts."""
    path: pathlib.Path | None
    """Where it is recorded, None if it was not kept."""

    def facts(self) -> dict[str, Any]:
        """Return what is recorded of it beside its rows."""
        facts = {"measures": self.measures, "counts": self.counts, "latency": self.latency.facts()}
        return facts | ({"stopped": self.stopped} if self.stopped else {})


class Loop:
    """Run episodes on a robot."""

    def __init__(
        self,
        robot: SafeRobot,
        source: TargetSource,
        success: SuccessCheck,
        *,
        recorder: Recorder | None = None,
        watchdog: Watchdog | None = None,
        realtime: bool = True,
        ready: Callable[[], object] | None = None,
        until_done: bool = True,
    ) -> None:
        """Put the parts together.

        robot: connected, and with its limits around it.
        watchdog: started; needed where time passes by itself.
        realtime: whether it does; if not, a control step takes as long as it takes.
        ready: called when the robot stands at its start; returns when the object is in place.
        until_done: whether an episode ends when the robot says that it is done, as a twin does.
        """
        if realtime and watchdog is None:
            raise ValueError("a robot in real time needs a watchdog")
        self.robot, self.source, self.success = robot, source, success
        self.recorder, self.watchdog, self.realtime = recorder, watchdog, realtime
        self.ready, self.until_done = ready or (lambda: None), until_done
        self.decoder = Decoder(robot.channels)
        self.rate = Rate(robot.control_dt, realtime=realtime)

    def run(
        self,
        steps: int,
        start: Mapping[str, np.ndarray] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Run one episode of at most so many control steps; label it, and keep its record.

        facts: recorded with it.

        Raises:
            MismatchError: the source is for another robot; nothing has moved.
            RobotError: the robot fails, or there is no policy to ask any more; nothing is kept.
            RecorderError: the recording is lost.
        """
        try:
            self.source.check(self.robot)
            self.source.begin()
            self.robot.reset(start)
            self.success.check(self._measures())
            self.ready()
            with interrupt.holding() as check:
                done, stopped, latency = self._control(steps, check)
            measures = self._measures()
            label = self.success(measures, stopped)
        except BaseException:
            if self.recorder is not None:
                with interrupt.holding():
                    self.recorder.abort()
            raise
        late = {"late_ticks": self.rate.late, "left_out": self.rate.left_out}
        counts = {**late, **self.source.counts(), **self.robot.interventions}
        said = None if label is None else label.value
        outcome = Outcome(done, said, measures, stopped, latency, counts, None)
        with interrupt.holding():
            return dataclasses.replace(outcome, path=self._keep(outcome, label, facts or {}))

    def _control(self, steps: int, check: Callable[[], None]) -> tuple[int, str, Latency]:
        """Return how many steps were made, why it was stopped, and how long everything took.

        check: raises if a signal has come.
        """
        done, stopped, latency = 0, "", Latency()
        self.robot.interventions.clear()
        self.rate.start()
        if self.watchdog is not None:
            self.watchdog.feed()  # the first action has as long as every other
        try:
            while done < steps:
                check()
                self._step(done, latency)
                done += 1
                self.rate.wait()
                is_done = self.until_done and getattr(self.robot.robot, "done", False)
                if is_done or getattr(self.source, "ended", False):
                    break
        except StoppedError as error:
            if not self.robot.reason:  # the robot itself says so: it takes nothing until a reset
                self.robot.stop(one_line(error) or "it says that it is stopped")
            stopped = self.robot.reason
        except BaseException as error:
            self.robot.stop(_reason(error))  # before anything else, as a disk, may hang
            raise
        finally:
            if self.watchdog is not None:
                self.watchdog.rest()
        return done, stopped, latency

    def _step(self, t: int, latency: Latency) -> None:
        began = time.monotonic()
        passed = began - self.rate.begin if self.realtime else t * self.robot.control_dt
        seen = self.robot.observe()
        observed = time.monotonic()
        last = self.robot.target
        command = self.source.next(seen, last, self.rate.deadline - RESERVE)
        asked = time.monotonic()
        answered = 1.0
        if command is not None:
            sent = self.robot.command(command.target)
            if self.watchdog is not None:
                self.watchdog.feed()
        elif self.robot.reason:
            raise StoppedError(self.robot.reason)
        else:
            command, sent, answered = Command(last), self.robot.target, 0.0
        ended = time.monotonic()
        for stage, seconds in zip(
            STAGES, (observed - began, asked - observed, ended - asked, ended - began), strict=True
        ):
            latency.add(stage, seconds)
        if self.recorder is not None:
            action = self.decoder.encode(sent, last) if command.action is None else command.action
            row = {TIME: passed, "action": action, "target": command.target, "sent": sent}
            row[ANSWERED] = answered
            row |= {f"observation/{name}": value for name, value in seen.values.items()}
            self.recorder.append(row)

    def _measures(self) -> dict[str, float]:
        """Return what the robot says of the episode until now, if it can."""
        measure = getattr(self.robot.robot, "measures", None)
        return {} if measure is None else {k: float(v) for k, v in measure().items()}

    def _keep(
        self, outcome: Outcome, label: Label | None, facts: Mapping[str, Any]
    ) -> pathlib.Path | None:
        recorder = self.recorder
        if recorder is None:
            return None
        wanted = outcome.success or not self.success.only_successes
        if not recorder.rows or not wanted or label is Label.DISCARD:
            recorder.abort()
            return None
        by_hand = self.success.by_hand or self.success.said() is not None
        how = {"judged": "by hand"} if by_hand else {}
        how |= {"rule": str(self.success.rule)} if self.success.rule is not None else {}
        return recorder.finish(outcome.success, {**facts, **how, **outcome.facts()})


def _reason(error: BaseException) -> str:
    """Return why a robot is stopped whose control loop was left by an exception."""
    if isinstance(error, interrupt.Interrupted):
        return f"interrupted by {signal.Signals(error.number).name}"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "its control loop failed"


def header(
    robot: SafeRobot,
    *,
    task: str,
    source: str,
    name: str,
    card: PolicyCard | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Header:
    """Return what the episodes of a robot hold: every feature that it measures.

    source: `twin` or `real`; name: the robot's; card: of the policy, if one acts.
    """
    observed = tuple(
        Channel(f"observation/{f.name}", tuple(f.shape), f.dtype, f.unit)
        for f in robot.features.values()
    )
    # channels stand on the card of a policy; where none acts, the robot's own are what counts
    acts = card or PolicyCard(task, (), robot.channels, (), robot.control_dt)
    channels = (*observed, *commands(acts), Channel(ANSWERED, (), "float64"))
    return Header(task, source, name, robot.control_dt, channels, card, facts or {})


def watch(robot: SafeRobot) -> Watchdog:
    """Return a watchdog that holds at 0.1 s and stops at 0.5 s; later for slower control."""
    hold = max(0.1, 2.0 * robot.control_dt) if robot.control_dt > 0.08 else 0.1
    return Watchdog(robot, hold=hold, stop=max(0.5, 2.0 * hold))
