"""One ROS master for all modules here: a process is a node of one master until it ends."""

import gc
import os

import pytest

from real.drivers import ros
from tests.support.ros_marks import INSTALLED


@pytest.fixture(scope="package")
def env():
    """The master's environment, which is also this process's while the tests run."""
    if not INSTALLED:
        pytest.skip("ROS 1 is not installed: run scripts/install_ros.sh")
    patch = pytest.MonkeyPatch()
    with ros.Master() as master:
        for name, value in master.env.items():
            patch.setenv(name, value)
        yield {**os.environ, **master.env}
        ros.load().signal_shutdown("the tests are over")
        gc.collect()
    patch.undo()
