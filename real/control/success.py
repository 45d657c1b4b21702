"""Whether an episode was a success: by a rule that was stated before, or by whoever watched it."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from penspin_style.system import interval
from real.robot import RobotError

_RULE = re.compile(r"([A-Za-z_]\w*)\s*(>=|<=)\s*(\S+)")


@dataclass(frozen=True)
class Rule:
    """A threshold on one of the numbers that a robot judges its episode by."""

    measure: str
    threshold: float
    at_least: bool = True
    """Whether the measure must reach the threshold, or must not exceed it."""

    @classmethod
    def parse(cls, text: str) -> "Rule":
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
            RobotError: the robot has no such measure.
        """
        return bool(self.where({k: np.asarray(v) for k, v in measures.items()}))

    def where(self, measures: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return which of many episodes fulfil the rule, bool, of the measures' shape.

        Raises:
            RobotError: the robot has no such measure.
        """
        if self.measure not in measures:
            raise RobotError(
                f"the robot does not measure {self.measure!r}, it measures "
                f"{', '.join(sorted(measures)) or 'nothing: judge by hand with --ask'}"
            )
        value = np.asarray(measures[self.measure], float)
        return value >= self.threshold if self.at_least else value <= self.threshold


SUCCESS = Rule("success", 1.0)
"""By the robot's own measure."""


class Verdict(Enum):
    """What is made of an episode."""

    SUCCESS = True
    FAILURE = False
    DISCARD = None
    """It says nothing, as when the object was not in place; it is not kept."""


_ANSWERS = {"y": Verdict.SUCCESS, "n": Verdict.FAILURE, "d": Verdict.DISCARD}


def ask(question: str, read: Callable[[], str] | None = None) -> Verdict:
    """Ask whoever watches, until the answer is y, n or d.

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
        verdict = _ANSWERS.get(line.strip().lower()[:1])
        if verdict is not None:
            return verdict


def check_watched(*, is_asking: bool) -> None:
    """Check that there is somebody to ask.

    Raises:
        RobotError: standard input is no terminal.
    """
    if is_asking and not sys.stdin.isatty():
        raise RobotError("--ask needs a terminal to answer on; use --success RULE instead")


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was counted; of none: 0 to 1."""
    return interval.wilson(successes / n, n) if n else (0.0, 1.0)
