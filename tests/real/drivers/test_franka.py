"""The Franka's driver against a stand-in for franky, and that against the real wheel."""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import sys
import threading
import time

import numpy as np
import pytest

from penspin_style.features import Feature, PolicyCard
from real.control.match import check_commands
from real.drivers import franka, franka_gripper
from real.drivers.external import External, named
from real.drivers.franka import FrankaConfig, FrankaRobot
from real.robot import RobotError, StoppedError
from tests.support import franky_fake
from tests.support.robot_contract import Hang, check_robot

pytestmark = pytest.mark.clock

ROOT = pathlib.Path(__file__).parents[3]
RECORD = json.loads((ROOT / "tests" / "support" / "franky_api.json").read_text())
OWN = {"live", "check", "fail", "made", "now", "order", "end", "kind", "ends", "goal", "enter"}
OWN |= {"hear_stop"}
"""What the stand-in has beside the real names."""


@pytest.fixture
def franky(monkeypatch):
    monkeypatch.setitem(sys.modules, "franky", franky_fake)
    return franky_fake


@pytest.fixture
def arm(franky):
    robot = FrankaRobot(FrankaConfig("arm", control_dt=0.02))
    robot.connect()
    robot.reset()
    yield robot
    robot.disconnect()


def hand():
    return franky_fake.Gripper.made[-1]


def settle(condition, patience=3.0):
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def hangs(call):
    """The next such call hangs inside franky, with franky's lock."""
    moved = franky_fake.Robot.made[-1]
    hang = Hang(lambda: moved.stops)
    moved.hang["state" if call == "observe" else "move"] = (hang.began, hang.release)
    yield hang


# The driver.


def test_the_driver_keeps_the_contract(franky):
    cube = External(Feature("box_pos", (3,), "m"), lambda: np.array([0.4, 0.0, 0.02]))
    check_robot(FrankaRobot(FrankaConfig("arm", control_dt=0.02), also=[cube]), hangs=hangs)


def test_the_channels_are_those_of_the_shipped_policy():
    card = ROOT / "outputs/pretrained/panda_lift_cube/policy/card.json"
    policy = PolicyCard.from_json(card.read_text())
    robot = FrankaRobot(FrankaConfig("arm"))
    check_commands(policy, robot)
    assert robot.channels == policy.actions


def test_the_tool_goes_to_its_target_with_the_hand_pointing_down(arm):
    start = arm.target
    np.testing.assert_allclose(start[:3], franky_fake.HOME + np.array([0, 0, 0.0034]), atol=2e-3)
    target = start + np.array([0.02, -0.01, 0.03, 0.0])
    np.testing.assert_array_equal(arm.command(target), target)
    settle(lambda: np.abs(arm.observe().values["target_error"]).max() < 1e-4)
    seen = arm.observe()
    np.testing.assert_allclose(seen.values["tcp_pos"], target[:3], atol=2e-4)
    # the arm's own end effector is 3.4 mm in front of the policy's tool, that is below it
    moved = franky_fake.Robot.made[-1]
    np.testing.assert_allclose(moved.place, target[:3] - [0, 0, 0.0034], atol=2e-4)
    np.testing.assert_allclose(moved.motion.down, [0, 0, -1], atol=1e-12)


def test_the_gripper_closes_with_force_opens_to_a_width_and_holds_what_it_meets(arm):
    hand().object = 0.04
    target = arm.target
    for opening in (0.75, 0.5, 0.25, 0.0):
        target[3] = opening
        arm.command(target)
        assert arm.target[3] == opening
        time.sleep(0.02)
    settle(lambda: hand().orders[-1] == ("grasp", 0.0))
    settle(lambda: abs(arm.observe().values["gripper"] - 0.02) < 1e-4)
    assert arm.observe().values["gripper_target"] == 0.0
    assert arm.observe().measured[3] == pytest.approx(0.5, abs=5e-3)
    assert {kind for kind, _ in hand().orders[1:]} == {"grasp"}
    target[3] = 1.0
    arm.command(target)
    settle(lambda: hand().orders[-1] == ("move", 0.08))
    settle(lambda: arm.observe().measured[3] > 0.99)


def test_an_order_that_fails_is_given_again(arm):
    hand().next_error = franky_fake.GripperException("libfranka gripper: Command failed!")
    hand().object = 0.0
    before = len(hand().orders)
    target = arm.target
    target[3] = 0.5
    hand().goal = hand().begin = 0.08
    arm.command(target)
    settle(lambda: len(hand().orders) > before)
    hand().goal = hand().begin = 0.08  # it has not moved
    settle(lambda: len(hand().orders) > before + 1)


def test_a_hand_that_falls_silent_is_noticed(arm):
    hand().dead = True
    time.sleep(1.1)
    with pytest.raises(RobotError, match=r"hand has not answered for 1\.\d+ s .*timeout"):
        arm.observe()


