"""What command lines share: one-line errors, kinds of numbers, options that most of them have."""

import argparse
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors; its sub-parsers are of this class, too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # no default: that of a sub-parser would win over what stands before its name
        summary = "with an error, show the Python traceback, too"
        hidden = argparse.SUPPRESS
        self.add_argument("--traceback", action="store_true", default=hidden, help=summary)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and end the process with exit code 2."""
        command = self.prog.split()[0]
        print(f"{command}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def option(self, name: str, summary: str, **kwargs: Any) -> None:
        """Add an option that is spelled with dashes, or with PenSpin's underscores."""
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
        default = kwargs.get("default")
        tail = f", default {default}" if default not in (None, "", False) else ""
        self.add_argument(*spellings, help=f"{summary}{tail}", **kwargs)


def show_traceback(args: argparse.Namespace) -> None:
    """Print the traceback of the exception that is being handled, if the command line asks."""
    if getattr(args, "traceback", False):
        traceback.print_exc()


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1, 2**31 - 1, "at least 1, below 2**31")


def natural(text: str) -> int:
    """Read a seed."""
    return _whole(text, 0, 2**63 - 1, "0 to 2**63 - 1")


def port(text: str) -> int:
    """Read a port of a computer; 0 for any."""
    return _whole(text, 0, 65535, "0 to 65535")


def above_zero(most: float, name: str = "number") -> Callable[[str], float]:
    """Return what reads a number above 0 and up to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0.0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {name} above 0 and up to {most:g}")
        return value

    return read


def _whole(text: str, least: int, most: int, legal: str) -> int:
    # more digits are too many for any `most`, and Python refuses to read thousands of them
    value = int(text) if text.isdecimal() and len(text) < 20 else -1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {legal}")
    return value
