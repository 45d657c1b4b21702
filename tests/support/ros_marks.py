"""Whether real ROS is here, and what a test of it is marked with."""

import shutil

import pytest

from real.drivers import ros

INSTALLED = ros.is_installed() and shutil.which("rosmaster")
needs_ros = pytest.mark.skipif(
    not INSTALLED, reason="ROS 1 is not installed: run scripts/install_ros.sh"
)
MARKS = [  # rospy is of 2020
    pytest.mark.clock,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ros"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
