"""The parser of `penspin`: its verbs, their flags, and what other packages add.

`--help` answers from here without importing torch: a verb of the library is a module of this room
of the same name, imported when it runs. Other packages add verbs of their own through the entry
points `penspin_style.verbs`: functions that take the sub-parsers and give each new parser a `run`.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from penspin_style.algo.search.config import METHODS
from penspin_style.cli import data, real2sim
from penspin_style.system.arguments import Parser, above_zero, add_json, natural, port, positive
from penspin_style.system.plugins import entry_points

_ENTRY_POINTS = "penspin_style.verbs"
_POLICY = "a run folder, a policy folder or an .onnx file"
_OVERRIDES = """
Overrides are KEY=VALUE pairs of the configuration, as task=panda_lift_cube algo.gamma=0.97
num_envs=512; `penspin train --print-config` shows every key with its value.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; overrides may stand anywhere.

    Its `run` takes it and returns an exit code.
    """
    own = parser()
    words = list(sys.argv[1:] if argv is None else argv)
    verb, overrides = own.verb_of(words), []
    if verb.has("overrides"):
        overrides, words = verb.overrides_first(words)
    args, left = own.parse_known_args(words)
    if left:
        verb.error(f"unrecognized arguments: {' '.join(left)}{_hint(left[0], verb)}")
    if verb.has("overrides"):
        args.overrides = [*overrides, *args.overrides]
    return args


def _hint(word: str, verb: Parser) -> str:
    """Return which option of a verb an unknown one looks like."""
    close = difflib.get_close_matches(word.partition("=")[0], verb.options(), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close and word.startswith("-") else ""


def parser() -> Parser:
    """Return the parser of every verb, those of other packages included."""
    own = Parser(
        prog="penspin",
        description="Train, evaluate, export and run robot policies in MuJoCo, with PyTorch.",
        epilog=_OVERRIDES,
    )
    verbs = own.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add(verbs, "tasks", "List the tasks, with where each comes from.")
    _add_new(verbs)
    train = _add(verbs, "train", "Train a policy.", overrides="")
    train.add_argument(
        "--print-config", action="store_true", help="print the configuration and stop"
    )
    _add_sweep(verbs)
    _add_eval(verbs)
    _add_play(verbs)
    _add_demo(verbs)
    _add_runs(verbs)
    _add_export(verbs)
    _add_record(verbs)
    _add_search(verbs)
    _add_demos(verbs)
    _add_pretrain(verbs)
    _add_bench(verbs)
    doctor = _add(verbs, "doctor", "Check what this machine can do.", overrides="")
    doctor.add_argument("--fit", action="store_true", help="measure how many environments fit")
    doctor.add_argument("--warm", action="store_true", help="compile Warp's kernels ahead of time")
    _add_hub(verbs)
    _add_completion(verbs)
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
        add_overrides(sub, overrides or "of the configuration, anywhere on the line")
    return sub


def add_overrides(sub: argparse.ArgumentParser, summary: str) -> None:
    """Add KEY=VALUE."""
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=summary)


def _run(args: argparse.Namespace) -> int:
    from penspin_style.cli import verb

    return verb.run(args)


def _add_new(verbs: Any) -> None:
    summary = "Write a task of your own, to begin from."
    new = verbs.add_parser("new", help=summary, description=summary)
    kinds = new.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for kind, what in (
        ("task", "A task in one file, with its tests: a cart-pole that trains as it is."),
        ("project", "A package with a task, tests and README, which installs as a plug-in."),
    ):
        sub = _add(kinds, kind, what)
        sub.add_argument("name", metavar="NAME", help="a name that Python can import")
        sub.add_argument("--out", metavar="DIR", default=".", help="where; default: here")


def _add_sweep(verbs: Any) -> None:
    sub = _add(verbs, "sweep", "Find good values of some keys by training with many.")
    sub.add_argument("space", metavar="SPACE.yaml", help="what is varied; see docs/howto/sweep.md")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what all trials have")
    sub.add_argument("--trials", type=positive, help="default: trials of the file")
    sub.add_argument("--out", metavar="DIR", help="default outputs/sweeps/SPACE; goes on there")


def _add_eval(verbs: Any) -> None:
    sub = _add(verbs, "eval", "Evaluate a policy over fixed seeds.", policy=_POLICY, overrides="")
    sub.add_argument("--episodes", type=positive, default=500, help="how many, one each world")
    sub.add_argument("--seed", type=natural, default=2_000_003, help="of the episodes")
    sub.add_argument(
        "--blank", nargs="+", metavar="IMAGE", help="images to show black, as front_rgb"
    )
    sub.add_argument("--plot", metavar="OUT.png", help="draw how long episodes last")


def _add_play(verbs: Any) -> None:
    summary = "Watch a policy: in a window, in a browser, or as a video."
    sub = _add(verbs, "play", summary)
    sub.add_argument("policy", nargs="?", help=_POLICY)
    add_overrides(sub, "of the configuration, anywhere on the line")
    sub.add_argument(
        "--agent", metavar="zero|random|POLICY", help="what acts; zero and random need task=NAME"
    )
    sub.add_argument(
        "--viewer", choices=("window", "browser"), help="default: a window if there is a display"
    )
    sub.add_argument("--host", default="127.0.0.1", help="of the page: address to listen on")
    sub.add_argument("--port", type=port, default=8080, help="of the page: first one to try")
    sub.add_argument("--num-envs", type=positive, default=1, help="of the page: worlds at once")
    sub.add_argument("--video", metavar="OUT.mp4", help="write a video, open no window")
    sub.add_argument("--strip", metavar="OUT.png", help="with --video: six frames side by side")
    sub.add_argument("--views", metavar="OUT.png", help="with --video: what the student sees")
    sub.add_argument("--tiles", type=positive, help="with --video: environments side by side")
    sub.add_argument("--info", action="store_true", help="with --tiles: reward, success and end")
    fine = "with --video: smooth edges and shadows, five times as slow in software"
    sub.add_argument("--fine", action="store_true", help=fine)
    sub.add_argument("--fps", type=positive, help="with --video: default as fast as the robot")
    sub.add_argument("--episodes", type=positive, default=3, help="of a video")
    sub.add_argument("--size", type=positive, default=480, help="pixels, even")
    sub.add_argument("--seed", type=natural, default=2_000_003, help="of the episodes")
    sub.add_argument("--successful", action="store_true", help="only the first successful episodes")


def _add_demo(verbs: Any) -> None:
    sub = _add(verbs, "demo", "Watch the policies that come with the package, in a browser.")
    sub.add_argument("name", nargs="?", metavar="NAME", help="the one to begin with")
    sub.add_argument("--list", action="store_true", help="say which there are, and stop")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on")
    sub.add_argument("--port", type=port, default=8080, help="first one to try")
    sub.add_argument("--seed", type=natural, default=2_000_003, help="of the episodes")


def _add_runs(verbs: Any) -> None:
    """Add what reads run folders; none of it needs torch."""
    runs = _add(verbs, "runs", "List runs with task, algorithm, seed, score and state.")
    runs.add_argument("folder", nargs="?", default="outputs", help="of runs; default: outputs")
    compare = _add(verbs, "compare", "Compare runs: curves over seeds, aggregate, differences.")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of them")
    score = "a column of metrics.csv; default: what the task scores by, evaluated"
    compare.add_argument("--metric", metavar="NAME", help=score)
    axis = "what the curves are drawn over; minutes are those of rollouts, updates and evaluations"
    compare.add_argument("--x", choices=("samples", "minutes"), default="samples", help=axis)
    compare.add_argument(
        "--out", metavar="DIR", default="outputs/compare", help="for the page and the image"
    )
    watch = _add(verbs, "watch", "Show a training live, as a page in a browser.")
    watch.add_argument("run_folder", metavar="RUN", help="run folder, finished or not")
    watch.add_argument("--host", default="127.0.0.1", help="address to listen on")
    watch.add_argument("--port", type=port, default=8008, help="0 for a free one")
    for sub in (runs, compare, watch):
        sub.set_defaults(run=_read)


def _read(args: argparse.Namespace) -> int:
    return importlib.import_module(f"penspin_style.cli.{args.verb}").run(args)


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
    sub.add_argument(
        "--float64",
        action="store_true",
        help="let the file compute in float64: for a policy that float32 does not resolve",
    )


def _add_record(verbs: Any) -> None:
    sub = _add(verbs, "record", "Record a policy's roll-outs, to clone them.", policy=_POLICY)
    sub.add_argument("out", help="folder for the rows")
    add_overrides(sub, "task=NAME to observe")
    sub.add_argument("--episodes", type=positive, default=500, help="how many to record")
    sub.add_argument("--num-envs", type=positive, default=50, help="worlds at once")
    sub.add_argument("--seed", type=natural, default=3_000_003, help="of the episodes")


def _add_search(verbs: Any) -> None:
    sub = _add(verbs, "search", "Find trajectories by sampling plans.", overrides="task=NAME first")
    sub.add_argument("--count", type=positive, default=1, help="trajectories, default 1")
    sub.add_argument("--out", metavar="DIR", help="default outputs/search/TASK")
    sub.add_argument("--method", choices=METHODS, help="default: search.method of the task")
    sub.add_argument("--bank", metavar="NEW", help="folder for states along them that hold")


def _add_demos(verbs: Any) -> None:
    sub = _add(verbs, "demos", "Record a task's scripted expert.")
    sub.add_argument("task", metavar="TASK", help="a task that offers an expert")
    add_overrides(sub, "task.KEY, sim.KEY or seed")
    sub.add_argument("--count", type=positive, default=10, help="trajectories, default 10")
    sub.add_argument("--out", metavar="DIR", help="default outputs/demos/TASK")
    sub.add_argument(
        "--bank", metavar="NEW", help="folder for states along the successful ones that hold"
    )


def _add_pretrain(verbs: Any) -> None:
    sub = _add(verbs, "pretrain", "Train the image encoder, on CIFAR-10 or on renders.")
    sub.add_argument("data", help="cifar-10-batches-bin, or a folder of penspin record")
    out = "outputs/encoders/nature_cnn"
    sub.add_argument("--out", metavar="DIR", default=out, help="folder of the weights")
    sub.add_argument("--epochs", type=positive, help="passes over the data; default: by its kind")
    sub.add_argument("--seed", type=natural, help="of weights and order; default: by its kind")


def _add_bench(verbs: Any) -> None:
    bench = verbs.add_parser("bench", help="Measure speed.", description="Measure speed.")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for name, summary, rounds in (
        ("sim", "Env steps per second of the full environment over the bare engine.", 7),
        ("train", "PPO samples per second, end to end, over the bare engine.", 7),
        ("render", "Images per second through our renderer over the bare ray tracer.", 7),
        ("overlap", "Samples per second with overlap=true over those without.", 7),
        ("scale", "Samples per second by the number of workers: 1 and 2 run, 64 predicted.", 3),
    ):
        sub = _add(kinds, name, summary, overrides="")
        sub.add_argument("--rounds", type=positive, default=rounds, help="alternating measurements")
        sub.add_argument("--steps", type=positive, default=72, help="control steps of each")
    onnx = _add(kinds, "onnx", "Milliseconds that one action takes.", policy="an .onnx file")
    onnx.add_argument("--calls", type=positive, default=5000, help="actions to time")


def _add_hub(verbs: Any) -> None:
    summary = "Send policies and episodes to the Hugging Face Hub, and fetch them."
    hub = verbs.add_parser("hub", help=summary, description=summary)
    kinds = hub.add_subparsers(dest="kind", required=True, metavar="WHAT")
    repo = "ORG/NAME, or a local folder as ./FOLDER"
    push = _add(kinds, "push", "Check a policy or episodes and send them, with a README.")
    push.add_argument("what", help="a run folder, a policy folder, an .onnx file, or episodes")
    push.add_argument("repo", help=f"{repo}; made if it is not there")
    push.add_argument("--private", action="store_true", help="if the repository is made")
    push.add_argument("--message", default="", metavar="TEXT", help="of the commit")
    push.add_argument("--licence", default="", metavar="NAME", help="as apache-2.0; default none")
    pull = _add(kinds, "pull", "Fetch a policy or episodes and check them.")
    pull.add_argument("repo", help=repo)
    pull.add_argument("--out", metavar="DIR", help="default: outputs/hub/NAME; must not exist")
    pull.add_argument("--dataset", action="store_true", help="episodes, not a policy")
    pull.add_argument("--revision", default="", metavar="REV", help="branch, tag or commit")


def _add_completion(verbs: Any) -> None:
    summary = "Print what makes a shell complete verbs, options, tasks and keys."
    sub = verbs.add_parser("completion", help=summary, description=summary)
    sub.add_argument("shell", choices=("bash", "zsh", "fish"), help='as eval "$(penspin ...)"')
    sub.set_defaults(run=_complete)


def _complete(args: argparse.Namespace) -> int:
    from penspin_style.cli import completion

    return completion.run(args, parser())


def _add_others(verbs: Any) -> None:
    """Add the verbs of other packages; one that cannot be imported is named and left out."""
    for entry in entry_points(_ENTRY_POINTS):
        try:
            add_verbs = entry.load()
        except (ImportError, AttributeError) as error:
            print(f"penspin: the verbs of {entry.value} are missing: {error}", file=sys.stderr)
            continue
        add_verbs(verbs)
