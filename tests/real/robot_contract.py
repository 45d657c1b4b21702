"""What every driver must do, as `real.robot.Robot` says; run on the twin and on all drivers."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest

from real.robot import RobotError, StoppedError

HOLD, STOP = 0.1, 0.3
"""Seconds that a hold and a stop may take while another call hangs."""


class Hang:
    """A call of a driver that hangs: in the midst of it, with all the locks that it takes."""

    def __init__(self, stops: Callable[[], int] | None = None) -> None:
        """stops: how many stops have reached what is behind the driver; None: those it confirms."""
        self.began, self.release = threading.Event(), threading.Event()
        self.stops = stops

    def __call__(self) -> None:
        """Hang; to be called by what is behind the driver."""
        self.began.set()
        assert self.release.wait(10.0)


Hangs = Callable[[str], AbstractContextManager[Hang]]
"""Makes the next `observe`, `command` or `reset` hang."""


def check_robot(
    robot, *, let_pass: Callable[[], None] | None = None, hangs: Hangs | None = None
) -> None:
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
    for call in ("observe", "command", "reset") if hangs else ():
        check_hanging(robot, hangs, call, step)
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


def check_hanging(robot, hangs: Hangs, call: str, step) -> None:
    """A call that hangs delays neither hold nor stop, and moves nothing when it comes back."""
    robot.reset()
    robot.command(robot.target)
    step()
    began_at = robot.observe().measured
    middle = np.array([0.5 * (c.low + c.high) for c in robot.channels])
    scale = np.array([c.scale for c in robot.channels])
    before_hang = robot.target
    wanted = before_hang + 0.9 * scale * np.sign(middle - before_hang)
    calls = {
        "observe": robot.observe,
        "command": lambda: robot.command(wanted),
        "reset": robot.reset,
    }
    said = []

    def run(what):
        try:
            what()
        except Exception as error:
            said.append((what, error))

    with hangs(call) as hang:
        stopping = threading.Thread(target=run, args=(robot.stop,))
        late = threading.Thread(target=run, args=(calls[call],))
        late.start()
        assert hang.began.wait(5.0)
        before = 0 if hang.stops is None else hang.stops()
        began = time.monotonic()
        robot.hold()
        assert time.monotonic() - began < HOLD
        began = time.monotonic()
        stopping.start()
        while stopping.is_alive() if hang.stops is None else hang.stops() == before:
            assert time.monotonic() - began < STOP, f"a hanging {call} delays stop"
            time.sleep(0.001)
        hang.release.set()
        late.join()
        stopping.join()
    refused = [error for what, error in said if what == calls[call]]
    assert all(isinstance(error, RobotError) for error in refused)
    assert call == "observe" or refused, "a stopped robot said nothing"
    assert robot.stop not in [what for what, _ in said]
    with pytest.raises(StoppedError):
        robot.command(wanted)
    for _ in range(3):
        step()
    time.sleep(0.1)
    if call == "command":  # had it been followed, most channels would have gone most of the way
        way = (robot.observe().measured - began_at) / (wanted - before_hang)
        assert np.median(way) < 0.5, way
