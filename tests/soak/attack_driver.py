"""Make a robot's driver hang, again and again; see when the robot is held and stopped.

python tests/soak/attack_driver.py [--count 50] [--calls observe command sensor] [--seconds 3]
                                   [--json]

A twin in real time is controlled at its rate, behind its limits and with its watchdog. Then a call
of its driver hangs, with the lock that all of its calls take: `observe`, `command`, or what reads a
sensor beside the robot. For each time it is measured, at the driver:

hold        from the last fresh command to the hold                        at most 100 ms
stop        from the last fresh command to the stop                        at most 500 ms
followed    commands that came back after the stop and were followed       0

Timing needs a core that is free when a call is due; the load is printed. Exit code 1 if a limit was
exceeded.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from penspin_style.features import Feature  # noqa: E402
from real.control.loop import watch  # noqa: E402
from real.control.safety import SafeRobot, Watchdog  # noqa: E402
from real.drivers.external import External, Readers  # noqa: E402
from real.rate import Rate  # noqa: E402
from real.robot import Observation, RobotError  # noqa: E402
from real.twin.robot import SimRobot, TwinConfig, load_twin  # noqa: E402

CALLS = ("observe", "command", "sensor")
LIMITS = {"hold": 0.1, "stop": 0.5, "followed": 0}
CALM = (5, 15)  # control steps before each, drawn
MARK = Feature("mark", (), "1")


class Hanging(SimRobot):
    """A twin with one sensor beside it, each of whose calls can be made to hang once."""

    def __init__(self, config: TwinConfig) -> None:
        super().__init__(config)
        self.hangs = dict.fromkeys(CALLS, 0.0)
        self.back = 0.0  # when the last one that hung returns, s, monotonic
        self.held: list[float] = []
        self.stopped: list[float] = []
        self.sensors = Readers([External(MARK, self._read)])

    @property
    def features(self) -> Mapping[str, Feature]:
        """What the twin measures, and the mark."""
        return {**super().features, MARK.name: MARK}

    def connect(self) -> None:
        """Begin to read the sensor."""
        super().connect()
        self.sensors.start()

    def disconnect(self) -> None:
        """Stop, and read no more."""
        super().disconnect()
        self.sensors.close()

    def observe(self) -> Observation:
        """Return what has arrived."""
        with self._lock:
            self._hang("observe")
            seen = super().observe()
        return Observation({**seen.values, **self.sensors.read()}, seen.stamp, seen.measured)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Follow a target."""
        with self._lock:
            self._hang("command")
            return super().command(target)

    def hold(self) -> None:
        """Keep the last target, and note when."""
        super().hold()
        self.held.append(time.monotonic())

    def stop(self) -> None:
        """Go limp, and note when."""
        super().stop()
        self.stopped.append(time.monotonic())

    def _read(self) -> np.ndarray:
        self._hang("sensor")
        return np.zeros(())

    def _hang(self, call: str) -> None:
        seconds, self.hangs[call] = self.hangs[call], 0.0
        if seconds:
            self.back = time.monotonic() + seconds
            time.sleep(seconds)


def strike(
    robot: Hanging, safe: SafeRobot, dog: Watchdog, call: str, seconds: float, calm: int
) -> dict[str, float]:
    """Control the robot for some steps, let a call hang; return what came of it."""
    scale = np.array([channel.scale for channel in robot.channels])
    safe.reset()
    rate, before = Rate(robot.control_dt), robot.target
    step = followed = 0
    del robot.held[:], robot.stopped[:]
    dog.feed()  # the first action has as long as every other
    fed = time.monotonic()
    try:
        while True:
            step += 1
            if step == calm:
                robot.hangs[call] = seconds
            safe.observe()
            safe.command(before + 0.5 * scale * np.sin(step))
            before = robot.target
            followed += bool(robot.stopped)
            dog.feed()
            fed = time.monotonic()
            rate.wait()
    except RobotError:  # stopped, or the sensor has given nothing new for too long
        pass
    until = time.monotonic() + seconds
    while time.monotonic() < robot.back or (not robot.stopped and time.monotonic() < until):
        time.sleep(0.001)
    dog.rest()
    followed += not np.array_equal(robot.target, before)
    never = float("inf")
    return {
        "hold": min((at - fed for at in robot.held if at > fed), default=never),
        "stop": min((at - fed for at in robot.stopped if at > fed), default=never),
        "followed": followed,
    }


def measure(calls: Sequence[str], count: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Let each call hang so many times; return the figures."""
    rng = random.Random(seed)
    robot = Hanging(load_twin("pen", realtime=True, command_latency=0.0))
    safe = SafeRobot(robot)
    figures: dict[str, Any] = {"seconds": seconds, "calls": {}}
    safe.connect()
    try:
        with watch(safe) as dog:
            for call in calls:
                rows = [
                    strike(robot, safe, dog, call, seconds, rng.randint(*CALM))
                    for _ in range(count)
                ]
                figures["calls"][call] = {
                    name: {
                        "count": count,
                        "median": statistics.median(row[name] for row in rows),
                        "max": max(row[name] for row in rows),
                    }
                    for name in rows[0]
                }
    finally:
        safe.disconnect()
    figures["load"] = os.getloadavg()[0]
    return figures | {"within": within(figures)}


def within(figures: Mapping[str, Any]) -> bool:
    """Return whether every limit was kept."""
    return all(
        row[name]["max"] <= limit
        for row in figures["calls"].values()
        for name, limit in LIMITS.items()
    )


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures for people."""
    print(f"each call hangs for {figures['seconds']:g} s; load {figures['load']:.1f}")
    for call, row in figures["calls"].items():
        for name in ("hold", "stop"):
            times = row[name]
            print(
                f"{call:8} {name}  {times['count']:4d} times, median {1e3 * times['median']:.1f}, "
                f"max {1e3 * times['max']:.1f} ms (limit {1e3 * LIMITS[name]:g})"
            )
        print(f"{call:8} followed after the stop {row['followed']['max']}")


def main(argv: list[str]) -> int:
    """Attack and report; return the exit code."""
    parser = argparse.ArgumentParser(description="Make calls of a twin's driver hang.")
    parser.add_argument("--count", type=int, default=50, help="of each call")
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--seconds", type=float, default=3.0, help="that a call hangs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    if not 0.6 <= options.seconds <= 60.0:
        parser.error(f"--seconds must be in [0.6, 60], got {options.seconds:g}")
    figures = measure(options.calls, options.count, options.seconds, options.seed)
    print(json.dumps(figures)) if options.json else show(figures)
    return 0 if figures["within"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
