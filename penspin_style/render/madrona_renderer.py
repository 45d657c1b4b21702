"""Images of an `MjxSim` by Madrona's batch renderer, the package `madrona_mjx`, on a GPU.

Everything that is asked of the package is in this file: `BatchRenderer`, its `init` and `render`,
whose parameters are compared with what is passed before anything is drawn. The package's last
sources (2025) import parts of JAX that left it before 0.6, and nobody keeps it up; where it cannot
be imported, `sim.renderer=warp` draws the same on `engine=mujoco` and `engine=warp`. It has not met
the real package yet: the tests draw with a double of its interface.

What is particular to it:

- all views have one size, a camera is drawn for all worlds or for none;
- one renderer may exist at a time: one that draws takes the place of another, which is built again
  when it is asked for images, as by an evaluation in the midst of a training;
- it draws geoms of `geom_groups` alone, without flexes, and knows no segmentation;
- colours, sizes and lights are read at `init`; it is called again when `sim.params` were written;
- it takes `geom_rgba` for a geom whose `geom_matid` is -2 alone, and the material's colour
  otherwise: geoms without a material, and those whose colour was changed, are given -2.
"""

import inspect
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from penspin_style.bridge.dlpack import to_jax, to_torch
from penspin_style.bridge.start import import_jax
from penspin_style.render.renderer import View
from penspin_style.sim.sim import Sim

_LOOKS = (
    *("geom_rgba", "geom_matid", "geom_size", "light_pos", "light_dir"),
    *("light_type", "light_castshadow", "light_cutoff"),
)
"""Model fields that the package wants with a value per world."""
_BY_RGBA = -2
_HOME = "github.com/shacklettbp/madrona_mjx"
_INSTEAD = "sim.renderer=warp draws the same, with sim.engine=mujoco or warp"


class MadronaRenderer:
    """`Renderer` on `madrona_mjx.renderer.BatchRenderer`. See the module."""

    _drawing: ClassVar["weakref.ref[MadronaRenderer] | None"] = None
    """The one that has a renderer of the package's."""

    def __init__(
        self,
        sim: Sim,
        views: Sequence[View],
        *,
        geom_groups: Sequence[int] = (0, 1, 2),
        rasterizer: bool = False,
        depth_is: str = "planar",
        batch_renderer: Callable[..., Any] | None = None,
    ) -> None:
        """Build the package's renderer and draw once.

        rasterizer: rasterise instead of tracing rays.
        depth_is: what the package writes: `planar`, metres along the optical axis, or `distance`,
            metres along each pixel's ray, which is converted.
        batch_renderer: what stands for the package's `BatchRenderer`.

        Raises:
            ValueError: another engine, no GPU, no package, one with another interface; views of
                several sizes, of one camera twice, of an unknown camera or with segmentation.
        """
        if not hasattr(sim, "jax_model"):
            raise ValueError(
                f"MadronaRenderer draws a simulation of engine=mjx, not {type(sim).__name__}"
            )
        self.sim: Any = sim
        self.views, self.device = tuple(views), sim.device
        self._ids = _camera_ids(sim, self.views)
        if depth_is not in ("planar", "distance"):
            raise ValueError(f"depth_is must be planar or distance, got {depth_is!r}")
        if batch_renderer is None:
            batch_renderer = load_package(sim.device)
        height, width = self.views[0].height, self.views[0].width
        settings = {
            "m": self.sim.jax_model(),
            "gpu_id": sim.device.index or 0,
            "num_worlds": sim.num_envs,
            "batch_render_view_width": width,
            "batch_render_view_height": height,
            "enabled_geom_groups": np.asarray(geom_groups, np.int32),
            "enabled_cameras": np.asarray(sorted(self._ids), np.int32),
            "add_cam_debug_geo": False,
            "use_rasterizer": rasterizer,
            "viz_gpu_hdls": None,
        }
        _check_interface(batch_renderer, settings)
        self._jax = import_jax("MadronaRenderer")
        self._make, self._settings = batch_renderer, settings
        self._package: Any = None
        self._scale = {
            view.camera: _planar(sim, view).to(sim.device) if depth_is == "distance" else None
            for view in self.views
        }
        self._images = {view.camera: self._allocate(view) for view in self.views}
        self.render()

    def _build(self) -> Any:
        """Return the package's renderer, built in the place of another one."""
        other = None if MadronaRenderer._drawing is None else MadronaRenderer._drawing()
        if other is not None:
            other._package = other._token = other._model = None
        self._package = self._make(**self._settings | {"m": self.sim.jax_model()})
        self._takes_model = len(inspect.signature(self._package.render).parameters) > 2
        self._drawn: tuple[int, ...] | None = None
        MadronaRenderer._drawing = weakref.ref(self)
        return self._package

    def render(self) -> dict[str, dict[str, Tensor]]:
        """Draw the state after the last `step` or `forward`; see `Renderer.render`."""
        package = self._package or self._build()
        data, looks = self.sim.jax_data, self._versions()
        if looks != self._drawn:
            self._model, self._axes = self._with_looks()
            init = self._jax.vmap(package.init, in_axes=(0, self._axes))
            self._token, rgb, depth = init(data, self._model)
            self._drawn = looks
        elif self._takes_model:
            draw = self._jax.vmap(package.render, in_axes=(0, 0, self._axes))
            _, rgb, depth = draw(self._token, data, self._model)
        else:
            _, rgb, depth = self._jax.vmap(package.render)(self._token, data)
        self._take(to_torch(rgb), to_torch(depth))
        return self._images

    def _take(self, rgb: Tensor, depth: Tensor) -> None:
        """Copy, on the device, what was drawn into the images that callers hold."""
        view = self.views[0]
        wanted = (self.sim.num_envs, len(self.views), view.height, view.width)
        for name, image, last in (("rgb", rgb, 4), ("depth", depth, 1)):
            if tuple(image.shape) != (*wanted, last):
                raise ValueError(f"madrona_mjx drew {name} {tuple(image.shape)}, not {wanted}")
        order = sorted(self._ids)
        for view, camera in zip(self.views, self._ids, strict=True):
            images, at = self._images[view.camera], order.index(camera)
            if view.rgb:
                images["rgb"].copy_(rgb[:, at, ..., :3])
            if view.depth:
                images["depth"].copy_(depth[:, at, ..., 0])
                if (scale := self._scale[view.camera]) is not None:
                    images["depth"].mul_(scale)

    def _allocate(self, view: View) -> dict[str, Tensor]:
        shape = (self.sim.num_envs, view.height, view.width)
        images = {}
        if view.rgb:
            images["rgb"] = torch.zeros(*shape, 3, dtype=torch.uint8, device=self.device)
        if view.depth:
            images["depth"] = torch.zeros(shape, device=self.device)
        return images

    def _versions(self) -> tuple[int, ...]:
        """Return how often the fields that are looked at were written; asks no device."""
        params = self.sim.params
        return tuple(params[name]._version for name in _LOOKS if name in params)

    def _with_looks(self) -> tuple[Any, Any]:
        """Return the model with a value per world of `_LOOKS`, and its axes for `vmap`."""
        jnp, n = self._jax.numpy, self.sim.num_envs
        m, own = self.sim.jax_model(), {*dir(self.sim.params)}
        looks = {
            name: getattr(m, name)
            if name in own
            else jnp.repeat(jnp.asarray(getattr(m, name))[None], n, axis=0)
            for name in _LOOKS
        }
        shared = torch.from_numpy(self.sim.model.geom_rgba.astype(np.float32)).to(self.device)
        material = to_torch(looks["geom_matid"])
        recoloured = (to_torch(looks["geom_rgba"]) - shared).abs().amax(dim=2) > 1e-6
        plain = torch.where(recoloured | (material < 0), _BY_RGBA, material)
        looks["geom_matid"] = to_jax(plain.to(material.dtype).contiguous())
        axes = self._jax.tree_util.tree_map(lambda _: None, m)
        varying = dict.fromkeys({*looks, *self.sim.varying}, 0)
        return m.tree_replace(looks), axes.tree_replace(varying)


