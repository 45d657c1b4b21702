"""Films of a policy at work, with what it sees in a corner, and a window to watch it in."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from penspin_style.env.env import Env
from penspin_style.render.gl_renderer import GLRenderer, write_strip, write_video
from penspin_style.train.evaluate import Act, evaluate

STRIP_TAIL = 4
"""Frames after the first success that a strip still shows: what follows is standing still."""
_MARGIN = 8  # pixels around the views in a film's corner


@dataclass
class Shot:
    """One filmed episode."""

    frames: list[np.ndarray]
    """(size, size, 3) uint8, after each step but the last; with views and a caption."""
    views: list[np.ndarray]
    """What the policy saw at each frame, side by side; empty if it sees no pictures."""
    end: int
    """The frame shortly after the first success, or the last one."""


def shoot(
    make_env: Callable[[int, int], Env],
    act: Act,
    *,
    seed: int,
    episodes: int,
    size: int,
    successful: bool = False,
) -> list[Shot]:
    """Film episodes, each in an environment of its own.

    make_env: from (num_envs, seed) to an environment.
    successful: pass over episodes without success; a twentieth of them must have one.

    Raises:
        ValueError: the model does not allow frames of this size, or no episode succeeded.
        NoOpenGLError: this machine has no OpenGL.
    """
    shots: list[Shot] = []
    for attempt in range(20 * episodes):
        env = make_env(1, seed + attempt)
        limit = min(env.model.vis.global_.offwidth, env.model.vis.global_.offheight)
        if size > limit:
            raise ValueError(f"size {size}: the task's model allows at most {limit} pixels")
        frames: list[np.ndarray] = []
        views: list[np.ndarray] = []
        with GLRenderer(env.sim, env.task.camera, height=size, width=size) as renderer:

            def note(
                env: Env = env,
                renderer: GLRenderer = renderer,
                frames: list[np.ndarray] = frames,
                views: list[np.ndarray] = views,
            ) -> None:
                if frames and int(env.step_count[0]) <= len(frames):
                    return  # the environment has restarted: what follows is of no film
                frame = renderer.render().copy()
                pictures = {k: v[0].cpu().numpy() for k, v in env.pictures().items()}
                if pictures:
                    views.append(side_by_side(pictures, size // 5))
                    _overlay(frame, views[-1])
                _write(frame, caption(env))
                frames.append(frame)

            result = evaluate(env, act, seed=seed, on_step=note)
        if not successful or result.success_rate == 1.0:
            end = min(len(frames), round(result.first_success or len(frames)) + STRIP_TAIL)
            shots.append(Shot(frames, views, end))
        if len(shots) == episodes:
            return shots
    if not shots:
        raise ValueError(f"no successful episode among {20 * episodes}; film any instead")
    return shots


def write(
    shots: Sequence[Shot], video: Path, strip: Path | None, views: Path | None, *, fps: float
) -> None:
    """Write the film, six frames of its first episode, and what was seen at these frames."""
    write_video(video, [frame for shot in shots for frame in shot.frames], fps)
    first = shots[0]
    if strip is not None:
        write_strip(strip, first.frames[: first.end])
    if views is not None:
        write_strip(views, first.views[: first.end], axis=0)


def side_by_side(pictures: Mapping[str, np.ndarray], height: int) -> np.ndarray:
    """Return pictures beside each other, enlarged without smoothing; near is bright in depth.

    pictures: (height, width, 3) uint8 or (height, width) m, or stacks of such, the last one counts.
    height: pixels of the result, about.
    """
    tiles = []
    for picture in pictures.values():
        tile = picture if picture.dtype == np.uint8 else _gray(picture)
        tile = tile[-1] if tile.ndim == 4 else tile
        times = max(1, round(height / tile.shape[0]))
        tiles.append(tile.repeat(times, axis=0).repeat(times, axis=1))
    tallest = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(t, ((0, tallest - t.shape[0]), (0, 2), (0, 0))) for t in tiles]
    return np.concatenate(padded, axis=1)[:, :-2]


def _gray(depth: np.ndarray) -> np.ndarray:
    """Return depth as a picture: white at 0.1 m, darker with distance, black for nothing."""
    bright = np.where(depth > 0, 0.1 / np.maximum(depth, 0.1), 0.0) ** 0.5
    return np.repeat((255 * bright).astype(np.uint8)[..., None], 3, axis=-1)


def _overlay(frame: np.ndarray, views: np.ndarray) -> None:
    """Draw views into the upper left corner of a frame, in place, as far as they fit."""
    height = min(views.shape[0], frame.shape[0] - 2 * _MARGIN)
    width = min(views.shape[1], frame.shape[1] - 2 * _MARGIN)
    frame[_MARGIN - 2 : _MARGIN + height + 2, _MARGIN - 2 : _MARGIN + width + 2] = 255
    frame[_MARGIN : _MARGIN + height, _MARGIN : _MARGIN + width] = views[:height, :width]


def caption(env: Env, env_id: int = 0) -> str:
    """Return how far an episode is by the task's own figure: `2.4 s  turns 0.53`; else nothing."""
    task, steps = env.task, env.step_count.float()
    figure = task.judge(env.statistics.tally.sums, steps, torch.zeros_like(steps, dtype=torch.bool))
    if task.score not in figure:
        return ""
    seconds = steps[env_id].item() * env.cfg.control_dt
    return f"{seconds:.1f} s  {task.score} {figure[task.score][env_id].item():.2f}"


def _write(frame: np.ndarray, text: str) -> None:
    """Write a line into the lower left corner of a frame, in place."""
    if not text:
        return
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(10, frame.shape[0] // 20))
    place = (_MARGIN, frame.shape[0] - _MARGIN)
    draw.text(place, text, "white", font, anchor="ld", stroke_width=2, stroke_fill="black")
    frame[:] = np.asarray(image)


def play_window(env: Env, act: Act) -> None:
    """Show an environment in MuJoCo's viewer, in real time, until the window is closed."""
    import mujoco.viewer

    data = mujoco.MjData(env.model)
    root = env.current()
    with mujoco.viewer.launch_passive(env.model, data) as viewer, torch.no_grad():
        while viewer.is_running():
            began = time.perf_counter()
            root.set("action", act(root))
            _, root = env.step_and_maybe_reset(root)
            for name in ("qpos", "qvel", "mocap_pos", "mocap_quat"):
                if getattr(data, name).size:
                    getattr(data, name)[:] = env.sim.data[name][0].cpu().numpy()
            mujoco.mj_forward(env.model, data)
            viewer.sync()
            time.sleep(max(0.0, env.cfg.control_dt - (time.perf_counter() - began)))
