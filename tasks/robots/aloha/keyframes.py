"""The published keyframes of ALOHA's scenes, as (qpos, ctrl), in the order of `model.scene`.

The arms come first, eight numbers each: six joints in rad, two fingers in m; then the objects, m
and w, x, y, z. The published commands of a closed gripper are 0 and of an open one 0.04, outside
its range; here they are its limits, to which MuJoCo clips them.
"""

import mujoco

from tasks.robots.aloha.description import ARM_HOME, GRIPPER_CLOSED, GRIPPER_OPEN

State = tuple[tuple[float, ...], tuple[float, ...]]

_ARM = (*ARM_HOME, GRIPPER_OPEN)
_TURNED = (0.25, *_ARM[1:])
_REACH = (0.083383, -0.554374, 1.23718, 0.108587, -0.65136, -0.072894)
_PICKED = (0.083383, -0.50673, 1.31927, 0.108972, -0.622276, -0.0728423)
_WAIT = (0.083383, -0.548235, 1.25553, 0.108963, -0.624864, -0.0726727)
_GAVE = (0.0833837, -0.0921995, 0.782307, 0.109334, -0.59576, -0.0725939)
_TOOK = (-0.03142, -0.0590293, 0.83235, 0.109343, -0.595945, -0.0725633)
_SOCKET_HELD = (0.0172277, -0.332444, 0.957626, -0.0207785, 0.00992025, 0.0131805)
_PEG_HELD = (-0.026578, -0.384497, 1.04661, -0.0646032, 0.0385963, 0.0453648)
_HALF_OPEN = (0.0305, 0.0304972)
_HOLDING = (0.0233136, 0.0239463)

KEYFRAMES: dict[str, dict[str, State]] = {
    "pick": {
        "home": ((*_ARM, -0.1, 0.12, 0.12, 0.9943337, 0.0, 0.0, 0.1063036), ARM_HOME),
    },
    "insertion": {
        "home": (
            (
                *(*_TURNED, *_TURNED),
                *(-0.18, -0.125, 0.022, 1.0, 0.0, 0.0, 0.0),
                *(0.18, -0.125, 0.0125, -0.1063036, 0.0, 0.0, 0.9943337),
            ),
            (*_TURNED[:7], *_TURNED[:7]),
        ),
        "preinsert": (
            (
                *(*_SOCKET_HELD, 0.0302954, 0.0310357, *_PEG_HELD, 0.0183696, 0.0189226),
                *(-0.0649253, -0.0117744, 0.146772),
                *(0.9997974, -0.004412322, -0.01789541, 0.008092333),
                *(0.116109, -0.00942746, 0.121246),
                *(0.007460817, 0.02221929, -0.007448517, 0.9996975),
            ),
            (*_SOCKET_HELD, GRIPPER_CLOSED, *_PEG_HELD, GRIPPER_CLOSED),
        ),
    },
    "handover": {
        "home": (
            (*_REACH, *_HALF_OPEN, *_REACH, *_HALF_OPEN, -0.16, 0.0, 0.0307918, 1.0, 0.0, 0.0, 0.0),
            (*_REACH, GRIPPER_OPEN, *_REACH, GRIPPER_OPEN),
        ),
        "picked": (
            (
                *(*_PICKED, *_HOLDING, *_WAIT, 0.0305, 0.0304974),
                *(-0.142, -0.00517577, 0.155939),
                *(0.9840894, 0.003581851, -0.1774401, 0.008383283),
            ),
            (*_PICKED, GRIPPER_CLOSED, *_WAIT, GRIPPER_OPEN),
        ),
        "transferred": (
            (
                *(*_GAVE, 0.0366926, 0.0366699, *_TOOK, 0.0233137, 0.0239462),
                *(0.0130744, 0.00761309, 0.218353),
                *(0.9830813, 0.004617152, 0.1768851, -0.04734382),
            ),
            (*_GAVE, 0.0366926, *_TOOK, GRIPPER_CLOSED),
        ),
    },
}
"""Scene -> keyframe -> its state."""


def add_keyframes(spec: mujoco.MjSpec, scene: str) -> None:
    """Add a scene's keyframes to a world that has its arms and objects, and no other joints."""
    for name, (qpos, ctrl) in KEYFRAMES[scene].items():
        spec.add_key(name=name, qpos=qpos, ctrl=ctrl)
