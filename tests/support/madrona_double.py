"""The public interface of `madrona_mjx.renderer.BatchRenderer`, drawn by our own ray tracer.

Parameters, results and their shapes are those of the package's sources of 2025 (version 0.1 of its
pyproject.toml, which never changed): `init(state, model) -> (token, rgb, depth)` and
`render(token, state) -> (token, rgb, depth)` for one world, to be called under `jax.vmap`; rgb
(ncam, H, W, 4) uint8, depth (ncam, H, W, 1) float32, cameras in the order of `enabled_cameras`.
"""

import jax
import numpy as np
import torch

from penspin_style.render.renderer import View
from penspin_style.render.warp_renderer import WarpRenderer
from penspin_style.sim.batch_sim import BatchSim

LOOKS = ("geom_rgba", "geom_size")


def make_double(model, *, distance=False):
    """Return a class with the package's interface that draws this MjModel.

    distance: whether depth is along each pixel's ray, as some ray tracers have it.
    """

    class BatchRenderer:
        made: list["BatchRenderer"] = []  # noqa: RUF012

        def __init__(
            self,
            m,
            gpu_id,
            num_worlds,
            batch_render_view_width,
            batch_render_view_height,
            enabled_geom_groups=np.array([0, 1, 2]),  # noqa: B008
            enabled_cameras=None,
            add_cam_debug_geo=False,
            use_rasterizer=False,
            viz_gpu_hdls=None,
        ):
            self.asked = dict(locals())
            self.inits, self.material = 0, None
            self.size = (batch_render_view_height, batch_render_view_width)
            self.cameras = [model.camera(int(i)).name for i in enabled_cameras]
            self.sim = BatchSim(model, num_worlds, per_env=LOOKS, nthread=1)
            views = [View(name, *self.size) for name in self.cameras]
            self.renderer = WarpRenderer(self.sim, views, nthread=1)
            self.made.append(self)

        def init(self, state, model):
            return self._draw(state.qpos, model.geom_rgba, model.geom_size, model.geom_matid)

        def render(self, render_token, state):
            return self._draw(state.qpos + 0.0 * render_token.sum())

        def _draw(self, *given):
            shape = (len(self.cameras), *self.size)
            out = (
                jax.ShapeDtypeStruct((0,), np.bool_),
                jax.ShapeDtypeStruct((*shape, 4), np.uint8),
                jax.ShapeDtypeStruct((*shape, 1), np.float32),
            )
            return jax.pure_callback(self._host, out, *given, vmap_method="broadcast_all")

        def _host(self, qpos, rgba=None, size=None, matid=None):
            if rgba is not None:
                self.inits += 1
                self.material = np.asarray(matid)
                by_rgba = torch.from_numpy(self.material == -2)[..., None]
                shared = torch.from_numpy(model.geom_rgba.copy())
                own = torch.from_numpy(np.array(rgba)).double()
                self.sim.params.geom_rgba.copy_(torch.where(by_rgba, own, shared))
                self.sim.params.geom_size.copy_(torch.from_numpy(np.array(size)))
            self.sim.data.qpos.copy_(torch.from_numpy(np.array(qpos)))
            self.sim.forward()
            images = [self.renderer.render()[name] for name in self.cameras]
            rgb = torch.stack([i["rgb"] for i in images], dim=1)
            rgb = torch.cat((rgb, torch.full_like(rgb[..., :1], 255)), dim=-1)
            depth = torch.stack([i["depth"] for i in images], dim=1)
            if distance:
                depth = depth / torch.stack([self._cosine(name) for name in self.cameras])
            token = np.zeros((len(rgb), 0), bool)
            return token, rgb.numpy().copy(), depth[..., None].numpy().copy()

        def _cosine(self, name):
            """Of the angle between a pixel's ray and the optical axis, ray by ray."""
            height, width = self.size
            half = np.tan(np.radians(model.camera(name).fovy[0]) / 2)
            out = torch.zeros(height, width)
            for i in range(height):
                for j in range(width):
                    ray = np.array(
                        [(j + 0.5 - width / 2), (i + 0.5 - height / 2), height / 2 / half]
                    )
                    out[i, j] = ray[2] / np.linalg.norm(ray)
            return out

    return BatchRenderer
