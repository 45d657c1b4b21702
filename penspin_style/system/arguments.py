"""What command lines share: one-line errors, kinds of numbers, options that most of them have."""

import argparse
import difflib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class _Help(argparse.HelpFormatter):
    """Help that tells the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        told = "default" in text or action.default in (None, argparse.SUPPRESS, "", False, [])
        if told or not action.option_strings:
            return text
        return f"{text}, default %(default)s"


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors; its sub-parsers are of this class, too."""

    def __init__(self, prog: str | None = None, **kwargs: Any) -> None:
        super().__init__(prog, **{"formatter_class": _Help, **kwargs})
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
        self.add_argument(*spellings, help=summary, **kwargs)

    def verb_of(self, words: Sequence[str]) -> "Parser":
        """Return the parser of the verb that a command line names, itself if it names none."""
        parser = self
        for word in words:
            verbs = parser.verbs()
            if verbs and not word.startswith("-") and not is_override(word):
                if word not in verbs:
                    return parser
                parser = verbs[word]
        return parser

    def has(self, name: str) -> bool:
        """Return whether there is an argument of this name."""
        return any(action.dest == name for action in self._actions)

    def overrides_first(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return (the KEY=VALUE of a command line, the other words); values of options are none.

        A path with "=" in its name is written with a slash: ./a=b.onnx.
        """
        overrides: list[str] = []
        others: list[str] = []
        takes_value = False
        for word in words:
            if takes_value or not is_override(word):
                others.append(word)
                option = self._option_string_actions.get(word)
                takes_value = option is not None and option.nargs is None
            else:
                overrides.append(word)
        return overrides, others

    def options(self) -> list[str]:
        """Return the spellings of all options."""
        return sorted(name for name in self._option_string_actions if name.startswith("--"))

    def verbs(self) -> "dict[str, Parser]":
        """Return the parsers of the verbs by name."""
        groups = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return next((dict(group.choices) for group in groups), {})

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Refuse a value that is empty, as of a shell's variable that is not set.

        An option whose default is empty takes it.
        """
        is_verb = action.nargs == argparse.PARSER  # with all that follows it
        if not arg_string and action.default != "" and not is_verb:
            raise argparse.ArgumentError(action, "must not be empty, got ''")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is no choice; name the one that looks like it."""
        choices = [str(choice) for choice in action.choices or ()]
        if not choices or str(value) in choices:
            return
        close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6)
        legal = f"choose from {', '.join(map(repr, choices))}"
        hint = f"; did you mean {close[0]!r}?" if close else f" ({legal})"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint}")


_OVERRIDE = re.compile(r"[^-/\s=][^/\s=]*=|=")


def is_override(word: str) -> bool:
    """Return whether a word of a command line is KEY=VALUE."""
    return _OVERRIDE.match(word) is not None


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
