"""The contract of batched pixels, and the choice of who draws them.

    renderer = make_renderer(sim, [View("front", 64, 64), View("wrist", rgb=False)])
    sim.step(10)
    images = renderer.render()
    images["front"]["rgb"]    # (num_envs, 64, 64, 3) uint8
    images["wrist"]["depth"]  # (num_envs, 32, 32) float32, metres along the optical axis

A renderer draws what the simulation's derived fields say (`geom_xpos`, `cam_xpos`, `light_xpos`,
...), so it shows the state after the last `step` or `forward`. Colours, sizes, cameras and lights
that differ between environments are read from `sim.params` at every call, like any other parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim

_UNLIT = (
    "does not compute light_xpos and light_xdir, by which scenes are lit: use engine=mujoco or "
    "engine=warp for tasks with images"
)


@dataclass(frozen=True)
class View:
    """What one camera of the model delivers."""

    camera: str
    height: int = 32
    """Pixels."""
    width: int = 32
    """Pixels."""
    rgb: bool = True
    depth: bool = True
    segmentation: bool = False

    def __post_init__(self) -> None:
        """Refuse a view of nothing."""
        if self.height < 1 or self.width < 1:
            raise ValueError(
                f"View({self.camera!r}): height and width must be at least 1 pixel, "
                f"got {self.height} x {self.width}"
            )
        if not (self.rgb or self.depth or self.segmentation):
            raise ValueError(
                f"View({self.camera!r}): ask for at least one of rgb, depth, segmentation"
            )


class Renderer(Protocol):
    """Images of every environment of a simulation."""

    views: tuple[View, ...]
    device: torch.device
    """Where the images lie; it may differ from the simulation's."""

    def render(self) -> dict[str, dict[str, Tensor]]:
        """Return the images of each camera, by its name and by what its view asks for.

        | image | shape and type | background |
        | --- | --- | --- |
        | `rgb` | (num_envs, height, width, 3) uint8 | the renderer's colour |
        | `depth` | (num_envs, height, width) float32, m along the optical axis | 0 |
        | `segmentation` | (num_envs, height, width) int32, geom id | -1 |

        Row 0 is the top of the image. The tensors are contiguous and always the same ones: the
        next call overwrites them, so clone what must last.
        """
        ...


def check_renderer(name: str, engine: str, device: torch.device) -> None:
    """Refuse what cannot draw an engine's simulations, before anything is compiled for it.

    Raises:
        ValueError: says what to install, and what draws the same.
    """
    if name == "madrona":
        from penspin_style.render.madrona_renderer import load_package

        load_package(device)
        if engine != "mjx":
            raise ValueError(
                f"sim.renderer=madrona draws simulations of sim.engine=mjx, not of {engine}; "
                "sim.renderer=warp draws those"
            )
    elif engine == "mjx":
        raise ValueError(f"sim.engine=mjx {_UNLIT}, or sim.renderer=madrona")


def make_renderer(
    sim: Sim,
    views: Sequence[View],
    device: str | torch.device | None = None,
    *,
    name: str = "auto",
    shadows: bool = False,
    highlights: bool = True,
    nthread: int = 0,
) -> Renderer:
    """Build the renderer of a simulation: MuJoCo Warp's ray tracer, unless Madrona is asked for.

    name: `auto`, `warp` or `madrona`, see `MadronaRenderer`, which takes none of the other options.
    device: where to draw; None for the simulation's device. A simulation of the CPU engine may be
        drawn on a GPU; one of the GPU engine is drawn where it runs.
    shadows: let lights that cast shadows cast them. On a CPU the Panda's two cameras of 32 x 32
        pixels then come at 0.72 times the speed.
    highlights: draw the specular highlights of lights that have any; without, 1.15 times the speed.
    nthread: threads on a CPU, 0 for all cores.

    Raises:
        ValueError: an unknown camera, two views of one camera, no views, a device that the
            simulation cannot be drawn on; what Madrona needs is missing.
        TypeError: a simulation of neither engine.
    """
    if name == "madrona":
        from penspin_style.render.madrona_renderer import MadronaRenderer

        return MadronaRenderer(sim, views)
    fields = getattr(sim, "data", None)  # what is no simulation is refused below
    if fields is not None and "light_xpos" not in fields:
        raise ValueError(f"{type(sim).__name__} {_UNLIT}")
    from penspin_style.render.warp_renderer import WarpRenderer

    return WarpRenderer(sim, views, device, shadows=shadows, highlights=highlights, nthread=nthread)
