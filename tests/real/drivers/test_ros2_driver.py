"""The ROS 2 driver over rosbridge, against a stand-in of the server with joints that follow."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest

from real.control.session import open_robot
from real.drivers.ros2 import Ros2Robot
from real.drivers.ros2_config import read_robot
from real.robot import RobotError
from tests.support.robot_contract import Hang, check_robot
from tests.support.rosbridge_double import POSITIONS, TRAJECTORY, Bridge, Controller

pytestmark = pytest.mark.clock
FILE = """
host: 127.0.0.1
port: {port}
rate: 50
stale: 0.4
patience: 3
groups:
  arm:
    type: std_msgs/msg/Float64MultiArray
    command: /arm/commands
    state: /joint_states
    speed: 5.0
    scale: 0.05
    joints:
      shoulder: {{ros: r_shoulder, low: -1.0, high: 1.5, start: 0.2, sign: -1, offset: 0.5}}
      elbow: {{ros: r_elbow, low: -2.0, high: 1.0, start: -0.3}}
  gripper:
    state: /gripper/joint_states
    command: /gripper/joint_trajectory
    type: trajectory_msgs/msg/JointTrajectory
    unit: m
    scale: 0.004
    speed: 0.5
    tolerance: 0.01
    reach: 0.06
    joints:
      grip: {{ros: r_finger, low: 0.0, high: 0.04, start: 0.03, factor: 1000}}
features:
  qpos: {{of: [position]}}
  arm: {{of: [position, target], joints: [shoulder, elbow]}}
  speed: {{of: [velocity], joints: [shoulder], unit: rad/s}}
  grip: {{of: [error], joints: grip}}
