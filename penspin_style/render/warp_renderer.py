"""MuJoCo Warp's ray tracer: all environments and cameras at once, on a CPU or a GPU."""

import copy
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mujoco
import mujoco_warp as mjw
import numpy as np
import torch
import warp as wp
from torch import Tensor

from penspin_style.render.renderer import View
from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.sim import Sim
from penspin_style.sim.warp_log import start_warp
from penspin_style.sim.warp_sim import WarpSim

if TYPE_CHECKING:  # Warp's own hints know no subscripts
    Bytes = Any
    Words = Any
    Floats = Any
    Ints = Any
    Pairs = Any
    Matrices = Any
    Tangents = Any
    Numbers = Any
else:
    Bytes, Words = wp.array3d[wp.uint8], wp.array2d[wp.uint32]
    Floats, Ints, Pairs = wp.array2d[float], wp.array2d[int], wp.array2d[wp.vec2i]
    Matrices, Tangents, Numbers = wp.array2d[wp.mat33], wp.array[float], wp.array[int]

GROUPS = (0, 1, 2)  # geoms of group 3 are collision shapes

POSES = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
# model fields that the ray tracer reads for each world
LOOKS = (
    *("geom_rgba", "geom_matid", "geom_size", "geom_dataid", "cam_fovy", "cam_intrinsic"),
    *("light_type", "light_castshadow", "light_active", "light_attenuation", "light_cutoff"),
    *("light_exponent", "light_ambient", "light_diffuse", "light_specular"),
    *("mat_texid", "mat_texuniform", "mat_texrepeat", "mat_emission", "mat_specular"),
    *("mat_shininess", "mat_rgba"),
)
_RGB = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
_GEOM = wp.constant(int(mujoco.mjtObj.mjOBJ_GEOM))
_MIN_CHUNK = 4  # environments; fewer are not worth a thread


@wp.kernel(enable_backward=False)
def _write_rgb(packed: Words, start: int, rgb: Bytes) -> None:
    """Unpack 0xAARRGGBB words into bytes."""
    world, pixel = wp.tid()  # type: ignore[misc]
    word = packed[world, start + pixel]
    rgb[world, pixel, 0] = wp.uint8(word >> wp.uint32(16))
    rgb[world, pixel, 1] = wp.uint8(word >> wp.uint32(8))
    rgb[world, pixel, 2] = wp.uint8(word)


@wp.kernel(enable_backward=False)
def _write_depth(metres: Floats, start: int, depth: Floats) -> None:
    world, pixel = wp.tid()  # type: ignore[misc]
    depth[world, pixel] = metres[world, start + pixel]


@wp.kernel(enable_backward=False)
def _write_segmentation(pairs: Pairs, start: int, segmentation: Ints) -> None:
    """Keep the ids of geoms; what else was hit, a flex, counts as background."""
    world, pixel = wp.tid()  # type: ignore[misc]
    pair = pairs[world, start + pixel]
    segmentation[world, pixel] = wp.where(pair[1] == _GEOM, pair[0], -1)


@wp.kernel(enable_backward=False)
def _find_roots(tree: wp.uint64, roots: Numbers) -> None:
    world = wp.tid()
    roots[world] = wp.bvh_get_group_root(tree, world)  # type: ignore[arg-type]


@wp.kernel(enable_backward=False)
def _stretch_cameras(
    cam_xmat: Matrices, cam_fovy: Floats, tangents: Tangents, stretched: Matrices
) -> None:
    """Scale the image plane's two axes by how much wider than the model's own camera this one is.

    A ray through a pixel is then the model's own, whose components are computed once; and as the
    third axis keeps its length, so does depth.
    """
    world, cam = wp.tid()  # type: ignore[misc]
    fovy = cam_fovy[world % cam_fovy.shape[0], cam]
    wider = wp.tan(0.5 * wp.radians(fovy)) / tangents[cam]
    frame = cam_xmat[world, cam]
    stretched[world, cam] = wp.matrix_from_cols(
        frame[:, 0] * wider, frame[:, 1] * wider, frame[:, 2]
    )


@dataclass(frozen=True)
class Look:
    """What may be left out for speed."""

    shadows: bool = False
    highlights: bool = True


