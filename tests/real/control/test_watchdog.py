"""The watchdog's times, and stops: while calls hang, and when a stop itself fails."""

import contextlib
import threading
import time

import numpy as np
import pytest

from real.control.safety import Limits, SafeRobot, Watchdog
from real.robot import RobotError, StoppedError
from tests.support.guarded import CHANNELS, Fake, safe

pytestmark = pytest.mark.clock

# Calls that hang.


class Hanging(Fake):
    """One whose calls can be made to hang; time passes by itself."""

    clock = staticmethod(time.monotonic)
    control_dt = 0.04

    def __init__(self):
        super().__init__()
        self.hangs, self.began, self.release = "", threading.Event(), threading.Event()
        self.fails, self.stop_hangs = 0, 0

    def enter(self, call):
        if self.hangs == call:
            self.hangs = ""
            self.began.set()
            assert self.release.wait(10.0)

    def reset(self, start=None):
        self.enter("reset")
        super().reset(start)

    def observe(self):
        self.enter("observe")
        return super().observe()

    def command(self, target):
        self.enter("command")
        return super().command(target)

    def hold(self):
        self.enter("hold")
        super().hold()

    def stop(self):
        if self.stop_hangs:
            self.stop_hangs -= 1
            assert self.release.wait(10.0)
        if self.fails:
            self.fails -= 1
            self.log.append("stop failed")
            raise RobotError("the cable is out")
        super().stop()


def told(fake):
    """What it was told beside targets and resets."""
    return [entry for entry in fake.log if isinstance(entry, str)]


def hanging(fake, use, call):
    """Let a call hang in a thread; return that, and a list that gets what it raises."""
    said = []

    def run():
        try:
            use()
        except Exception as error:
            said.append(error)

    fake.hangs = call
    thread = threading.Thread(target=run)
    thread.start()
    assert fake.began.wait(5.0)
    return thread, said


def reactions(dog, fed, count):
    """Wait for so many events; return what came, and how many s after the last fresh action."""
    until = time.monotonic() + 10.0
    while len(dog.events) < count:
        assert time.monotonic() < until, dog.events
        time.sleep(0.002)
    return [what for _, what in dog.events], [at - fed for at, _ in dog.events]


@pytest.mark.parametrize("call", ["observe", "command"])
def test_a_call_that_hangs_delays_neither_hold_nor_stop_and_is_not_followed(call):
    robot, fake = safe(Hanging())
    robot.command(np.zeros(2))
    with Watchdog(robot, hold=0.1, stop=0.3) as dog:
        dog.feed()
        fed = time.monotonic()
        uses = {"observe": robot.observe, "command": lambda: robot.command(np.full(2, 0.1))}
        thread, said = hanging(fake, uses[call], call)
        what, when = reactions(dog, fed, 2)
        assert what == ["hold", "stop"] and thread.is_alive()
        assert when[0] < 0.2 and when[1] < 0.4  # 0.1 and 0.3 where the machine is free
        fake.release.set()
        thread.join()
    if call == "command":  # it has been sent after the stop, so that goes out again
        assert told(fake)[-2:] == ["stop", "stop"] and fake.log[-1] == "stop"
        assert isinstance(said[0], StoppedError) and not robot.stopping
    with pytest.raises(StoppedError, match=r"no fresh action for 0\.3 s"):
        robot.command(np.zeros(2))


def test_a_command_that_fails_after_a_stop_is_followed_by_another_stop():
    robot, fake = safe(Hanging())

    def command(target):
        fake.enter("command")
        raise RobotError("who knows whether that was sent")

    fake.command = command
    thread, said = hanging(fake, lambda: robot.command(np.zeros(2)), "command")
    robot.stop("enough")
    fake.release.set()
    thread.join()
    assert told(fake) == ["stop", "stop"]
    assert isinstance(said[0], StoppedError) and "enough" in str(said[0])


def test_a_robot_that_hangs_is_disconnected_without_waiting_for_it():
    robot, fake = safe(Hanging())
    thread, _ = hanging(fake, robot.observe, "observe")
    robot.disconnect()
    assert thread.is_alive() and fake.log[-1] == "disconnect"
    fake.release.set()
    thread.join()


def test_a_stop_during_a_reset_is_not_forgotten():
    robot, fake = safe(Hanging())
    thread, said = hanging(fake, robot.reset, "reset")
    robot.stop("somebody has entered the cell")
    fake.release.set()
    thread.join()
    assert isinstance(said[0], StoppedError)
    assert fake.log[-1] == "stop" and robot.reason == "somebody has entered the cell"


