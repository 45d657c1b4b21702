"""The ROS 2 driver's way through rclpy, against a stand-in of it."""

import sys
import threading
import time

import numpy as np
import pytest

from real.drivers.ros2 import Ros2Robot
from real.drivers.ros2_config import read_robot
from real.drivers.ros2_link import trajectory
from real.drivers.ros2_rclpy import Rclpy
from real.robot import RobotError
from tests.support import rclpy_double
from tests.support.ros2_files import SMALL

pytestmark = pytest.mark.clock


@pytest.fixture
def graph(monkeypatch):
    return rclpy_double.Graph(monkeypatch)


def test_a_robot_is_driven_through_rclpy(graph, tmp_path):
    path = tmp_path / "arm.yaml"
    path.write_text("transport: rclpy\nstale: 1.0\n" + SMALL)
    driver = Ros2Robot(read_robot(path))
    over = threading.Event()

    def publish():
        while not over.wait(0.01):
            if heard := graph.heard.get("/joint_states"):
                heard(rclpy_double.JointState(["elbow", "shoulder"], [-0.3, 0.2]))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        driver.connect()
        assert graph.signals == ["no"] and graph.said == []
        driver.reset()
        sent = driver.command(np.array([0.22, -0.28]))
        topic, message = graph.said[-1]
        assert topic == "/arm/commands" and message.data == sent.tolist()
        assert isinstance(message, rclpy_double.Float64MultiArray)
        np.testing.assert_allclose(driver.observe().values["qpos"], [0.2, -0.3], atol=1e-6)
        graph.acked = False
        with pytest.raises(RobotError, match="who listens to /arm/commands acknowledges nothing"):
            driver.stop()
        graph.acked = True
        driver.stop()
    finally:
        driver.disconnect()
        over.set()
        thread.join()


def test_a_trajectory_is_filled_in_field_by_field(graph):
    link = Rclpy()
    link.open(1.0, lambda: None)
    link.advertise("/t", "trajectory_msgs/msg/JointTrajectory")
    link.publish("/t", trajectory(["a", "b"], [1.0, 2.0], 1.25))
    ((_, message),) = graph.said
    assert message.joint_names == ["a", "b"]
    (point,) = message.points
    assert isinstance(point, rclpy_double.JointTrajectoryPoint) and point.positions == [1.0, 2.0]
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (1, 250_000_000)
    link.close()
    link.close()
    with pytest.raises(RobotError, match="the ROS 2 node is not open"):
        link.publish("/t", {})


def test_a_node_that_was_shut_down_is_lost(graph):
    lost = []
    link = Rclpy()
    link.open(1.0, lambda: lost.append(link.lost))
    graph.stopped.set()
    end = time.monotonic() + 2.0
    while not lost and time.monotonic() < end:
        time.sleep(0.01)
    assert lost == ["the ROS 2 node was shut down"]
    link.close()


def test_without_rclpy_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(RobotError, match=r"needs rclpy .*setup\.bash.*or say transport: rosbridge"):
        Rclpy().open(1.0, lambda: None)
