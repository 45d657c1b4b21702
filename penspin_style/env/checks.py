"""What an environment checks of a task's configuration and of the actions that it is given."""

import math
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import mujoco
import torch
from torch import Tensor

from penspin_style.features import ActionChannel, Joint

_SLACK = 1e-4
"""rad or m by which limits may lie beyond a joint's range: tables are rounded."""


def count_substeps(control_dt: float, model: mujoco.MjModel) -> int:
    """Return how many physics steps a control step of `control_dt` seconds has.

    Raises:
        ValueError: not a whole number.
    """
    n = round(control_dt / model.opt.timestep)
    if n < 1 or abs(n * model.opt.timestep - control_dt) > 1e-9:
        raise ValueError(
            f"task.control_dt {control_dt} s must be a multiple of the timestep, "
            f"{model.opt.timestep} s"
        )
    return n


def check_reward_keys(terms: Collection[str], weights: Collection[str]) -> None:
    """Check that a task's configuration weighs exactly the terms that it rewards.

    Raises:
        ValueError: names what is missing or unknown.
    """
    if set(terms) != set(weights):
        missing, unknown = sorted(set(terms) - set(weights)), sorted(set(weights) - set(terms))
        raise ValueError(
            f"task.reward must weigh exactly the task's terms {sorted(terms)}: "
            f"missing {missing}, unknown {unknown}"
        )


def check_action(action: Tensor, num_envs: int, naction: int) -> None:
    """Refuse actions of another shape or type, which a task would read in part; no host sync.

    Raises:
        ValueError: what they are, and what they must be.
    """
    if action.shape != (num_envs, naction) or action.dtype != torch.float32:
        got = f"{tuple(action.shape)} {str(action.dtype).removeprefix('torch.')}"
        raise ValueError(f"the action must be ({num_envs}, {naction}) float32, got {got}")


class _Wanted(NamedTuple):
    """Where a joint must be able to be."""

    joint: str
    what: str
    values: tuple[float, ...]
    unit: str


def check_joint_ranges(
    model: mujoco.MjModel, channels: Iterable[ActionChannel], joints: Iterable[Joint]
) -> None:
    """Check that the model's joints can go where actions, card and keyframes send them.

    A channel or a joint of a card is that of the model which has its name; joints without limits,
    and channels of another unit than rad or m, can go anywhere.

    Raises:
        ValueError: names the first joint that cannot, and what if its range was read in degrees.
    """
    wanted = [_Wanted(c.name, "the action's limits", (c.low, c.high), c.unit) for c in channels]
    for joint in joints:
        limits = (joint.low, joint.high)
        wanted.append(_Wanted(joint.name, "the card's limits", limits, joint.unit))
        wanted.append(_Wanted(joint.name, "the card's default", (joint.default,), joint.unit))
    wanted += _keyframes(model)
    for name, what, values, unit in wanted:
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name)
        if index < 0 or not model.jnt_limited[index] or unit not in ("rad", "m"):
            continue
        low, high = model.jnt_range[index].tolist()
        if _contains(low, high, values):
            continue
        is_angle = int(model.jnt_type[index]) == int(mujoco.mjtJoint.mjJNT_HINGE)
        hint = ""
        if is_angle and _contains(math.degrees(low), math.degrees(high), values):
            hint = (
                f", which is [{math.degrees(low):.4g}, {math.degrees(high):.4g}] read as degrees: "
                'set spec.compiler.degree = False, or <compiler angle="radian"/>, before joints '
                "are added in radians"
            )
        given = ", ".join(f"{value:.4g}" for value in values)
        raise ValueError(
            f"joint {name!r}: {what} [{given}] {unit} are not within the model's range "
            f"[{low:.4g}, {high:.4g}]{hint}"
        )


def _contains(low: float, high: float, values: Iterable[float]) -> bool:
    return all(low - _SLACK <= value <= high + _SLACK for value in values)


def _keyframes(model: mujoco.MjModel) -> Iterator[_Wanted]:
    """Yield where each keyframe puts each joint that an actuator moves."""
    is_joint = model.actuator_trntype == int(mujoco.mjtTrn.mjTRN_JOINT)
    for key in range(model.nkey):
        for index in sorted({int(i) for i in model.actuator_trnid[is_joint, 0]}):
            kind = mujoco.mjtJoint(int(model.jnt_type[index]))
            if kind not in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE):
                continue
            value = float(model.key_qpos[key, model.jnt_qposadr[index]])
            unit = "rad" if kind == mujoco.mjtJoint.mjJNT_HINGE else "m"
            what = f"keyframe {model.key(key).name!r}"
            yield _Wanted(model.joint(index).name, what, (value,), unit)
