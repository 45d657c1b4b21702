"""The control loop of a robot: observe, get a target, send it, record; at the card's rate.

Where targets come from is a `Source`: `Closed` asks a policy, `real.replay` repeats a trajectory.
What keeps the robot safe meanwhile is around it (`real.safety`): limits on what is sent, and a
watchdog that holds and then stops the robot where no fresh command comes. A step without an answer
sends nothing. A stopped robot has lost its episode, which ends there; the next one begins with a
reset, as soon as the policy answers again.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from penspin_style.data.episode import TIME, Channel, Header, Recorder, commands
from penspin_style.features import PolicyCard
from real.decode import Decoder
from real.link import Policy
from real.match import check_policy
from real.observer import Observer
from real.pace import STAGES, Latency, Pace
from real.robot import Observation, StoppedError
from real.safety import SafeRobot, Watchdog
from real.verdict import Rule, Verdict, ask

ANSWERED = "measure/answered"
"""1 in a control step that had a fresh target, 0 in one that kept the last."""
START = "start"
"""Fact of a trajectory: joint -> positions from which it began."""
RESERVE = 0.002
"""Seconds of a control step that are left for sending."""


@dataclass(frozen=True)
class Wish:
    """What a source wants sent."""

    target: np.ndarray
    """(naction,), in the channels' units."""
    action: np.ndarray | None = None
    """(naction,) in [-1, 1], what it was decoded from; None: what is sent says it."""


class Source(Protocol):
    """Where targets come from."""

    def check(self, robot: SafeRobot) -> None:
        """Check that the targets are for this robot.

        Raises:
            MismatchError: they are for other channels, or for another rate.
        """

    def begin(self) -> None:
        """Get ready for an episode, however long that takes; the robot rests meanwhile."""

    def next(self, observation: Observation, last: np.ndarray, deadline: float) -> Wish | None:
        """Return what to send in this control step; None for nothing.

        last: (naction,) what the robot follows now.
        deadline: s, monotonic, by which it must be there; infinity in fast time.
        """

    def counts(self) -> dict[str, int]:
        """Return what went wrong in this episode, by name."""
        ...


class Closed:
    """Targets of a policy that sees what the robot measures."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.observer, self.decoder = Observer(policy.card), Decoder(policy.card)
        self.dropped = 0

    def check(self, robot: SafeRobot) -> None:
        """Check that the policy is for this robot."""
        check_policy(self.policy.card, robot)

    def begin(self) -> None:
        """Wait until the policy answers, to nothing but zeros; forget that and the last episode."""
        zeros = {i.name: np.zeros(i.tensor[1], i.tensor[0]) for i in self.policy.card.inputs}
        self.policy.ask(zeros, float("inf"))
        self.policy.reset()
        self.observer.reset()
        self.dropped = 0

    def next(self, observation: Observation, last: np.ndarray, deadline: float) -> Wish | None:
        """Ask the policy. The history goes on also where no answer comes."""
        action = self.policy.ask(self.observer(observation.values), deadline)
        if action is None:
            return None
        action = np.clip(action, -1.0, 1.0)
        wish = Wish(self.decoder.decode(action, last), action)
        if time.monotonic() < deadline:
            return wish
        self.dropped += 1  # it was in time, but this computer had other things to do
        return None

    def counts(self) -> dict[str, int]:
        """Return the policy's, and `dropped`, actions that were too old to be sent."""
        return {**self.policy.counts(), "dropped": self.dropped}


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


@dataclass(frozen=True)
class Judge:
    """How episodes are judged, and which are kept."""

    rule: Rule | None = None
    """None: nothing but `by_hand` says what a success is."""
    by_hand: bool = False
    """Whether to ask on the terminal after each episode; the rule's answer is shown."""
    only_successes: bool = False

    def check(self, measures: Mapping[str, float]) -> None:
        """Check before an episode that the robot measures what the rule names.

        Raises:
            RobotError: it does not, and nobody is asked either.
        """
        if self.rule is not None and (measures or not self.by_hand):
            self.rule.holds(measures)

    def __call__(self, measures: Mapping[str, float], stopped: str) -> Verdict | None:
        """Return what is made of an episode, None if nobody can say.

        Raises:
            RobotError: the robot does not measure what the rule names, or nobody answers.
        """
        ruled = None
        if self.rule is not None and (measures or not self.by_hand):
            ruled = Verdict(self.rule.holds(measures))
        if not self.by_hand:
            return ruled
        shown = ", ".join(f"{name} {value:.3g}" for name, value in measures.items())
        said = f" (by {self.rule}: {'yes' if ruled.value else 'no'})" if ruled else ""
        why = f"stopped, {stopped}; " if stopped else ""
        return ask(f"{why}{shown}{said}\nwas it a success?".lstrip("\n"))


