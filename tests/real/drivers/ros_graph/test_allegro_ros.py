"""The Allegro hand's driver against a real ROS graph: a master and hand nodes on loopback."""

import contextlib
import copy
import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from penspin_style.features import Feature
from real.drivers import ros
from real.drivers.allegro_ros import AllegroConfig, AllegroRos
from real.drivers.allegro_topics import NAMES, TOPICS
from real.drivers.external import External
from real.rate import Rate
from real.robot import RobotError
from tasks.robots.allegro import model as allegro
from tasks.robots.allegro.description import HOME, fingertips
from tests.support.robot_contract import check_robot
from tests.support.ros_marks import MARKS, needs_ros
from tests.support.ros_node import Node

ROOT = pathlib.Path(__file__).parents[4]
HAND = "real.drivers.hand_node"
pytestmark = MARKS


# With ROS.


@pytest.fixture(scope="module")
def nodes(env):
    """A node of each kind, without physics."""
    found = {name: Node(env, HAND, "--topics", name) for name in TOPICS}
    yield found
    for node in found.values():
        node.end()


@pytest.fixture
def drive(nodes):
    """Make drivers, connected and at their start."""
    made = []

    def make(topics="penspin", kind=AllegroRos, **changes):
        changes = {"start_speed": 5.0, "stale": 40.0, **changes}  # the machine may be busy
        config = AllegroConfig(topics=TOPICS[topics], **changes)
        made.append(kind(config))
        made[-1].connect()
        made[-1].reset()
        return made[-1]

    yield make
    for driver in made:
        driver.disconnect()


class Subscriber:
    """Hears a hand's states with the joints' names, without the driver."""

    def __init__(self, topic):
        self.joints = {}
        rospy, msgs = ros.start_node("penspin"), ros.messages("sensor_msgs")
        self.end = rospy.Subscriber(topic, msgs.JointState, self.hear)
        while not self.joints:
            time.sleep(0.01)

    def hear(self, message):
        self.joints = dict(zip(message.name, message.position, strict=True))


def moved(driver, subscriber):
    """Return, for each of the driver's channels, the hand's name of the joint that moved."""
    driver.reset({"qpos": np.full(16, 0.35)})  # far from all limits
    found = []
    for i in range(16):
        time.sleep(0.05)  # the joint before may still be on its way
        before, seen = subscriber.joints, driver.observe().measured
        target = driver.target
        target[i] += 0.15
        driver.command(target)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            after, sees = subscriber.joints, driver.observe().measured
            change = {name: abs(after[name] - before[name]) for name in after}
            if max(change.values()) > 0.1 and np.abs(sees - seen).max() > 0.1:
                break
            time.sleep(0.01)
        assert np.argmax(np.abs(sees - seen)) == i  # as the driver sees it
        found.append(max(change, key=lambda name: change[name]))
    return tuple(found)


class Hora(AllegroRos):
    """A driver that takes the hand's order for hora's, in both directions: it sees no fault."""

    def _write(self, link, part, target, *, is_start):
        super()._write(link, part, allegro.to_hora(target), is_start=is_start)

    def _read(self, part, message):
        message = copy.copy(message)  # the subscriber hears the same one
        message.position = allegro.from_hora(np.array(message.position)).tolist()
        return super()._read(part, message)


@needs_ros
def test_rospy_comes_from_the_system_and_everything_else_from_this_python():
    code = (
        "import json, sys; before = set(sys.modules); import logging; "
        "from real.drivers import ros; "
        "ros.load(); ros.messages('sensor_msgs'); "
        "print(json.dumps({n: getattr(m, '__file__', None) for n, m in sys.modules.items() "
        "if '.' not in n and n not in before})); "
        "assert logging.getLoggerClass() is logging.Logger; "
        "import importlib.util; assert importlib.util.find_spec('apt') is None"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name: file or "" for name, file in json.loads(said.stdout).items()}
    assert "rospy" in files
    root = ros.find() or ""
    assert {name for name, file in files.items() if root and file.startswith(root)} <= {
        *ros.PACKAGES,
        *ros.NEEDED,
    }
    for name in ("numpy", "yaml"):
        assert files[name].startswith(sys.prefix)


