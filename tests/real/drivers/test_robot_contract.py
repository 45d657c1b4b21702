"""The contract of all drivers, on the twins: what a policy meets in simulation it meets on a robot.

The drivers of real robots run it in their own tests.
"""

import contextlib

import pytest

from real.robot import RobotError
from real.twin.robot import SimRobot, load_twin
from tests.support.robot_contract import Hang, check_robot

pytestmark = pytest.mark.clock


def hangs_of(twin):
    """Make the next such call of the world hang, which the driver makes with its lock."""

    @contextlib.contextmanager
    def hangs(call):
        name = "send" if call == "command" else call
        hang, whole = Hang(), getattr(twin.batch, name)

        def hanging(*args):
            setattr(twin.batch, name, whole)
            hang()
            return whole(*args)

        setattr(twin.batch, name, hanging)
        yield hang

    return hangs


@pytest.mark.parametrize("changes", [{}, {"observation_latency": 0.02, "command_latency": 0.01}])
def test_the_twin_keeps_the_contract(changes):
    twin = SimRobot(load_twin("pen", **changes))
    check_robot(twin, let_pass=lambda: None, hangs=hangs_of(twin))


def test_the_twin_keeps_the_contract_in_real_time():
    twin = SimRobot(load_twin("pen", realtime=True))
    check_robot(twin, hangs=hangs_of(twin))


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
        return self.batch.target[0]

    def command(self, target):
        super().command(target)
        return self.batch.target[0]


@pytest.mark.parametrize("kind", [Numb, Deaf, Same])
def test_a_robot_that_breaks_the_contract_is_found(kind):
    with pytest.raises((AssertionError, pytest.fail.Exception, RobotError)):
        check_robot(kind(load_twin("pen")), let_pass=lambda: None)
