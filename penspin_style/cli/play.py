"""`penspin play`: watch a policy in a window, or as a video."""

import argparse
import os
import pathlib
import sys
from typing import Any

from penspin_style.cli.verb import output_file
from penspin_style.render.gl_renderer import NoOpenGLError
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import UsageError
from penspin_style.train.load_policy import LoadedPolicy, open_policy
from penspin_style.train.run import EXIT_OK
from penspin_style.viewer.tiles import shoot_tiles
from penspin_style.viewer.video import Shot, shoot, write
from penspin_style.viewer.window import play_window


def run(args: argparse.Namespace) -> int:
    """Open a window, or write a video and the images cut from it.

    Raises:
        UsageError: there is no display, no OpenGL, or no episode as wanted.
    """
    if args.size % 2:
        raise UsageError(f"--size {args.size}: the video format needs an even number of pixels")
    for flag, path in (("--strip", args.strip), ("--views", args.views)):
        if path is not None and args.video is None:
            raise UsageError(f"{flag} {path}: it is cut from a video; add --video OUT.mp4")
    if args.tiles and (args.strip or args.views or args.successful):
        raise UsageError("--tiles: no --strip, --views or --successful of several environments")
    if args.info and not args.tiles:
        raise UsageError("--info: it is written into tiles; add --tiles N")
    if args.video is None and (args.tiles or args.fps):
        flag = "--tiles" if args.tiles else "--fps"
        raise UsageError(f"{flag}: it is of a video; add --video OUT.mp4")
    video = output_file("--video", args.video, ".mp4")
    strip = output_file("--strip", args.strip, ".png")
    views = output_file("--views", args.views, ".png")
    source = open_policy(pathlib.Path(args.policy), args.overrides)
    if views is not None and not source.cfg.task.views():
        raise UsageError(f"--views {views}: the policy of {source.card.task} sees no images")
    if video is None:
        _check_display()
        play_window(source.env(1, args.seed), source.act)
        return EXIT_OK
    try:
        shots = _shoot(source, args)
    except NoOpenGLError as error:
        raise UsageError(f"no video: {error}") from error
    write(shots, video, strip, views, fps=args.fps or 1.0 / source.cfg.task.control_dt)
    frames = sum(len(shot.frames) for shot in shots)
    if args.json:
        print_json(
            {"video": str(video), "strip": args.strip, "views": args.views, "frames": frames}
        )
    else:
        files = [f"{frames} frames in {video}"]
        files += [f"strip in {strip}"] if strip else []
        files += [f"what the student sees in {views}"] if views else []
        print(", ".join(files))
    return EXIT_OK


def _shoot(source: LoadedPolicy, args: argparse.Namespace) -> list[Shot]:
    common: Any = {"seed": args.seed, "size": args.size}
    if args.tiles:
        tiled = {"tiles": args.tiles, "info": args.info}
        return [shoot_tiles(source.env, source.act, **common, **tiled)]
    own = {"episodes": args.episodes, "successful": args.successful}
    return shoot(source.env, source.act, **common, **own)


def _check_display() -> None:
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise UsageError("there is no display to open a window on; use --video OUT.mp4")
