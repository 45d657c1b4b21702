"""What a trajectory looks like: a few of its states side by side."""

from pathlib import Path

import numpy as np
import torch

from penspin_style.data.trajectory import Trajectory
from penspin_style.env.world import World
from penspin_style.render.gl_renderer import GLRenderer
from penspin_style.viewer.strip import write_strip
from penspin_style.viewer.video import write_line


def write_trajectory_strip(
    path: Path, world: World, trajectory: Trajectory, *, count: int = 6, size: int = 240
) -> None:
    """Write `count` states, evenly spread from first to last, as one PNG.

    world: one world of the trajectory's task.

    Raises:
        NoOpenGLError: this machine has no OpenGL.
    """
    frames = []
    with GLRenderer(world.sim, world.task.camera, height=size, width=size) as renderer:
        for row in np.linspace(0, trajectory.steps, count).round().astype(int).tolist():
            world.restore(trajectory.snapshot(torch.tensor([row])))
            frame = renderer.render().copy()
            write_line(frame, f"{row * world.cfg.control_dt:.1f} s")
            frames.append(frame)
    write_strip(path, frames, count)
