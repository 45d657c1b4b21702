"""The bodies of a model on a page of viser, for several worlds side by side."""

import math
from typing import Any

import mujoco
import numpy as np

from penspin_style.viewer.scene import INFINITE, shapes

_SKY = 2.0
_GROUND = (150, 150, 160)


class Bodies:
    """Meshes that follow the poses of bodies, and the camera that looks at them."""

    def __init__(self, server: Any, model: mujoco.MjModel, count: int, camera: str) -> None:
        """Add everything.

        count: worlds. camera: the model's camera to look from, as the task's videos do; the middle
            of the model from outside, if it has none of that name.
        """
        self._server, self.extent = server, float(model.stat.extent)
        self.columns = math.ceil(math.sqrt(count))
        places = np.array([(i % self.columns, i // self.columns, 0.0) for i in range(count)])
        self.offsets = 1.5 * self.extent * places
        """(count, 3) m, where each world is drawn."""
        self._place_camera(model, camera)
        self._light()
        self._meshes = []
        for i, shape in enumerate(shapes(model)):
            if shape.is_floor:
                self._add_floor(i, shape)
            else:
                self._meshes.append((shape.body, self._mesh(i, shape, count)))

    def draw(self, rows: list[int], positions: np.ndarray, turns: np.ndarray) -> None:
        """Show worlds. positions: (len(rows), nbody, 3) m; turns: (len(rows), nbody, 4)."""
        places = positions + self.offsets[rows][:, None]
        with self._server.atomic():
            for body, mesh in self._meshes:
                mesh.batched_positions = places[:, body]
                mesh.batched_wxyzs = turns[:, body]

    def _mesh(self, i: int, shape: Any, count: int) -> Any:
        return self._server.scene.add_batched_meshes_simple(
            f"/body{shape.body}/{i}",
            vertices=shape.vertices,
            faces=shape.faces,
            batched_wxyzs=np.tile([1.0, 0.0, 0.0, 0.0], (count, 1)),
            batched_positions=np.zeros((count, 3)),
            batched_colors=shape.color,
            opacity=shape.opacity if shape.opacity < 1 else None,
            side="double",
        )

    def _add_floor(self, i: int, shape: Any) -> None:
        """Add a floor below all worlds: one of each would lie in the others, drawn as often."""
        widths = np.ptp(self.offsets, axis=0)
        scale = 1.0 + 0.5 * widths / INFINITE
        floor = shape._replace(vertices=(shape.vertices * scale).astype(np.float32))
        self._mesh(i, floor, 1).batched_positions = (self.offsets.min(axis=0) + 0.5 * widths)[None]

    def _light(self) -> None:
        """Light from above and from a lamp; reflections and shadows are too slow without a GPU."""
        scene = self._server.scene
        scene.configure_default_lights(True, cast_shadow=False)
        scene.configure_environment_map(None)
        scene.add_light_hemisphere(
            "/sky", sky_color=(255, 255, 255), ground_color=_GROUND, intensity=_SKY
        )

    def _place_camera(self, model: mujoco.MjModel, name: str) -> None:
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        middle = self.offsets.mean(axis=0)
        self._server.scene.set_up_direction("+z")
        names = [model.camera(i).name for i in range(model.ncam)]
        if name in names:
            camera = names.index(name)
            eye = data.cam_xpos[camera]
            away = -data.cam_xmat[camera].reshape(3, 3)[:, 2]
            target = eye + away * max(0.1, float((model.stat.center - eye) @ away))
        else:
            target = np.array(model.stat.center)
            eye = target + self.extent * np.array([1.2, -1.2, 0.8])
        self._server.initial_camera.position = target + middle + (eye - target) * self.columns
        self._server.initial_camera.look_at = target + middle
