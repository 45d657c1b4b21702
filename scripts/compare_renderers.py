"""Draw docs/render_compare.png: the Panda by MuJoCo Warp's ray tracer and by OpenGL.

python scripts/compare_renderers.py [PATH]
"""

import pathlib
import sys

import numpy as np
import torch
from PIL import Image, ImageDraw

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style.render.gl_renderer import GLRenderer  # noqa: E402
from penspin_style.render.renderer import View, make_renderer  # noqa: E402
from penspin_style.sim.sim import make_sim  # noqa: E402
from tasks.panda.lift_cube_vision import PandaLiftCubeVision  # noqa: E402

SIZE, TITLE = 200, 18  # pixels
CAMERAS = ("view", "front", "wrist")
POSE = (0.1, 0.25, 0.1, -2.2, 0.0, 2.45, 0.9, 0.04, 0.04)  # rad, and m of the fingers
CUBE = (0.5, 0.14)  # m


def compare() -> np.ndarray:
    """Return one row per camera: colour, depth and segmentation, each by both renderers."""
    # OpenGL clips light at white before it applies a texture, the ray tracer after; this task has
    # no more light than white
    sim = make_sim(PandaLiftCubeVision(PandaLiftCubeVision.Config()).spec().compile(), 1)
    sim.data.qpos[0, :9] = torch.tensor(POSE, dtype=torch.float64)
    sim.data.qpos[0, 9:11] = torch.tensor(CUBE, dtype=torch.float64)
    sim.forward()
    views = [View(camera, SIZE, SIZE, segmentation=True) for camera in CAMERAS]
    images = make_renderer(sim, views, shadows=True).render()
    colours = np.random.default_rng(3).integers(50, 250, (sim.model.ngeom + 1, 3), np.uint8)
    colours[-1] = 0
    rows = []
    for camera in CAMERAS:
        ours = {name: image[0].numpy() for name, image in images[camera].items()}
        with GLRenderer(sim, camera, height=SIZE, width=SIZE) as gl:
            rgb, depth, ids = gl.render(), gl.depth(), gl.segmentation()
        grey = [(255 * d / depth.max()).astype(np.uint8) for d in (ours["depth"], depth)]
        row = [ours["rgb"], rgb, *(np.repeat(g[..., None], 3, 2) for g in grey)]
        rows.append(np.concatenate([*row, colours[ours["segmentation"]], colours[ids]], axis=1))
    return np.concatenate(rows)


def main() -> None:
    """Write the image with a title over each column."""
    body = Image.fromarray(compare())
    page = Image.new("RGB", (body.width, body.height + TITLE), "white")
    page.paste(body, (0, TITLE))
    draw = ImageDraw.Draw(page)
    for i, what in enumerate(("colour", "depth", "segmentation")):
        for j, who in enumerate(("Warp", "OpenGL")):
            draw.text(((2 * i + j) * SIZE + 6, 3), f"{what}, {who}", "black")
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "render_compare.png"
    page.save(path)
    print(path)


if __name__ == "__main__":
    main()
