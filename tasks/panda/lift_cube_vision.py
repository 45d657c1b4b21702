"""Lift a cube from images: `panda_lift_cube` as a robot sees it.

The student has a camera in front of the robot and one on its wrist, colour and depth, and seven
numbers of its own body (tool centre point and velocity, finger); where the cube is, only the
images say. The teacher is that of `panda_lift_cube` and reads what it read there. Resolution is a
parameter (`task.cameras.front.height`): 32, as ALOHA's; RLinf's 128 builds and trains too, how well
is not measured.

Every episode looks different: colours of cube, floor and robot, the light's direction and strength,
where the cameras are, how they are turned and how wide they see are drawn at each reset.

**Success** is that of `panda_lift_cube`.
"""

from dataclasses import dataclass, field

import mujoco
import numpy as np

from penspin_style.env.task import Camera, Latency, ObsTerm
from penspin_style.sim.randomize import Randomize
from tasks.panda.lift_cube import PRIVILEGED, LiftConfig, LiftCube
from tasks.robots.scenery import look_at

IMAGES = ("front_rgb", "front_depth", "wrist_rgb", "wrist_depth")
PROPRIOCEPTION = ("tcp_pos", "tcp_vel", "gripper")


@dataclass
class Config(LiftConfig):
    """Numbers of the task."""

    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {name: ObsTerm() for name in PRIVILEGED},
            "student": {name: ObsTerm() for name in (*PROPRIOCEPTION, *IMAGES)},
        }
    )
    cameras: dict[str, Camera] = field(
        default_factory=lambda: {"front": Camera(), "wrist": Camera()}
    )
    latency: dict[str, Latency] = field(default_factory=lambda: {"student": Latency()})
    visual_randomization: bool = True
    """Draw colours, light and cameras anew at every reset."""


class PandaLiftCubeVision(LiftCube[Config]):
    """See the module's docstring."""

    Config = Config

    def spec(self) -> mujoco.MjSpec:
        """Return the world of `panda_lift_cube` with its two cameras."""
        spec = super().spec()
        # light adds up to less than 1, or the wrist camera sees a white floor; without highlights,
        # which the ray tracer would pay for in every pixel
        spec.visual.headlight.diffuse = [0.04] * 3
        spec.visual.headlight.specular = [0.0] * 3
        spec.light("top").specular = [0.0] * 3
        eye, focus = np.array([1.2, 0.0, 0.75]), np.array([0.42, 0.0, 0.05])
        axes = look_at(eye, focus)
        spec.worldbody.add_camera(name="front", pos=eye, xyaxes=axes, fovy=35.0)
        # beside the hand, fingers in view: 62 degrees is SERL's wrist camera
        spec.body("hand").add_camera(
            name="wrist", pos=[0.075, 0.0, 0.03], xyaxes=[0, 1, 0, 0.94, 0, 0.34], fovy=62.0
        )
        return spec

    def randomize(self) -> list[Randomize]:
        """Vary what `panda_lift_cube` varies, and what everything looks like."""
        rows = super().randomize()
        if not self.cfg.visual_randomization:
            return rows
        rgb = slice(0, 3)
        return [
            *rows,
            Randomize("geom_rgba", names="box", column=0, low=0.5, high=1.0),
            Randomize("mat_rgba", names="floor", column=rgb, low=0.4, high=1.0),
            Randomize(
                *("mat_rgba", "panda_.*"),
                column=rgb,
                operation="scale",
                low=0.7,
                high=1.1,
                shared=True,
            ),
            Randomize("light_diffuse", low=0.3, high=0.9, shared=True),
            Randomize("light_dir", operation="turn", low=0.0, high=0.35),
            Randomize("cam_pos", names="front", operation="add", low=-0.02, high=0.02),
            Randomize("cam_pos", names="wrist", operation="add", low=-0.005, high=0.005),
            Randomize("cam_quat", names="front|wrist", operation="turn", low=0.0, high=0.05),
            Randomize("cam_fovy", names="front|wrist", operation="scale", low=0.96, high=1.04),
        ]


NAME = "panda_lift_cube_vision"
TASK = PandaLiftCubeVision