class WarpRenderer:
    """`Renderer` on MuJoCo Warp.

    A `WarpSim` is drawn from its own arrays. Of a `BatchSim` only poses and the parameters that
    differ between environments cross over, and nothing at all where both share a memory; on a CPU
    its environments are split among threads, since Warp runs a kernel on one. The split does not
    change a bit of the images.

    No call waits for the GPU but the first two: the first one runs kernel by kernel, which compiles
    the kernels, the second is captured as a graph.

    Images agree with OpenGL's, but: light is computed at pixels, not at corners; a textured
    surface that gets more light than white is drawn brighter (OpenGL clips light before it applies
    the texture); point lights shine. Where there is no skybox, the background is black.
    """

    def __init__(
        self,
        sim: Sim,
        views: Sequence[View],
        device: str | torch.device | None = None,
        *,
        shadows: bool = False,
        highlights: bool = True,
        nthread: int = 0,
    ) -> None:
        if not isinstance(sim, WarpSim | BatchSim):
            raise TypeError(
                f"WarpRenderer draws a WarpSim or a BatchSim, not a {type(sim).__name__}; "
                "build the simulation with make_sim"
            )
        start_warp()
        self.sim = sim  # where a memory is shared, Warp knows an address but keeps nothing alive
        self.views = _check_views(sim.model, views)
        self._wp_device = wp.device_from_torch(torch.device(device or sim.device))
        self.device = torch.device(wp.device_to_torch(self._wp_device))
        if isinstance(sim, WarpSim) and self.device != sim.device:
            raise ValueError(
                f"the simulation runs on {sim.device} and is drawn there, not on {self.device}"
            )
        self._images = {view.camera: self._allocate(view, sim.num_envs) for view in self.views}
        self._copies: list[tuple[Tensor, Tensor]] = []  # (the simulation's, the ray tracer's)
        parts = [slice(0, sim.num_envs)]
        if isinstance(sim, BatchSim) and self.device.type == "cpu":
            parts = _split(sim.num_envs, nthread)
        look = Look(shadows=shadows, highlights=highlights)
        settings = context_settings(sim, self.views, look)
        with wp.ScopedDevice(self._wp_device):
            textures = _make_textures(sim.model)
            self._chunks = []
            for part in parts:
                count = int(part.stop - part.start)
                context = _make_context(sim, count, settings, textures)
                m, d = (sim.m, sim.d) if isinstance(sim, WarpSim) else self._mirror(sim, part)
                tangents = None
                if _varies(sim, self.views) == "fovy":
                    tangents = np.tan(0.5 * np.radians(sim.model.cam_fovy))
                self._chunks.append(_Chunk(m, d, context, self._outputs(part), tangents))
            wp.synchronize_device()
        others = len(self._chunks) - 1
        self._pool = ThreadPoolExecutor(others, "render") if others else None
        self._has_run = False

    def render(self) -> dict[str, dict[str, Tensor]]:
        """Draw the environments as they are. The next call overwrites the tensors."""
        for source, target in self._copies:
            if self.device.type == "cpu":
                np.copyto(target.numpy(), source.numpy(), casting="same_kind")
            else:
                target.copy_(source, non_blocking=True)
        stream = None
        if self._wp_device.is_cuda:
            stream = wp.stream_from_torch(torch.cuda.current_stream(self.device))
        if not self._has_run:
            with wp.ScopedDevice(self._wp_device), wp.ScopedStream(stream):
                for chunk in self._chunks:
                    if self._wp_device.is_cpu:
                        chunk.rebuild()
                    chunk.work()
            self._has_run = True
            return self._images
        for chunk in self._chunks:
            if chunk.graph is None:
                # captured on Warp's own stream, since CUDA cannot capture torch's default one
                with wp.ScopedDevice(self._wp_device), wp.ScopedCapture() as capture:
                    chunk.work()
                chunk.graph = capture.graph
        if self._pool is None:
            wp.capture_launch(self._chunks[0].graph, stream=stream)
            return self._images
        others = [self._pool.submit(wp.capture_launch, chunk.graph) for chunk in self._chunks[1:]]
        wp.capture_launch(self._chunks[0].graph)
        for other in others:
            other.result()
        return self._images

    def _allocate(self, view: View, num_envs: int) -> dict[str, Tensor]:
        shape = (num_envs, view.height, view.width)
        images = {}
        if view.rgb:
            images["rgb"] = torch.zeros(*shape, 3, dtype=torch.uint8, device=self.device)
        if view.depth:
            images["depth"] = torch.zeros(shape, device=self.device)
        if view.segmentation:
            images["segmentation"] = torch.zeros(shape, dtype=torch.int32, device=self.device)
        return images

    def _outputs(self, part: slice) -> list[dict[str, wp.array]]:
        """Return the arrays into which a chunk writes its rows of the images, by view."""
        return [
            {
                name: wp.from_torch(image[part].flatten(1, 2))
                for name, image in self._images[view.camera].items()
            }
            for view in self.views
        ]

    def _mirror(self, sim: BatchSim, part: slice) -> tuple[mjw.Model, mjw.Data]:
        """Give the ray tracer a model and poses of its own for some of the environments."""
        if sim.model.nflex:
            raise ValueError("flexes are drawn with the GPU engine only; use engine='warp'")
        count = int(part.stop - part.start)
        looks = [name for name in LOOKS if name in sim.params and sim.params[name].numel()]
        m = mjw.put_model(sim.model, batch_sizes=dict.fromkeys(looks, count))
        d = mjw.make_data(sim.model, count, nconmax=1, njmax=1)
        for owner, fields, names in ((d, sim.data, POSES), (m, sim.params, looks)):
            for name in names:
                setattr(owner, name, self._follow(fields[name][part], getattr(owner, name)))
        return m, d

    def _follow(self, source: Tensor, target: wp.array) -> wp.array:
        """Return an array with the source's values at every call: the source itself if it can."""
        if not source.numel():
            return target
        mine = wp.to_torch(target).view(source.shape)
        shared = source.device == mine.device and source.dtype == mine.dtype
        if shared and source.is_contiguous():
            return wp.array(
                ptr=source.data_ptr(), dtype=target.dtype, shape=target.shape, device=target.device
            )
        self._copies.append((source, mine))
        return target


