"""Whether an episode was a success: by a rule that was stated before, or by an operator."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from real.robot import RequestError, RobotError

_RULE = re.compile(r"([A-Za-z_]\w*)\s*(>=|<=)\s*(\S+)")


@dataclass(frozen=True)
class SuccessRule:
    """A threshold on one of the numbers that a robot measures of its episode."""

    measure: str
    threshold: float
    at_least: bool = True
    """Whether the measure must reach the threshold, or must not exceed it."""

    @classmethod
    def parse(cls, text: str) -> "SuccessRule":
        """Read `turns>=0.5`, or `success` for `success>=1`.

        Raises:
            ValueError: it is neither.
        """
        if text.isidentifier():
            return cls(text, 1.0)
        found = _RULE.fullmatch(text.strip())
        try:
            threshold = float(found[3]) if found else math.nan
        except ValueError:
            threshold = math.nan
        if found is None or not math.isfinite(threshold):
            raise ValueError(
                f"{text!r} is no rule of success; write MEASURE, MEASURE>=NUMBER or "
                "MEASURE<=NUMBER, as turns>=0.5"
            )
        return cls(found[1], threshold, found[2] == ">=")

    def __str__(self) -> str:
        return f"{self.measure}{'>=' if self.at_least else '<='}{self.threshold:g}"

    def holds(self, measures: Mapping[str, float | bool]) -> bool:
        """Return whether the measures of an episode fulfil the rule; NaN does not.

        Raises:
            RequestError: the robot has no such measure.
        """
        return bool(self.where({k: np.asarray(v) for k, v in measures.items()}))

    def where(self, measures: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return which of many episodes fulfil the rule, bool, of the measures' shape.

        Raises:
            RequestError: the robot has no such measure.
        """
        if self.measure not in measures:
            raise RequestError(
                f"the robot does not measure {self.measure!r}, it measures "
                f"{', '.join(sorted(measures)) or 'nothing: label by hand with --ask'}"
            )
        value = np.asarray(measures[self.measure], float)
        return value >= self.threshold if self.at_least else value <= self.threshold


SUCCESS = SuccessRule("success", 1.0)
"""By the robot's own measure."""


class Label(Enum):
    """What an episode is labelled."""

    SUCCESS = True
    FAILURE = False
    DISCARD = None
    """It says nothing, as when the object was not in place; it is not kept."""


_ANSWERS = {"y": Label.SUCCESS, "n": Label.FAILURE, "d": Label.DISCARD}


def ask(question: str, read: Callable[[], str] | None = None) -> Label:
    """Ask the operator, until the answer is y, n or d.

    read: returns a line, empty at the end of input; default: standard input.

    Raises:
        RobotError: nobody is there to answer.
    """
    answer: Callable[[], str] = read if read is not None else sys.stdin.readline
    while True:
        print(f"{question} [y]es, [n]o, [d]iscard: ", end="", file=sys.stderr, flush=True)
        line = answer()
        if not line:
            raise RobotError("nobody answers whether that was a success; leave out --ask")
        label = _ANSWERS.get(line.strip().lower()[:1])
        if label is not None:
            return label


@dataclass(frozen=True)
class SuccessCheck:
    """How it is found whether an episode was a success, and which are kept."""

    rule: SuccessRule | None = None
    """None: nothing but `by_hand` says what a success is."""
    by_hand: bool = False
    """Whether to ask on the terminal after each episode; the rule's answer is shown."""
    only_successes: bool = False
    said: Callable[[], Label | None] = lambda: None
    """What a key has said of the episode before its end; it goes before the rest."""

    def check(self, measures: Mapping[str, float]) -> None:
        """Check before an episode that the robot measures what the rule names.

        Raises:
            RequestError: it does not, and nobody is asked either.
        """
        if self.rule is not None and (measures or not self.by_hand):
            self.rule.holds(measures)

    def __call__(self, measures: Mapping[str, float], stopped: str) -> Label | None:
        """Return an episode's label, None if nobody can say.

        Raises:
            RobotError: the robot does not measure what the rule names, or nobody answers.
        """
        if (said := self.said()) is not None:
            return said
        ruled = None
        if self.rule is not None and (measures or not self.by_hand):
            ruled = Label(self.rule.holds(measures))
        if not self.by_hand:
            return ruled
        shown = ", ".join(f"{name} {value:.3g}" for name, value in measures.items())
        rule = f" (by {self.rule}: {'yes' if ruled.value else 'no'})" if ruled else ""
        why = f"stopped, {stopped}; " if stopped else ""
        return ask(f"{why}{shown}{rule}\nwas it a success?".lstrip("\n"))


def check_watched(*, is_asking: bool) -> None:
    """Check that there is somebody to ask.

    Raises:
        RequestError: standard input is no terminal.
    """
    if is_asking and not sys.stdin.isatty():
        raise RequestError("--ask needs a terminal to answer on; use --success RULE instead")