def test_a_reflex_is_an_error_until_the_next_reset(arm):
    arm.command(arm.target)
    franky_fake.Robot.made[-1].fail('motion aborted by reflex! ["cartesian_reflex"]')
    with pytest.raises(RobotError, match=r"arm at arm cannot follow: motion aborted by reflex"):
        arm.command(arm.target)
    with pytest.raises(RobotError, match=r"reset\(\) recovers it"):
        arm.command(arm.target)
    arm.reset()
    arm.command(arm.target)


def test_a_stop_brakes_the_arm_where_it_is(arm):
    arm.command(arm.target + np.array([0.05, 0, 0, 0]))
    time.sleep(0.01)
    arm.stop()
    place = arm.observe().values["tcp_pos"]
    time.sleep(0.1)
    np.testing.assert_array_equal(arm.observe().values["tcp_pos"], place)
    with pytest.raises(StoppedError):
        arm.command(arm.target)


def test_a_stop_on_the_way_to_the_start_ends_it(arm, monkeypatch):
    monkeypatch.setattr(franky_fake, "LAG", 0.5)
    said = []

    def reset():
        try:
            arm.reset()
        except RobotError as error:
            said.append(error)

    thread = threading.Thread(target=reset)
    franky_fake.Robot.made[-1].place = franky_fake.HOME + 0.1
    thread.start()
    settle(lambda: franky_fake.Robot.made[-1].is_in_control)
    arm.stop()
    thread.join()
    assert len(said) == 1 and not franky_fake.Robot.made[-1].is_in_control
    with pytest.raises(StoppedError):
        arm.command(np.array([0.4, 0.0, 0.3, 1.0]))


def moved():
    return franky_fake.Robot.made[-1]


def is_still(arm):
    place = arm.observe().values["tcp_pos"]
    time.sleep(0.1)
    return np.array_equal(arm.observe().values["tcp_pos"], place)


@pytest.mark.parametrize("fails", [1, 2, 5])
def test_a_stop_that_failed_is_sent_again_until_the_arm_rests(arm, fails):
    arm.command(arm.target + np.array([0.05, 0.0, 0.0, 0.0]))
    moved().deaf = fails
    for _ in range(fails // 2):  # each asks for a smooth stop, and then for a hard one
        with pytest.raises(RobotError, match=r"arm at arm cannot stop: .*unreachable"):
            arm.stop()
        with pytest.raises(StoppedError):  # from the first try on
            arm.command(np.array([0.4, 0.0, 0.3, 1.0]))
        assert moved().is_in_control and moved().stops == 0
    arm.stop()
    assert not moved().is_in_control and moved().stops == 1 and is_still(arm)
    arm.stop()
    assert moved().stops == 1  # it rests, and is not told again


def test_an_arm_that_cannot_be_stopped_is_disconnected_and_that_is_said(arm):
    arm.command(arm.target + np.array([0.05, 0.0, 0.0, 0.0]))
    with pytest.raises(RobotError):
        moved().deaf = 2
        arm.stop()
    moved().deaf = 2
    arm.disconnect()  # tries more than once
    assert moved().stops == 1 and not moved().is_in_control
    arm.connect()
    arm.reset()
    arm.command(arm.target + np.array([0.05, 0.0, 0.0, 0.0]))
    moved().deaf = 100
    with pytest.raises(RobotError, match=r"may still move, 3 stops .*unreachable.*emergency stop"):
        arm.disconnect()
    with pytest.raises(RobotError, match="not connected"):
        arm.observe()


def test_a_command_that_comes_after_a_stop_is_braked_again(arm):
    wanted = arm.target + np.array([0.05, 0.0, 0.0, -0.5])
    hang = Hang()
    moved().hang["move"] = (hang.began, hang.release)
    said = []

    def command():
        try:
            arm.command(wanted)
        except RobotError as error:
            said.append(error)

    late = threading.Thread(target=command)
    late.start()
    assert hang.began.wait(5.0)
    orders = [*hand().orders]
    stopping = threading.Thread(target=arm.stop)
    stopping.start()
    settle(lambda: moved().stops == 1, 0.5)
    hang.release.set()
    late.join()
    stopping.join()
    assert isinstance(said[0], StoppedError) and len(said) == 1
    assert moved().stops >= 2 and is_still(arm)
    assert hand().orders == orders  # nor does the hand follow


def test_a_stop_before_the_arm_sets_off_to_its_start_brakes_it_there(arm):
    hang = Hang()
    moved().place = franky_fake.HOME + 0.1
    moved().hang["move"] = (hang.began, hang.release)
    said = []

    def reset():
        try:
            arm.reset()
        except RobotError as error:
            said.append(error)

    thread = threading.Thread(target=reset)
    thread.start()
    assert hang.began.wait(5.0)
    stopping = threading.Thread(target=arm.stop)
    stopping.start()
    settle(lambda: moved().stops == 1, 0.5)
    hang.release.set()
    thread.join()
    stopping.join()
    assert len(said) == 1 and not moved().is_in_control and is_still(arm)


def test_a_start_outside_the_limits_of_a_joint_is_refused_before_the_arm_moves(arm):
    motion = moved().motion
    with pytest.raises(RobotError, match=r"joint4 is 0\.1 rad, it must be in \[-3\.0718, -0\.0698"):
        arm.reset({"joint4": np.array(0.1)})
    assert moved().motion is motion and len(arm.target) == 4  # nor is it stopped


def test_a_start_outside_the_workspace_is_refused(arm):
    with pytest.raises(RobotError, match=r"the tool starts at .* outside of its workspace"):
        arm.reset({"joint1": np.array(1.0)})
    with pytest.raises(RobotError, match="cannot be started with 'box'"):
        arm.reset({"box": np.zeros(7)})
    with pytest.raises(RobotError, match="7 finite joint angles"):
        arm.reset({"qpos": np.zeros(9)})
    with pytest.raises(RobotError, match="before the first command"):
        arm.command(np.array([0.4, 0.0, 0.3, 1.0]))


def test_an_arm_that_is_not_there_is_named(franky):
    with pytest.raises(RobotError, match=r"arm at nobody cannot connect to the arm: .*refused"):
        FrankaRobot(FrankaConfig("nobody")).connect()


def test_without_franky_the_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "franky", None)
    with pytest.raises(RobotError, match=r"pip install 'penspin_style\[franka\]'"):
        FrankaRobot(FrankaConfig("arm")).connect()


