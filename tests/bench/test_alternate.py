"""The arithmetic of the benchmarks: who is called when, and what becomes of the times."""

import itertools
import time

import pytest

from penspin_style.bench.alternate import alternate, report
from penspin_style.config import TrainConfig


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_contenders_take_turns_and_the_first_round_does_not_count(clock):
    said = []

    def contender(name, seconds):
        def call(i):
            said.append((name, i))
            clock[0] += next(seconds)

        return call

    def prepare():
        said.append("prepare")
        clock[0] += 100.0

    def finish():
        clock[0] += 1.0

    slow = itertools.chain([50.0] * 2, itertools.repeat(1.5))
    speeds = alternate(
        {"slow": contender("slow", slow), "quick": contender("quick", itertools.repeat(0.5))},
        *(3, 2),
        prepare=prepare,
        finish=finish,
    )
    turn = ["prepare", ("slow", 0), ("slow", 1), "prepare", ("quick", 0), ("quick", 1)]
    assert said == turn * 4
    # two calls in 2 * 1.5 + 1 and in 2 * 0.5 + 1 seconds
    assert speeds == {"slow": [0.5] * 3, "quick": [1.0] * 3}


def test_a_report_holds_medians_of_ratios_of_the_same_round_and_rates_of_all_environments():
    speeds = {"ours": [1.0, 2.0, 6.0], "base": [2.0, 1.0, 2.0]}
    figures = report(TrainConfig(num_envs=10), speeds, {"ratio": ("ours", "base")})
    assert figures["num_envs"] == 10
    assert figures["ratio"] == 2.0 and figures["ratio_spread"] == [0.5, 3.0]
    assert figures["ours_per_s"] == [10, 20, 60] and figures["base_per_s"] == [10, 20, 20]
    frames = report(TrainConfig(num_envs=10), speeds, {}, per_env=3, unit="frames_")
    assert frames["ours_frames_per_s"] == [30, 60, 180]
    assert set(frames) == {"num_envs", "cores", "ours_frames_per_s", "base_frames_per_s"}


def test_what_makes_a_call_ready_does_not_count(clock):
    said = []

    def ready(i):
        said.append(("ready", i))
        clock[0] += 100.0

    def call(i):
        said.append(("call", i))
        clock[0] += 0.5

    speeds = alternate({"x": call}, 2, 2, prepare=lambda: None, ready={"x": ready})
    assert said == [("ready", 0), ("call", 0), ("ready", 1), ("call", 1)] * 3
    assert speeds == {"x": [2.0] * 2}
