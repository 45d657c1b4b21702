"""The driver of ALOHA's arms against a real ROS graph: a master and the arms' node on loopback."""

import hashlib
import signal
import time

import numpy as np
import pytest

from penspin_style.features import Feature
from real.drivers import aloha_topics, ros
from real.drivers.aloha_ros import AlohaConfig, AlohaRos
from real.drivers.aloha_topics import arm_topics
from real.drivers.external import External
from real.rate import Rate
from real.robot import RobotError
from tasks.robots.aloha.description import ARM, JOINTS, PROPRIOCEPTION, START, fingertips
from tests.support.robot_contract import check_robot
from tests.support.ros_marks import MARKS, needs_ros
from tests.support.ros_node import Node

pytestmark = MARKS
NODE = "real.drivers.aloha_node"
QUICK = {"start_speed": 5.0, "start_grip_speed": 0.5, "stale": 40.0}  # the machine may be busy


@pytest.fixture(scope="module")
def node(env):
    """The node of two arms without physics."""
    found = Node(env, NODE)
    yield found
    found.end()


@pytest.fixture
def drive(node):
    """Make drivers, connected and at their start."""
    made = []

    def make(**changes):
        made.append(AlohaRos(AlohaConfig(**{**QUICK, **changes})))
        made[-1].connect()
        made[-1].reset()
        return made[-1]

    yield make
    for driver in made:
        driver.disconnect()


@needs_ros
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (aloha_topics.GROUP_KIND, aloha_topics.GROUP),
        (aloha_topics.SINGLE_KIND, aloha_topics.SINGLE),
    ],
)
def test_a_message_is_made_of_its_definition_and_known_by_its_sum(kind, text):
    """ROS connects two sides whose definitions have the same MD5, of the text without comments."""
    made = ros.define(kind, text)
    assert made._type == kind and made._md5sum == hashlib.md5(text.strip().encode()).hexdigest()


class Subscriber:
    """Hears both arms' states by the joints' names, without the driver."""

    def __init__(self):
        self.joints = {}
        rospy, msgs = ros.start_node("penspin"), ros.messages("sensor_msgs")
        self.ends = [
            rospy.Subscriber(
                arm_topics(f"puppet_{side}").state,
                msgs.JointState,
                lambda message, side=side: self.joints.update(
                    (f"{side}_{name}", value)
                    for name, value in zip(message.name, message.position, strict=True)
                ),
            )
            for side in ("left", "right")
        ]
        while len(self.joints) < 18:
            time.sleep(0.01)

    def close(self):
        for end in self.ends:
            end.unregister()


@needs_ros
def test_each_channel_moves_the_joint_of_its_name(drive):
    driver, subscriber = drive(), Subscriber()
    driver.reset({"qpos": np.array([0.3, -0.3, 0.3, 0.3, 0.3, 0.3, 0.02] * 2)})
    moves = np.array([0.01 if name.endswith("gripper") else 0.15 for name in JOINTS])
    for i, name in enumerate(JOINTS):
        time.sleep(0.05)  # the joint before may still be on its way
        before, seen, target = dict(subscriber.joints), driver.observe().measured, driver.target
        target[i] += moves[i]
        driver.command(target)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            change = {k: abs(v - before[k]) for k, v in subscriber.joints.items()}
            sees = np.abs(driver.observe().measured - seen) / moves
            if max(change.values()) > 0.1 and sees.max() > 0.6:
                break
            time.sleep(0.01)
        assert max(change, key=lambda k: change[k]) == name and np.argmax(sees) == i
    subscriber.close()


@needs_ros
def test_a_gripper_is_told_and_read_in_the_numbers_of_the_stock_programs(drive):
    driver, subscriber = drive(), Subscriber()
    for opening, motor, finger in ((1.0, 1.4910, 0.058), (0.0, -0.6213, 0.01844)):
        target = driver.target
        target[[6, 13]] = 0.002 + 0.035 * opening
        driver.command(target)
        time.sleep(0.5)
        for side in ("left", "right"):
            assert subscriber.joints[f"{side}_gripper"] == pytest.approx(motor, abs=1e-3)
            assert subscriber.joints[f"{side}_left_finger"] == pytest.approx(finger, abs=1e-4)
        np.testing.assert_allclose(driver.observe().measured[[6, 13]], target[[6, 13]], atol=1e-4)
    subscriber.close()


