"""The verb `teleop`: move a robot or its twin by hand, and record demonstrations."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
from typing import Any

from penspin_style.data.episodes.episode import Recorder
from penspin_style.deploy.actions import Decoder
from real.control import session
from real.control.loop import Loop, Outcome, header
from real.control.success import check_watched
from real.robot import RequestError, RobotError
from real.teleop.device import Axes, Device, DeviceSource, Key

LOST = 20
"""Episodes in a row that may be lost, as failures with --successes, before we give up."""


def make_device(name: str, opened: session.Opened, *, speed: float, seed: int) -> Device:
    """Return a device for a robot.

    Raises:
        RequestError: it does not suit the robot.
    """
    if name == "scripted":
        if opened.source != "twin":
            raise RequestError("--device scripted moves twins alone: it knows where everything is")
        from real.teleop.scripted import Scripted

        return Scripted(opened.robot, seed)
    axes = Axes(Decoder(opened.robot.channels), opened.robot.control_dt, 6, speed)
    if name == "keyboard":
        from real.teleop.keyboard import Keyboard

        return Keyboard(axes)
    if name == "spacemouse":
        from real.teleop.spacemouse import SpaceMouse

        return SpaceMouse(axes)
    from real.teleop.gamepad import Gamepad

    return Gamepad(axes)


def run(args: argparse.Namespace) -> int:
    """Do what `penspin teleop` is told; return the exit code.

    Raises:
        ValueError: options that exclude each other, or no such robot.
        RobotError: device or robot cannot do it.
    """
    by_hand = args.device != "scripted"
    check_watched(is_asking=args.ask)
    if by_hand and args.fast:
        raise ValueError(f"--fast: a twin that is moved by {args.device} runs in real time")
    if not by_hand and args.realtime:
        raise ValueError("--realtime: the scripted device takes turns with its twin")
    with contextlib.ExitStack() as stack:
        opened = session.open_robot(args.robot, realtime=by_hand, task=args.task)
        device = make_device(args.device, opened, speed=args.speed, seed=args.seed)
        check = session.success_check(args, opened, by_key=device.by_hand)
        device.open()
        stack.callback(device.close)
        safe, watchdog = stack.enter_context(session.connected(opened))
        source = DeviceSource(device, Decoder(safe.channels))
        facts: dict[str, Any] = {"device": args.device}
        facts |= {"instruction": args.instruction} if args.instruction else {}
        head = header(safe, task=opened.task, source=opened.source, name=opened.name, facts=facts)
        recorder = None if args.out is None else Recorder(pathlib.Path(args.out), head)
        loop = Loop(
            safe,
            session.watched(source, opened, args, stack),
            dataclasses.replace(check, said=lambda: source.label),
            recorder=recorder,
            watchdog=watchdog,
            realtime=opened.realtime,
            ready=session.place_by_hand(opened, "put the object in place"),
        )
        if device.legend and not args.json:
            print(device.legend, file=sys.stderr, flush=True)
        outcomes = _demonstrate(loop, source, opened, args, facts)
    found = session.report(outcomes, robot=opened.name, device=args.device)
    if args.json:
        print(json.dumps(found))
    else:
        session.show(found)
    return 0


def _demonstrate(
    loop: Loop,
    source: DeviceSource,
    opened: session.Opened,
    args: argparse.Namespace,
    facts: dict[str, Any],
) -> list[Outcome]:
    """Return so many episodes that were kept, and the others, until somebody quits.

    Raises:
        RobotError: too many in a row were lost, or the robot is stopped again and again.
    """
    outcomes: list[Outcome] = []
    kept = lost = 0
    patience, steps = session.Patience(), session.steps_of(args, opened)
    while kept < args.episodes:
        seed = args.seed + len(outcomes)
        opened.seed(seed)
        own = {"seed": seed} if opened.source == "twin" else {}
        outcome = loop.run(steps, facts={**facts, **own})
        if source.key is Key.QUIT:
            break
        outcomes.append(outcome)
        session.say(len(outcomes), outcome, quiet=args.json)
        patience.check(outcome)
        good = not outcome.stopped if args.out is None else outcome.path is not None
        kept, lost = kept + good, 0 if good else lost + 1
        if lost == LOST and not source.device.by_hand:
            raise RobotError(f"{LOST} episodes in a row were not kept; leave out --successes")
    return outcomes
