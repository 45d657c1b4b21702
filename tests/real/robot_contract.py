"""What every driver must do, as `real.robot.Robot` says; run on the twin and on all drivers."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from real.robot import RobotError, StoppedError


def check_robot(robot, *, let_pass: Callable[[], None] | None = None) -> None:
    """Take a robot that was never connected through its life; it ends disconnected.

    let_pass: lets a control step pass; None to sleep for it.
    """
    step = let_pass or (lambda: time.sleep(robot.control_dt))
    check_description(robot)
    check_unconnected(robot)
    robot.connect()
    robot.connect()
    with pytest.raises(RobotError):
        _ = robot.target
    with pytest.raises(RobotError):
        robot.command(np.array([c.low for c in robot.channels]))
    with pytest.raises(RobotError):
        robot.reset({"no such thing": np.zeros(1)})
    robot.reset()
    check_observations(robot, step)
    check_commands(robot, step)
    check_refusals(robot)
    check_stop(robot, step)
    robot.disconnect()
    robot.disconnect()
    check_unconnected(robot)
    robot.connect()  # and again
    robot.reset()
    robot.command(robot.target)
    robot.disconnect()


def check_description(robot) -> None:
    """What it measures and takes is known before it is connected."""
    assert robot.control_dt > 0
    assert robot.features and robot.channels
    for name, feature in robot.features.items():
        assert feature.name == name and feature.history == 1
        assert feature.dtype in ("float32", "uint8", "uint16")
    names = [channel.name for channel in robot.channels]
    assert len(set(names)) == len(names)
    for channel in robot.channels:
        assert channel.low < channel.high and channel.scale > 0
        assert channel.mode in ("delta", "absolute")


def check_unconnected(robot) -> None:
    """Nothing works, what makes it safe is no error."""
    with pytest.raises(RobotError):
        robot.observe()
    with pytest.raises(RobotError):
        robot.command(np.array([c.low for c in robot.channels]))
    with pytest.raises(RobotError):
        robot.reset()
    robot.hold()
    robot.stop()
    robot.disconnect()


def check_observations(robot, step) -> None:
    """The values are those that were said, finite, the caller's own, and of a time that goes on."""
    first = robot.observe()
    assert set(first.values) == set(robot.features)
    for name, feature in robot.features.items():
        value = first.values[name]
        assert value.shape == feature.shape and value.dtype == feature.dtype, name
        assert np.isfinite(value).all(), name
    assert first.measured is not None and first.measured.shape == (len(robot.channels),)
    kept = {name: value.copy() for name, value in first.values.items()}
    for value in first.values.values():
        value.fill(99)
    stamps = [first.stamp]
    for _ in range(3):
        robot.command(robot.target)
        step()
        seen = robot.observe()
        stamps.append(seen.stamp)
        for name, value in seen.values.items():
            assert not kept[name].size or (value != 99).any(), name
    assert stamps == sorted(stamps) and stamps[-1] > stamps[0]


def check_commands(robot, step) -> None:
    """It goes where it is told, says what it sent, and never sends what its limits forbid."""
    low, high = (np.array([getattr(c, k) for c in robot.channels]) for k in ("low", "high"))
    start = robot.target
    assert ((low <= start) & (start <= high)).all()
    middle = 0.5 * (low + high)
    move = 0.5 * np.array([c.scale for c in robot.channels]) * np.sign(middle - start)
    began = robot.observe().measured
    for i in range(1, 5):
        wanted = start + i * move
        sent = robot.command(wanted)
        assert sent.shape == wanted.shape and sent.dtype == np.float64
        np.testing.assert_allclose(sent, wanted, atol=1e-6)
        np.testing.assert_array_equal(robot.target, sent)
        step()
    sent.fill(99)
    assert (robot.target != 99).all()
    for _ in range(20):
        robot.command(robot.target)
        step()
    moved = (robot.observe().measured - began) * np.sign(move)
    assert (moved > 0.2 * np.abs(move)).mean() > 0.7, moved  # a joint under load lags behind
    for wild in (low - 5.0, high + 5.0):
        sent = robot.command(wild)
        assert ((low <= sent) & (sent <= high)).all()
        step()
    robot.hold()
    robot.hold()
    np.testing.assert_array_equal(robot.target, sent)


def check_refusals(robot) -> None:
    """What is no target is refused and changes nothing."""
    before, n = robot.target, len(robot.channels)
    infinite = before.copy()
    infinite[-1] = np.inf
    for bad in (np.full(n, np.nan), infinite, before[:-1], before[None], np.array(["0"] * n)):
        with pytest.raises(RobotError):
            robot.command(bad)
    np.testing.assert_array_equal(robot.target, before)


def check_stop(robot, step) -> None:
    """A stop from another thread, as a watchdog's, ends commands until the next reset."""
    said = []

    def watchdog():
        time.sleep(0.02)
        try:
            robot.hold()
            robot.stop()
            robot.stop()
        except Exception as error:
            said.append(error)

    thread = threading.Thread(target=watchdog)
    thread.start()
    until = time.monotonic() + 2.0
    with pytest.raises(StoppedError):
        while time.monotonic() < until:
            robot.command(robot.target)
            time.sleep(0.001)
    thread.join()
    assert not said
    with pytest.raises(StoppedError):
        robot.command(np.array([c.low for c in robot.channels]))
    robot.observe()
    robot.reset()
    robot.command(robot.target)
    step()