"""
ARM = ("/joint_states", "/arm/commands", POSITIONS, ("r_shoulder", "r_elbow"))
GRIPPER = ("/gripper/joint_states", "/gripper/joint_trajectory", TRAJECTORY, ("r_finger",))


@pytest.fixture
def bridge():
    """At home: shoulder 0.1 rad, for ROS 0.4; grip 0.02 m, for ROS 20 mm."""
    with Bridge(Controller(*ARM, [0.4, 0.0]), Controller(*GRIPPER, [20.0])) as there:
        yield there


@pytest.fixture
def make(bridge, tmp_path):
    made = []

    def driver(text=FILE, **changes):
        path = tmp_path / "robot.yaml"
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text.format(port=bridge.port))
        made.append(Ros2Robot(read_robot(path)))
        return made[-1]

    yield driver
    bridge.unread = bridge.silent = bridge.unheard = False
    for robot in made:
        with contextlib.suppress(RobotError):
            robot.disconnect()


def until(true, seconds=3.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_driver_keeps_the_contract_also_while_a_call_hangs(make):
    driver = make()

    @contextlib.contextmanager
    def hangs(call):
        holder = driver if call == "observe" else driver._link.rospy
        name = "_values" if call == "observe" else "publish"
        hang, whole = Hang(), getattr(holder, name)

        def hanging(*args):
            setattr(holder, name, whole)
            hang()
            return whole(*args)

        setattr(holder, name, hanging)
        yield hang

    check_robot(driver, hangs=hangs)


def test_units_signs_offsets_and_names_are_those_of_the_file(make, bridge):
    driver = make()
    driver.connect()
    assert bridge.said == []
    seen = driver.observe()
    np.testing.assert_allclose(seen.measured, [0.1, 0.0, 0.02], atol=1e-9)
    np.testing.assert_allclose(seen.values["qpos"], [0.1, 0.0, 0.02], atol=1e-6)
    np.testing.assert_allclose(seen.values["speed"], [-0.25])  # its sign is -1
    driver.reset()
    driver.command(np.array([0.25, -0.35, 0.01]))
    assert bridge.advertised == {
        "/arm/commands": POSITIONS,
        "/gripper/joint_trajectory": TRAJECTORY,
    }
    until(lambda: bridge.commands(GRIPPER[1])[-1]["points"][0]["positions"] == [10])
    np.testing.assert_allclose(bridge.commands("/arm/commands")[-1]["data"], [0.25, -0.35])
    last = bridge.commands(GRIPPER[1])[-1]
    assert last["joint_names"] == ["r_finger"]
    assert last["points"][0]["time_from_start"] == {"sec": 0, "nanosec": 60_000_000}
    values = driver.observe().values
    np.testing.assert_allclose(values["arm"][2:], [0.25, -0.35], atol=1e-6)
    assert values["grip"].shape == () and values["grip"] <= 0


def test_a_robot_that_was_sent_nothing_is_sent_nothing_when_it_is_left(make, bridge):
    driver = make()
    driver.connect()
    driver.observe()
    driver.disconnect()
    assert bridge.said == []


def test_states_of_other_joints_on_the_same_topic_are_passed_over(make, bridge):
    other = Controller("/joint_states", "/base", POSITIONS, ("wheel",), [0.0])
    driver = make()
    driver.connect()
    for _ in range(5):
        bridge.send("/joint_states", bridge.state_of(other))
    np.testing.assert_allclose(driver.observe().measured[:2], [0.1, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("position", [None, 0.0], "/joint_states: r_elbow of this state is None"),
        ("position", [float("nan"), 0.0], "/joint_states: r_elbow of this state is nan"),
        ("position", [0.0], "as many positions as names"),
        ("name", ["r_elbow", "r_elbow"], "r_shoulder is there 0 times"),
        ("velocity", [], "the feature 'speed' needs velocities"),
    ],
)
def test_a_state_that_cannot_be_used_ends_the_observation(make, bridge, key, value, complaint):
    driver = make()
    driver.connect()

    def spoilt(message):
        arm = message["name"][0] == "r_elbow"
        return {**message, key: value} if arm else message

    bridge.edit = spoilt
    with pytest.raises(RobotError, match=complaint):
        for _ in range(20):
            driver.observe()
            time.sleep(0.02)


def test_joints_that_ros_calls_otherwise_are_named(make, bridge):
    driver = make(**{"r_shoulder": "panda_1", "r_elbow": "panda_2", "patience: 3": "patience: 0.4"})
    with pytest.raises(
        RobotError, match=r"/joint_states names none of \['panda_1', 'panda_2'\], it has \['r_elbow"
    ):
        driver.connect()


def test_a_topic_that_nobody_publishes_is_named_with_those_that_there_are(make):
    driver = make(**{"state: /joint_states": "state: /states", "patience: 3": "patience: 0.4"})
    with pytest.raises(RobotError, match=r"no joint state came on /states .*'/tf'"):
        driver.connect()


def test_a_controller_that_does_not_listen_is_named_and_without_rosapi_not_known(make, bridge):
    bridge.unheard = True
    driver = make(**{"patience: 3": "patience: 0.6"})
    with pytest.raises(RobotError, match="nobody listens to /arm/commands"):
        driver.connect()
    bridge.has_rosapi = False
    driver.connect()
    assert driver._link.rospy.listeners("/arm/commands") is None


def test_states_that_end_are_an_error_and_a_stop_then_is_not_confirmed(make, bridge):
    driver = make(**{"stale: 0.4": "stale: 0.1"})
    driver.connect()
    driver.reset()
    bridge.silent = True
    with pytest.raises(RobotError, match="the newest state on"):
        for _ in range(30):
            driver.observe()
            time.sleep(0.02)
    time.sleep(0.1)
    with pytest.raises(RobotError, match=r"no new state on .*keeps its last targets"):
        driver.stop()


def test_a_lost_link_ends_commands_until_a_reset_though_it_comes_back(make, bridge):
    driver = make()
    driver.connect()
    driver.reset()
    target = driver.command(driver.target)
    driver._link.rospy.confirm()  # the server has it; the double notes it a moment later
    time.sleep(0.2)
    said = len(bridge.said)
    bridge.drop()
    until(lambda: driver._lost)
    until(lambda: not driver._link.rospy.lost)  # it is back by itself
    driver.hold()
    for _ in range(3):
        with pytest.raises(RobotError, match=r"the connection to ws://127.* is lost: .*reset the"):
            driver.command(target)
        with pytest.raises(RobotError, match="is lost"):
            driver.observe()
    assert len(bridge.said) == said
    until(lambda: len(bridge._clients) == 1)
    time.sleep(0.1)
    driver.stop()  # still goes out
    until(lambda: len(bridge.said) >= said + 2)
    assert len(bridge.said) == said + 2
    driver.reset()
    driver.command(driver.target)


def test_a_server_that_is_gone_makes_a_stop_unconfirmed_and_names_the_emergency_stop(make, bridge):
    driver = make()
    driver.connect()
    driver.reset()
    bridge._server.shutdown()
    bridge.drop()
    until(lambda: driver._lost)
    with pytest.raises(RobotError, match=r"3 stops were not confirmed .*emergency stop"):
        driver.disconnect()
    assert not [t for t in threading.enumerate() if t.name == "rosbridge"]


def test_a_server_that_reads_nothing_confirms_no_stop_and_is_cut_off(make, bridge):
    """What was sent stays in the network's buffers, and must not arrive later."""
    driver = make()
    driver.connect()
    driver.reset()
    link = driver._link.rospy
    whole = link._ping

    async def no_answer():
        await asyncio.sleep(5.0)

    link._ping = no_answer
    began = time.monotonic()
    with pytest.raises(RobotError, match="takes nothing within"):
        driver.stop()
    assert time.monotonic() - began < 0.4
    link._ping = whole
    until(lambda: driver._lost)
    until(lambda: not link.lost)
    time.sleep(0.1)
    driver.stop()


def test_no_server_is_said_with_how_to_start_one(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text(FILE.format(port=1).replace("patience: 3", "patience: 0.3"))
    opened = open_robot(f"ros2:{path}")
    assert (opened.name, opened.source) == ("robot", "real")
    with pytest.raises(RobotError, match=r"no rosbridge server answers within 0\.3 s.*ros2 launch"):
        opened.robot.connect()


def test_a_message_that_the_server_refuses_is_noted(make):
    driver = make()
    driver.connect()
    driver._link.rospy.publish("/nowhere", {})
    until(lambda: driver._link.rospy.complaint)
    assert driver._link.rospy.complaint == "cannot publish /nowhere"