def test_a_hold_that_hangs_does_not_delay_the_stop():
    robot, fake = safe(Hanging())
    dog = Watchdog(robot, hold=0.1, stop=0.3)
    dog.start()
    fake.hangs = "hold"
    dog.feed()
    fed = time.monotonic()
    what, when = reactions(dog, fed, 1)
    assert what == ["stop"] and when[0] < 0.4
    fake.release.set()
    dog.close()


def test_a_brake_that_hangs_does_not_delay_the_stop():
    robot = SafeRobot(fake := Hanging(), Limits.of(CHANNELS, 0.04, acceleration=5.0))
    robot.reset()
    for _ in range(3):
        robot.command(np.full(2, 0.9))
        time.sleep(0.04)
    assert not robot.limiter.can_rest
    with Watchdog(robot, hold=0.1, stop=0.3) as dog:
        fake.hangs = "command"
        dog.feed()
        fed = time.monotonic()
        what, when = reactions(dog, fed, 1)
        assert what == ["stop"] and when[0] < 0.4
        fake.release.set()


# Stops that fail.


def test_a_stop_that_failed_is_sent_again_until_it_is_confirmed(caplog):
    robot, fake = safe(Hanging())
    fake.fails = 2
    dog = Watchdog(robot, hold=0.1, stop=0.2)
    dog.start()
    dog.feed()
    fed = time.monotonic()
    what, when = reactions(dog, fed, 4)
    assert what == ["hold", "stop failed", "stop failed", "stop"]
    assert when[3] < 0.2 + 0.1 + 0.2 + 0.3
    assert fake.log[-3:] == ["stop failed", "stop failed", "stop"] and not robot.stopping
    assert [r.levelname for r in caplog.records] == ["CRITICAL"] * 2
    with pytest.raises(RobotError, match=r"make the robot safe: the cable is out$"):
        dog.feed()
    dog.close()


def test_a_robot_that_does_not_stop_is_told_again_and_again_and_everybody_hears_of_it():
    robot, fake = safe(Hanging())
    fake.fails = 1000
    dog = Watchdog(robot, hold=0.1, stop=0.2)
    dog.start()
    dog.feed()
    reactions(dog, time.monotonic(), 4)
    with pytest.raises(RobotError, match=r"the cable is out; it MAY STILL MOVE"):
        dog.feed()
    dog.rest()  # does not put it off
    told = len(fake.log)
    reactions(dog, time.monotonic(), 6)
    assert len(fake.log) > told and robot.stopping
    with pytest.raises(StoppedError):
        robot.command(np.zeros(2))
    with pytest.raises(RobotError, match="the cable is out"):
        robot.reset()  # nothing moves again before it has stopped
    with pytest.raises(RobotError, match="MAY STILL MOVE"):
        dog.close()
    fake.fails = 0
    robot.reset()
    assert fake.log[-2:] == ["stop", ("reset", None)]
    robot.command(np.zeros(2))


def test_a_stop_that_hangs_is_tried_from_another_thread(monkeypatch, caplog):
    monkeypatch.setattr("real.control.watchdog._SLOW", 0.05)
    monkeypatch.setattr("real.control.watchdog._HANGS", 0.05)
    robot, fake = safe(Hanging())
    fake.stop_hangs = 2
    dog = Watchdog(robot, hold=0.1, stop=0.2)
    dog.start()
    dog.feed()
    what, _ = reactions(dog, time.monotonic(), 4)
    assert what == ["hold", "stop hangs", "stop hangs", "stop"]
    assert "2 stops have not returned" in caplog.text
    with pytest.raises(RobotError, match=r"2 stops have not returned for 0\.\d s$"):
        dog.feed()
    robot.reset()
    dog.feed()
    fake.release.set()  # those two come back, and say nothing of what is now
    time.sleep(0.05)
    assert dog.events[-1][1] != "stop" or len(dog.events) == 4
    reactions(dog, time.monotonic(), 6)
    assert [w for _, w in dog.events[-2:]] == ["hold", "stop"]
    dog.close()


def test_a_stop_that_only_hangs_is_not_hidden(monkeypatch):
    monkeypatch.setattr("real.control.watchdog._SLOW", 0.02)
    monkeypatch.setattr("real.control.watchdog._HANGS", 0.02)
    monkeypatch.setattr("real.control.watchdog._SETTLE", 0.1)
    robot, fake = safe(Hanging())
    fake.stop_hangs = 1000
    dog = Watchdog(robot, hold=0.1, stop=0.2)
    dog.start()
    dog.feed()
    reactions(dog, time.monotonic(), 5)
    time.sleep(0.1)
    assert fake.stop_hangs >= 996  # four hang; no more are begun
    with pytest.raises(RobotError, match=r"stops have not returned .*MAY STILL MOVE"):
        dog.close()
    assert robot.stopping
    fake.release.set()


