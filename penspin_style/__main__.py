"""The command line: python -m penspin_style VERB, installed as `penspin`.

Only the parser lives here, so that --help answers without importing torch; each verb is a function
of `penspin_style.verbs`, imported when it runs. Other packages add verbs of their own through the
entry points `penspin_style.verbs`: functions that take the sub-parsers and give each new parser a
`run`. Exit codes: 0 done, 2 the words cannot be meant, 3 the data or physics cannot be trusted, 4
interrupted and saved.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, NoReturn

from penspin_style import data_verbs, interrupt, task_error
from penspin_style.terminal import one_line

_ENTRY_POINTS = "penspin_style.verbs"
_INTERRUPTED = 4  # exit code of `penspin_style.run`, which needs torch

_OVERRIDES = """
Overrides are KEY=VALUE words of the configuration, as task=panda_lift_cube algo.gamma=0.97
num_envs=512; `penspin train --print-config` shows every key with its value.
"""


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        print(f"penspin: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="penspin",
        description="Train, judge, export and run robot policies in MuJoCo, with PyTorch.",
        epilog=_OVERRIDES,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str, *, overrides: bool = False) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary, epilog=_OVERRIDES)
        sub.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
        if overrides:
            sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
        return sub

    verb("tasks", "List the tasks.")

    train = verb("train", "Train a teacher.", overrides=True)
    train.add_argument(
        "--print-config", action="store_true", help="print the configuration and stop"
    )

    evaluate = verb("eval", "Judge a policy over fixed seeds.")
    evaluate.add_argument("policy", help="a run folder, a policy folder or an .onnx file")
    evaluate.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    evaluate.add_argument("--episodes", type=_positive, default=500)
    evaluate.add_argument("--seed", type=_natural, default=2_000_003)
    evaluate.add_argument(
        "--blank",
        nargs="+",
        type=_name,
        metavar="PICTURE",
        help="show it black instead, as front_rgb",
    )
    evaluate.add_argument("--plot", metavar="OUT.png", help="draw how long episodes last")

    play = verb("play", "Watch a policy: in a window, or as a film.")
    play.add_argument("policy", help="a run folder, a policy folder or an .onnx file")
    play.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    play.add_argument("--video", metavar="OUT.mp4", help="film instead of opening a window")
    play.add_argument("--strip", metavar="OUT.png", help="with --video: six frames side by side")
    play.add_argument("--views", metavar="OUT.png", help="with --video: what the student sees")
    play.add_argument("--episodes", type=_positive, default=3)
    play.add_argument("--size", type=_positive, default=480, help="pixels, even")
    play.add_argument("--seed", type=_natural, default=2_000_003)
    play.add_argument(
        "--successful", action="store_true", help="film the first successful episodes"
    )

    export = verb("export", "Export a policy as one ONNX file, checked against torch.")
    export.add_argument("policy", help="a run folder or a policy folder")
    export.add_argument("--out", metavar="OUT.onnx", help="default: policy.onnx in the folder")
    export.add_argument("--samples", type=_positive, default=10_000, help="parity observations")
    export.add_argument(
        "--tolerance", type=_small, default=1e-5, help="largest difference from torch, default 1e-5"
    )

    record = verb("record", "Record a policy's roll-outs, to clone them.")
    record.add_argument("policy", help="a run folder, a policy folder or an .onnx file")
    record.add_argument("out", help="folder for the rows")
    record.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="task=NAME to observe")
    record.add_argument("--episodes", type=_positive, default=500)
    record.add_argument("--num-envs", type=_positive, default=50)
    record.add_argument("--seed", type=_natural, default=3_000_003)

    pretrain = verb("pretrain", "Train the image encoder, on CIFAR-10 or on renders.")
    pretrain.add_argument("data", help="cifar-10-batches-bin, or a folder of penspin record")
    pretrain.add_argument("--out", metavar="DIR", default="outputs/encoders/nature_cnn")
    pretrain.add_argument("--epochs", type=_positive)
    pretrain.add_argument("--seed", type=_natural)

    _add_bench(verbs)

    doctor = verb("doctor", "Check what this machine can do.", overrides=True)
    doctor.add_argument("--fit", action="store_true", help="measure how many environments fit")
    doctor.add_argument("--warm", action="store_true", help="compile Warp's kernels ahead of time")
    data_verbs.add_verbs(verbs)
    _add_others(verbs)
    return parser


def _add_others(verbs: Any) -> None:
    """Add the verbs of other packages; one that cannot be imported is named and left out."""
    for entry in sorted(entry_points(group=_ENTRY_POINTS)):
        try:
            add_verbs = entry.load()
        except (ImportError, AttributeError) as error:
            print(f"penspin: the verbs of {entry.value} are missing: {error}", file=sys.stderr)
            continue
        add_verbs(verbs)


def _add_bench(verbs: Any) -> None:
    bench = verbs.add_parser("bench", help="Measure speed.", description="Measure speed.")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for name, summary in (
        ("sim", "Env steps per second of the full environment over the bare engine."),
        ("train", "PPO samples per second, end to end, over the bare engine."),
        ("render", "Pictures per second through our renderer over the bare ray tracer."),
    ):
        sub = kinds.add_parser(name, help=summary, description=summary, epilog=_OVERRIDES)
        sub.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
        sub.add_argument("--rounds", type=_positive, default=7, help="alternating measurements")
        sub.add_argument("--steps", type=_positive, default=72, help="control steps of each")

    sub = kinds.add_parser("onnx", help=(text := "Milliseconds that one action takes."))
    sub.description = text
    sub.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    sub.add_argument("policy", help="an .onnx file")
    sub.add_argument("--calls", type=_positive, default=5000)


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _small(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1e-2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 0.01")
    return value


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 to 2**63 - 1")
    return int(text)


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    args = _parse(words)
    try:
        with interrupt.raising():
            code = _call(args)
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):
            print("penspin: interrupted", file=sys.stderr)
        code = 128 + getattr(error, "number", signal.SIGINT)
    finally:
        interrupt.flush()
    if words is None and code in (_INTERRUPTED, *(128 + s for s in interrupt.SIGNALS)):
        interrupt.leave_soon(code)
    return code


def _call(args: argparse.Namespace) -> int:
    if hasattr(args, "run"):
        return _run(args)
    from penspin_style import verbs

    return verbs.run(args)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; overrides may stand before, between and after flags."""
    parser = _parser()
    args, left = parser.parse_known_args(words)
    if hasattr(args, "overrides") and all(_is_override(word) for word in left):
        args.overrides += left
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return args


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _name(text: str) -> str:
    """Read a name of several; an override after it would pass for another one."""
    if _is_override(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY=VALUE before this flag")
    return text


def _run(args: argparse.Namespace) -> int:
    """Run another package's verb; turn what users can mend into one line and an exit code."""
    try:
        return args.run(args)
    except Exception as error:
        text = task_error.describe(error)
        if text is None and not isinstance(error, ValueError | OSError):
            raise
        print(f"penspin: {text or one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