class _Chunk:
    """Some environments, drawn by one graph."""

    def __init__(
        self,
        m: mjw.Model,
        d: mjw.Data,
        context: mjw.RenderContext,
        outputs: list[dict[str, wp.array]],
        tangents: np.ndarray | None,
    ) -> None:
        self.graph: Any = None
        self._m, self._d, self._context = m, d, context
        self._tangents: wp.array | None = None
        if tangents is not None:
            self._tangents = wp.array(tangents, dtype=float)
            self._frames = d.cam_xmat
            self._d = copy.copy(d)  # the simulation's cameras stay as they are
            self._d.cam_xmat = wp.empty_like(d.cam_xmat)
        starts = {
            "rgb": context.rgb_adr.numpy(),
            "depth": context.depth_adr.numpy(),
            "segmentation": context.seg_adr.numpy(),
        }
        packed = {
            "rgb": (_write_rgb, context.rgb_data),
            "depth": (_write_depth, context.depth_data),
            "segmentation": (_write_segmentation, context.seg_data),
        }
        self._writes = [
            (*packed[name], int(starts[name][i]), image)
            for i, images in enumerate(outputs)
            for name, image in images.items()
        ]

    def rebuild(self) -> None:
        """Build the tree of bounds anew around where things are now, not in the model's own pose.

        Later calls only move its bounds. It is searched faster; what is found stays the same.
        """
        context = self._context
        mjw.refit_bvh(self._m, self._d, context)
        context.bvh.rebuild()
        roots = context.group_root
        wp.launch(_find_roots, dim=roots.shape, inputs=[context.bvh.id], outputs=[roots])

    def work(self) -> None:
        """Draw all views and write their images."""
        if self._tangents is not None:
            wp.launch(
                _stretch_cameras,
                dim=self._frames.shape,
                inputs=[self._frames, self._m.cam_fovy, self._tangents],
                outputs=[self._d.cam_xmat],
            )
        mjw.refit_bvh(self._m, self._d, self._context)
        mjw.render(self._m, self._d, self._context)
        for kernel, packed, start, image in self._writes:
            wp.launch(kernel, dim=image.shape[:2], inputs=[packed, start], outputs=[image])


