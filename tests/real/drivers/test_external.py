"""Values from beside the robot: checked, and bounded in age where what gives them hangs."""

import threading
import time

import numpy as np
import pytest

from penspin_style.features import Feature
from real.drivers.external import External, Readers
from real.robot import RobotError

pytestmark = pytest.mark.clock

BOX = Feature("box_pos", (3,), "m")


class Camera:
    """Gives the count of its frames; can hang, fail, and be slow."""

    def __init__(self):
        self.frames, self.delay, self.fault = 0, 0.0, None
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self):
        self.go_on.wait(10.0)
        time.sleep(self.delay)
        if self.fault is not None:
            raise self.fault
        self.frames += 1
        return np.full(3, self.frames, np.float32)


@pytest.fixture
def camera():
    found = Camera()
    yield found
    found.go_on.set()


@pytest.fixture
def readers(camera):
    found = Readers([External(BOX, camera, max_age=0.15)])
    found.start()
    yield found
    found.close()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (np.zeros(2), r"'box_pos' must give \(3,\), it gave \(2,\)"),
        (np.full(3, np.nan), "'box_pos' gave a number that is not finite"),
        ("far away", "'box_pos' failed: ValueError"),
    ],
)
def test_a_value_that_is_not_what_was_said_is_refused_before_anything_moves(value, complaint):
    with pytest.raises(RobotError, match=complaint):
        Readers([External(BOX, lambda: value)]).start()


def test_a_value_is_the_callers_own_and_as_new_as_the_observation():
    given = np.ones(3, np.float32)
    readers = Readers([External(BOX, lambda: given)])
    readers.start()
    readers.read()["box_pos"][:] = 9
    assert (given == 1).all() and (readers.read()["box_pos"] == 1).all()
    given[:] = 2
    assert (readers.read()["box_pos"] == 2).all()
    readers.close()


def test_a_sensor_that_hangs_is_waited_for_only_briefly_then_named(readers, camera):
    last = readers.read()["box_pos"]
    camera.go_on.clear()
    began = time.monotonic()
    np.testing.assert_array_equal(readers.read()["box_pos"], last)  # still young enough
    assert time.monotonic() - began < 0.1
    time.sleep(0.15)
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(RobotError, match=r"'box_pos' hangs: its last value is 0\.\d+ s old"):
            readers.read()
    assert time.monotonic() - began < 0.2
    camera.go_on.set()
    time.sleep(0.05)
    assert readers.read()["box_pos"][0] > last[0]


def test_a_sensor_that_is_slower_than_an_observation_gives_its_last_value(readers, camera):
    camera.delay = 0.06
    readers.read()
    took, seen = [], []
    for _ in range(6):
        began = time.monotonic()
        seen.append(readers.read()["box_pos"][0])
        took.append(time.monotonic() - began)
        time.sleep(0.02)
    assert np.median(took) < 0.05 and len({*seen}) > 1


def test_after_a_pause_a_slow_sensor_has_time_for_a_new_value(readers, camera):
    camera.delay = 0.08
    last = readers.read()["box_pos"][0]
    time.sleep(0.3)  # as the way to the start takes
    assert readers.read()["box_pos"][0] > last
    camera.go_on.clear()
    time.sleep(0.3)
    began = time.monotonic()
    with pytest.raises(RobotError, match="hangs"):
        readers.read()
    assert time.monotonic() - began < 0.15 + 0.1


def test_a_sensor_that_fails_is_named_with_its_reason_and_may_come_back(readers, camera):
    camera.fault = OSError("no such device")
    with pytest.raises(RobotError, match="'box_pos' failed: OSError"):
        readers.read()
    camera.fault = None
    assert readers.read()["box_pos"][0] > 0


def test_a_sensor_that_gives_nothing_is_noticed_at_the_start(monkeypatch, camera):
    monkeypatch.setattr("real.drivers.external._FIRST", 0.1)
    camera.go_on.clear()
    with pytest.raises(RobotError, match=r"'box_pos' has given nothing for 0\.1"):
        Readers([External(BOX, camera)]).start()


def test_a_sensor_is_read_by_one_thread_which_ends_with_the_connection():
    by = set()

    def read():
        by.add(threading.current_thread())
        return np.zeros(3)

    readers = Readers([External(BOX, read)])
    readers.start()
    for _ in range(3):
        readers.read()
    readers.close()
    (thread,) = by
    thread.join(1.0)
    assert thread is not threading.current_thread() and not thread.is_alive()
