"""Joints whose range in the model is smaller than what the task asks of them are refused."""

import dataclasses
import math

import mujoco
import pytest

from penspin_style.env.checks import check_joint_ranges
from penspin_style.env.env import Env
from penspin_style.features import ActionChannel, Joint
from tests.support.rail import Config, Rail

PI = math.pi
WAIST = Joint("waist", "rad", -PI, PI, 1.0, 1.0, 0.0)
ELBOW = Joint("elbow", "rad", -1.8, 1.6, 1.0, 1.0, 1.16)
GRIP = ActionChannel("grip", "m", 0.01, 0.002, 0.037, "delta")


def arm(*, degree, keyframe=None):
    """An arm whose author gives its ranges in radians, and that MjSpec reads as it is told to."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = degree
    hinge, slide = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE
    parent = spec.worldbody
    for name, kind, limits in (
        ("waist", hinge, (-PI, PI)),
        ("elbow", hinge, (-1.8, 1.6)),
        ("grip", slide, (0.002, 0.037)),
    ):
        parent = parent.add_body()
        parent.add_joint(name=name, type=kind, range=limits)
        parent.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.1, 0, 0])
        actuator = spec.add_actuator(name=name, target=name)
        actuator.trntype = mujoco.mjtTrn.mjTRN_JOINT
    if keyframe is not None:
        spec.add_key(name="home", qpos=keyframe)
    return spec.compile()


def channel(joint):
    return ActionChannel(joint.name, "rad", 0.02, joint.low, joint.high, "delta")


def test_an_arm_in_radians_passes_and_one_read_in_degrees_is_refused_with_the_remedy():
    channels = (channel(WAIST), channel(ELBOW), GRIP)
    check_joint_ranges(arm(degree=False, keyframe=[0, 1.16, 0.03]), channels, (WAIST, ELBOW))
    with pytest.raises(ValueError) as caught:
        check_joint_ranges(arm(degree=True), channels, (WAIST, ELBOW))
    said = str(caught.value)
    assert said.startswith(
        "joint 'waist': the action's limits [-3.142, 3.142] rad are not within the model's range "
        "[-0.05483, 0.05483], which is [-3.142, 3.142] read as degrees"
    )
    assert "spec.compiler.degree = False" in said and "\n" not in said


def test_a_cards_limits_its_default_and_a_keyframe_count_too():
    model = arm(degree=False)
    with pytest.raises(ValueError, match=r"'elbow': the card's limits \[-1.8, 1.7\] rad"):
        check_joint_ranges(model, (), (dataclasses.replace(ELBOW, high=1.7),))
    with pytest.raises(ValueError, match=r"'elbow': the card's default \[2\] rad are not"):
        check_joint_ranges(model, (), (dataclasses.replace(ELBOW, default=2.0),))
    with pytest.raises(ValueError, match=r"'grip': keyframe 'home' \[0.05\] m are not within"):
        check_joint_ranges(arm(degree=False, keyframe=[0, 0, 0.05]), (), ())
    with pytest.raises(ValueError, match=r"'grip': the action's limits \[0.002, 0.04\] m"):
        check_joint_ranges(model, (dataclasses.replace(GRIP, high=0.04),), ())


def test_rounding_other_units_other_names_and_joints_without_limits_pass():
    model = arm(degree=False)
    rounded = dataclasses.replace(channel(WAIST), low=-3.14162, high=3.14162)
    part = dataclasses.replace(channel(WAIST), low=-1.0, high=0.5)
    opening = dataclasses.replace(GRIP, unit="1", low=0.0, high=1.0)
    elsewhere = dataclasses.replace(GRIP, name="tcp_x", low=-5.0, high=5.0)
    check_joint_ranges(model, (rounded, part, opening, elsewhere), ())
    model.jnt_limited[:] = False
    check_joint_ranges(model, (dataclasses.replace(GRIP, high=9.0),), ())


class Short(Rail):
    """The rail ends before its action's limits."""

    def spec(self):
        spec = super().spec()
        spec.joint("rail").range = [-0.5, 0.5]
        return spec


def test_an_environment_of_such_a_task_is_not_built():
    with pytest.raises(ValueError, match=r"joint 'rail': the action's limits \[-1, 1\] m are not"):
        Env(Short(Config()), 1)
