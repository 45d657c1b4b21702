"""The verb `rollout`, and what every verb that drives a robot needs: names, arguments, a session.

A robot is a twin (`penspin twin` lists them, or a YAML file of one's own) or a driver. Heavy
modules are imported where they are used: a hand's computer has neither torch nor MuJoCo.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penspin_style.system import interrupt
from penspin_style.system.interval import wilson
from real.control.success import SUCCESS, SuccessCheck, check_watched
from real.drivers import DRIVERS, open_driver
from real.robot import RequestError, Robot, RobotError

if TYPE_CHECKING:
    from penspin_style.deploy.policy import Policy
    from penspin_style.features import PolicyCard
    from real.cameras.sensors import Cameras
    from real.control.loop import Outcome, TargetSource
    from real.control.safety import SafeRobot, Watchdog
    from real.drivers.external import External

STOPS = 5
"""Episodes in a row that the robot may be stopped in before we give up."""
LEAVING = 10.0
"""Seconds that a robot may take to stop and disconnect; a second signal does not cut that short."""
_SECONDS = 20.0


@dataclass(frozen=True)
class Opened:
    """A robot by its name, not yet connected."""

    robot: Robot
    name: str
    task: str
    source: str
    """`twin` or `real`, as episodes say it."""
    realtime: bool
    steps: int
    """Control steps after which an episode ends, unless told otherwise."""
    joints: tuple[str, ...] | None = None
    """Which joints it can be started with; None for all, also those of objects."""

    def seed(self, seed: int) -> None:
        """Make the next episode depend on the seed alone; a real robot cannot."""
        if self.source == "twin":
            self.robot.seed(seed)  # type: ignore[attr-defined]

    @property
    def has_measures(self) -> bool:
        """Whether it measures its episodes itself."""
        return hasattr(self.robot, "measures")


def open_robot(
    name: str, *, realtime: bool = False, task: str = "", also: "Sequence[External]" = ()
) -> Opened:
    """Return a robot by its name.

    realtime: whether a twin's time passes by itself.
    task: what a real robot is used for, as its episodes say it.
    also: values from beside a real robot.

    Raises:
        ValueError: there is none of that name, or a driver needs another address.
        RequestError: what it needs is not installed.
    """
    kind, _, where = name.partition(":")
    if kind in DRIVERS:
        robot = open_driver(kind, where, also=also)
        steps = round(_SECONDS / robot.control_dt)
        kind = pathlib.Path(where).stem if where.endswith(".yaml") else kind  # of which it is
        return Opened(robot, kind, task, "real", True, steps, robot.joints)
    if also:
        raise ValueError(
            f"--cameras and --also are for {', '.join(DRIVERS)}; a twin renders its own images and "
            "measures its own objects"
        )
    try:
        from real.twin.config import load_twin, twin_names
        from real.twin.robot import SimRobot
    except ImportError as error:
        raise RequestError(
            f"{name!r} is none of the drivers {', '.join(DRIVERS)}, and twins need {error.name}"
        ) from error
    if not name.endswith(".yaml") and name not in twin_names():
        there = ", ".join((*twin_names(), *DRIVERS))
        raise ValueError(f"there is no robot {name!r}; there are {there}, or a twin's YAML file")
    config = load_twin(name, realtime=realtime)
    twin = SimRobot(config)
    name = pathlib.Path(name).stem
    return Opened(twin, name, config.task, "twin", realtime, twin.batch.cfg.episode_length)


@contextlib.contextmanager
def connected(opened: Opened) -> "Iterator[tuple[SafeRobot, Watchdog | None]]":
    """Yield the robot behind its limits and, where time passes by itself, its watchdog.

    However the block is left, also by a signal (see `penspin_style.system.interrupt`), the robot is
    disconnected, which leaves it safe.

    Raises:
        RobotError: it cannot be connected; or, in the end, it is not confirmed that it has stopped.
    """
    from real.control.loop import watch
    from real.control.safety import SafeRobot

    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupt.raising(LEAVING))
        safe = SafeRobot(opened.robot)
        stack.callback(_leave_safe, safe)
        safe.connect()
        gc.collect()
        gc.freeze()  # what is there now is no garbage, and looking through it takes a control step
        yield safe, stack.enter_context(watch(safe)) if opened.realtime else None


def _leave_safe(robot: "SafeRobot") -> None:
    """Disconnect a robot, in a thread of its own, for at most so long; no signal interrupts that.

    Raises:
        RobotError: it does not stop, or takes too long to.
    """
    failed: list[Exception] = []
    done = threading.Event()

    def leave() -> None:
        try:
            robot.disconnect()
        except Exception as error:
            failed.append(error)
        done.set()

    with interrupt.holding():
        threading.Thread(target=leave, name="disconnect", daemon=True).start()
        if not done.wait(LEAVING):
            raise RobotError(
                f"the robot has not disconnected within {LEAVING:g} s, it may still move: use its "
                "emergency stop"
            )
        if failed:
            raise failed[0]


def success_check(
    args: argparse.Namespace, opened: Opened, *, by_key: bool = False
) -> SuccessCheck:
    """Return what the command line says of successes.

    by_key: whether a key may say it, too.

    Raises:
        ValueError: successes are to be kept, but nothing says what one is.
    """
    stated = args.success or (SUCCESS if opened.has_measures else None)
    if args.successes and stated is None and not (args.ask or by_key):
        raise ValueError(
            f"--successes: {opened.name} does not measure success; say --ask to label by hand"
        )
    return SuccessCheck(stated, by_hand=args.ask, only_successes=args.successes)


def steps_of(args: argparse.Namespace, opened: Opened) -> int:
    """Return the control steps of an episode: what the command line says, else the robot's own."""
    if args.seconds is None:
        return opened.steps
    return max(1, round(args.seconds / opened.robot.control_dt))


