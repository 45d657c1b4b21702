"""A robot that notes what it is told, alone and behind its limits."""

from typing import ClassVar

import numpy as np

from penspin_style.features import ActionChannel
from real.control.safety import Limits, SafeRobot
from real.robot import Observation, RobotError

DT = 0.1
CHANNELS = (
    ActionChannel("x", "m", 0.1, -1.0, 1.0, "delta"),
    ActionChannel("y", "m", 0.1, -1.0, 1.0, "delta"),
)


class Fake:
    """A robot that notes what it is told; its clock goes on by a control step per command."""

    features: ClassVar = {}
    channels = CHANNELS
    control_dt = DT

    def __init__(self, at=(0.0, 0.0)):
        self.at = np.array(at)
        self.log, self.now = [], 0.0
        self.measured = None
        self.moves = lambda target: target
        self.broken = False

    @property
    def target(self):
        return self.at

    def clock(self):
        return self.now

    def connect(self):
        self.log.append("connect")

    def disconnect(self):
        self.log.append("disconnect")

    def reset(self, start=None):
        self.log.append(("reset", start))

    def observe(self):
        return Observation({}, self.now, self.measured)

    def command(self, target):
        self.now += DT
        self.at = self.moves(target.copy())
        self.log.append(self.at)
        return self.at

    def hold(self):
        if self.broken:
            raise RobotError("the cable is out")
        self.log.append("hold")

    def stop(self):
        if self.broken:
            raise RobotError("the cable is out")
        self.log.append("stop")


def safe(fake=None, **limits):
    fake = fake or Fake()
    robot = SafeRobot(fake, Limits.of(CHANNELS, DT, **limits))
    robot.reset()
    return robot, fake
