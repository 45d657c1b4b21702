"""Ticks of a control loop on the monotonic clock, and how long its stages take.

A tick is a multiple of the period from the loop's begin, so that no error adds up. A loop that is
late by whole periods leaves those ticks out and stays in phase; every late tick is counted.
"""

import bisect
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

SPIN = 0.0005
"""Seconds before a tick in which the loop watches the clock itself: sleeping wakes up late."""
STAGES = ("observe", "infer", "command", "step")
"""What is timed: reading the robot, asking the policy, sending, and the whole of a control step."""
EDGES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
"""Upper edges of the histogram's bins, ms; one bin more for what is above."""
_BARS = " ▁▂▃▄▅▆▇█"


class Rate:
    """Wait for the next tick, or, in fast time, never wait.

    late: ticks that had passed already when the loop came to wait for them.
    left_out: whole periods that passed in such a delay, and were not made up for.
    """

    def __init__(self, period: float, *, realtime: bool = True) -> None:
        self.period, self.realtime = period, realtime
        self.start()

    def start(self) -> None:
        """Begin: the first tick is one period from now."""
        self.begin = time.monotonic()
        self.tick = 1
        self.late = self.left_out = 0

    @property
    def deadline(self) -> float:
        """Return when the next tick is, s, monotonic; in fast time never."""
        return self.begin + self.tick * self.period if self.realtime else float("inf")

    def wait(self) -> None:
        """Return at the next tick, at once if it has passed."""
        if self.realtime:
            behind = time.monotonic() - self.deadline
            if behind > 0:
                self.late += 1
                skipped = int(behind / self.period)
                self.left_out += skipped
                self.tick += skipped
            else:
                time.sleep(max(0.0, -behind - SPIN))
                while time.monotonic() < self.deadline:
                    pass
        self.tick += 1


class Latency:
    """Durations of the stages of control steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def add(self, stage: str, seconds: float) -> None:
        """Note that a stage took so long."""
        self.seconds[stage].append(seconds)

    def extend(self, other: "Latency") -> None:
        """Note everything that another has noted."""
        for stage, values in other.seconds.items():
            self.seconds[stage] += values

    def facts(self) -> dict[str, Any]:
        """Return, per stage: count, p50, p90, p99 and max in ms, and how many fell in each bin."""
        found: dict[str, Any] = {"edges_ms": list(EDGES)}
        for stage, values in self.seconds.items():
            if not values:
                continue
            ms = 1e3 * np.array(values)
            p50, p90, p99 = (float(q) for q in np.percentile(ms, (50, 90, 99)))
            bins = [0] * (len(EDGES) + 1)
            for value in ms.tolist():
                bins[bisect.bisect_left(EDGES, value)] += 1
            found[stage] = {
                "count": len(values),
                **{"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": float(ms.max())},
                "histogram": bins,
            }
        return found


def table(facts: Mapping[str, Any]) -> str:
    """Return what `Latency.facts` gave as lines for people, with a bar per bin."""
    lines = [f"{'ms':8} {'p50':>8} {'p90':>8} {'p99':>8} {'max':>8}  up to {EDGES[0]:g} to above"]
    lines[0] += f" {EDGES[-1]:g}"
    for stage in STAGES:
        row = facts.get(stage)
        if row is None:
            continue
        most = max(row["histogram"])
        scale = (len(_BARS) - 1) / most
        bars = "".join(_BARS[-int(-n * scale // 1)] for n in row["histogram"])
        numbers = " ".join(f"{row[k]:8.2f}" for k in ("p50_ms", "p90_ms", "p99_ms", "max_ms"))
        lines.append(f"{stage:8} {numbers}  |{bars}|")
    return "\n".join(lines)
