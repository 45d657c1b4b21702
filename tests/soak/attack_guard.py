"""Attack the limiter between policy and robot: every kind of bad target, millions of times.

    python tests/soak/attack_guard.py 1000000

Prints how many targets were outside a limit afterwards (none may be), and what a check takes.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from penspin_style.features import ActionChannel
from real.control.safety import Limits, TargetLimiter

CONTROL_DT = 0.05
CHANNELS = tuple(  # the Allegro hand's sixteen joints
    ActionChannel(f"joint{i}", "rad", 1 / 24, low, high, "delta")
    for i, (low, high) in enumerate([(-0.5585, 0.5585), (-0.27924, 1.727825)] * 8)
)
_DENORMAL = 5e-324
_BAD = (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e308, -1e308, _DENORMAL, -_DENORMAL, 0.0, -0.0)


def attacks(rng: np.random.Generator, limits: Limits, limiter: TargetLimiter) -> Iterator[Any]:
    """Yield targets without end, each of a kind drawn anew; runs of some kinds are long."""
    n = len(limits.low)
    middle, span = 0.5 * (limits.low + limits.high), limits.high - limits.low
    while True:
        kind, run = int(rng.integers(12)), int(rng.integers(1, 60))
        side = rng.choice([-1.0, 1.0], n)
        for i in range(run):
            if kind == 0:  # anywhere, also far outside
                yield middle + span * rng.uniform(-2.0, 2.0, n)
            elif kind == 1:  # one number that is none, among good ones
                target = limiter.last + 0.01 * rng.standard_normal(n)
                target[rng.integers(n)] = rng.choice(_BAD)
                yield target
            elif kind == 2:
                yield rng.choice(_BAD, n)
            elif kind == 3:  # exactly on a limit, or the next number beyond
                edge = np.where(side > 0, limits.high, limits.low)
                yield edge if i % 2 else np.nextafter(edge, np.inf * side)
            elif kind == 4:  # full speed back and forth
                yield limiter.last + (-1.0) ** i * side * limits.velocity * CONTROL_DT
            elif kind == 5:  # full speed ahead, into the limit
                yield limiter.last + side * limits.velocity * CONTROL_DT
            elif kind == 6:  # from limit to limit
                yield np.where((-1.0) ** i * side > 0, limits.high, limits.low)
            elif kind == 7:  # another shape
                yield rng.standard_normal([(n + 1,), (n - 1,), (1, n), (n, 1), (0,), ()][i % 6])
            elif kind == 8:  # another type
                yield _wrong_type(i, n)
            elif kind == 9:  # the same in fewer bits
                yield (middle + span * rng.uniform(-1, 1, n)).astype(
                    [np.float16, np.float32][i % 2]
                )
            elif kind == 10:  # steps as small as numbers can be
                yield np.nextafter(limiter.last, np.inf * side)
            else:  # what a policy sends
                yield limiter.last + rng.uniform(-1.0, 1.0, n) / 24


def _wrong_type(i: int, n: int) -> Any:
    kinds = (
        None, "stop", [0.0, "1"] * (n // 2), np.zeros(n, complex), np.zeros(n, bool),
        np.full(n, None), {"a": 1}, [[0.0], [0.0, 1.0]], np.array(["x"] * n), 10**400,
        [10**400] * n, np.full(n, 2**63, np.uint64), b"\x00" * n, np.datetime64("2020-01-01"),
    )  # fmt: skip
    return kinds[i % len(kinds)]


def attack(count: int, *, acceleration: float | None, seed: int = 0) -> dict[str, Any]:
    """Send `count` targets through one limiter; return what was outside, and the times in µs."""
    rng = np.random.default_rng(seed)
    limits = Limits.of(CHANNELS, CONTROL_DT, acceleration=acceleration)
    limiter = TargetLimiter(limits, CONTROL_DT)
    limiter.begin(0.5 * (limits.low + limits.high))
    step, change = limits.velocity * CONTROL_DT, limits.acceleration * CONTROL_DT**2
    last, moved = limiter.last, np.zeros(len(limits.low))
    outside = {"position": 0, "velocity": 0, "acceleration": 0, "not finite": 0}
    times, cpu = np.empty(count), np.empty(count)
    targets = attacks(rng, limits, limiter)
    for i in range(count):
        target = next(targets)
        if rng.random() < 0.002:  # a new episode, from anywhere inside
            last, moved = rng.uniform(limits.low, limits.high), np.zeros(len(limits.low))
            limiter.begin(last)
        used, begun = time.thread_time(), time.perf_counter()
        sent = limiter.check(target)
        times[i], cpu[i] = time.perf_counter() - begun, time.thread_time() - used
        now = sent - last
        outside["position"] += bool(((sent < limits.low) | (sent > limits.high)).any())
        outside["velocity"] += bool((np.abs(now) > step).any())
        outside["acceleration"] += bool((np.abs(now - moved) > change).any())
        outside["not finite"] += not np.isfinite(sent).all()
        last, moved = sent, now
    rows = {"wall": times, "cpu": cpu}  # on a busy machine a wall's p99 is that of its scheduler
    cost = {
        f"{name}_p{q}_us": round(float(np.percentile(row, q)) * 1e6, 1)
        for name, row in rows.items()
        for q in (50, 99)
    }
    return {
        "targets": count,
        "outside": outside,
        "interventions": dict(limiter.interventions),
        **cost,
    }


def main() -> int:
    """Attack with the default acceleration, and with one that needs ten steps to brake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    count = parser.parse_args().count
    gentle = 0.1 * 1 / 24 / CONTROL_DT**2
    results = {
        "default": attack(count // 2, acceleration=None),
        "gentle": attack(count - count // 2, acceleration=gentle, seed=1),
    }
    print(json.dumps(results, indent=1))
    return int(any(sum(found["outside"].values()) for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