def watched(
    source: "TargetSource", opened: Opened, args: argparse.Namespace, stack: contextlib.ExitStack
) -> "TargetSource":
    """Return a source whose twin is shown on a page, which the stack closes, if that is wanted.

    Raises:
        ValueError: it is no twin, or the page needs a package that is missing.
    """
    if not args.view:
        return source
    if opened.source != "twin":
        raise ValueError(f"--view shows twins; {opened.name} is a real robot")
    from real.twin.page import TwinPage, WatchedSource

    page = TwinPage(opened.robot, port=args.port)  # type: ignore[arg-type]
    stack.callback(page.close)
    print(f"{opened.name} on {page.address}", file=sys.stderr, flush=True)
    return WatchedSource(source, page)


class Patience:
    """Notices a robot that is stopped in every episode."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def check(self, outcome: "Outcome") -> None:
        """Count an episode.

        Raises:
            RobotError: it was one too many.
        """
        self.in_a_row = self.in_a_row + 1 if outcome.stopped else 0
        if self.in_a_row == STOPS:
            raise RobotError(f"the robot was stopped {STOPS} times in a row: {outcome.stopped}")


def place_by_hand(opened: Opened, what: str) -> Callable[[], object] | None:
    """Return what waits until somebody has put the object in place; None where a twin does it."""
    if opened.source == "twin" or not sys.stdin.isatty():
        return None

    def wait() -> None:
        print(f"{what}; then press Enter ", end="", file=sys.stderr, flush=True)
        sys.stdin.readline()

    return wait


def say(number: int, outcome: "Outcome", *, quiet: bool) -> None:
    """Print a line about an episode."""
    if quiet:
        return
    word = {True: "success", False: "failure", None: "success unknown"}[outcome.success]
    parts = [f"episode {number}: {word}, {outcome.steps} steps"]
    parts += [f"stopped: {outcome.stopped}"] if outcome.stopped else []
    parts += [f"{k} {v}" for k, v in outcome.counts.items() if v]
    parts += [outcome.path.name] if outcome.path else []
    print("; ".join(parts), flush=True)


def report(outcomes: "Sequence[Outcome]", **facts: Any) -> dict[str, Any]:
    """Return what a session came to, as JSON values."""
    from real.rate import Latency

    known = [o.success for o in outcomes if o.success is not None and not o.stopped]
    latency = Latency()
    for outcome in outcomes:
        latency.extend(outcome.latency)
    low, high = wilson(sum(known) / max(1, len(known)), len(known))
    return {
        **facts,
        "episodes": len(outcomes),
        "stopped": sum(bool(o.stopped) for o in outcomes),
        "judged": len(known),
        "successes": sum(known),
        "success_rate": sum(known) / len(known) if known else None,
        "interval": [low, high] if known else None,
        "files": [str(o.path) for o in outcomes if o.path],
        "late_ticks": sum(o.counts["late_ticks"] for o in outcomes),
        "latency": latency.facts(),
    }


def show(found: Mapping[str, Any]) -> None:
    """Print a report for people."""
    from real.rate import table

    if found["judged"]:
        low, high = found["interval"]
        print(
            f"{found['successes']} of {found['judged']} episodes were a success: "
            f"{found['success_rate']:.1%} ({low:.1%} to {high:.1%})"
        )
    if found["stopped"]:
        print(f"{found['stopped']} episodes ended because the robot was stopped")
    print(table(found["latency"]))
    print(f"{found['late_ticks']} control steps were late")


def rollout(args: argparse.Namespace) -> int:
    """Do what `penspin rollout` is told; return the exit code."""
    from penspin_style.data.episodes.episode import Recorder
    from real.control.dry import DryRobot
    from real.control.loop import Loop, PolicySource, header
    from real.control.match import check_policy
    from real.drivers.named_function import named_sensors

    check_watched(is_asking=args.ask)
    realtime = args.realtime or (args.server is not None and not args.fast)
    with contextlib.ExitStack() as stack:
        policy = _policy(args, stack)
        cameras = _cameras(args, policy.card)
        opened = open_robot(
            args.robot,
            realtime=realtime,
            task=policy.card.task,
            also=(*(cameras.sensors if cameras else ()), *named_sensors(args.also)),
        )
        success = success_check(args, opened)
        check_policy(policy.card, opened.robot)
        dry = DryRobot(opened.robot) if args.dry_run else None
        if dry is not None:
            if opened.source == "twin":
                raise ValueError("--dry-run is for real robots: a twin moves nothing that is real")
            opened = dataclasses.replace(opened, robot=dry)
        if cameras:
            stack.enter_context(cameras)
            for note in cameras.notes:
                print(note, file=sys.stderr, flush=True)
        safe, watchdog = stack.enter_context(connected(opened))
        head = header(
            safe,
            task=opened.task,
            source=opened.source,
            name=opened.name,
            card=policy.card,
            facts={"policy": policy.card.run, "server": args.server or "none"},
        )
        recorder = None if args.out is None else Recorder(pathlib.Path(args.out), head)
        loop = Loop(
            safe,
            watched(PolicySource(policy), opened, args, stack),
            success,
            recorder=recorder,
            watchdog=watchdog,
            realtime=opened.realtime,
            ready=place_by_hand(opened, "put the object in place"),
        )
        outcomes = _run(loop.run, opened, args)
    found = report(outcomes, robot=opened.name, policy=policy.card.run)
    if args.json:
        print(json.dumps(found))
    else:
        show(found)
        if dry is not None:
            print("nothing was sent; targets would have been", *dry.lines(), sep="\n  ")
    return 0


def _cameras(args: argparse.Namespace, card: "PolicyCard") -> "Cameras | None":
    """Return the cameras that the command line names, not yet opened; None for none.

    Raises:
        ValueError: their file is not as it should be, or not for this policy.
    """
    if args.cameras is None:
        return None
    from real.cameras.config import read_cameras
    from real.cameras.sensors import Cameras

    return Cameras(read_cameras(pathlib.Path(args.cameras)), card)


def _run(
    run: "Callable[..., Outcome]", opened: Opened, args: argparse.Namespace
) -> "list[Outcome]":
    """Run so many episodes that were not stopped.

    Raises:
        RobotError: the robot is stopped again and again.
    """
    outcomes: list[Outcome] = []
    complete, patience, steps = 0, Patience(), steps_of(args, opened)
    while complete < args.episodes:
        seed = args.seed + complete
        opened.seed(seed)
        outcome = run(steps, facts={"seed": seed} if opened.source == "twin" else {})
        outcomes.append(outcome)
        say(len(outcomes), outcome, quiet=args.json)
        complete += not outcome.stopped
        patience.check(outcome)
    return outcomes


def _policy(args: argparse.Namespace, stack: contextlib.ExitStack) -> "Policy":
    """Return the policy in a file, or behind a server, to which the stack then hangs up.

    Raises:
        BundleError: the file is no policy.
        RobotError: there is no such server.
    """
    if args.policy is not None:
        from penspin_style.deploy.bundle import Bundle

        return Bundle.load(args.policy)
    from real.serving.client import ClientError, PolicyClient
    from real.serving.remote_policy import RemotePolicy

    key = None
    if args.api_key_file is not None:
        try:
            key = pathlib.Path(args.api_key_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            text = f"--api-key-file {args.api_key_file} is not readable: {why}"
            raise ValueError(f"{text}; write one line with the key") from error
    try:
        client = PolicyClient(args.server, key, wait=args.patience)
        stack.callback(client.close)
        return RemotePolicy(client, patience=args.patience)
    except ClientError as error:
        raise RobotError(f"{error}; start one with penspin serve POLICY.onnx") from error