def test_a_loop_whose_own_stop_failed_leaves_it_to_the_watchdog():
    robot, fake = safe(Hanging())
    fake.fails = 1
    dog = Watchdog(robot, hold=0.1, stop=5.0)
    dog.start()
    dog.feed()
    with pytest.raises(RobotError, match="the cable is out"):
        robot.stop("it went astray")
    dog.rest()
    reactions(dog, time.monotonic(), 1)
    assert dog.events[-1][1] == "stop" and not robot.stopping
    assert robot.reason == "it went astray"
    dog.close()


def test_a_late_action_does_not_take_a_stop_back():
    robot, fake = safe(Hanging())
    fake.fails = 3
    dog = Watchdog(robot, hold=0.1, stop=0.2)
    dog.start()
    dog.feed()
    reactions(dog, time.monotonic(), 2)
    for _ in range(200):
        with contextlib.suppress(RobotError):
            dog.feed()
        time.sleep(0.005)
    assert [w for _, w in dog.events].count("stop failed") == 3
    assert "stop" in [w for _, w in dog.events]
    with contextlib.suppress(RobotError):
        dog.close()


# The watchdog.


def test_a_watchdog_that_does_not_run_is_not_fed():
    dog = Watchdog(Fake(), hold=0.2)
    with pytest.raises(RobotError, match=r"the watchdog does not run: start\(\) it"):
        dog.feed()
    dog.start()
    dog.feed()
    dog.close()
    with pytest.raises(RobotError, match="does not run"):
        dog.feed()


def test_a_fault_in_the_watchdog_itself_stops_the_robot(monkeypatch):
    robot, fake = safe(Hanging())
    dog = Watchdog(robot, hold=0.1, stop=5.0)
    dog.start()
    monkeypatch.setattr(dog, "_due", lambda: 1 / 0)
    dog.feed()
    reactions(dog, time.monotonic(), 2)
    assert {what for _, what in dog.events} == {"watchdog failed", "stop"}
    assert told(fake) == ["stop"]
    with pytest.raises(RobotError, match="make the robot safe: division by zero"):
        dog.close()


def test_a_watchdog_that_gets_no_thread_calls_the_robot_itself(monkeypatch):
    robot, fake = safe(Hanging())

    def start(thread):
        raise RuntimeError("can't start new thread")

    with Watchdog(robot, hold=0.1, stop=0.2) as dog:
        monkeypatch.setattr(threading.Thread, "start", start)
        dog.feed()
        what, _ = reactions(dog, time.monotonic(), 2)
        monkeypatch.undo()
    assert what == ["hold", "stop"] and fake.log[-1] == "stop"


def test_a_robot_that_gets_no_fresh_action_holds_then_stops():
    fake = Fake()
    with Watchdog(fake, hold=0.2, stop=0.6) as dog:
        time.sleep(0.3)
        assert fake.log == []  # not before the first action
        fed = time.monotonic()
        dog.feed()
        while len(dog.events) < 2 and time.monotonic() < fed + 10:
            time.sleep(0.01)
    (held, first), (stopped, second) = dog.events
    assert (first, second) == ("hold", "stop")
    assert 0.16 <= held - fed < 0.4 < 0.56 <= stopped - fed < 5
    assert {*fake.log[:-1]} == {"hold"} and fake.log[-1] == "stop"


def test_fresh_actions_keep_the_watchdog_quiet_and_a_rest_puts_it_to_sleep():
    fake = Fake()
    with Watchdog(fake, hold=0.5, stop=1.0) as dog:
        for _ in range(12):
            dog.feed()
            time.sleep(0.05)
        dog.rest()
        time.sleep(0.7)
    assert fake.log == [] and dog.events == []


def test_a_watchdog_names_why_it_stopped_a_safe_robot():
    robot, _ = safe()
    with Watchdog(robot, hold=0.15, stop=0.2) as dog:
        dog.feed()
        time.sleep(0.5)
    with pytest.raises(StoppedError, match=r"no fresh action for 0\.2 s"):
        robot.command(np.zeros(2))


def test_a_watchdog_that_cannot_stop_the_robot_says_so():
    fake = Fake()
    fake.broken = True
    dog = Watchdog(fake, hold=0.15, stop=0.2)
    dog.start()
    dog.feed()
    time.sleep(0.5)
    with pytest.raises(RobotError, match="could not make the robot safe: the cable is out"):
        dog.close()
    assert not dog._thread.is_alive()


def test_a_watchdog_that_would_bark_in_every_control_step_is_refused():
    with pytest.raises(ValueError, match="clearly longer than a control step"):
        Watchdog(Fake(), hold=0.1)
    with pytest.raises(ValueError, match="below stop"):
        Watchdog(Fake(), hold=0.5, stop=0.5)
