"""What a robot that wraps another one has from it."""

from collections.abc import Mapping

from penspin_style.features import ActionChannel, Feature
from real.robot import Robot


class Wrapper:
    """A robot around a robot: what it measures, takes, and how often."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot

    @property
    def features(self) -> Mapping[str, Feature]:
        """Those of the robot."""
        return self.robot.features

    @property
    def channels(self) -> tuple[ActionChannel, ...]:
        """Those of the robot."""
        return self.robot.channels

    @property
    def control_dt(self) -> float:
        """That of the robot."""
        return self.robot.control_dt