class Loop:
    """Run episodes on a robot."""

    def __init__(
        self,
        robot: SafeRobot,
        source: Source,
        judge: Judge,
        *,
        recorder: Recorder | None = None,
        watchdog: Watchdog | None = None,
        realtime: bool = True,
        ready: Callable[[], object] | None = None,
    ) -> None:
        """Put the parts together.

        robot: connected, and with its limits around it.
        watchdog: started; needed where time passes by itself.
        realtime: whether it does; if not, a control step takes as long as it takes.
        ready: called when the robot stands at its start; returns when the object is in place.
        """
        if realtime and watchdog is None:
            raise ValueError("a robot in real time needs a watchdog")
        self.robot, self.source, self.judge = robot, source, judge
        self.recorder, self.watchdog, self.realtime = recorder, watchdog, realtime
        self.ready = ready or (lambda: None)
        self.decoder = Decoder(robot.channels)
        self.pace = Pace(robot.control_dt, realtime=realtime)

    def run(
        self,
        steps: int,
        start: Mapping[str, np.ndarray] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Run one episode of at most so many control steps; judge it, and keep its record.

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
            self.judge.check(self._measures())
            self.ready()
            done, stopped, latency = self._control(steps)
            measures = self._measures()
            verdict = self.judge(measures, stopped)
        except BaseException:
            if self.recorder is not None:
                self.recorder.abort()
            raise
        late = {"late_ticks": self.pace.late, "left_out": self.pace.left_out}
        counts = {**late, **self.source.counts(), **self.robot.interventions}
        success = None if verdict is None else verdict.value
        outcome = Outcome(done, success, measures, stopped, latency, counts, None)
        return dataclasses.replace(outcome, path=self._keep(outcome, verdict, facts or {}))

    def _control(self, steps: int) -> tuple[int, str, Latency]:
        """Return how many steps were made, why it was stopped, and how long everything took."""
        done, stopped, latency = 0, "", Latency()
        self.robot.interventions.clear()
        self.pace.start()
        if self.watchdog is not None:
            self.watchdog.feed()  # the first action has as long as every other
        try:
            while done < steps:
                self._step(done, latency)
                done += 1
                self.pace.wait()
                if getattr(self.robot.robot, "done", False):
                    break
        except StoppedError:
            stopped = self.robot.reason
        except BaseException:
            self.robot.stop("its control loop failed")  # before anything else, as a disk, may hang
            raise
        finally:
            if self.watchdog is not None:
                self.watchdog.rest()
        return done, stopped, latency

    def _step(self, t: int, latency: Latency) -> None:
        began = time.monotonic()
        passed = began - self.pace.begin if self.realtime else t * self.robot.control_dt
        seen = self.robot.observe()
        observed = time.monotonic()
        last = self.robot.target
        wish = self.source.next(seen, last, self.pace.deadline - RESERVE)
        asked = time.monotonic()
        answered = 1.0
        if wish is not None:
            sent = self.robot.command(wish.target)
            if self.watchdog is not None:
                self.watchdog.feed()
        elif self.robot.reason:
            raise StoppedError(self.robot.reason)
        else:
            wish, sent, answered = Wish(last), self.robot.target, 0.0
        ended = time.monotonic()
        for stage, seconds in zip(
            STAGES, (observed - began, asked - observed, ended - asked, ended - began), strict=True
        ):
            latency.add(stage, seconds)
        if self.recorder is not None:
            action = self.decoder.encode(sent, last) if wish.action is None else wish.action
            row = {TIME: passed, "action": action, "target": wish.target, "sent": sent}
            row[ANSWERED] = answered
            row |= {f"observation/{name}": value for name, value in seen.values.items()}
            self.recorder.append(row)

    def _measures(self) -> dict[str, float]:
        """Return what the robot says of the episode until now, if it can."""
        measure = getattr(self.robot.robot, "measures", None)
        return {} if measure is None else {k: float(v) for k, v in measure().items()}

    def _keep(
        self, outcome: Outcome, verdict: Verdict | None, facts: Mapping[str, Any]
    ) -> pathlib.Path | None:
        recorder = self.recorder
        if recorder is None:
            return None
        wanted = outcome.success or not self.judge.only_successes
        if not recorder.rows or not wanted or verdict is Verdict.DISCARD:
            recorder.abort()
            return None
        how = {"judged": "by hand"} if self.judge.by_hand else {}
        how |= {"rule": str(self.judge.rule)} if self.judge.rule is not None else {}
        return recorder.finish(outcome.success, {**facts, **how, **outcome.facts()})


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
