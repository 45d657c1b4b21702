"""The driver of ALOHA's arms against a stand-in for ROS: states, grippers, stops."""

import contextlib
import threading
import time

import numpy as np
import pytest

from penspin_style.deploy.actions import Decoder
from real.drivers import aloha_ros
from real.drivers.aloha_node import AlohaNode
from real.drivers.aloha_ros import AlohaConfig, AlohaRos
from real.drivers.aloha_topics import (
    STATE_NAMES,
    arm_topics,
    gripper_of,
    motor_angle,
    read_arm,
    state_of,
)
from real.drivers.followers import Followers
from real.robot import RobotError, StoppedError
from tasks.robots.aloha.description import HOME, LOWER, START, UPPER
from tasks.robots.aloha.keyframes import KEYFRAMES
from tests.support.robot_contract import Hang, check_robot
from tests.support.ros_fake import Graph, Message
from tests.support.ros_marks import MARKS

pytestmark = MARKS
LEFT, RIGHT = (arm_topics(name) for name in ("puppet_left", "puppet_right"))
ARM = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.0195])


# Without ROS.


def test_the_topics_are_those_of_the_interbotix_nodes():
    assert LEFT.state == "/puppet_left/joint_states"
    assert RIGHT.group == "/puppet_right/commands/joint_group"
    assert arm_topics("puppet_left", "lab").single == "/lab/puppet_left/commands/joint_single"
    with pytest.raises(ValueError, match="is no ROS namespace"):
        AlohaRos(AlohaConfig(namespace="10.0.0.1"))


def test_the_start_is_that_of_the_insertion():
    np.testing.assert_array_equal(START, KEYFRAMES["insertion"]["home"][1])


def test_the_channels_are_those_of_the_card_that_is_asked_for():
    config = AlohaConfig(
        control_dt=0.02, action_scale=0.015, gripper_scale=0.001, lower={"left_gripper": 0.01}
    )
    driver = AlohaRos(config)
    assert driver.control_dt == 0.02 and len(driver.channels) == 14
    assert [driver.channels[i].scale for i in (5, 6)] == [0.015, 0.001]
    assert [driver.channels[i].low for i in (6, 13)] == [0.01, 0.002]
    assert Decoder(driver.channels).decode(np.full(14, -1.0), np.array(HOME))[6] == pytest.approx(
        0.036
    )
    with pytest.raises(ValueError, match="there are no channels"):
        AlohaRos(AlohaConfig(lower={"left_grip": 0.01}))
    with pytest.raises(ValueError, match="both arms are called 'puppet_left'"):
        AlohaRos(AlohaConfig(names=("puppet_left", "puppet_left")))


def test_grippers_are_linear_between_the_stock_ends():
    """Half open: by hand, the middles of both ranges of the stock programs."""
    assert motor_angle(0.037) == pytest.approx(1.4910) and motor_angle(0.002) == -0.6213
    assert motor_angle(ARM[-1]) == pytest.approx(0.43485)
    assert state_of(ARM)[6:] == pytest.approx([0.43485, 0.03822, -0.03822])
    for metres in (0.002, 0.01, 0.037):
        assert gripper_of(motor_angle(metres)) == pytest.approx(metres)


def test_a_state_is_read_by_name_whatever_else_it_holds():
    np.testing.assert_allclose(read_arm(STATE_NAMES, state_of(ARM)), ARM, atol=1e-12)
    names = [*STATE_NAMES[::-1], "lamp"]
    np.testing.assert_allclose(read_arm(names, [*state_of(ARM)[::-1], 9.0]), ARM, atol=1e-12)


@pytest.mark.parametrize(
    ("names", "positions", "complaint"),
    [
        (STATE_NAMES[1:], [0.0] * 8, "not a ViperX arm's: waist is there 0 times; it has shoulder"),
        ((*STATE_NAMES, "waist"), [0.0] * 10, "waist is there 2 times"),
        (STATE_NAMES, [0.0] * 8, "a state has 9 names and 8 positions"),
        ((), [0.0] * 9, "a state has 0 names and 9 positions"),
        (STATE_NAMES, [0.0, 0.0, np.nan, *[0.0] * 6], "elbow of this state is nan"),
        (STATE_NAMES, [*[0.0] * 7, np.inf, 0.0], "left_finger of this state is inf"),
    ],
)
def test_a_state_that_is_not_an_arms_is_refused(names, positions, complaint):
    with pytest.raises(RobotError, match=complaint):
        read_arm(names, positions)


# With a stand-in for ROS.


@pytest.fixture
def arms(monkeypatch):
    """Make driver and node on one graph in this process; the driver not connected."""
    over, threads = threading.Event(), []

    def make(**changes):
        graph = Graph(monkeypatch)
        node = AlohaNode(Followers(HOME, LOWER, UPPER), (LEFT, RIGHT))
        threads.append(threading.Thread(target=node.spin, args=(over,)))
        threads[-1].start()
        quick = {"start_speed": 5.0, "start_grip_speed": 0.5, "stale": 40.0, "trust_stamps": False}
        return AlohaRos(AlohaConfig(gripper_scale=0.001, **{**quick, **changes})), node, graph

    yield make
    over.set()
    for thread in threads:
        thread.join()


