"""The Allegro hand's driver without ROS, and against a stand-in for it: states and stops."""

import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from penspin_style.features import PolicyCard
from real.drivers import allegro_ros, ros
from real.drivers.allegro_ros import AllegroConfig, AllegroRos
from real.drivers.allegro_topics import NAMES, TOPICS, in_order
from real.drivers.followers import Followers
from real.drivers.hand_node import HandNode
from real.robot import RobotError, StoppedError
from tasks.robots.allegro import model as allegro
from tasks.robots.allegro.description import HOME, LOWER, UPPER, fingertips
from tests.support.robot_contract import Hang, check_robot
from tests.support.ros_fake import Graph, Message, Publisher, Subscriber
from tests.support.ros_marks import MARKS

ROOT = pathlib.Path(__file__).parents[3]
pytestmark = MARKS


# Without ROS.


def test_the_channels_are_those_of_the_shipped_policy():
    card = ROOT / "outputs/pretrained/pen_spin/student/policy/card.json"
    policy = PolicyCard.from_json(card.read_text())
    driver = AllegroRos()
    assert driver.channels == policy.actions and driver.control_dt == policy.control_dt
    np.testing.assert_allclose(driver.config.start, [j.default for j in policy.joints], atol=1e-7)


def test_fingertips_are_those_of_the_simulated_hand():
    qpos = np.random.default_rng(0).uniform(LOWER, UPPER, (200, 16))
    theirs = allegro.fingertips(torch.from_numpy(qpos)).numpy()
    np.testing.assert_allclose(fingertips(qpos), theirs, atol=1e-6)
    with pytest.raises(ValueError, match="must be"):
        fingertips(qpos[:, :4])


def test_a_state_is_read_by_name_and_by_position_only_without_names():
    values = np.arange(16.0)
    shuffled = np.random.default_rng(1).permutation(16)
    by_name = in_order([NAMES[i] for i in shuffled], values[shuffled])
    np.testing.assert_array_equal(by_name, values)
    np.testing.assert_array_equal(in_order([], values), values)


@pytest.mark.parametrize(
    ("names", "positions", "complaint"),
    [
        ((*NAMES[:15], "joint_16.0"), range(16), r"unknown: \['joint_16.0'\]; missing"),
        ((*NAMES[:15], NAMES[0]), range(16), r"missing: .*15.0.*there twice: \['joint_0.0'\]"),
        (NAMES[:15], range(15), r"missing: \['joint_15.0'\]"),
        (NAMES, range(15), "must have 16 positions, this has 15"),
        ((), range(17), "must have 16 positions, this has 17"),
        (NAMES, [0.0] * 15 + [float("nan")], "position 15 of this state is nan"),
    ],
)
def test_a_state_that_is_not_the_hands_is_refused(names, positions, complaint):
    with pytest.raises(RobotError, match=complaint):
        in_order(names, positions)


def test_a_tally_counts_what_is_missing_and_takes_lower_numbers_for_a_new_publisher():
    tally = ros.Tally()
    for i, number in enumerate((7, 8, 11, 12, 1, 2)):
        tally.add(number, 0.05 * i, 0.001 * i, "/a")
    facts = tally.facts()
    assert (facts["count"], facts["lost"]) == (6, 2)
    assert facts["rate_hz"] == pytest.approx(20.0)
    assert facts["p50_ms"] == pytest.approx(2.5)
    tally.add(99, 0.3, 0.0, "/b")  # another publisher's numbers are its own
    assert tally.lost == 2


def test_without_a_master_the_error_says_so_at_once(monkeypatch):
    monkeypatch.setenv("ROS_MASTER_URI", "http://127.0.0.1:9")
    with pytest.raises(ros.RosError, match=r"no ROS master at http://127.0.0.1:9 .*start roscore"):
        ros.check_master()
    monkeypatch.setenv("ROS_MASTER_URI", "nowhere")
    with pytest.raises(ros.RosError, match="is no address"):
        ros.check_master()


