"""The arguments of the verbs that drive a robot. Light: what they run is imported when it runs."""

import argparse
from typing import TYPE_CHECKING, Any

from penspin_style.system.arguments import above_zero, add_json, natural, port, positive
from real.drivers import DRIVERS

if TYPE_CHECKING:
    from real.control.success import SuccessRule

_SECONDS = above_zero(3600.0)
_SHARE = above_zero(1.0, "share")


def add_rollout(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb `rollout`; return its parser."""
    summary = "Run a policy on a robot or its twin, in closed loop; measure and record."
    sub = verbs.add_parser("rollout", help=summary, description=summary)
    add_arguments(sub)
    _add_view(sub)
    who = sub.add_mutually_exclusive_group(required=True)
    who.add_argument("--server", metavar="URL", help="of `penspin serve`, as ws://127.0.0.1:8000")
    who.add_argument("--policy", metavar="POLICY.onnx", help="run it in this process")
    sub.add_argument("--api-key-file", metavar="FILE", help="a file with the server's key")
    sub.add_argument(
        "--patience", type=_SECONDS, default=10.0, help="seconds to wait for a server; default 10"
    )
    sub.add_argument("--episodes", type=positive, default=1, help="how many")
    sub.add_argument(
        "--cameras", metavar="FILE", help="YAML of the cameras beside a real robot, by name"
    )
    _add_also(sub)
    sub.add_argument(
        "--dry-run", action="store_true", help="read a real robot, ask the policy, send nothing"
    )
    return sub


def add_robot(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb `robot`; return the parser of `check`."""
    summary = "Look at a robot before a policy moves it."
    kinds = verbs.add_parser("robot", help=summary, description=summary).add_subparsers(
        dest="kind", required=True, metavar="check"
    )
    summary = (
        "Show what a robot measures and allows; with --wiggle move one channel after the other."
    )
    check = kinds.add_parser("check", help=summary, description=summary)
    check.add_argument("robot", metavar="ROBOT", help=_which())
    check.add_argument(
        "--wiggle",
        metavar="RADIANS",
        type=above_zero(0.3, "number of radians"),
        help="move each channel so far and back, through the limits of a policy; what is no angle "
        "goes 5 %% of its range",
    )
    check.add_argument("--channels", nargs="+", metavar="NAME", help="not all")
    check.add_argument(
        "--dry-run", action="store_true", help="say what would be sent, send nothing"
    )
    check.add_argument("--realtime", action="store_true", help="let a twin's time pass by itself")
    _add_also(check)
    add_json(check)
    return check


def add_camera(verbs: Any) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Add the verb `camera`; return the parsers of `check` and `latency`."""
    summary = "Look at the cameras beside a robot: what a policy sees, and how late."
    kinds = verbs.add_parser("camera", help=summary, description=summary).add_subparsers(
        dest="kind", required=True, metavar="check|latency"
    )
    file = "YAML of cameras by name"
    summary = "Show what a policy would see beside the whole frame; measure rate and age of frames."
    check = kinds.add_parser("check", help=summary, description=summary)
    check.add_argument("file", metavar="FILE", help=file)
    check.add_argument("--policy", metavar="POLICY.onnx", required=True, help="who would see it")
    check.add_argument("--out", metavar="PNG", type=_png, help="image to write")
    check.add_argument("--seconds", type=_SECONDS, default=2.0, help="to measure for")
    add_json(check)
    summary = "Switch a light, and measure how long it takes until a frame shows that."
    late = kinds.add_parser("latency", help=summary, description=summary)
    late.add_argument("file", metavar="FILE", help=file)
    late.add_argument("camera", metavar="CAMERA", help="its name in the file")
    late.add_argument("--blinks", type=positive, default=10, help="how many")
    late.add_argument(
        "--light",
        metavar="MODULE:FUNCTION",
        help="function(on: bool) that switches a light; default: this terminal's window",
    )
    add_json(late)
    return check, late


def add_teleop(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb `teleop`; return its parser."""
    summary = "Move a robot or its twin by hand, and record demonstrations."
    sub = verbs.add_parser("teleop", help=summary, description=summary)
    add_arguments(sub, named=False)
    _add_view(sub)
    sub.add_argument(
        "--device",
        choices=("scripted", "keyboard", "gamepad", "spacemouse"),
        required=True,
        help="what moves it; scripted: the expert of a twin's task",
    )
    sub.add_argument("--episodes", type=positive, default=1, help="to keep")
    sub.add_argument("--instruction", metavar="TEXT", help="what the robot is told, kept with each")
    sub.add_argument(
        "--speed", type=_SHARE, default=0.5, help="share of a full action that a held key asks for"
    )
    sub.add_argument("--task", default="", help="of a real robot, as its episodes say it")
    return sub


def add_replay(verbs: Any) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Add the verb `replay`; return the parsers of `make` and `run`."""
    summary = "Repeat a teacher's simulated trajectories on a robot, open loop."
    kinds = verbs.add_parser("replay", help=summary, description=summary).add_subparsers(
        dest="kind", required=True, metavar="make|run"
    )
    summary = "Roll out a teacher in simulation and keep what is worth repeating."
    sub = kinds.add_parser("make", help=summary, description=summary)
    sub.add_argument("teacher", help="a run folder, a policy folder or an .onnx file")
    sub.add_argument("out", metavar="DIR", help="folder for the trajectories")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the twin's task")
    sub.add_argument("--robot", required=True, metavar="TWIN", help="for which twin, or its YAML")
    sub.add_argument("--episodes", type=positive, default=45, help="to keep; default 45")
    sub.add_argument(
        "--success", type=rule, default="success", metavar="RULE", help="as of `penspin rollout`"
    )
    sub.add_argument(
        "--best", metavar="MEASURE", help="keep the best by a measure instead of successes"
    )
    sub.add_argument("--share", type=_SHARE, default=0.1, help="with --best: of all that are tried")
    sub.add_argument("--most", type=positive, default=5000, help="episodes to try for successes")
    sub.add_argument(
        "--speed", type=_SHARE, default=1.0, help="share of the teacher's actions that is taken"
    )
    sub.add_argument("--smooth", type=positive, default=1, help="steps to average targets over")
    sub.add_argument("--smooth-channels", nargs="+", default=[], metavar="NAME", help="not all")
    sub.add_argument("--num-envs", type=positive, default=64, help="worlds at once")
    sub.add_argument("--seed", type=natural, default=4_000_003, help="of the roll-outs")
    add_json(sub)
    make = sub

    summary = "Repeat trajectories on a robot or its twin; record them and their success."
    sub = kinds.add_parser("run", help=summary, description=summary)
    sub.add_argument("trajectories", metavar="DIR", help="folder that `replay make` filled")
    add_arguments(sub)
    sub.add_argument("--repeats", type=positive, default=1, help="passes over all trajectories")
    sub.add_argument("--episodes", type=positive, help="kept episodes after which it is enough")
    return make, sub


def add_arguments(
    sub: argparse.ArgumentParser, *, robot: str | None = None, named: bool = True
) -> None:
    """Add what every verb that drives a robot understands.

    robot: the default; None where it must be said. named: by --robot, else by its place.
    """
    if named:
        sub.add_argument(
            "--robot", metavar="NAME", default=robot, required=robot is None, help=_which()
        )
    else:
        sub.add_argument("robot", metavar="TWIN", help=_which())
    sub.add_argument("--out", metavar="DIR", help="folder to record episodes in")
    sub.add_argument(
        "--success",
        metavar="RULE",
        type=rule,
        help="what a success is: MEASURE, MEASURE>=NUMBER or MEASURE<=NUMBER of the robot's own, "
        "as turns>=0.5; default: a twin's `success`",
    )
    sub.add_argument("--ask", action="store_true", help="ask on the terminal after each episode")
    sub.add_argument("--successes", action="store_true", help="keep only successful episodes")
    sub.add_argument("--seconds", type=_SECONDS, help="longest episode; default: the task's, or 20")
    sub.add_argument("--seed", type=natural, default=0, help="of a twin's first episode")
    when = sub.add_mutually_exclusive_group()
    when.add_argument("--realtime", action="store_true", help="let a twin's time pass by itself")
    when.add_argument("--fast", action="store_true", help="run a twin as fast as it goes")
    add_json(sub)


def _which() -> str:
    return f"a twin, a twin's YAML file, or {', '.join(DRIVERS)}:ADDRESS"


def _add_also(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="values from beside a real robot: a function that returns External, or several",
    )


def _add_view(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--view", action="store_true", help="show a twin on a page in a browser")
    sub.add_argument("--port", type=port, default=8080, help="of the page: first one to try")


def rule(text: str) -> "SuccessRule":
    """Read a rule of success."""
    from real.control.success import SuccessRule

    try:
        return SuccessRule.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _png(text: str) -> str:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return text
