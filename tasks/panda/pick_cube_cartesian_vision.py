"""Lift a box from pixels: `panda_pick_cube_cartesian` as its camera sees it.

The student has one image, 64 x 64 RGB of a camera in front of the robot, and nothing else: neither
its own joints nor the target, which is always the same and is not drawn. The teacher reads what it
read there.

**Success**: the box's centre is within `target_distance` (5 cm) of the target's height, as
published: where the camera varies it does not show where the middle is. The episode terminates
there.

Every episode looks different: colours of box, strip, floor and robot, the light's direction and
strength, the camera's place, turn and field of view are drawn at each reset. The camera varies by
2 cm and 0.05 rad; Playground's, for a real robot, by 5 cm and 0.17 rad.
"""

from dataclasses import dataclass, field

import mujoco
from torch import Tensor

from penspin_style.env.task import Camera, ObsTerm
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim
from tasks.panda.pick_cube_cartesian import CartesianConfig, PickCubeCartesian

CAMERA = {"pos": (1.176, 0.001, 0.483), "quat": (0.6577066, 0.2653713, 0.2637838, 0.6537722)}
"""m, and w x y z, as published,"""
FOVY = 42.0
"""degrees."""
STRIP = (0.02, 1.0, 0.01)  # m, half sizes of the white strip on which the box starts


@dataclass
class Config(CartesianConfig):
    """Numbers of the task."""

    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {name: ObsTerm() for name in PickCubeCartesian.units},
            "student": {"front_rgb": ObsTerm()},
        }
    )
    cameras: dict[str, Camera] = field(default_factory=lambda: {"front": Camera(64, 64)})
    potential: dict[str, float] = field(
        default_factory=lambda: {
            **CartesianConfig().potential,
            # of what no image shows
            "action_rate": 0.0,
            "no_solution": 0.0,
        }
    )
    """Weights of the sum whose gains are the reward."""
    visual_randomization: bool = True
    """Draw colours, light and camera anew at every reset."""


class PandaPickCubeCartesianVision(PickCubeCartesian[Config]):
    """See the module's docstring."""

    Config = Config

    def spec(self) -> mujoco.MjSpec:
        """Return the world of `panda_pick_cube_cartesian`, without its ghost, with its camera."""
        spec = super().spec()
        spec.delete(spec.geom("target"))
        spec.geom("box").rgba = [1.0, 0.0, 0.0, 1.0]
        spec.worldbody.add_geom(
            name="strip",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            pos=[0.631, 0.0, 0.001],
            size=STRIP,
            contype=0,
            conaffinity=0,
            rgba=[1.0, 1.0, 1.0, 1.0],
        )
        for side in ("left", "right"):  # white, as published: to be seen before a dark floor
            for geom in spec.body(f"{side}_finger").geoms:
                geom.material = "panda_white"
        # light adds up to less than 1; without highlights, which cost the ray tracer in every pixel
        spec.visual.headlight.diffuse = [0.04] * 3
        spec.visual.headlight.specular = [0.0] * 3
        spec.light("top").specular = [0.0] * 3
        spec.worldbody.add_camera(name="front", fovy=FOVY, **CAMERA)
        return spec

    def randomize(self) -> list[Randomize]:
        """Vary what everything looks like."""
        rows = super().randomize()
        if not self.cfg.visual_randomization:
            return rows
        rgb = slice(0, 3)
        return [
            *rows,
            Randomize("geom_rgba", names="box", column=0, low=0.5, high=1.0),
            Randomize("geom_rgba", names="strip", column=rgb, low=0.8, high=1.0, shared=True),
            Randomize("mat_rgba", names="floor", column=rgb, low=0.05, high=0.3, shared=True),
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
            Randomize("cam_quat", names="front", operation="turn", low=0.0, high=0.05),
            Randomize("cam_fovy", names="front", operation="scale", low=0.96, high=1.04),
        ]

    def success(self, sim: Sim) -> Tensor:
        """Return whether the box's centre is within `target_distance` of the target's height."""
        _, box, target = self._positions(sim)
        return (target - box)[:, 2].abs() < self.cfg.target_distance


NAME = "panda_pick_cube_cartesian_vision"
TASK = PandaPickCubeCartesianVision