def test_without_ros_the_driver_says_what_to_install():
    code = """
import sys
from real.drivers import ros
ros.ROOTS = ()
sys.path = [p for p in sys.path if "ros" not in p]
try:
    from real.drivers.allegro_ros import AllegroRos
    AllegroRos().connect()
except ros.RosError as error:
    print(error)
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert "install_ros.sh" in said.stdout


# With a stand-in for ROS: stops.


@pytest.fixture
def hand(monkeypatch):
    """Make driver and node of a kind, on one graph in this process; the driver not connected."""
    over, threads = threading.Event(), []

    def make(topics="penspin", **changes):
        graph = Graph(monkeypatch)
        node = HandNode(Followers(HOME, LOWER, UPPER), TOPICS[topics])
        threads.append(threading.Thread(target=node.spin, args=(over,)))
        threads[-1].start()
        changes = {"start_speed": 5.0, "stale": 40.0, "trust_stamps": False, **changes}
        return AllegroRos(AllegroConfig(topics=TOPICS[topics], **changes)), node, graph

    yield make
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("topics", sorted(TOPICS))
def test_the_driver_and_the_hands_node_keep_the_contract_also_while_a_call_hangs(
    hand, topics, monkeypatch
):
    driver, _, graph = hand(topics)

    @contextlib.contextmanager
    def hangs(call):
        hang, whole = Hang(), fingertips
        if call == "observe":

            def hanging(joints):
                monkeypatch.setattr(allegro_ros, "fingertips", whole)
                hang()
                return whole(joints)

            monkeypatch.setattr(allegro_ros, "fingertips", hanging)
        else:
            graph.hang(TOPICS[topics].command, hang)
        yield hang

    check_robot(driver, hangs=hangs)


def test_a_stop_that_nobody_hears_is_not_confirmed_and_is_sent_again(hand):
    driver, _, graph = hand("allegro_hand_ros")
    driver.connect()
    driver.reset()
    topics = TOPICS["allegro_hand_ros"]
    subscribers = {topic: graph.subscribers.pop(topic) for topic in (topics.command, topics.words)}
    for _ in range(2):
        with pytest.raises(RobotError, match=r"nobody listens to .*joint_cmd, .*lib_cmd: the hand"):
            driver.stop()
    with pytest.raises(StoppedError):
        driver.command(driver.target)
    graph.subscribers |= subscribers
    driver.stop()
    said = len(graph.said)
    driver.stop()  # it has been heard
    assert len([topic for topic, _ in graph.said[said:] if topic != topics.state]) == 0
    assert [topic for topic, _ in graph.said if topic == topics.words] == [topics.words] * 3
    driver.disconnect()


def test_a_hand_that_would_not_hear_the_word_to_go_limp_is_refused(hand):
    driver, _, graph = hand("allegro_hand_ros", patience=0.3)
    graph.subscribers.pop(TOPICS["allegro_hand_ros"].words)
    with pytest.raises(RobotError, match=r"nobody listens to .*/lib_cmd within 0\.3 s"):
        driver.connect()


def test_a_hand_that_is_not_heard_from_keeps_its_targets_and_that_is_said(hand):
    driver, _, graph = hand(stale=2.0)
    driver.connect()
    driver.reset()
    target, state = driver.target, TOPICS["penspin"].state
    graph.subscribers.pop(state)  # its states no longer arrive
    time.sleep(0.2)
    with pytest.raises(RobotError, match=f"no new state on {state}: the hand keeps its last"):
        driver.stop()
    np.testing.assert_array_equal(driver.target, target)
    with pytest.raises(RobotError, match=r"3 stops were not confirmed .*emergency stop"):
        driver.disconnect()
    driver.disconnect()  # the connection is closed all the same


@pytest.mark.parametrize(
    ("ahead", "trusts", "complaint"),
    [(3600.0, True, r"stamped 3[56]\d\d\.\d+ s in the future: .*clocks"), (3600.0, False, None)],
)
def test_a_hand_whose_clock_is_ahead_is_refused_where_its_stamps_count(
    monkeypatch, ahead, trusts, complaint
):
    graph, over = Graph(monkeypatch), threading.Event()
    topics = TOPICS["penspin"]
    states = Publisher(graph, topics.state, Message)
    subscriber = Subscriber(graph, topics.command, Message, lambda message: None)

    def publish():
        while not over.wait(0.01):
            message = Message()
            message.header.stamp.to_sec = lambda: time.time() + ahead
            message.position = list(HOME)
            states.publish(message)

    thread = threading.Thread(target=publish)
    thread.start()
    driver = AllegroRos(AllegroConfig(trust_stamps=trusts, stale=40.0))
    if complaint is None:
        driver.connect()
        assert 0 <= time.monotonic() - driver.observe().stamp < 1.0
        driver.disconnect()
    else:
        with pytest.raises(RobotError, match=complaint):
            driver.connect()
    over.set()
    thread.join()
    subscriber.unregister()


def test_a_hand_that_does_not_go_limp_at_once_is_told_again(hand):
    driver, node, _ = hand("allegro_hand_ros")
    driver.connect()
    driver.reset()
    whole, fails = node.hand.limp, [RobotError("the bus is busy")] * 3

    def limp():
        if fails:
            raise fails.pop()
        whole()

    node.hand.limp = limp
    driver.command(driver.target + 0.3)
    driver.stop()
    until = time.monotonic() + 3.0
    while fails or node._is_off:
        assert time.monotonic() < until
        time.sleep(0.01)
    here = node.hand.joints()
    time.sleep(0.1)
    np.testing.assert_allclose(node.hand.joints(), here, atol=1e-6)
    driver.disconnect()
