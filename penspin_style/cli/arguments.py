"""The parser of `penspin`: its verbs, their flags, and what other packages add.

`--help` answers from here without importing torch: a verb of the library is a module of this room
of the same name, imported when it runs. Other packages add verbs of their own through the entry
points `penspin_style.verbs`: functions that take the sub-parsers and give each new parser a `run`.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from penspin_style.algo.search.config import METHODS
from penspin_style.cli import data, real2sim
from penspin_style.system.arguments import Parser, above_zero, add_json, natural, positive

_ENTRY_POINTS = "penspin_style.verbs"
_POLICY = "a run folder, a policy folder or an .onnx file"
_OVERRIDES = """
Overrides are KEY=VALUE pairs of the configuration, as task=panda_lift_cube algo.gamma=0.97
num_envs=512; `penspin train --print-config` shows every key with its value.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; overrides may stand before, between and after flags.

    Its `run` takes it and returns an exit code.
    """
    own = parser()
    args, left = own.parse_known_args(argv)
    if hasattr(args, "overrides") and all(_is_override(word) for word in left):
        args.overrides += left
    elif left:
        own.error(f"unrecognized arguments: {' '.join(left)}")
    return args


def parser() -> Parser:
    """Return the parser of every verb, those of other packages included."""
    own = Parser(
        prog="penspin",
        description="Train, evaluate, export and run robot policies in MuJoCo, with PyTorch.",
        epilog=_OVERRIDES,
    )
    verbs = own.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add(verbs, "tasks", "List the tasks.")
    train = _add(verbs, "train", "Train a policy.", overrides="")
    train.add_argument(
        "--print-config", action="store_true", help="print the configuration and stop"
    )
    _add_sweep(verbs)
    _add_eval(verbs)
    _add_play(verbs)
    _add_export(verbs)
    _add_record(verbs)
    _add_search(verbs)
    _add_demos(verbs)
    _add_pretrain(verbs)
    _add_bench(verbs)
    doctor = _add(verbs, "doctor", "Check what this machine can do.", overrides="")
    doctor.add_argument("--fit", action="store_true", help="measure how many environments fit")
    doctor.add_argument("--warm", action="store_true", help="compile Warp's kernels ahead of time")
    data.add_verbs(verbs)
    real2sim.add_verbs(verbs)
    _add_others(verbs)
    return own


def _add(
    verbs: Any, name: str, summary: str, *, policy: str = "", overrides: str | None = None
) -> Parser:
    """Add a verb of the library; policy, overrides: help of these positional arguments."""
    sub = verbs.add_parser(name, help=summary, description=summary, epilog=_OVERRIDES)
    sub.set_defaults(run=_run)
    add_json(sub)
    if policy:
        sub.add_argument("policy", help=policy)
    if overrides is not None:
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides or None)
    return sub


def _run(args: argparse.Namespace) -> int:
    from penspin_style.cli import verb

    return verb.run(args)


def _add_sweep(verbs: Any) -> None:
    sub = _add(verbs, "sweep", "Find good values of some keys by training with many.")
    sub.add_argument("space", metavar="SPACE.yaml", help="what is varied; see docs/howto/sweep.md")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what all trials have")
    sub.add_argument("--trials", type=positive, help="default: trials of the file")
    sub.add_argument("--out", metavar="DIR", help="default outputs/sweeps/SPACE; goes on there")


def _add_eval(verbs: Any) -> None:
    sub = _add(verbs, "eval", "Evaluate a policy over fixed seeds.", policy=_POLICY, overrides="")
    sub.add_argument("--episodes", type=positive, default=500)
    sub.add_argument("--seed", type=natural, default=2_000_003)
    sub.add_argument(
        "--blank", nargs="+", type=_name, metavar="IMAGE", help="images to show black, as front_rgb"
    )
    sub.add_argument("--plot", metavar="OUT.png", help="draw how long episodes last")


def _add_play(verbs: Any) -> None:
    summary = "Watch a policy: in a window, or as a video."
    sub = _add(verbs, "play", summary, policy=_POLICY, overrides="")
    sub.add_argument("--video", metavar="OUT.mp4", help="write a video, open no window")
    sub.add_argument("--strip", metavar="OUT.png", help="with --video: six frames side by side")
    sub.add_argument("--views", metavar="OUT.png", help="with --video: what the student sees")
    sub.add_argument("--tiles", type=positive, help="with --video: environments side by side")
    sub.add_argument("--info", action="store_true", help="with --tiles: reward, success and end")
    sub.add_argument("--fps", type=positive, help="with --video: default as fast as the robot")
    sub.add_argument("--episodes", type=positive, default=3)
    sub.add_argument("--size", type=positive, default=480, help="pixels, even")
    sub.add_argument("--seed", type=natural, default=2_000_003)
    sub.add_argument("--successful", action="store_true", help="only the first successful episodes")


def _add_export(verbs: Any) -> None:
    summary = "Export a policy as one ONNX file, checked against torch."
    sub = _add(verbs, "export", summary, policy="a run folder or a policy folder")
    sub.add_argument("--out", metavar="OUT.onnx", help="default: policy.onnx in the folder")
    sub.add_argument("--samples", type=positive, default=10_000, help="parity observations")
    sub.add_argument(
        "--tolerance",
        type=above_zero(1e-2),
        default=1e-5,
        help="largest difference from torch, default 1e-5",
    )


def _add_record(verbs: Any) -> None:
    sub = _add(verbs, "record", "Record a policy's roll-outs, to clone them.", policy=_POLICY)
    sub.add_argument("out", help="folder for the rows")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="task=NAME to observe")
    sub.add_argument("--episodes", type=positive, default=500)
    sub.add_argument("--num-envs", type=positive, default=50)
    sub.add_argument("--seed", type=natural, default=3_000_003)


def _add_search(verbs: Any) -> None:
    sub = _add(verbs, "search", "Find trajectories by sampling plans.", overrides="task=NAME first")
    sub.add_argument("--count", type=positive, default=1, help="trajectories, default 1")
    sub.add_argument("--out", metavar="DIR", help="default outputs/search/TASK")
    sub.add_argument("--method", choices=METHODS, help="default: search.method of the task")
    sub.add_argument("--bank", metavar="NEW", help="folder for states along them that hold")


def _add_demos(verbs: Any) -> None:
    sub = _add(verbs, "demos", "Record a task's scripted expert.")
    sub.add_argument("task", metavar="TASK", help="a task that offers an expert")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    sub.add_argument("--count", type=positive, default=10, help="trajectories, default 10")
    sub.add_argument("--out", metavar="DIR", help="default outputs/demos/TASK")
    sub.add_argument(
        "--bank", metavar="NEW", help="folder for states along the successful ones that hold"
    )


def _add_pretrain(verbs: Any) -> None:
    sub = _add(verbs, "pretrain", "Train the image encoder, on CIFAR-10 or on renders.")
    sub.add_argument("data", help="cifar-10-batches-bin, or a folder of penspin record")
    sub.add_argument("--out", metavar="DIR", default="outputs/encoders/nature_cnn")
    sub.add_argument("--epochs", type=positive)
    sub.add_argument("--seed", type=natural)


def _add_bench(verbs: Any) -> None:
    bench = verbs.add_parser("bench", help="Measure speed.", description="Measure speed.")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for name, summary in (
        ("sim", "Env steps per second of the full environment over the bare engine."),
        ("train", "PPO samples per second, end to end, over the bare engine."),
        ("render", "Images per second through our renderer over the bare ray tracer."),
    ):
        sub = _add(kinds, name, summary, overrides="")
        sub.add_argument("--rounds", type=positive, default=7, help="alternating measurements")
        sub.add_argument("--steps", type=positive, default=72, help="control steps of each")
    onnx = _add(kinds, "onnx", "Milliseconds that one action takes.", policy="an .onnx file")
    onnx.add_argument("--calls", type=positive, default=5000)


def _add_others(verbs: Any) -> None:
    """Add the verbs of other packages; one that cannot be imported is named and left out."""
    for entry in sorted(entry_points(group=_ENTRY_POINTS)):
        try:
            add_verbs = entry.load()
        except (ImportError, AttributeError) as error:
            print(f"penspin: the verbs of {entry.value} are missing: {error}", file=sys.stderr)
            continue
        add_verbs(verbs)


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _name(text: str) -> str:
    """Read a name of several; an override after it would pass for another one."""
    if _is_override(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY=VALUE before this flag")
    return text
