"""The Franka Panda: joints, limits, home, and how its tool is moved; without torch or MuJoCo.

The task, the driver and the card of a policy read these numbers here. `panda.xml` beside it stays a
model that opens alone, so joints, limits, gripper and tool stand there too, and
`tests/tasks/robots/test_panda_model.py` holds both equal. Gains and masses are the model's alone.
"""

import math

from penspin_style.features import ActionChannel

ROBOT = "panda"
ARM = tuple(f"joint{i}" for i in range(1, 8))
FINGER = "finger_joint1"
"""The finger that is commanded; `finger_joint2` follows it."""
JOINTS = (*ARM, FINGER)
FINGER_OPEN = 0.04
"""m, the travel of one finger; the gripper opens by two of it."""
LOWER = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973, 0.0)
UPPER = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973, FINGER_OPEN)
"""rad, the finger's in m: the arm's own."""
HOME = (0.0, -0.2245, 0.0, -2.4686, 0.0, 2.2441, math.pi / 4, FINGER_OPEN)
"""rad and m: where the policies that move the tool begin, with an open gripper."""

TCP = "gripper"
"""Site of the tool centre point,"""
TCP_DISTANCE = 0.1
"""m before the hand."""
TOOL = round(TCP_DISTANCE - 0.1034, 6)
"""m, the tool centre point seen from the end effector that the maker gives the Franka hand."""
DOWN = (0.0, 1.0, 0.0, 0.0)
"""w, x, y, z of a hand that points to the floor, its fingers closing along the world's y."""
WORKSPACE = ((0.25, 0.55), (-0.25, 0.25), (0.014, 0.45))
"""m, of the tool centre point in the arm's base frame: lower and upper of x, y, z."""
CONTROL_DT = 0.05
"""s between two commands to the tool."""
MOVE_SCALE = 0.025
"""m that the tool's target moves for an action of 1."""
GRIP_SCALE = 0.25
"""Share of the gripper's stroke that its target moves for an action of 1."""


def tool_actions(
    *,
    move_scale: float = MOVE_SCALE,
    grip_scale: float = GRIP_SCALE,
    workspace: tuple[tuple[float, float], ...] = WORKSPACE,
) -> tuple[ActionChannel, ...]:
    """Return x, y, z of the tool centre point's target, and how far the gripper is open, 0 to 1."""
    move = (
        ActionChannel(f"tcp_{axis}", "m", move_scale, low, high, "delta")
        for axis, (low, high) in zip("xyz", workspace, strict=True)
    )
    return (*move, ActionChannel("gripper_opening", "1", grip_scale, 0.0, 1.0, "delta"))
