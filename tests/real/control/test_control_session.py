"""However a session ends, its robot is stopped first, and nothing interrupts that."""

import os
import signal
import threading
import time

import pytest

from penspin_style.system.interrupt import Interrupted
from real.control.loop import Loop, PolicySource
from real.control.session import Opened, connected
from real.control.success import SuccessCheck
from real.robot import RobotError
from tests.soak import attack_driver
from tests.support.cart import Carts, Script

pytestmark = pytest.mark.clock


class Slow(Carts):
    """Takes a while to stop, as an arm does."""

    def __init__(self, takes=0.0):
        super().__init__()
        self.clock, self.takes = time.monotonic, takes

    def disconnect(self):
        time.sleep(self.takes)
        self.stop()
        super().disconnect()


def opened(robot, *, realtime=True):
    return Opened(robot, "carts", "carts", "real", realtime, 100)


def tell(number, *delays):
    """Send this process a signal after each of these delays, s."""

    def run():
        for delay in delays:
            time.sleep(delay)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_does_not_interrupt_the_stop_that_the_first_one_brought(number):
    carts = Slow(0.5)
    with pytest.raises(KeyboardInterrupt), connected(opened(carts)) as (safe, _):
        safe.reset()
        telling = tell(number, 0.05, 0.15, 0.1)
        time.sleep(5.0)
    telling.join()
    assert carts.told[-2:] == ["stop", "disconnect"] and not safe.stopping


def test_a_robot_that_does_not_stop_in_the_end_is_said(monkeypatch):
    monkeypatch.setattr("real.control.session.LEAVING", 0.2)
    complaint = r"has not disconnected within 0\.2 s, it may still move"
    with pytest.raises(RobotError, match=complaint), connected(opened(Slow(0.5))) as (safe, _):
        safe.reset()
    deaf = Slow()

    def disconnect():
        raise RobotError("the robot may still move")

    deaf.disconnect = disconnect
    with pytest.raises(RobotError, match="may still move"), connected(opened(deaf)) as (safe, _):
        safe.reset()
    assert safe.stopping


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RobotError("the cable is out"), "its control loop failed"),
        (OSError(), "its control loop failed"),
        (KeyboardInterrupt(), "interrupted"),
        (Interrupted(signal.SIGTERM), "interrupted by SIGTERM"),
    ],
)
def test_a_control_loop_that_is_left_stops_its_robot_before_anything_else(error, reason):
    carts = Slow()
    told = []
    with pytest.raises(type(error)), connected(opened(carts, realtime=False)) as (safe, _):
        policy = Script([(1, 0)] * 5)
        loop = Loop(safe, PolicySource(policy), SuccessCheck(), realtime=False)
        act = policy.act

        def failing(inputs):
            if len(policy.seen) == 2:
                raise error
            return act(inputs)

        policy.act = failing
        try:
            loop.run(5)
        finally:
            told += carts.told[-1:]
    assert told == ["stop"] and safe.reason == reason


def test_hold_and_stop_are_in_time_while_a_call_of_the_driver_hangs(monkeypatch):
    # the limits are 0.1 s and 0.5 s; a machine that is busy with other tests wakes threads late
    monkeypatch.setattr(attack_driver, "LIMITS", {"hold": 0.3, "stop": 0.7, "followed": 0})
    found = attack_driver.measure(attack_driver.CALLS, 1, 0.8)
    assert found["within"], found
    for row in found["calls"].values():
        assert row["hold"]["max"] >= 0.07 and row["stop"]["max"] >= 0.47  # and not before
