"""How a peer answers `bench_peers.py`: a word on standard input, a line of JSON on standard output.

It runs in the peer's environment as well and needs Python's own library alone.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

Kinds = Mapping[str, Callable[[], Any]]
"""Word -> what measures and returns the answer to it."""


def parse(description: str | None) -> argparse.Namespace:
    """Return the command line's `num_envs`, `seconds` and `more`, which only one script reads."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--num-envs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="to step for, a measurement")
    parser.add_argument("more", nargs="*")
    return parser.parse_args()


def stepping(
    step: Callable[[Any], object], actions: Iterable[Any], num_envs: int, seconds: float
) -> Callable[[], float]:
    """Take the first step, then return what measures environment steps per second.

    step: returns when all environments have done it. actions: of a step each, taken in turns.
    """
    rows = cycle(actions)
    step(next(rows))

    def measure() -> float:
        count, spent, began = 0, 0.0, time.perf_counter()
        while spent < seconds:
            step(next(rows))
            count += num_envs
            spent = time.perf_counter() - began
        return count / spent

    return measure


def serve(packages: Sequence[str], prepare: Callable[[], Kinds]) -> None:
    """Prepare, print the packages' versions, then answer a word a line until the input ends.

    What other packages print meanwhile goes to standard error.
    """
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        kinds = prepare()
        versions = {name: importlib.metadata.version(name) for name in packages}
        answers.write(f"{json.dumps(versions)}\n")
        for line in sys.stdin:
            answers.write(f"{json.dumps(kinds[line.strip()]())}\n")