@needs_ros
def test_the_driver_keeps_the_contract(node):
    wrist = External(
        Feature("wrist_cam_left_rgb", (4, 4, 3), "1", "uint8"), lambda: np.ones((4, 4, 3))
    )
    check_robot(AlohaRos(AlohaConfig(gripper_scale=0.001, **QUICK), also=[wrist]))


@needs_ros
def test_an_observation_is_proprioception_of_what_was_measured_and_sent(drive):
    driver = drive()
    np.testing.assert_allclose(driver.target, START)
    target = driver.command(driver.target + 0.01)
    seen = driver.observe()
    assert set(seen.values) == {f.name for f in PROPRIOCEPTION}
    error = np.concatenate([seen.values[f"{side}_command_error"] for side in ("left", "right")])
    np.testing.assert_allclose(error, target - seen.measured, atol=1e-6)
    np.testing.assert_allclose(seen.values["fingertips"], fingertips(seen.measured), atol=1e-6)
    assert 0 <= time.monotonic() - seen.stamp < 0.1


@needs_ros
def test_the_hands_have_switched_from_the_moment_on_when_both_were_up_until_a_reset(drive):
    driver, start = drive(), np.array(START)

    def told(*shoulders):
        target = start.copy()
        target[[1, 8]] += shoulders
        driver.command(target)
        until = time.monotonic() + 3.0
        while np.abs(driver.observe().measured - target).max() > 0.01:
            assert time.monotonic() < until
        return driver.observe().values["has_switched"].tolist()

    # down in between: one hand that rises while the other sinks may pass it above the height
    for shoulders in ((0.0, 0.0), (-0.5, 0.0), (0.0, 0.0), (0.0, -0.5), (0.0, 0.0)):
        assert told(*shoulders) == [0.0]
    assert told(-0.5, -0.5) == told(0.0, 0.0) == [1.0]
    driver.reset()
    assert driver.observe().values["has_switched"].tolist() == [0.0]


@needs_ros
def test_arms_that_fall_silent_are_noticed(drive, node):
    driver = drive(stale=2.0, control_dt=0.25)
    node.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(2.5 * driver.control_dt)
        with pytest.raises(
            RobotError, match=r"/puppet_(left|right)/joint_states was measured 0\.\d"
        ):
            driver.observe()
    finally:
        node.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)


@needs_ros
def test_an_arm_that_is_not_there_is_named(node):
    driver = AlohaRos(AlohaConfig(names=("puppet_left", "nobody"), patience=0.5))
    complaint = (
        r"no joint state came on /nobody/joint_states within 0\.5 s: there are .*/puppet_left"
    )
    with pytest.raises(RobotError, match=complaint):
        driver.connect()
    with pytest.raises(RobotError, match="the pair of arms is not connected"):
        driver.observe()


@needs_ros
def test_the_simulated_arms_and_their_box_stand_behind_the_topics(env):
    node = Node(env, NODE, "--namespace", "twin", "--twin", "aloha")
    driver = AlohaRos(AlohaConfig(namespace="twin", stale=40.0))
    driver.connect()
    driver.reset()
    rate, start = Rate(driver.control_dt), driver.target
    for i in range(20):
        target = start.copy()
        target[[0, 7]] += 0.01 * i
        driver.command(target)
        rate.wait()
    seen, target = driver.observe().measured, driver.target
    driver.disconnect()
    facts = node.end()
    moved = (seen - start)[[0, 7]]
    assert (moved > 0.1).all() and np.abs(seen - target).max() < 0.2
    assert {"success", "dropped"} <= set(facts["measures"]) and facts["measures"]["steps"] >= 1
    assert facts["targets"]["refused"] == 0
    counts = [n for topic, n in facts["targets"].items() if topic != "refused"]
    assert len(counts) == 4 and min(counts) == max(counts) >= 20 + len(ARM)
