"""The Franka's driver against a stand-in for franky, and that against the real wheel."""

import ast
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import sys
import threading
import time

import franky_fake
import numpy as np
import pytest
from robot_contract import check_robot

from penspin_style.features import Feature, PolicyCard
from real import franka
from real.external import External, named, read
from real.franka import FrankaConfig, FrankaRobot
from real.match import check_commands
from real.robot import RobotError, StoppedError

ROOT = pathlib.Path(__file__).parents[2]
RECORD = json.loads(pathlib.Path(__file__).with_name("franky_api.json").read_text())
OWN = {"live", "check", "fail", "made", "now", "order", "end", "kind", "ends", "goal"}
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


# The driver.


def test_the_driver_keeps_the_contract(franky):
    cube = External(Feature("box_pos", (3,), "m"), lambda: np.array([0.4, 0.0, 0.02]))
    check_robot(FrankaRobot(FrankaConfig("arm", control_dt=0.02), also=[cube]))


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


# Values from elsewhere.


def test_values_from_elsewhere_are_checked():
    feature = Feature("box_pos", (3,), "m")
    with pytest.raises(RobotError, match="two sources of the feature 'box_pos'"):
        named([feature], [External(feature, lambda: np.zeros(3))])
    for value, complaint in (
        (np.zeros(2), r"must give \(3,\)"),
        (np.full(3, np.nan), "not finite"),
    ):
        with pytest.raises(RobotError, match=complaint):
            read([External(feature, lambda value=value: value)])
    given = np.ones(3, np.float32)
    read([External(feature, lambda: given)])["box_pos"][:] = 9
    assert (given == 1).all()


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
    tree = ast.parse(pathlib.Path(franka.__file__).read_text())
    asked = {
        node.attr
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
