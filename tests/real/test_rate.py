"""Ticks and durations of a control loop."""

import time

import pytest

from real import rate
from real.rate import Latency, Rate, table

pytestmark = pytest.mark.clock


class Clock:
    """A clock that sleeping moves, too far by 0.1 ms, and looking at it by 1 us."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        self.now += 1e-6
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds + 1e-4


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(rate, "time", found)
    return found


def test_a_thousand_ticks_do_not_drift(clock):
    ticks = Rate(0.05)
    for k in range(1, 1001):
        clock.now += 0.01  # work
        ticks.wait()
        assert clock.now == pytest.approx(ticks.begin + 0.05 * k, abs=5e-6)
    assert ticks.late == ticks.left_out == 0


def test_a_late_loop_leaves_ticks_out_and_stays_in_phase(clock):
    ticks = Rate(0.05)
    clock.now = ticks.begin + 0.17  # ticks 1, 2 and 3 have passed
    ticks.wait()
    assert clock.now < ticks.begin + 0.171  # goes on at once
    assert (ticks.late, ticks.left_out) == (1, 2)
    ticks.wait()
    assert clock.now == pytest.approx(ticks.begin + 0.20, abs=5e-6)


def test_a_loop_that_is_late_by_less_than_a_period_leaves_nothing_out(clock):
    ticks = Rate(0.05)
    clock.now = ticks.begin + 0.06
    ticks.wait()
    assert (ticks.late, ticks.left_out) == (1, 0)
    assert ticks.deadline == pytest.approx(ticks.begin + 0.10)


def test_the_real_clock_is_met_within_a_millisecond_in_the_median():
    ticks = Rate(0.01)
    errors = []
    for k in range(1, 31):
        ticks.wait()
        errors.append(time.monotonic() - ticks.begin - 0.01 * k)
    assert 0 <= sorted(errors)[15] < 1e-3


def test_fast_time_never_waits(clock):
    ticks = Rate(0.05, realtime=False)
    before = clock.now
    for _ in range(100):
        ticks.wait()
    assert clock.now == before and ticks.deadline == float("inf") and ticks.late == 0


def test_durations_are_told_as_quantiles_and_bins():
    latency = Latency()
    for ms in range(1, 101):
        latency.add("infer", 1e-3 * ms)
    (row,) = (v for k, v in latency.facts().items() if k != "edges_ms")
    assert row["count"] == 100
    assert row["p50_ms"] == pytest.approx(50.5) and row["p99_ms"] == pytest.approx(99.01)
    assert row["max_ms"] == pytest.approx(100.0)
    #            .1 .2 .5  1  2  5 10  20  50 100 200 500 above
    assert row["histogram"] == [0, 0, 0, 1, 1, 3, 5, 10, 30, 50, 0, 0, 0]


def test_durations_of_several_episodes_add_up():
    one, other = Latency(), Latency()
    one.add("step", 0.001)
    other.add("step", 0.6)
    one.extend(other)
    row = one.facts()["step"]
    assert row["count"] == 2 and row["histogram"][-1] == 1


def test_the_table_has_a_line_per_stage_and_a_bar_per_bin():
    latency = Latency()
    latency.add("observe", 0.003)
    latency.add("step", 0.02)
    head, *lines = table(latency.facts()).splitlines()
    assert [line.split()[0] for line in lines] == ["observe", "step"]
    assert "p99" in head and lines[0].count(" 3.00") >= 4
    assert all(len(line.split("|")[1]) == len(rate.EDGES) + 1 for line in lines)
