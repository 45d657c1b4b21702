"""`penspin robot check`: a robot is read, rehearsed, and its channels are moved one by one."""

import json
import sys

import numpy as np
import pytest

from penspin_style.__main__ import main
from penspin_style.deploy.bundle import Bundle
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from real.control import wiggle
from real.control.dry import DryRobot
from real.control.loop import Loop
from real.control.safety import SafeRobot
from real.control.session import Opened
from real.control.success import SuccessCheck
from real.control.wiggle import FOLLOWS, WiggleSource, way_of
from real.drivers.external import External
from real.drivers.named_function import named_sensors
from real.robot import Observation, RobotError
from real.twin.robot import SimRobot
from tests.support import franky_fake
from tests.support.cart import CHANNELS, DT, Carts
from tests.support.rail_twin import RAIL
from tests.support.ros2_files import SMALL
from tests.support.rosbridge_double import POSITIONS, Bridge, Controller

pytestmark = pytest.mark.clock
NAMES = ("shoulder", "elbow")


@pytest.fixture
def bridge(monkeypatch):
    monkeypatch.setattr("real.control.check.READ", 0.1)
    monkeypatch.setattr(wiggle, "_RISE", 0.06)
    monkeypatch.setattr(wiggle, "_REST", 0.14)
    with Bridge(
        Controller("/joint_states", "/arm/commands", POSITIONS, NAMES, [0.4, 0.9])
    ) as there:
        yield there


@pytest.fixture
def robot(bridge, tmp_path):
    path = tmp_path / "arm.yaml"
    fast = "scale: 0.05\n    speed: 5.0"
    text = SMALL.replace("rate: 20", "rate: 50").replace("scale: 0.05", fast)
    path.write_text(f"port: {bridge.port}\nstale: 0.4\npatience: 2\n{text}")
    return f"ros2:{path}"


def call(capsys, *argv):
    code = main(argv)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_robot_is_read_and_sent_nothing(robot, bridge, capsys):
    code, out, err = call(capsys, "robot", "check", robot)
    assert (code, err) == (0, "") and bridge.said == []
    assert "shoulder                0.4000 rad  of -1 to 1.5" in out
    assert "measures qpos (2,) rad" in out and out.endswith("nothing was sent to arm\n")


def test_a_wiggle_is_rehearsed_and_sent_nothing(robot, bridge, capsys):
    code, out, _ = call(capsys, "robot", "check", robot, "--wiggle", "0.05", "--dry-run")
    assert code == 0 and bridge.said == []
    assert "elbow                  -0.0500 rad  and back would be sent" in out


def test_each_joint_goes_a_little_way_and_back_from_where_it_stands(robot, bridge, capsys):
    code, out, _ = call(capsys, "robot", "check", robot, "--wiggle", "0.05", "--json")
    found = json.loads(out)
    assert code == 0 and [w["verdict"] for w in found["wiggled"]] == [FOLLOWS] * 2
    assert [w["wanted"] for w in found["wiggled"]] == [-0.05, -0.05]
    np.testing.assert_allclose([w["moved"] for w in found["wiggled"]], -0.05, atol=0.01)
    told = np.array([m["data"] for m in bridge.commands("/arm/commands")])
    np.testing.assert_allclose(told.min(0), [0.35, 0.85], atol=2e-3)
    np.testing.assert_allclose(told.max(0), [0.4, 0.9], atol=2e-3)
    assert np.abs(np.diff(told, axis=0)).max() < 0.05  # no more than a policy may ask for


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (lambda data: data[::-1] - np.array([0.5, -0.5]), "elbow moves instead"),
        (lambda data: np.array([0.8, 1.8]) - data, "goes the other way"),
        pytest.param(lambda data: np.array([0.4, 0.9]), "does not follow", marks=pytest.mark.slow),
        pytest.param(
            lambda data: 1.8 * data - 0.8 * np.array([0.4, 0.9]),
            "goes too far",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_robot_that_is_not_as_its_file_says_is_found(robot, bridge, capsys, fault, verdict):
    """Joints exchanged, a sign, a motor that is off, a factor; each is still where it stood."""
    (controller,) = bridge.controllers
    whole = controller.joints.command
    controller.joints.command = lambda data: whole(fault(data))
    line = ("robot", "check", robot, "--wiggle", "0.05", "--channels", "shoulder")
    code, out, _ = call(capsys, *line)
    assert code == 1 and verdict in out


def test_a_channel_without_room_is_refused_before_anything_moves(robot, bridge, capsys):
    bridge.controllers[0].joints = type(bridge.controllers[0].joints)([0.4, 1.02], [-9, -9], [9, 9])
    code, out, err = call(capsys, "robot", "check", robot, "--wiggle", "0.05")
    assert code == 3 and bridge.said == [] and "OUTSIDE its limits" in out
    assert "elbow stands at 1.02 rad" in err and "its limits are -2 to 1" in err


def test_the_way_goes_towards_the_middle_and_needs_room():
    narrow = ActionChannel("a", "rad", 0.1, 0.0, 0.08, "delta")
    assert way_of(narrow, 0.01, 0.05) == 0.05 and way_of(narrow, 0.06, 0.05) == -0.05
    with pytest.raises(RobotError, match="take a smaller --wiggle"):
        way_of(narrow, 0.04, 0.05)
    assert way_of(CHANNELS[0], 0.9, 0.3) == pytest.approx(-0.1)  # m: 5 % of 2
    with pytest.raises(RobotError, match="stands at nan"):
        way_of(narrow, float("nan"), 0.05)


class Interrupting(WiggleSource):
    def next(self, observation, last, deadline):
        if len(self._seen) == 1:
            raise KeyboardInterrupt
        return super().next(observation, last, deadline)


def test_a_keyboard_interrupt_leaves_the_robot_stopped():
    carts = Carts()
    safe = SafeRobot(carts)
    safe.connect()
    whole = carts.observe

    def observe():
        seen = whole()
        return Observation(seen.values, seen.stamp, carts.place.copy())

    carts.observe = observe
    source = Interrupting(CHANNELS, "left", 0.05, DT)
    with pytest.raises(KeyboardInterrupt):
        Loop(safe, source, SuccessCheck(), realtime=False, until_done=False).run(source.steps)
    told = [what for what in carts.told if isinstance(what, str)]
    assert told[-1] == "stop" and safe.reason == "interrupted"


def test_a_franka_arm_is_wiggled_at_its_start(monkeypatch, capsys):
    monkeypatch.setattr(wiggle, "_RISE", 0.06)
    monkeypatch.setattr("real.control.check.READ", 0.1)
    monkeypatch.setitem(sys.modules, "franky", franky_fake)
    line = ("robot", "check", "franka:arm", "--wiggle", "0.05", "--channels", "tcp_z")
    code, out, err = call(capsys, *line)
    assert (code, err) == (0, "") and "follows" in out


def test_a_twin_is_wiggled_in_its_own_time(capsys, monkeypatch):
    twin = Opened(SimRobot(RAIL), "rail", "rail", "twin", False, 20)  # done after 20 control steps
    monkeypatch.setattr("real.control.session.open_robot", lambda *args, **options: twin)
    code, out, err = call(capsys, "robot", "check", "rail", "--wiggle", "0.05")
    assert code == 0, (out, err)
    assert "rail                   +0.1000 m    wanted, went +0.1000: follows" in out


@pytest.mark.slow
def test_the_pandas_twin_follows(capsys):
    code, out, _ = call(capsys, "robot", "check", "panda", "--wiggle", "0.05")
    assert code == 0 and out.count(FOLLOWS) == 4


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("franka:arm", "--channels", "tcp_x"), "say how far, --wiggle 0.05"),
        (("franka:arm", "--wiggle", "0.1", "--channels", "tcp_w"), "'tcp_w'; did you mean 'tcp_"),
        (("franka:arm", "--also", "a:b"), "--also a:b: there is no module a, neither"),
        (("pandas",), "there is no robot 'pandas'"),
    ],
)
def test_a_line_that_cannot_be_meant_is_answered_in_one_line(capsys, argv, complaint):
    code, out, err = call(capsys, "robot", "check", *argv)
    assert (code, out) == (2, "") and complaint in err and err.count("\n") == 1