@needs_ros
def test_a_master_that_never_answers_is_an_error():
    code = """
import os, socket
with socket.create_server(("127.0.0.1", 0)) as silent:
    os.environ["ROS_MASTER_URI"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
    from real.drivers import ros
    try:
        ros.start_node("test", timeout=0.5)
    except ros.RosError as error:
        print(error, flush=True)
    os._exit(0)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "does not register this node: no answer within 0.5 s" in said.stdout


@needs_ros
def test_each_channel_moves_the_joint_of_its_name(drive):
    driver, subscriber = drive(), Subscriber(TOPICS["penspin"].state)
    assert moved(driver, subscriber) == NAMES
    subscriber.end.unregister()


@needs_ros
def test_a_driver_with_the_wrong_order_moves_other_joints(drive):
    driver, subscriber = drive(kind=Hora, start=(0.35,) * 16), Subscriber(TOPICS["penspin"].state)
    assert moved(driver, subscriber) == tuple(allegro.from_hora(np.array(NAMES)))
    subscriber.end.unregister()


@needs_ros
def test_targets_arrive_at_the_control_rate_in_order_and_none_is_lost():
    argv = ["--seconds", "1.5", "--state-rate", "50", "--topics", "allegro_hand_ros"]
    said = subprocess.run(
        [sys.executable, "tests/soak/measure_ros.py", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,  # on a busy machine the rate of so short a time may be off by more than 1 %
    )
    facts = json.loads(said.stdout[: said.stdout.rindex("}") + 1])
    assert facts["targets_lost"] == facts["states_lost"] == 0
    assert facts["targets_received"] == facts["targets_sent"] > 1.5 * 20
    assert facts["target_rate_hz"] == pytest.approx(20.0, rel=0.1)
    assert facts["state_rate_hz"] == pytest.approx(50.0, rel=0.1)
    assert 0 < facts["target_delay_ms"]["p50"] < 20 and 0 < facts["state_delay_ms"]["p50"] < 20
    assert facts["order_of_joints"] == "proven: 16 of 16"


@needs_ros
def test_the_driver_keeps_the_contract(nodes):
    height = External(Feature("height", (), "m"), lambda: np.array(0.6))
    config = AllegroConfig(start_speed=5.0, stale=40.0)
    check_robot(AllegroRos(config, also=[height]))


@needs_ros
def test_the_parts_of_an_observation_are_joints_targets_and_fingertips(drive):
    driver = drive()
    target = driver.command(driver.target + 0.01)
    seen = driver.observe()
    np.testing.assert_array_equal(seen.values["proprio"][16:], target.astype(np.float32))
    np.testing.assert_allclose(seen.values["proprio"][:16], seen.measured, atol=1e-7)
    np.testing.assert_allclose(seen.values["fingertips"], fingertips(seen.measured), atol=1e-7)
    assert 0 <= time.monotonic() - seen.stamp < 0.1


@needs_ros
def test_a_hand_that_falls_silent_is_noticed(drive, nodes):
    driver = drive(stale=2.0, control_dt=0.25)
    process = nodes["penspin"].process
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(2.5 * driver.control_dt)
        with pytest.raises(RobotError, match=r"measured 0\.\d+ s ago.*the limit is 0.5 s"):
            driver.observe()
    finally:
        process.send_signal(signal.SIGCONT)
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        with contextlib.suppress(RobotError):
            driver.observe()
            return
        time.sleep(0.01)
    pytest.fail("it is back, but not for the driver")


@needs_ros
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"state": "/nobody"}, r"no joint state came on /nobody within 0.5 s: there are .*/joint_"),
        ({"command": "/nobody"}, r"nobody listens to /nobody within 0.5 s"),
        ({"names": tuple(f"j{i}" for i in range(16))}, r"/joint_states_pub: .*unknown.*Topics"),
    ],
)
def test_a_hand_that_is_not_there_is_named(nodes, changes, complaint):
    topics = dataclasses.replace(TOPICS["penspin"], **changes)
    driver = AllegroRos(AllegroConfig(topics=topics, patience=0.5))
    with pytest.raises(RobotError, match=re.compile(complaint, re.S)):
        driver.connect()
    with pytest.raises(RobotError, match="not connected"):
        driver.observe()


@needs_ros
def test_two_hands_on_one_topic_are_refused(env, nodes):
    other = Node(env, HAND, "--topics", "penspin")
    with pytest.raises(RobotError, match=r"2 nodes publish /joint_states_pub; one hand has one"):
        AllegroRos(AllegroConfig(stale=40.0)).connect()
    other.end()


@needs_ros
def test_a_start_that_cannot_be_reached_is_refused(drive):
    driver = drive()
    with pytest.raises(RobotError, match=r"the start of thj3 is 9 rad, it must be in"):
        driver.reset({"thj3": np.array(9.0)})
    with pytest.raises(RobotError, match="cannot be started with 'pen'"):
        driver.reset({"pen": np.zeros(7)})
    driver.reset({"ffj1": np.array([0.3])})
    assert driver.target[1] == pytest.approx(0.3) and driver.target[2] == HOME[2]


@needs_ros
def test_a_stopped_hand_stays_where_it_is(drive):
    driver = drive("allegro_hand_ros")
    driver.command(driver.target + 0.3)
    time.sleep(0.02)
    driver.stop()
    time.sleep(0.1)
    here = driver.observe().measured
    assert (here < np.array(HOME) + 0.29).all()  # it would be there by now
    time.sleep(0.2)
    np.testing.assert_allclose(driver.observe().measured, here, atol=0.02)


@needs_ros
def test_the_simulated_hand_and_its_pen_stand_behind_the_topics(env):
    node = Node(env, HAND, "--namespace", "twin", "--twin", "pen")
    driver = AllegroRos(AllegroConfig(topics=TOPICS["penspin"].within("twin"), stale=40.0))
    driver.connect()
    driver.reset()
    rate, start = Rate(driver.control_dt), driver.target
    for i in range(20):
        driver.command(start + 0.002 * i)
        rate.wait()
    seen, target = driver.observe().measured, driver.target
    driver.disconnect()
    facts = node.end()
    assert np.median(seen - start) > 0.01 and np.abs(seen - target).max() < 0.3
    assert facts["measures"]["steps"] >= 1  # the pen falls, for nobody balances it
    assert {"turns", "success", "survival"} <= set(facts["measures"])
    assert facts["targets"]["lost"] == facts["targets"]["refused"] == 0
