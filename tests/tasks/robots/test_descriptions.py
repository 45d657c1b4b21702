"""What every robot's description says, whatever the robot."""

import importlib
import pathlib

import numpy as np
import pytest

from penspin_style.data.formats.penspin import Hand
from penspin_style.features import ActionChannel
from tasks.robots.allegro import description as allegro
from tasks.robots.panda import description as panda

FOLDER = pathlib.Path(allegro.__file__).parents[1]
ROBOTS = sorted(file.parent.name for file in FOLDER.glob("*/description.py"))


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_robot_begins_within_its_limits_and_names_each_joint_once(robot):
    said = importlib.import_module(f"tasks.robots.{robot}.description")
    assert robot == said.ROBOT
    assert len(set(said.JOINTS)) == len(said.JOINTS)
    low, high, home = np.array(said.LOWER), np.array(said.UPPER), np.array(said.HOME)
    assert low.shape == high.shape == home.shape == (len(said.JOINTS),)
    assert (low <= home).all() and (home <= high).all() and (low < high).all()
    assert 0 < said.CONTROL_DT < 1


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_robot_has_a_description_and_a_model(robot):
    assert {"description.py", "model.py", f"{robot}.xml"} <= {
        file.name for file in (FOLDER / robot).iterdir()
    }


def test_the_hands_actions_move_its_joints_by_a_24th_of_a_radian():
    actions = allegro.actions()
    assert actions[5] == ActionChannel("mfj1", "rad", 1 / 24, -0.27924, 1.727825, "delta")
    assert actions[12] == ActionChannel("thj0", "rad", 1 / 24, 0.27924, 1.57075, "delta")
    assert [a.scale for a in allegro.actions(0.1)] == [0.1] * 16


def test_the_arms_actions_move_its_tool_in_its_workspace():
    assert panda.tool_actions(move_scale=0.1) == (
        ActionChannel("tcp_x", "m", 0.1, 0.25, 0.55, "delta"),
        ActionChannel("tcp_y", "m", 0.1, -0.25, 0.25, "delta"),
        ActionChannel("tcp_z", "m", 0.1, 0.014, 0.45, "delta"),
        ActionChannel("gripper_opening", "1", 0.25, 0.0, 1.0, "delta"),
    )


def test_a_hand_is_made_of_a_description_that_has_fingers():
    hand = Hand.of(allegro)
    assert (hand.name, hand.joints, hand.action_scale) == ("allegro", allegro.JOINTS, 1 / 24)
    assert hand.fingertips(np.zeros((2, 16))).shape == (2, 4, 3)
    with pytest.raises(ValueError, match="it has no ACTION_SCALE, fingertips"):
        Hand.of(panda)
