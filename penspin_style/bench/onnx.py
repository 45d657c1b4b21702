"""How long an exported policy takes to act."""

import pathlib
import time
from typing import Any

import numpy as np

from penspin_style.deploy.bundle import Bundle


def onnx(path: pathlib.Path, *, calls: int) -> dict[str, Any]:
    """Return the time that one action takes, batch 1 on one thread, in ms: median, p99, longest.

    What is timed is all that a robot waits for: checks of the observation, graph, check of the
    action.
    """
    bundle = Bundle.load(path)
    rng = np.random.default_rng(0)
    observations = [
        {
            i.name: rng.integers(0, 256, shape, np.uint8)
            if dtype == "uint8"
            else rng.random(shape, np.float32)
            for i in bundle.card.inputs
            for dtype, shape in [i.tensor]
        }
        for _ in range(32)
    ]
    times = []
    for i in range(calls + 100):
        began = time.perf_counter()
        bundle(observations[i % len(observations)])
        times.append(1e3 * (time.perf_counter() - began))
    taken = np.array(times[100:])  # the first ones warm up
    p50, p99 = np.percentile(taken, (50, 99))
    return {
        "calls": calls,
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "max_ms": round(float(taken.max()), 3),
    }
