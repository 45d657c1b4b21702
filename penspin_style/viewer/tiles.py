"""Several environments of a policy at work, as tiles of one video."""

import math
from collections.abc import Callable

import numpy as np

from penspin_style.env.env import Env
from penspin_style.train.evaluate import Act, evaluate
from penspin_style.viewer.video import Shot, scene_renderer, write_line


def shoot_tiles(
    make_env: Callable[[int, int], Env],
    act: Act,
    *,
    seed: int,
    tiles: int,
    size: int,
    info: bool,
    fine: bool = False,
) -> Shot:
    """Draw the first episode of so many environments, side by side; one that ends stays.

    make_env: from (num_envs, seed) to environments. size: pixels of the square, at most.
    fine: see `scene_renderer`. info: whether reward, success and end are written into each tile.

    Raises:
        ValueError: no tile would have 16 pixels.
        NoOpenGLError: this machine has no OpenGL.
    """
    columns = math.ceil(math.sqrt(tiles))
    side = size // columns // 2 * 2
    if side < 16:
        raise ValueError(f"size {size}: {tiles} tiles of it are too small to see; use a larger one")
    env = make_env(tiles, seed)
    shown: list[np.ndarray] = []
    frames: list[np.ndarray] = []
    steps = [0] * tiles
    over = [False] * tiles
    with scene_renderer(env, side, fine=fine) as renderer:

        def note() -> None:
            success = env.task.success(env.sim)
            for k in range(tiles):
                over[k] = over[k] or (bool(frames) and int(env.step_count[k]) <= steps[k])
                if over[k]:  # it has restarted: what follows is not drawn
                    tile = shown[k]
                else:
                    tile = renderer.render(k).copy()
                    steps[k] = int(env.step_count[k])
                    if info:
                        paid = sum(float(v[k]) for v in env.reward_terms.values())
                        won = "  success" if bool(success[k]) else ""
                        write_line(tile, f"reward {paid:.2f}{won}")
                shown[k : k + 1] = [tile]
            frames.append(_grid(shown, columns, over if info else [False] * tiles))

        evaluate(env, act, seed=seed, on_step=note)
    return Shot(frames, [], len(frames))


def _grid(tiles: list[np.ndarray], columns: int, over: list[bool]) -> np.ndarray:
    """Return tiles (side, side, 3) as one image; those of episodes that are over are darker."""
    side = len(tiles[0])
    rows = -(-len(tiles) // columns)
    out = np.zeros((rows * side, columns * side, 3), np.uint8)
    for k, tile in enumerate(tiles):
        y, x = k // columns * side, k % columns * side
        out[y : y + side, x : x + side] = tile // 2 if over[k] else tile
    return out
