"""Open loop: make trajectories of a teacher in simulation, repeat them on a robot, record that.

    penspin replay make TEACHER DIR --robot pen                  real.replay.collect
    penspin replay run DIR --robot pen_shifted --out RECORDED    here

The robot is put where a trajectory began and is sent its targets at the control rate, whatever
happens. Everything that it measures is recorded, with actions that say what was really sent; which
repetitions succeeded is said by a rule or by hand. What is recorded is what students learn from.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style.data.episodes.episode import Episode, Recorder, episodes
from penspin_style.features import PolicyCard
from real.control.loop import START, Command, Loop, Outcome, header
from real.control.match import Described, MismatchError, check_commands
from real.control.session import (
    Opened,
    Patience,
    connected,
    open_robot,
    place_by_hand,
    report,
    say,
    show,
    success_check,
)
from real.control.success import SuccessCheck, check_watched
from real.robot import Observation

_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_REMEDY = "make trajectories with `penspin replay make TEACHER DIR --robot NAME`"


@dataclass(frozen=True)
class Trajectory:
    """What is repeated."""

    path: pathlib.Path
    targets: np.ndarray
    """(T, naction), in the channels' units."""
    start: Mapping[str, np.ndarray]
    """Joint -> positions from which it began, the object's joint among them."""
    channels: tuple[str, ...]
    unit: str
    """Of the targets; `mixed` where they have several."""
    control_dt: float
    task: str
    """What the teacher did."""
    card: PolicyCard | None = None
    """Of the policy that made it, if the file says."""


class TrajectorySource:
    """A source of targets that looks at nothing; see `real.control.loop.TargetSource`."""

    def __init__(self) -> None:
        self._trajectory: Trajectory | None = None
        self._next = 0

    def load(self, trajectory: Trajectory) -> None:
        """Take the targets of the next episode."""
        self._trajectory = trajectory

    def check(self, robot: Described) -> None:
        """Check that the trajectory is for this robot."""
        check(self._loaded(), robot)

    def begin(self) -> None:
        """Begin at the first target."""
        self._next = 0

    def next(self, observation: Observation, last: np.ndarray, deadline: float) -> Command | None:
        """Return the next target; at the end the last one again."""
        targets = self._loaded().targets
        target = targets[min(self._next, len(targets) - 1)]
        self._next += 1
        return Command(target)

    def _loaded(self) -> Trajectory:
        if self._trajectory is None:
            raise ValueError("there is nothing to repeat: load a trajectory first")
        return self._trajectory

    def counts(self) -> dict[str, int]:
        """Return nothing: nothing can go wrong."""
        return {}


