"""Twins whose world goes on by itself, at the clock's pace."""

import threading

import numpy as np
import pytest

from tests.support.rail import H, substeps
from tests.support.rail_twin import place, rail, true_place

# Real time.


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("real.twin.robot.time.monotonic", lambda: self.now)


def test_in_real_time_the_world_goes_on_by_itself(monkeypatch):
    clock = Clock(monkeypatch)
    robot = rail(realtime=True)
    assert robot.clock() == 1000.0
    robot.command(np.array([0.1]))
    assert true_place(robot) == 0.0  # no time has passed
    clock.now += 0.025  # two whole physics steps
    assert place(robot) == pytest.approx(substeps(0.0, 0.0, 0.1, 2)[0])
    assert robot.observe().stamp == pytest.approx(1000.02)
    clock.now += 0.195  # 22 in all: no command comes, the last one goes on
    assert place(robot) == pytest.approx(substeps(0.0, 0.0, 0.1, 22)[0])
    robot.command(np.array([0.2]))
    clock.now += 0.03
    x, v = substeps(0.0, 0.0, 0.1, 22)
    assert place(robot) == pytest.approx(substeps(x, v, 0.2, 3)[0])


def test_in_real_time_a_measurement_is_late_by_physics_steps(monkeypatch):
    clock = Clock(monkeypatch)
    robot = rail(realtime=True, observation_latency=0.03)
    robot.command(np.array([0.1]))
    clock.now += 0.081
    seen = robot.observe()
    assert seen.values["place"] == pytest.approx([substeps(0.0, 0.0, 0.1, 5)[0]])
    assert seen.stamp == pytest.approx(1000.05)


def test_a_stopped_twin_comes_to_rest_by_damping_alone(monkeypatch):
    clock = Clock(monkeypatch)
    robot = rail(realtime=True)
    robot.command(np.array([0.125]))
    clock.now += 0.05
    robot.stop()
    x, v = substeps(0.0, 0.0, 0.125, 5)
    clock.now += 0.1
    for _ in range(10):
        v = v / (1.0 + H * 40.0)
        x += H * v
    assert place(robot) == pytest.approx(x, abs=1e-6)
    assert v < 0.05


def test_a_world_that_nobody_asked_for_catches_up_five_seconds_at_most(monkeypatch):
    clock = Clock(monkeypatch)
    robot = rail(realtime=True)
    clock.now += 3600.0
    robot.hold()
    assert robot.batch.time == pytest.approx(5.0)
    assert robot.observe().stamp == pytest.approx(clock.now)


def test_threads_share_a_twin():
    robot, errors = rail(realtime=True), []

    def hold():
        try:
            for _ in range(200):
                robot.hold()
                robot.observe()
        except Exception as error:
            errors.append(error)

    others = [threading.Thread(target=hold) for _ in range(3)]
    for thread in others:
        thread.start()
    for _ in range(200):
        robot.command(np.array([0.1]))
    for thread in others:
        thread.join()
    assert errors == [] and np.isfinite(place(robot))