def test_the_driver_keeps_the_contract_also_while_a_call_hangs(arms, monkeypatch):
    off_centre = np.array(START) + 0.05 * (np.arange(14) % 7 < 6)  # no channel in its middle
    driver, _, graph = arms(start=tuple(off_centre))
    module = aloha_ros.description

    @contextlib.contextmanager
    def hangs(call):
        hang, whole = Hang(), module.has_switched
        if call == "observe":

            def hanging(*args):
                monkeypatch.setattr(module, "has_switched", whole)
                hang()
                return whole(*args)

            monkeypatch.setattr(module, "has_switched", hanging)
        else:
            graph.hang(LEFT.group, hang)
        yield hang

    check_robot(driver, hangs=hangs)


def test_a_stop_between_the_two_arms_keeps_the_second_one_where_it_is(arms):
    """A command that a stop overtakes at the left arm publishes nothing more of it."""
    driver, _, graph = arms()
    driver.connect()
    driver.reset()
    hang = Hang()
    graph.hang(LEFT.single, hang)
    wanted = driver.target
    wanted[7] += 0.02
    refused = []

    def command():
        try:
            driver.command(wanted)
        except StoppedError as error:
            refused.append(error)

    late = threading.Thread(target=command)
    late.start()
    assert hang.began.wait(5.0)
    driver.stop()
    said = len(graph.said)
    hang.release.set()
    late.join()
    assert refused
    told = [m.cmd[0] for topic, m in graph.said[said:] if topic == RIGHT.group]
    assert told and max(told) < wanted[7] - 0.01
    driver.disconnect()


def test_a_stop_makes_the_measured_joints_the_targets(arms):
    driver, _, _ = arms()
    driver.connect()
    driver.reset()
    driver.command(driver.target + 0.3)
    driver.stop()
    seen = driver.observe().measured
    assert (np.abs(driver.target - START)[:6] < 0.2).all()
    np.testing.assert_allclose(seen[:6], driver.target[:6], atol=0.05)
    with pytest.raises(StoppedError, match="the pair of arms was stopped; reset it"):
        driver.command(driver.target)
    driver.disconnect()


def test_an_arm_that_is_not_heard_from_keeps_its_targets_while_the_other_stops(arms):
    driver, _, graph = arms(stale=2.0)
    driver.connect()
    driver.reset()
    target = driver.command(driver.target + 0.004)
    graph.subscribers.pop(RIGHT.state)  # its states no longer arrive
    time.sleep(0.25)
    said = len(graph.said)
    with pytest.raises(RobotError, match=f"no new state on {RIGHT.state}: the pair of arms keeps"):
        driver.stop()
    topics = {topic for topic, _ in graph.said[said:]} - {LEFT.state, RIGHT.state}
    assert topics == {LEFT.group, LEFT.single}
    np.testing.assert_array_equal(driver.target[7:], target[7:])
    with pytest.raises(RobotError, match=r"3 stops were not confirmed .*emergency stop"):
        driver.disconnect()


def test_a_gripper_that_nobody_moves_is_named(arms):
    driver, _, graph = arms(patience=0.3)
    graph.subscribers.pop(RIGHT.single)
    with pytest.raises(RobotError, match=rf"nobody listens to {RIGHT.single} within 0\.3 s"):
        driver.connect()


def test_a_joint_that_does_not_arrive_is_named_with_its_unit(arms):
    driver, node, _ = arms(patience=0.3)
    driver.connect()
    whole = node.arms.command
    node.arms.command = lambda target: whole(np.where(np.arange(14) == 13, 0.01, target))
    with pytest.raises(RobotError, match=r"right_gripper is 0\.0\d+ m away. Is it switched on"):
        driver.reset()
    with pytest.raises(RobotError, match=r"the start of left_gripper is 0\.5 m, it must be in"):
        driver.reset({"left_gripper": np.array(0.5)})
    driver.disconnect()


def test_the_node_refuses_what_is_no_target_of_its_arms(arms):
    driver, node, graph = arms()
    driver.connect()
    driver.reset()

    for topic, message in (
        (LEFT.group, Message(name="gripper", cmd=[0.0] * 6)),
        (LEFT.group, Message(name="arm", cmd=[0.0] * 7)),
        (RIGHT.single, Message(name="waist", cmd=0.3)),
        (RIGHT.single, Message(name="gripper", cmd=float("nan"))),
    ):
        for subscriber in graph.subscribers[topic]:
            subscriber.heard(message)
    assert node.facts()["targets"]["refused"] == 4
    np.testing.assert_allclose(node._target, START, atol=1e-6)
    driver.disconnect()
