"""What an environment's cameras deliver to its observation groups."""

import torch
from torch import Tensor

from penspin_style.env.task import TaskConfig
from penspin_style.render.renderer import make_renderer
from penspin_style.sim.sim import Sim


class Images:
    """The images that some group lists; nothing else is rendered."""

    def __init__(self, sim: Sim, cfg: TaskConfig, renderer: str = "auto") -> None:
        self.sim, self.cfg = sim, cfg
        self.views = cfg.views()
        self.renderer = make_renderer(sim, self.views, name=renderer) if self.views else None
        self.names = {
            f"{view.camera}_{kind}": (view.camera, kind)
            for view in self.views
            for kind, wanted in (("rgb", view.rgb), ("depth", view.depth))
            if wanted
        }
        self.units = {k: "m" if kind == "depth" else "1" for k, (_, kind) in self.names.items()}

    def empty(self) -> dict[str, Tensor]:
        """Return images of nothing, for shapes and types."""
        out, n, device = {}, self.sim.num_envs, self.sim.device
        for name, (camera, kind) in self.names.items():
            size = self.cfg.cameras[camera]
            shape = (n, size.height, size.width)
            if kind == "rgb":
                out[name] = torch.zeros((*shape, 3), dtype=torch.uint8, device=device)
            else:
                out[name] = torch.zeros(shape, device=device)
        return out

    def render(self) -> dict[str, Tensor]:
        """Return the images of the environments as they are now, fresh tensors."""
        if self.renderer is None:
            return {}
        images = self.renderer.render()
        # copies: the renderer draws into the same memory again
        return {name: images[camera][kind].clone() for name, (camera, kind) in self.names.items()}

    def describe(self, name: str) -> str:
        """Say how to make the image of this name from what a real camera gives."""
        camera, kind = self.names[name]
        size = self.cfg.cameras[camera]
        fovy = float(self.sim.model.camera(camera).fovy[0])
        crop = f"crop to {size.width}:{size.height} and {fovy:g} degrees of vertical view"
        if kind == "rgb":
            return f"RGB, top row first; {crop}; average down to {size.width} x {size.height}"
        return (
            f"metres along the optical axis, 0 where nothing came back, top row first; {crop}; "
            f"take the nearest of {size.width} x {size.height} pixels"
        )