def load(path: pathlib.Path) -> Trajectory:
    """Read a trajectory.

    Raises:
        EpisodeError, ValueError: it is damaged, or an episode that does not say where it began.
    """
    episode = Episode.open(path)
    start = episode.header.facts.get(START)
    if not isinstance(start, dict) or not start:
        raise ValueError(f"{path} does not say where it began, it is no trajectory; {_REMEDY}")
    (targets,) = (c for c in episode.header.channels if c.name == "target")
    try:
        placed = {str(name): np.asarray(value, float) for name, value in start.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its start is not one: {error}") from error
    head = episode.header
    return Trajectory(
        path,
        episode["target"],
        placed,
        targets.names,
        targets.unit,
        float(head.control_dt),
        head.task,
        head.card,
    )


def find(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the trajectories of a folder, in their order.

    Raises:
        ValueError: it is no folder, holds none, or is PenSpin's pickle.
    """
    if folder.is_file():
        with folder.open("rb") as file:
            is_pickle = folder.suffix in (".pkl", ".pickle") or file.read(2) in _PICKLE
        what = "a pickle, which would run code of its author" if is_pickle else "a file"
        raise ValueError(f"{folder} is {what}; give a folder of trajectories: {_REMEDY}")
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; {_REMEDY}")
    found = episodes(folder)
    if not found:
        raise ValueError(f"{folder} holds no trajectories; {_REMEDY}")
    return found


def check(trajectory: Trajectory, robot: Described) -> None:
    """Check that a trajectory is one for a robot's channels.

    Raises:
        MismatchError: other channels, another order, unit, mode, scale or limits, or another rate.
    """
    names = tuple(channel.name for channel in robot.channels)
    if trajectory.channels != names:
        raise MismatchError(
            f"{trajectory.path} has targets of {list(trajectory.channels)}, the robot takes "
            f"{list(names)}, in this order"
        )
    if abs(trajectory.control_dt - robot.control_dt) > 1e-9:
        raise MismatchError(
            f"{trajectory.path} has a target every {trajectory.control_dt:g} s, the robot takes "
            f"one every {robot.control_dt:g} s"
        )
    if trajectory.card is not None:
        check_commands(trajectory.card, robot, f"{trajectory.path}: ")
    units = dict.fromkeys(channel.unit for channel in robot.channels)
    if len(units) == 1 and trajectory.unit not in units:
        theirs = ", ".join(units)
        raise MismatchError(
            f"{trajectory.path} has targets in [{trajectory.unit}], the robot takes [{theirs}]"
        )


def start_for(opened: Opened, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Return what to reset a robot to: a twin places everything, a real robot only itself."""
    if opened.joints is None:
        return dict(trajectory.start)
    return {name: value for name, value in trajectory.start.items() if name in opened.joints}


@dataclass(frozen=True)
class Plan:
    """Which trajectories are repeated, and how often."""

    trajectories: Sequence[Trajectory]
    repeats: int = 1
    """Passes over all of them."""
    count: int | None = None
    """Kept episodes after which it is enough; None for all repetitions."""
    seconds: float | None = None
    """Longest repetition; None for whole trajectories."""
    seed: int = 0
    """Of a twin's first repetition; the next one has the next."""

    def __iter__(self) -> Iterator[Trajectory]:
        for _ in range(self.repeats):
            yield from self.trajectories


def repeat(
    opened: Opened,
    plan: Plan,
    success: SuccessCheck,
    *,
    out: pathlib.Path | None = None,
    facts: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> list[Outcome]:
    """Repeat trajectories on a robot; record what it measures, and whether it was a success.

    out: folder to record in; None for not at all.
    facts: recorded with every episode.

    Raises:
        MismatchError: a trajectory is for another robot.
        RobotError: the robot fails, or is stopped again and again.
    """
    for trajectory in plan.trajectories:
        check(trajectory, opened.robot)
    source = TrajectorySource()
    outcomes: list[Outcome] = []
    kept = 0
    with connected(opened) as (safe, watchdog):
        head = header(
            safe,
            task=opened.task or plan.trajectories[0].task,  # a real robot has none of its own
            source=opened.source,
            name=opened.name,
            facts=facts,
        )
        recorder = None if out is None else Recorder(out, head)
        loop = Loop(
            safe,
            source,
            success,
            recorder=recorder,
            watchdog=watchdog,
            realtime=opened.realtime,
            ready=place_by_hand(opened, "put the object where the trajectory begins"),
        )
        patience = Patience()
        for number, trajectory in enumerate(plan):
            source.load(trajectory)
            about: dict[str, Any] = {"trajectory": trajectory.path.name, "repetition": number}
            if opened.source == "twin":
                opened.seed(plan.seed + number)
                about["seed"] = plan.seed + number
            outcome = loop.run(_steps(plan, trajectory), start_for(opened, trajectory), about)
            outcomes.append(outcome)
            say(len(outcomes), outcome, quiet=quiet)
            patience.check(outcome)
            kept += outcome.path is not None
            if plan.count is not None and kept >= plan.count:
                break
    return outcomes


def _steps(plan: Plan, trajectory: Trajectory) -> int:
    longest = len(trajectory.targets)
    if plan.seconds is None:
        return longest
    return max(1, min(longest, round(plan.seconds / trajectory.control_dt)))


def make(args: argparse.Namespace) -> int:
    """Do what `penspin replay make` is told; return the exit code."""
    import torch

    from penspin_style.train.compose import typed_tasks
    from penspin_style.train.load_policy import open_policy
    from real.replay import collect

    torch.set_num_threads(1)  # a second one would spin on the cores that physics needs
    out = pathlib.Path(args.out)
    if episodes(out):
        raise ValueError(f"{out} holds episodes already; choose another folder")
    source = open_policy(pathlib.Path(args.teacher), [], trusted=typed_tasks(args.overrides))
    stage = collect.Stage(source, args.robot, args.overrides, args.num_envs, speed=args.speed)

    def progress(kept: int, tried: int) -> None:
        if not args.json:
            print(f"{kept} of {tried} episodes kept", file=sys.stderr, flush=True)

    kept, how = collect.choose(
        stage,
        count=args.episodes,
        rule=args.success,
        best=args.best or "",
        share=args.share,
        most=args.most,
        seed=args.seed,
        progress=progress,
    )
    smooth = {"smooth": args.smooth, "channels": args.smooth_channels}
    collect.keep(stage, kept, out, rule=args.success, how=how, **smooth)
    found = {"folder": str(out), "kept": len(kept), **how}
    if args.json:
        print(json.dumps(found))
    else:
        print(f"{len(kept)} trajectories of {how['tried']} in {out}, chosen: {how['chosen']}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Do what `penspin replay run` is told; return the exit code."""
    check_watched(is_asking=args.ask)
    trajectories = [load(path) for path in find(pathlib.Path(args.trajectories))]
    opened = open_robot(args.robot, realtime=args.realtime)
    success = success_check(args, opened)
    plan = Plan(trajectories, args.repeats, args.episodes, args.seconds, args.seed)
    out = None if args.out is None else pathlib.Path(args.out)
    outcomes = repeat(opened, plan, success, out=out, quiet=args.json)
    found = report(outcomes, robot=opened.name, trajectories=len(trajectories))
    if args.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0
