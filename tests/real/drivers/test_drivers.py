"""The drivers by their names, and what all of them do with a start pose."""

import subprocess
import sys

import numpy as np
import pytest

from real.control.session import open_robot
from real.drivers import DRIVERS, open_driver
from real.drivers.start_pose import start_pose
from real.robot import RobotError
from tests.support.ros2_files import addresses

LIMITS = {"hip": (-1.0, 1.0), "knee": (0.0, 2.0)}


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_says_what_it_is_before_it_connects(name, tmp_path):
    address = addresses(tmp_path).get(name, "left")
    driver = open_driver(name, address)
    assert driver.features and driver.channels and 0 < driver.control_dt < 1
    assert len(set(driver.joints)) == len(driver.joints) >= 1
    opened = open_robot(f"{name}:{address}", task="t")
    assert type(opened.robot) is type(driver)
    called = name if address == "left" else "small"  # a file says which robot it is
    assert (opened.name, opened.source, opened.joints) == (called, "real", driver.joints)
    assert opened.steps == round(20.0 / driver.control_dt)  # 20 s


def test_the_names_of_drivers_import_none_and_a_driver_no_torch(tmp_path):
    code = f"""
import sys
from real.drivers import DRIVERS, open_driver
before = {{m for m in sys.modules if m.startswith("real.drivers.")}}
for name in DRIVERS:
    open_driver(name, {addresses(tmp_path)}.get(name, "left"))
print(before, {{"torch", "mujoco", "franky", "rospy", "rclpy"}} & {{*sys.modules}})
"""
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout.strip() == "set() set()"


def test_a_hand_after_a_colon_is_in_that_namespace():
    assert open_driver("allegro_ros").config.topics.command == "/cmd_joint_states"
    topics = open_driver("allegro_hand_ros", "left").config.topics
    assert topics.state == "/left/allegroHand_0/joint_states"
    assert topics.words == "/left/allegroHand_0/lib_cmd"


@pytest.mark.parametrize("address", ["10.0.0.1", "http://hand:11311", "left right", "1st"])
def test_a_hand_at_an_address_is_refused(address):
    with pytest.raises(ValueError, match="is no ROS namespace"):
        open_robot(f"allegro_ros:{address}")


def test_an_arm_without_an_address_is_refused():
    with pytest.raises(ValueError, match="say franka:ADDRESS"):
        open_robot("franka")


def test_a_start_pose_is_the_default_unless_joints_say_otherwise():
    np.testing.assert_array_equal(start_pose(None, (0.5, 1.0), LIMITS), [0.5, 1.0])
    start = {"knee": np.array([1.5])}
    np.testing.assert_array_equal(start_pose(start, (0.5, 1.0), LIMITS), [0.5, 1.5])
    start = {"knee": np.array(2.0), "qpos": np.array([-1.0, 0.0])}
    np.testing.assert_array_equal(start_pose(start, (0.5, 1.0), LIMITS), [-1.0, 2.0])


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        ({"toe": np.zeros(1)}, r"with 'toe'; it takes qpos, 2 numbers, or .* \['hip', 'knee'\]"),
        ({"qpos": np.zeros(3)}, "starts from 2 finite joint angles"),
        ({"qpos": np.array(["0", "1"])}, "starts from 2 finite joint angles"),
        ({"hip": np.zeros(2)}, "cannot be started with 'hip'"),
        ({"qpos": np.array([0.0, np.nan])}, r"2 finite joint angles, got \[0\.0, nan\]"),
        ({"hip": np.array(np.inf)}, "the start of hip is inf rad"),
        ({"knee": np.array(-0.1)}, r"the start of knee is -0\.1 rad, it must be in \[0, 2\]"),
    ],
)
def test_a_start_pose_that_is_none_is_refused(start, complaint):
    with pytest.raises(RobotError, match=complaint):
        start_pose(start, (0.0, 1.0), LIMITS)
