"""Draw 24 grasps of a cache, evenly spread over it, each with the fingertips that touch the pen.

python scripts/show_grasps.py FOLDER|SCALE [--out PNG]
SCALE: of a cache that comes with the tasks, 0.28 or 0.29. Pens are of the cache's nominal scale and
of all four lengths.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style.env.env import Env  # noqa: E402
from penspin_style.render.gl_renderer import GLRenderer  # noqa: E402
from tasks.pen import grasps  # noqa: E402
from tasks.pen.grasp import PenGrasp  # noqa: E402

ROWS, COLUMNS, SIZE = 4, 6, 200  # tiles, tiles, pixels
NAMES = ("index", "middle", "ring", "thumb")


def tiles(folder: pathlib.Path) -> list[Image.Image]:
    """Return an image of each chosen grasp.

    Raises:
        ValueError: the cache is missing or damaged.
    """
    cache = grasps.load_one(folder)
    scale = json.loads((folder / "card.json").read_text())["scale"]
    count = ROWS * COLUMNS
    picks = torch.linspace(0, len(cache) - 1, count).round().long()
    task = PenGrasp(PenGrasp.Config(scales=[scale]))
    env = Env(task, count)
    task.place(env.sim, torch.ones(count, dtype=torch.bool), cache[picks])
    env.sim.forward()
    touching = task.touching(env.sim).tolist()
    lengths = [task.kind_names[kind] for kind in task.kinds(env.sim).tolist()]
    font = ImageFont.load_default(size=12)
    pages = []
    with GLRenderer(env.sim, task.camera, height=2 * SIZE, width=2 * SIZE) as renderer:
        for i, row in enumerate(picks.tolist()):
            page = Image.fromarray(renderer.render(i)).resize((SIZE, SIZE))
            fingers = [name for name, touches in zip(NAMES, touching[i], strict=True) if touches]
            draw = ImageDraw.Draw(page)
            outline = {"stroke_width": 1, "stroke_fill": "black"}
            draw.text((4, 3), f"{row}  {lengths[i]}", "white", font, **outline)
            draw.text((4, SIZE - 18), ", ".join(fingers) or "none", "white", font, **outline)
            pages.append(page)
    return pages


def sheet(folder: pathlib.Path) -> Image.Image:
    """Return the contact sheet of a cache."""
    rows = [np.asarray(page) for page in tiles(folder)]
    lines = [np.concatenate(rows[i : i + COLUMNS], axis=1) for i in range(0, len(rows), COLUMNS)]
    return Image.fromarray(np.concatenate(lines))


def main(argv: list[str]) -> int:
    """Draw and write; return the exit code."""
    parser = argparse.ArgumentParser(description="Draw 24 grasps of a cache.")
    parser.add_argument(
        "cache", metavar="FOLDER|SCALE", help="such as outputs/grasps/s0.3, or 0.28"
    )
    parser.add_argument("--out", type=pathlib.Path, default="grasps.png", metavar="PNG")
    options = parser.parse_args(argv)
    folder = pathlib.Path(options.cache)
    if not folder.is_dir():
        try:
            folder = grasps.SHIPPED / grasps.folder_name(float(options.cache))
        except ValueError:
            parser.error(f"{options.cache} is neither a folder nor a scale")
    try:
        page = sheet(folder)
    except ValueError as error:
        parser.error(str(error))
    page.quantize(128).save(options.out, optimize=True)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
