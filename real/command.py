"""The verbs of robots on the command line of `penspin`, found through the package's entry points.

Each verb is one function below that adds its parser; what it runs is imported when it runs, so that
`penspin --help` answers at once and a robot's computer needs no torch.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any


def add_verbs(verbs: Any) -> None:
    """Add every verb of this room.

    verbs: what `ArgumentParser.add_subparsers` returned. Each parser sets `run`, a function of the
        parsed words that returns an exit code.
    """
    for add in _VERBS:
        add(verbs)


def exit_code(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a verb's function that says in one line what a robot or its link cannot do.

    Exit code 3; what the words cannot mean is the command line's own business.
    """

    def running(args: argparse.Namespace) -> int:
        from real.robot import RobotError

        try:
            return run(args)
        except RobotError as error:
            print(f"penspin: {' '.join(str(error).split())}", file=sys.stderr)
            return 3

    return running


_VERBS: tuple[Callable[[Any], None], ...] = ()
"""One function for each verb: it adds the verb's parser to the sub-parsers."""
