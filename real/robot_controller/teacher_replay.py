"""Replay a teacher's trajectory on the hand, open loop: PenSpin's command line.

    python real/robot_controller/teacher_replay.py --data-collect --exp=0 --replay_data_dir=DIR

DIR is a folder that `penspin replay make` filled; --exp says which of its trajectories, from 0 in
their order. It is replayed once; with --data-collect what the hand measures and was sent is
recorded as an episode. `penspin replay run` is the same for all trajectories of a folder.
"""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # run as a script, from wherever, also where nothing is installed
    sys.path.insert(0, str(ROOT))

from penspin_style.system import interrupt  # noqa: E402
from penspin_style.system.arguments import Parser, natural, positive  # noqa: E402
from penspin_style.system.terminal import one_line  # noqa: E402
from real.cli.arguments import add_arguments  # noqa: E402

HAND = "allegro_ros"
OUT = "real_data_collection"


def main(argv: Sequence[str] | None = None) -> int:
    """Replay as asked; return the exit code: 0 done, 2 invalid request, 3 the hand."""
    args = _parser().parse_args(argv)
    try:
        from penspin_style.data.episodes.episode import EpisodeError, RecorderError
        from real.drivers.ros import RosError
        from real.robot import RequestError, RobotError
    except ImportError as error:
        return _failed(2, f"{error}; pip install penspin_style")
    try:
        with interrupt.raising():
            return _replay(args)
    except (RobotError, EpisodeError, RecorderError) as error:
        is_missing = isinstance(error, RosError)
        hint = "; without a hand, --robot pen replays on its twin" if is_missing else ""
        code = 2 if isinstance(error, RequestError) else 3
        return _failed(code, f"{error}{hint}")
    except (ValueError, OSError) as error:
        return _failed(2, str(error))
    except interrupt.Interrupted as error:
        with contextlib.suppress(OSError):
            _failed(0, "interrupted; the hand was left safe")
        return 128 + error.number


def _parser() -> argparse.ArgumentParser:
    parser = Parser("teacher_replay.py", description="Replay a teacher's trajectory, open loop.")
    parser.option(
        "replay-data-dir",
        "folder of trajectories that `penspin replay make` filled",
        metavar="DIR",
        required=True,
    )
    parser.add_argument(
        *("--exp", "-exp"), type=natural, default=0, help="which trajectory, from 0"
    )
    parser.option("data-collect", "record what happens", action="store_true")
    parser.add_argument("--repeats", type=positive, default=1, help="times to replay it")
    add_arguments(parser, robot=HAND)
    return parser


def _replay(args: argparse.Namespace) -> int:
    from real.control.session import open_robot, report, show, success_check
    from real.control.success import check_watched
    from real.replay.replay import Plan, find, load, repeat

    check_watched(is_asking=args.ask)
    folder = pathlib.Path(args.replay_data_dir)
    paths = find(folder)
    if args.exp >= len(paths):
        raise ValueError(f"--exp={args.exp}: {folder} holds trajectories 0 to {len(paths) - 1}")
    if args.out is not None and not args.data_collect:
        raise ValueError(f"--out {args.out}: nothing is recorded without --data-collect")
    out = pathlib.Path(args.out or OUT).resolve() if args.data_collect else None
    opened = open_robot(args.robot, realtime=args.realtime)
    outcomes = repeat(
        opened,
        Plan([load(paths[args.exp])], args.repeats, seconds=args.seconds, seed=args.seed),
        success_check(args, opened),
        out=out,
        facts={"exp": args.exp},
        quiet=args.json,
    )
    found = report(outcomes, robot=opened.name, exp=args.exp)
    if args.json:
        print(json.dumps(found))
    else:
        show(found)
        print(f"recorded in {out}" if out else "nothing was recorded: --data-collect does")
    return 0


def _failed(code: int, message: str) -> int:
    print(f"teacher_replay.py: {one_line(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
