"""Where a robot's joints go at a reset."""

from collections.abc import Mapping, Sequence

import numpy as np

from real.robot import RobotError


def start_pose(
    start: Mapping[str, np.ndarray] | None,
    default: Sequence[float],
    limits: Mapping[str, tuple[float, float]],
    units: Sequence[str] = (),
) -> np.ndarray:
    """Return the joints (n,) of a start pose, rad unless `units` says otherwise.

    start: `qpos` (n,) in place of the default, or single joints by name.
    limits: lower and upper of each joint by its name, in order.
    units: of each joint, for messages.

    Raises:
        RobotError: an unknown name, not n finite numbers, or a joint outside its limits.
    """
    start, names = start or {}, list(limits)
    goal = np.asarray(start.get("qpos", default))
    if goal.shape != (len(names),) or goal.dtype.kind not in "fiu" or not np.isfinite(goal).all():
        raise RobotError(
            f"the robot starts from {len(names)} finite joint angles, got {goal.tolist()}"
        )
    goal = goal.astype(float)
    for name, value in start.items():
        if name in limits and np.size(value) == 1:
            goal[names.index(name)] = float(np.ravel(value)[0])
        elif name != "qpos":
            raise RobotError(
                f"the robot cannot be started with {name!r}; it takes qpos, {len(names)} numbers, "
                f"or single joints of {names}"
            )
    units = units or ["rad"] * len(names)
    for (name, (low, high)), value, unit in zip(limits.items(), goal, units, strict=True):
        if not low <= value <= high:  # a NaN is not either
            raise RobotError(
                f"the start of {name} is {value:g} {unit}, it must be in [{low:g}, {high:g}]"
            )
    return goal