def test_two_sources_of_one_value_are_refused():
    feature = Feature("box_pos", (3,), "m")
    with pytest.raises(RobotError, match="two sources of the feature 'box_pos'"):
        named([feature], [External(feature, lambda: np.zeros(3))])


# The stand-in.


def parameters(function):
    """Return the parameters' names of a method: ours, or of each overload of pybind11's."""
    try:
        names = list(inspect.signature(function).parameters)
        if names != ["args", "kwargs"]:
            return [[name for name in names if name != "self"]]
    except ValueError:
        pass
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(r"(?:\d+\. )?\w+\((.*)\)(?: -> .*)?$", line)
        if match and "self: " in line:
            text = re.sub(r"\[[^\[\]]*\]", "", match[1])
            while (shorter := re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", text)) != text:
                text = shorter
            names = [part.split(":")[0].strip() for part in text.split(",")]
            names = [name for name in names if name != "self"]
            found += [names] if names not in found else []
    return found


def surface(module, names):
    """Return class -> member -> `value`, or the parameters of its overloads."""
    found = {}
    for owner, members in names.items():
        kind = getattr(module, owner)
        found[owner] = {}
        for member in members:
            value = inspect.getattr_static(kind, member)
            if member == "__init__" or callable(getattr(kind, member)):
                found[owner][member] = parameters(getattr(kind, member))
            else:
                assert value is not None
                found[owner][member] = "value"
    return found


def test_the_stand_in_has_no_name_that_the_record_lacks():
    for owner, kind in vars(franky_fake).items():
        if not inspect.isclass(kind) or kind.__module__ != "franky_fake":
            continue
        assert owner in RECORD["surface"], owner
        if issubclass(kind, BaseException):
            continue
        public = {name for name in vars(kind) if not name.startswith("_")} - OWN
        assert public <= set(RECORD["surface"][owner]), owner
        for name in (*public, "__init__"):
            recorded = RECORD["surface"][owner].get(name)
            if recorded in (None, "value"):
                continue
            (ours,) = parameters(getattr(kind, name))
            assert any(set(ours) <= set(theirs) for theirs in recorded), f"{owner}.{name}"


def test_the_driver_asks_franky_for_no_name_that_the_record_lacks():
    trees = [ast.parse(pathlib.Path(m.__file__).read_text()) for m in (franka, franka_gripper)]
    asked = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("franky", "self._franky")
    }
    assert {"Robot", "Gripper", "CartesianMotion", "Exception"} <= asked
    assert asked <= set(RECORD["surface"])


@pytest.mark.skipif(
    importlib.util.find_spec("franky") is None,
    reason="franky-control is not installed: pip install 'penspin_style[franka]'",
)
def test_the_record_is_what_the_wheel_has():
    franky = importlib.import_module("franky")
    names = {owner: list(members) for owner, members in RECORD["surface"].items()}
    assert surface(franky, names) == RECORD["surface"]
    for name, members in RECORD["surface"].items():
        if not members:  # an exception
            theirs, ours = getattr(franky, name), getattr(franky_fake, name)
            assert issubclass(theirs, franky.Exception) == issubclass(ours, franky_fake.Exception)
    motion = franky.CartesianMotion(
        franky.Affine(np.array([0.4, 0.0, 0.3]), list(franka.DOWN)),
        franky.ReferenceType.Absolute,
        return_when_finished=False,
        ee_frame=franky.Affine([0.0, 0.0, -0.0034]),
    )
    np.testing.assert_allclose(motion.target.pose.end_effector_pose.translation, [0.4, 0, 0.3])
    franky.JointMotion(np.array(FrankaConfig("").start), relative_dynamics_factor=0.05)
    with pytest.raises(RobotError, match=r"127.0.0.1 cannot connect to the arm: libfranka"):
        FrankaRobot(FrankaConfig("127.0.0.1")).connect()
