"""The verb `robot check`: what a robot says and measures, and whether its channels follow.

Without --wiggle nothing is sent: the robot is connected, read for a second, and left.
"""

import argparse
import contextlib
import dataclasses
import difflib
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from real.control import session
from real.control.dry import DryRobot
from real.control.loop import Loop
from real.control.success import SuccessCheck
from real.control.wiggle import FOLLOWS, Wiggled, WiggleSource, way_of
from real.drivers.named_function import named_sensors
from real.robot import Robot, RobotError

if TYPE_CHECKING:
    from real.control.safety import SafeRobot, Watchdog

READ = 1.0
"""Seconds that a robot is read for."""
FAILED = 1
"""Exit code of a robot one of whose channels does not follow."""


def run(args: argparse.Namespace) -> int:
    """Do what `penspin robot check` is told; return the exit code.

    Raises:
        ValueError: no such robot or channel, or options that exclude each other.
        RobotError: it cannot be read, or a channel would leave its limits.
    """
    if args.channels and args.wiggle is None:
        raise ValueError("--channels says which ones --wiggle moves: say how far, --wiggle 0.05")
    opened = session.open_robot(args.robot, realtime=args.realtime, also=named_sensors(args.also))
    robot, channels = opened.robot, opened.robot.channels
    names = _chosen(args.channels, [c.name for c in channels])
    is_dry = args.wiggle is None or args.dry_run
    dry = DryRobot(robot, realtime=opened.realtime)
    used = dataclasses.replace(opened, robot=dry) if is_dry else opened
    results: list[Wiggled] = []
    with contextlib.ExitStack() as stack:
        safe, watchdog = stack.enter_context(session.connected(used))
        if opened.source == "twin":
            opened.seed(0)
            robot.reset()  # it stands nowhere before
        found = _read(robot, opened.name, READ if opened.realtime else 0.0)
        if not args.json:
            print("\n".join(_lines(found)), flush=True)
        if args.wiggle is not None:
            here = _here(opened, found["measured"])
            if here is not None:
                for channel, at in zip(channels, found["measured"], strict=True):
                    if channel.name in names:
                        way_of(channel, at, args.wiggle)
            wait = None if is_dry else session.place_by_hand(opened, _ready(here is not None))
            if wait is not None:
                wait()
            for name in names:
                results.append(_wiggle(safe, watchdog, opened.realtime, name, args.wiggle, here))
                if not args.json:
                    print(_line(results[-1], is_dry=is_dry), flush=True)
    if args.json:
        facts = {**found, "channels": [dataclasses.asdict(c) for c in channels]}
        wiggled = [dataclasses.asdict(result) for result in results]
        print(json.dumps({**facts, "wiggled": wiggled, "dry_run": is_dry}))
    elif is_dry:
        print(f"nothing was sent to {opened.name}")
    return FAILED if not is_dry and any(r.verdict != FOLLOWS for r in results) else 0


def _chosen(wanted: Sequence[str] | None, names: list[str]) -> list[str]:
    for name in wanted or ():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise ValueError(f"--channels: there is no channel {name!r}; {hint}")
    return [name for name in names if not wanted or name in wanted]


def _here(opened: session.Opened, measured: list[float]) -> dict[str, np.ndarray] | None:
    """Return a start that moves nothing, of a real robot whose channels are its joints."""
    if opened.source == "twin" or len(opened.joints or ()) != len(opened.robot.channels):
        return None
    return {"qpos": np.array(measured)}


def _ready(is_here: bool) -> str:
    how = "from where they stand" if is_here else "from the start pose, to which it goes first"
    return f"its channels will move one by one, {how}; keep a hand on the emergency stop"


def _read(robot: Robot, name: str, seconds: float) -> dict[str, Any]:
    """Return what a robot says of itself and measures, as JSON values.

    seconds: to count measurements for; 0 where time does not pass by itself.

    Raises:
        RobotError: it does not measure its channels, or what it measures is not as it said.
    """
    seen, stamps = robot.observe(), set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        seen = robot.observe()
        stamps.add(seen.stamp)
        time.sleep(robot.control_dt)
    if seen.measured is None:
        raise RobotError(f"{name} does not measure its channels")
    for feature in robot.features.values():
        value = seen.values.get(feature.name)
        if value is None or value.shape != feature.shape or not np.isfinite(value).all():
            raise RobotError(f"the feature {feature.name!r} is not as it should be: {value!r:.80}")
    return {
        "robot": name,
        "control_dt": robot.control_dt,
        "measured": [float(value) for value in seen.measured],
        "features": {f.name: [list(f.shape), f.unit] for f in robot.features.values()},
        "limits": {c.name: [c.unit, c.low, c.high] for c in robot.channels},
        "measurements_per_second": len(stamps) / seconds if seconds else None,
    }


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['robot']}: a command every {1e3 * found['control_dt']:.0f} ms"]
    limits = found["limits"].items()
    for (name, (unit, low, high)), at in zip(limits, found["measured"], strict=True):
        outside = "" if low <= at <= high else "  OUTSIDE its limits"
        lines.append(f"  {name:20s} {at:9.4f} {unit:4s} of {low:.4g} to {high:.4g}{outside}")
    given = found["features"].items()
    lines.append(
        "measures " + ", ".join(f"{n} {tuple(shape)} {unit}" for n, (shape, unit) in given)
    )
    if (rate := found["measurements_per_second"]) is not None:
        lines.append(f"{rate:.0f} new measurements/s of at most {1 / found['control_dt']:.0f}")
    return lines


def _wiggle(
    safe: "SafeRobot",
    watchdog: "Watchdog | None",
    realtime: bool,
    name: str,
    radians: float,
    here: dict[str, np.ndarray] | None,
) -> Wiggled:
    """Move one channel.

    Raises:
        RobotError: it has no room, or the robot was stopped.
    """
    source = WiggleSource(safe.channels, name, radians, safe.control_dt)
    loop = Loop(
        safe, source, SuccessCheck(), watchdog=watchdog, realtime=realtime, until_done=False
    )
    outcome = loop.run(source.steps, here)
    if outcome.stopped:
        raise RobotError(f"the robot was stopped while {name} was moved: {outcome.stopped}")
    return source.result()


def _line(result: Wiggled, *, is_dry: bool) -> str:
    start = f"  {result.name:20s} {result.wanted:+9.4f} {result.unit:4s}"
    if is_dry:
        return f"{start} and back would be sent"
    seen = "not measured" if result.moved is None else f"went {result.moved:+.4f}"
    return f"{start} wanted, {seen}: {result.verdict}"