class Still:
    """A policy that asks for full actions."""

    def __init__(self):
        channels = (
            ActionChannel("shoulder", "rad", 0.05, -1.0, 1.5, "delta"),
            ActionChannel("elbow", "rad", 0.05, -2.0, 1.0, "delta"),
        )
        features = (Feature("qpos", (2,), "rad"), Feature("lamp", (), "1"))
        self.card = PolicyCard("t", (Input("student", features),), channels, (), 0.02, run="r")

    def reset(self):
        pass

    def act(self, observation):
        return np.ones(2, np.float32)


@pytest.fixture
def lamp(monkeypatch):
    """A module of the user's own."""
    module = type(sys)("lamp_of_mine")
    module.sensor = lambda: External(Feature("lamp", (), "1"), lambda: np.array(0.5))
    module.wrong = lambda: 3
    monkeypatch.setitem(sys.modules, "lamp_of_mine", module)
    return "lamp_of_mine:sensor"


def test_a_policy_is_rehearsed_on_a_real_robot_with_values_from_beside_it(
    robot, bridge, capsys, monkeypatch, lamp
):
    monkeypatch.setattr(Bundle, "load", lambda path: Still())
    argv = ("rollout", "--robot", robot, "--policy", "p.onnx", "--seconds", "0.2", "--also", lamp)
    code, out, err = call(capsys, *argv, "--dry-run")
    assert code == 0, err
    assert bridge.said == [] and "nothing was sent; targets would have been" in out
    assert "shoulder: 0.45 to" in out and "-1 to 1.5 allowed" in out
    code, out, err = call(capsys, *argv)
    assert code == 0 and bridge.commands("/arm/commands"), err


def test_a_function_that_gives_no_sensor_is_refused(lamp):
    assert named_sensors([lamp])[0].feature.name == "lamp"
    with pytest.raises(ValueError, match=r"must return real.drivers.external.External.*returned 3"):
        named_sensors(["lamp_of_mine:wrong"])
    with pytest.raises(ValueError, match="--also must be module:function"):
        named_sensors(["lamp_of_mine"])


def test_a_dry_robot_takes_targets_within_limits_and_moves_nothing():
    carts = Carts()
    whole = carts.observe
    carts.observe = lambda: Observation(whole().values, 0.0, np.array([0.25, -0.5]))
    carts.connect()
    carts.reset()
    dry = DryRobot(carts, realtime=False)
    dry.reset()
    assert dry.target.tolist() == [0.25, -0.5] and dry.observe().measured is None
    assert dry.command(np.array([5.0, 0.0])).tolist() == [1.0, 0.0]
    assert dry.lines()[0] == "left: 1 to 1 m, -1 to 1 allowed" and carts.place.tolist() == [0, 0]
    dry.stop()
    with pytest.raises(RobotError, match="the rehearsal was stopped"):
        dry.command(np.zeros(2))
