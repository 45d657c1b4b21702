"""The YAML file of a robot behind ROS 2: what it may say, and how it is told what it may not."""

import re

import pytest

from penspin_style.features import ActionChannel, Feature
from real.drivers import open_driver
from real.drivers.ros2_config import JointConfig, read_robot
from tests.support.ros2_files import SMALL


def read(tmp_path, text):
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    return read_robot(path)


def test_a_small_file_is_read_with_its_defaults(tmp_path):
    config = read(tmp_path, SMALL)
    assert (config.transport, config.host, config.port) == ("rosbridge", "127.0.0.1", 9090)
    assert [joint.ros for joint in config.joints] == ["shoulder", "elbow"]
    assert config.joints[1].channel == ActionChannel("elbow", "rad", 0.05, -2.0, 1.0, "delta")
    assert config.features[0].feature == Feature("qpos", (2,), "rad")
    driver = open_driver("ros2", str(tmp_path / "arm.yaml"))
    assert driver.control_dt == 0.05 and driver.joints == ("shoulder", "elbow")


def test_a_joint_says_otherwise_than_its_group(tmp_path):
    text = SMALL.replace("low: -2.0,", "low: -2.0, scale: 0.1, mode: absolute, unit: m,")
    config = read(tmp_path, text)
    assert [j.scale for j in config.joints] == [0.05, 0.1]
    assert config.joints[1].channel.mode == "absolute" and config.joints[1].unit == "m"


def test_what_ros_counts_and_what_the_policy_counts_are_inverse():
    """By hand: half a turn the other way, in degrees from 90."""
    joint = JointConfig(
        name="a", low=-4.0, high=4.0, start=0.0, scale=1.0, sign=-1, factor=57.3, offset=90.0
    )
    assert joint.to_ros(2.0) == pytest.approx(90 - 114.6)
    assert joint.from_ros(90 - 114.6) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("rate: 20", "", "arm.yaml: rate is missing: a number above 0 and up to 1000"),
        ("rate: 20", "rate: yes", "rate must be a number above 0 and up to 1000, got True"),
        ("rate: 20", "rate: 20\nhots: a", "there is no key 'hots'; did you mean 'host'?"),
        ("rate: 20", "rate: 20\nport: 0", "port must be 1 to 65535, got 0"),
        ("rate: 20", "rate: 20\ntransport: dds", "transport must be one of rosbridge, rclpy"),
        ("rate: 20", "rate: 20\ntransport: rclpy\nport: 1", "port is for transport rosbridge"),
        ("rate: 20", "rate: 20\nhost: ws://a", "host must be a host's name or address"),
        ("rate: 20", "rate: 20\ntrust_stamps: 1", "trust_stamps must be one of True, False"),
        ("state: /joint_states", "", "groups.arm: state is missing: a topic"),
        ("/joint_states", "joint states", "groups.arm: state must be a topic, as /joint_states"),
        ("Float64MultiArray", "Float64", "groups.arm: type must be one of std_msgs/msg/Float64M"),
        ("scale: 0.05", "scale: 0.05\n    reach: 1", "groups.arm: reach is for type trajectory"),
        ("scale: 0.05", "", "groups.arm.joints.shoulder: scale is missing, of the joint or of its"),
        ("scale: 0.05", "scale: 0.05\n    sign: 2", "groups.arm: sign must be one of 1, -1"),
        ("scale: 0.05", "scale: 0.05\n    sign: yes", "groups.arm: sign must be one of 1, -1"),
        ("high: 1.5", "high: -1.0", "joints.shoulder: low must be below high, got -1 and -1"),
        ("high: 1.5", "high: .inf", "joints.shoulder: high must be a finite number, got inf"),
        ("start: 0.2", "start: 2", "shoulder: start 2 must be within its limits, -1 to 1.5"),
        ("start: 0.2}", "start: 0.2, ros: elbow}", "the ROS joint 'elbow' is there 2 times"),
        ("[position]", "[place]", "features.qpos: of must be a list of position, velocity"),
        ("[position]}", "[position], joints: elbo}", "no joint 'elbo'; did you mean 'elbow'?"),
        ("  qpos: {of: [position]}", "  qpos: position", "features.qpos: it must be a mapping of"),
    ],
)
def test_what_is_not_as_it_should_be_is_said_in_one_line(tmp_path, old, new, complaint):
    assert old in SMALL
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        read(tmp_path, SMALL.replace(old, new))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'arm.yaml'}: ")


def test_two_groups_share_no_command_topic_and_no_joint(tmp_path):
    arm = SMALL[SMALL.index("  arm:") : SMALL.index("features:")]
    with pytest.raises(ValueError, match="the joint 'shoulder' is there 2 times"):
        read(tmp_path, SMALL.replace("features:", arm.replace("arm:", "left:", 1) + "features:"))
    other = arm.replace("arm:", "left:", 1).replace("shoulder", "a").replace("elbow", "b")
    with pytest.raises(ValueError, match="the command topic '/arm/commands' is there 2 times"):
        read(tmp_path, SMALL.replace("features:", other + "features:"))


def test_a_robot_without_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"say ros2:FILE\.yaml"):
        open_driver("ros2")
    with pytest.raises(ValueError, match="is not readable"):
        open_driver("ros2", str(tmp_path / "none.yaml"))