def _check_views(model: mujoco.MjModel, views: Sequence[View]) -> tuple[View, ...]:
    cameras = [model.camera(i).name for i in range(model.ncam)]
    if not views:
        raise ValueError(f"a renderer needs at least one View; the model's cameras are {cameras}")
    for i, view in enumerate(views):
        if view.camera not in cameras:
            raise ValueError(f"the model has no camera {view.camera!r}; it has {cameras}")
        if view.camera in [other.camera for other in views[:i]]:
            raise ValueError(
                f"two views of camera {view.camera!r}; ask for one, or give the model a second "
                "camera at the same place"
            )
    return tuple(views)


def _split(num_envs: int, nthread: int) -> list[slice]:
    """Split environments evenly among threads; 0 threads are as many as this process may use."""
    nthread = nthread or len(os.sched_getaffinity(0))
    count = max(1, min(nthread, num_envs // _MIN_CHUNK))
    ends = [num_envs * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def context_settings(sim: Sim, views: Sequence[View], look: Look | None = None) -> dict[str, Any]:
    """Return what `mjw.create_render_context` is told, beside textures.

    The ray tracer is specialised to the model: what no light or material has is compiled away.
    """
    model, params, look = sim.model, sim.params, look or Look()
    shines = model.light_specular.any() or model.vis.headlight.specular.any()
    shines = "light_specular" in params or bool(shines)
    return {
        "cam_active": [view.camera for view in views],
        "cam_res": [(view.width, view.height) for view in views],
        "render_rgb": [view.rgb for view in views],
        "render_depth": [view.depth for view in views],
        "render_seg": [view.segmentation for view in views],
        "use_shadows": look.shadows,
        "shadow_light_fraction": 0.0,
        "use_precomputed_rays": _varies(sim, views) != "rays",
        "enabled_geom_groups": list(GROUPS),
        "render_skybox": True,
        "enable_specular": look.highlights and shines,
        "enable_emission": "mat_emission" in params or bool(model.mat_emission.any()),
        "enable_per_light_ambient": "light_ambient" in params or bool(model.light_ambient.any()),
    }


def _varies(sim: Sim, views: Sequence[View]) -> str:
    """Return what differs between the environments' lenses: nothing (""), `fovy` or `rays`."""
    if "cam_intrinsic" in sim.params:
        return "rays"
    if "cam_fovy" not in sim.params:
        return ""
    cameras = [sim.model.camera(view.camera).id for view in views]
    orthographic = (sim.model.cam_projection[cameras] != 0).any()
    measured = (sim.model.cam_sensorsize[cameras] != 0).any()
    return "rays" if orthographic or measured else "fovy"


def _make_context(
    sim: Sim, num_envs: int, settings: dict[str, Any], textures: list[wp.Texture2D]
) -> mjw.RenderContext:
    model, params = sim.model, sim.params
    context = mjw.create_render_context(model, num_envs, use_textures=False, **settings)
    context.textures_registry = textures
    context.textures = wp.array(textures, dtype=wp.Texture2D)
    context.use_textures = "mat_texid" in params or bool((model.mat_texid[:, _RGB] >= 0).any())
    # these two are read off the shared model, but may differ between environments
    if "light_attenuation" in params:
        context.light_attenuation_is_default = False
    if "light_type" in params:
        context.has_spot_lights = True
    return context


def _make_textures(model: mujoco.MjModel) -> list[wp.Texture2D]:
    """Put textures on the device in bytes: the same colours as mjw's floats, sampled faster."""
    textures = []
    for i in range(model.ntex):
        height, width, channels = (
            int(size[i]) for size in (model.tex_height, model.tex_width, model.tex_nchannel)
        )
        start = int(model.tex_adr[i])
        if start < 0:  # kept in a file
            pixels = mujoco.mj_loadTexture(model, i)[0]
            height, width, channels = pixels.shape
        else:
            pixels = model.tex_data[start : start + height * width * channels]
        rgba = np.zeros((height, width, 4), np.uint8)
        rgba[..., 3] = 255
        rgba[..., :channels] = pixels.reshape(height, width, channels)
        textures.append(wp.Texture2D(rgba, filter_mode=wp.TextureFilterMode.LINEAR))
    return textures
