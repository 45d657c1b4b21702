"""The contract of all drivers, on the twins: what a policy meets in simulation it meets on a robot.

The drivers of real robots run it in their own tests.
"""

import pytest
from robot_contract import check_robot

from real.robot import RobotError
from real.sim_robot import SimRobot, load_twin


@pytest.mark.parametrize("changes", [{}, {"observation_latency": 0.02, "command_latency": 0.01}])
def test_the_twin_keeps_the_contract(changes):
    check_robot(SimRobot(load_twin("pen", **changes)), let_pass=lambda: None)


def test_the_twin_keeps_the_contract_in_real_time():
    check_robot(SimRobot(load_twin("pen", realtime=True)))


class Numb(SimRobot):
    """Goes nowhere."""

    def command(self, target):
        super().command(target)
        return super().command(self._start)

    def reset(self, start=None):
        super().reset(start)
        self._start = self.target


class Deaf(SimRobot):
    """Goes on after a stop."""

    def stop(self):
        pass


class Same(SimRobot):
    """Hands out its own arrays."""

    @property
    def target(self):
        super().target  # noqa: B018
        return self.fleet.target[0]

    def command(self, target):
        super().command(target)
        return self.fleet.target[0]


@pytest.mark.parametrize("kind", [Numb, Deaf, Same])
def test_a_robot_that_breaks_the_contract_is_found(kind):
    with pytest.raises((AssertionError, pytest.fail.Exception, RobotError)):
        check_robot(kind(load_twin("pen")), let_pass=lambda: None)
