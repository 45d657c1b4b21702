"""Videos of a policy at work, with what it sees beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penspin_style.data.formats.video import VideoWriter
from penspin_style.env.env import Env
from penspin_style.env.statistics import SCORES
from penspin_style.render.gl_renderer import GLRenderer
from penspin_style.train.evaluate import Act, evaluate
from penspin_style.viewer.strip import font_of, inset_column, side_by_side, write_strip

_ENCODING = {"crf": "20", "preset": "veryfast"}
STRIP_TAIL = 4
"""Frames after the first success that a strip still shows: what follows is standing still."""
_MARGIN = 8  # pixels beside a caption
_SHADOWS = 2
"""Pixels of the shadow map for each of the frame's side: the models ask for maps of 8192, and
software draws each of their pixels, and four samples of each of the frame's, in every frame."""


@dataclass
class Shot:
    """One episode of a video."""

    frames: list[np.ndarray]
    """(size, width, 3) uint8, at the start and after each step but the last; with a caption.

    As wide as high, or wider by a column of what the policy sees.
    """
    views: list[np.ndarray]
    """What the policy saw at each frame, side by side; empty if it sees no images."""
    end: int
    """The frame shortly after the first success, or the last one where that is not the end."""


def shoot(
    make_env: Callable[[int, int], Env],
    act: Act,
    *,
    seed: int,
    episodes: int,
    size: int,
    successful: bool = False,
    fine: bool = False,
) -> list[Shot]:
    """Draw episodes, each from a seed of its own, one more than the last.

    make_env: from (num_envs, seed) to an environment.
    fine: see `scene_renderer`.
    successful: pass over episodes without success; a twentieth of them must have one.

    Raises:
        ValueError: the model does not allow frames of this size, or no episode succeeded.
        NoOpenGLError: this machine has no OpenGL.
    """
    shots: list[Shot] = []
    env = make_env(1, seed)
    limit = min(env.model.vis.global_.offwidth, env.model.vis.global_.offheight)
    if size > limit:
        raise ValueError(f"size {size}: the task's model allows at most {limit} pixels")
    with scene_renderer(env, size, fine=fine) as renderer:
        for attempt in range(20 * episodes):
            if attempt:
                env.set_seed(seed + attempt)
                env.reset()
            shot, won = _episode(env, act, renderer, size)
            if won or not successful:
                shots.append(shot)
            if len(shots) == episodes:
                return shots
    if not shots:
        raise ValueError(f"no successful episode among {20 * episodes}; leave out --successful")
    return shots


def _episode(env: Env, act: Act, renderer: GLRenderer, size: int) -> tuple[Shot, bool]:
    """Draw an episode that has just begun; return it and whether it was a success."""
    frames: list[np.ndarray] = []
    views: list[np.ndarray] = []
    last, is_over = -1, False

    def note() -> None:
        nonlocal last, is_over
        step = int(env.step_count[0])
        is_over = is_over or step <= last
        if is_over:
            return  # the environment has restarted: what follows is not drawn
        last = step
        frame = renderer.render().copy()
        images = {k: v[0].cpu().numpy() for k, v in env.images().items()}
        write_line(frame, caption(env))
        if images:
            views.append(side_by_side(images, size // 5))
            frame = np.concatenate((frame, inset_column(images, size)), axis=1)
        frames.append(frame)

    result = evaluate(env, act, seed=0, on_step=note)
    # a task that scores by its own figure, as turns, is not over with the first success
    first = result.first_success if env.task.score in SCORES else None
    end = min(len(frames), round(first or len(frames)) + STRIP_TAIL)
    return Shot(frames, views, end), result.success_rate == 1.0


def scene_renderer(env: Env, size: int, *, fine: bool) -> GLRenderer:
    """Return what draws the frames of a video, (size, size, 3).

    fine: with edges and shadows as smooth as the task's model asks for, which takes software five
        times as long.
    """
    rough: dict[str, Any] = {} if fine else {"shadow_pixels": _SHADOWS * size, "samples": 0}
    return GLRenderer(env.sim, env.task.camera, height=size, width=size, **rough)


def write(
    shots: Sequence[Shot], video: Path, strip: Path | None, views: Path | None, *, fps: float
) -> None:
    """Write the video, six frames of its first episode, and what was seen at these frames.

    Raises:
        ValueError: there is no frame.
    """
    frames = [frame for shot in shots for frame in shot.frames]
    if not frames:
        raise ValueError(f"{video}: a video needs at least one frame, an episode of two steps")
    rate = Fraction(fps).limit_denominator(1000)
    height, width, _ = frames[0].shape
    writer = VideoWriter(video, height, width, rate, options=_ENCODING)
    try:
        writer.add(frames)
        writer.close()
    except BaseException:
        writer.drop()
        raise
    first = shots[0]
    if strip is not None:
        write_strip(strip, first.frames[: first.end])
    if views is not None:
        write_strip(views, first.views[: first.end], axis=0)


def caption(env: Env, env_id: int = 0) -> str:
    """Return how far an episode is by the task's own figure: `2.4 s  turns 0.53`; else nothing."""
    task, steps = env.task, env.step_count.float()
    figure = task.episode_metrics(
        env.statistics.task_metrics.sums, steps, torch.zeros_like(steps, dtype=torch.bool)
    )
    if task.score not in figure:
        return ""
    seconds = steps[env_id].item() * env.cfg.control_dt
    return f"{seconds:.1f} s  {task.score} {figure[task.score][env_id].item():.2f}"


def write_line(frame: np.ndarray, text: str) -> None:
    """Write a line into the lower left corner of a frame, in place."""
    if not text:
        return
    from PIL import Image, ImageDraw

    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    font = font_of(max(10, frame.shape[0] // 20))
    place = (_MARGIN, frame.shape[0] - _MARGIN)
    draw.text(place, text, "white", font, anchor="ld", stroke_width=2, stroke_fill="black")
    frame[:] = np.asarray(image)
