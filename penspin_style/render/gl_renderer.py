"""One world through OpenGL: videos, images, and an independent view of what physics believes.

The OpenGL platform is chosen here, so that nobody has to set MUJOCO_GL: EGL (a GPU or Mesa), then
OSMesa (software). A platform that a user has set is respected.
"""

import os
import subprocess
import sys
from types import TracebackType

import mujoco
import numpy as np

from penspin_style.render.one_world import OneWorld
from penspin_style.sim.sim import Sim

_PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
_PROBE = "from mujoco.{0} import GLContext; c = GLContext(8, 8); c.make_current(); c.free()"


class NoOpenGLError(RuntimeError):
    """No off-screen OpenGL platform works on this machine."""


def choose_platform() -> str:
    """Return `egl` or `osmesa`, whichever works, and make MuJoCo's renderer use it.

    Each is tried in a process of its own: a platform that fails to start cannot be taken back in
    the process that tried it.

    Raises:
        NoOpenGLError: neither works; names the Debian package to install.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if chosen not in _PACKAGES:
        failures = []
        for name in _PACKAGES:
            probe = subprocess.run(
                [sys.executable, "-c", _PROBE.format(name)],
                env={**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name},
                capture_output=True,
                text=True,
                check=False,
            )
            if probe.returncode == 0:
                chosen = name
                break
            failures.append(f"{name}: {(probe.stderr.strip().splitlines() or ['failed'])[-1]}")
        else:
            raise NoOpenGLError(
                f"no off-screen OpenGL ({'; '.join(failures)}). Install one: "
                f"apt-get install {' or '.join(_PACKAGES.values())}"
            )
        os.environ["MUJOCO_GL"] = chosen
    _install(chosen)
    return chosen


def _install(name: str) -> None:
    os.environ["PYOPENGL_PLATFORM"] = name
    from mujoco.rendering.classic import gl_context

    if name == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    gl_context.GLContext = GLContext


class GLRenderer:
    """Draw one environment of a simulation. Use it in a `with` block: it owns an OpenGL context.

    It shares nothing with the ray tracer: poses are computed anew from the state, in double
    precision, with that environment's own parameters. So it is also what pixels are tested against.
    """

    def __init__(
        self,
        sim: Sim,
        camera: str,
        *,
        height: int = 480,
        width: int = 480,
        shadows: bool = True,
        shadow_pixels: int | None = None,
        samples: int | None = None,
    ) -> None:
        """Open a context.

        shadow_pixels, samples: of the shadow map's side and of each pixel, at most; default: what
            the model asks for.

        Raises:
            NoOpenGLError: this machine has no OpenGL.
            ValueError: the model has no such camera.
        """
        choose_platform()
        names = [sim.model.camera(i).name for i in range(sim.model.ncam)]
        if camera not in names:
            raise ValueError(f"the model has no camera {camera!r}; it has {names}")
        self.sim = sim
        self.camera = camera
        self._world = OneWorld(sim)
        self.model, self.data = self._world.model, self._world.data
        """As the environment drawn last has them."""
        size = self.model.vis.global_
        size.offwidth, size.offheight = max(size.offwidth, width), max(size.offheight, height)
        quality = self.model.vis.quality
        if samples is not None:
            quality.offsamples = min(quality.offsamples, samples)
        if shadow_pixels is not None:
            quality.shadowsize = min(quality.shadowsize, shadow_pixels)
        self._renderer = mujoco.Renderer(self.model, height, width)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        option = mujoco.MjvOption()
        option.geomgroup[3] = 0  # collision shapes
        option.sitegroup[:] = 0
        self._option = option

    def render(self, env_id: int = 0) -> np.ndarray:
        """Return the environment as it is now, (height, width, 3) uint8."""
        self._renderer.disable_depth_rendering()
        self._renderer.disable_segmentation_rendering()
        return self._draw(env_id)

    def depth(self, env_id: int = 0) -> np.ndarray:
        """Return metres along the optical axis, (height, width) float32; 0 where nothing is."""
        self._renderer.enable_depth_rendering()
        metres = self._draw(env_id)
        far = self.model.vis.map.zfar * self.model.stat.extent
        metres[metres > (1.0 - 1e-5) * far] = 0.0
        return metres

    def segmentation(self, env_id: int = 0) -> np.ndarray:
        """Return ids of geoms, (height, width) int32; -1 where none is."""
        self._renderer.enable_segmentation_rendering()
        ids, kinds = self._draw(env_id).transpose(2, 0, 1)
        return np.where(kinds == int(mujoco.mjtObj.mjOBJ_GEOM), ids, -1)

    def _draw(self, env_id: int) -> np.ndarray:
        self._world.update(env_id)
        self._renderer.update_scene(self.data, self.camera, self._option)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()

    def __enter__(self) -> "GLRenderer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
