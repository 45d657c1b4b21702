"""The verbs of robots on the command line of `penspin`, found through the package's entry points.

Each verb is one function below that adds its parser; what it runs is imported when it runs, so that
`penspin --help` answers at once and a robot's computer needs no torch.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from penspin_style.system.arguments import add_json, natural, port, positive, show_traceback
from penspin_style.system.terminal import one_line
from real.cli import arguments


def add_verbs(verbs: Any) -> None:
    """Add every verb of this room.

    verbs: what `ArgumentParser.add_subparsers` returned. Each parser sets `run`, a function of the
        parsed command line that returns an exit code.
    """
    for add in _VERBS:
        add(verbs)


def exit_code(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a verb's function that says in one line what a robot, a server or a disk cannot do.

    Exit code 3 for that, also where a file is damaged; 2 where what was asked for does not suit the
    robot, or a package is missing; other mistakes on the command line are its caller's business.
    """

    def running(args: argparse.Namespace) -> int:
        try:
            from penspin_style.data.episodes.episode import EpisodeError, RecorderError
            from penspin_style.storage import DamagedError
            from real.robot import RequestError, RobotError
        except ImportError as error:
            print(f"penspin: {error}; pip install penspin_style", file=sys.stderr)
            return 2
        try:
            return run(args)
        except (RobotError, EpisodeError, RecorderError, DamagedError) as error:
            show_traceback(args)
            print(f"penspin: {one_line(error)}", file=sys.stderr)
            return 2 if isinstance(error, RequestError) else 3

    return running


def _add_serve(verbs: Any) -> None:
    summary = "Serve a policy to robots, over OpenPI's websocket protocol."
    serve = verbs.add_parser("serve", help=summary, description=summary)
    serve.add_argument("policy", metavar="POLICY.onnx", help="as `penspin export` writes it")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; default loopback")
    serve.add_argument("--port", type=port, default=8000, help="default 8000; 0 for a free one")
    key = serve.add_mutually_exclusive_group()
    key.add_argument("--api-key-file", metavar="FILE", help="a file with the key clients must give")
    key.add_argument(
        "--api-key", metavar="KEY", help="the key itself; a list of processes shows it"
    )
    serve.add_argument(
        "--insecure", action="store_true", help="serve other computers without a key"
    )
    serve.add_argument("--tls-cert", metavar="PEM", help="certificate: encrypt connections")
    serve.add_argument("--tls-key", metavar="PEM", help="the certificate's private key")
    most = "clients at once"
    serve.add_argument("--max-connections", type=positive, default=64, metavar="N", help=most)
    serve.add_argument(
        "--max-frame",
        type=positive,
        metavar="MIB",
        help="largest request; default what the policy's observation needs, 64 KiB at least",
    )
    serve.add_argument(
        "--memory", type=positive, default=1024, metavar="MIB", help="of the process; default 1024"
    )
    serve.add_argument(
        "--adapter",
        choices=["aloha"],
        help="for clients that ask otherwise than the policy's card says: OpenPI's stock ALOHA one",
    )
    serve.add_argument("--json", action="store_true", help="say where it serves as a JSON object")

    def run(args: argparse.Namespace) -> int:
        try:
            from real.serving import serve as verb
        except ImportError as error:
            print(f"penspin: {error}; pip install penspin_style", file=sys.stderr)
            return 2
        return verb.run(args)

    serve.set_defaults(run=run)


def _add_rollout(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> int:
        from real.control import session

        return session.rollout(args)

    arguments.add_rollout(verbs).set_defaults(run=exit_code(run))


def _add_robot(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> int:
        from real.control import check

        return check.run(args)

    arguments.add_robot(verbs).set_defaults(run=exit_code(run))


def _add_camera(verbs: Any) -> None:
    def check(args: argparse.Namespace) -> int:
        from real.cameras import check as verb

        return verb.check(args)

    def latency(args: argparse.Namespace) -> int:
        from real.cameras import check as verb

        return verb.measure(args)

    for parser, what in zip(arguments.add_camera(verbs), (check, latency), strict=True):
        parser.set_defaults(run=exit_code(what))


def _add_teleop(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> int:
        from real.teleop import session

        return session.run(args)

    arguments.add_teleop(verbs).set_defaults(run=exit_code(run))


def _add_replay(verbs: Any) -> None:
    def make(args: argparse.Namespace) -> int:
        from real.replay import replay

        return replay.make(args)

    def run(args: argparse.Namespace) -> int:
        from real.replay import replay

        return replay.run(args)

    for parser, what in zip(arguments.add_replay(verbs), (make, run), strict=True):
        parser.set_defaults(run=exit_code(what))


def _add_twin(verbs: Any) -> None:
    summary = "List the twins of robots, or evaluate a policy on one."
    twin = verbs.add_parser("twin", help=summary, description=summary)
    twin.add_argument("name", nargs="?", metavar="TWIN", help="its name, or a YAML file")
    twin.add_argument("policy", nargs="?", metavar="POLICY.onnx", help="what to evaluate")
    twin.add_argument("--episodes", type=positive, default=100, help="how many")
    twin.add_argument("--seed", type=natural, default=2_000_003, help="of the episodes")
    add_json(twin)

    def run(args: argparse.Namespace) -> int:
        from real.twin import evaluate

        return evaluate.run(args)

    twin.set_defaults(run=exit_code(run))


_VERBS: tuple[Callable[[Any], None], ...] = (
    *(_add_serve, _add_rollout, _add_robot, _add_camera, _add_teleop, _add_replay, _add_twin),
)
"""One function for each verb: it adds the verb's parser to the sub-parsers."""