def _camera_ids(sim: Sim, views: Sequence[View]) -> list[int]:
    """Return the ids of the views' cameras.

    Raises:
        ValueError: the package cannot draw these views.
    """
    names = [sim.model.camera(i).name for i in range(sim.model.ncam)]
    asked = [view.camera for view in views]
    for view in views:
        if view.camera not in names:
            raise ValueError(f"there is no camera {view.camera!r}; there are {names}")
        if view.segmentation:
            raise ValueError(f"madrona_mjx draws no segmentation ({view.camera}); {_INSTEAD}")
    if not views or len({*asked}) != len(asked):
        raise ValueError(f"views must be of different cameras, at least one; got {asked}")
    if len({(view.height, view.width) for view in views}) > 1:
        sizes = ", ".join(f"{view.camera} {view.height} x {view.width}" for view in views)
        raise ValueError(f"madrona_mjx draws all cameras in one size, got {sizes}; {_INSTEAD}")
    if sim.model.nflex:
        raise ValueError(f"madrona_mjx draws no flexes; {_INSTEAD}")
    return [names.index(name) for name in asked]


def load_package(device: torch.device) -> Callable[..., Any]:
    """Return the package's `BatchRenderer`.

    Raises:
        ValueError: it is not installed, or there is no GPU.
    """
    needs = f"sim.renderer=madrona needs a GPU and madrona_mjx, built from source ({_HOME})"
    if device.type != "cuda":
        raise ValueError(f"{needs}; the simulation is on {device}; {_INSTEAD}")
    try:
        from madrona_mjx.renderer import BatchRenderer  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(f"{needs}, which cannot be imported here ({error}); {_INSTEAD}") from error
    return BatchRenderer


def _check_interface(batch_renderer: Callable[..., Any], settings: dict[str, Any]) -> None:
    """Refuse a package whose constructor does not take what is passed.

    Raises:
        ValueError: names the parameters that differ.
    """
    parameters = inspect.signature(batch_renderer).parameters
    required = {k for k, p in parameters.items() if p.default is p.empty}
    if unknown := {*settings} - {*parameters} or required - {*settings}:
        raise ValueError(
            f"this madrona_mjx has another interface: its BatchRenderer differs in "
            f"{', '.join(sorted(unknown))}; {_INSTEAD}"
        )


def _planar(sim: Sim, view: View) -> Tensor:
    """Return by what a distance along a pixel's ray is multiplied, (height, width)."""
    half = math.tan(0.5 * math.radians(float(sim.model.camera(view.camera).fovy[0])))
    y = (2.0 * (torch.arange(view.height) + 0.5) / view.height - 1.0) * half
    x = (2.0 * (torch.arange(view.width) + 0.5) / view.width - 1.0) * half
    x = x * view.width / view.height
    return (1.0 + y[:, None] ** 2 + x[None] ** 2).rsqrt()
