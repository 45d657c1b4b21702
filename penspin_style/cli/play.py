"""`penspin play`: watch a policy in a window, in a browser, or as a video."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase

from penspin_style.cli.verb import output_file
from penspin_style.env.task import task_name
from penspin_style.features import PolicyCard
from penspin_style.render.gl_renderer import NoOpenGLError
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import UsageError, compose_train, typed
from penspin_style.train.evaluate import Act
from penspin_style.train.load_policy import LoadedPolicy, open_policy
from penspin_style.train.run import EXIT_OK
from penspin_style.viewer.browser import BrowserViewer, check_installed
from penspin_style.viewer.tiles import shoot_tiles
from penspin_style.viewer.video import Shot, shoot, write
from penspin_style.viewer.window import play_window


def run(args: argparse.Namespace) -> int:
    """Open a window or serve a page, or write a video and the images cut from it.

    Raises:
        UsageError: no viewer can be had, there is no OpenGL, or no episode as wanted.
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
    if args.video is None and (args.tiles or args.fps or args.fine):
        flag = "--tiles" if args.tiles else "--fps" if args.fps else "--fine"
        raise UsageError(f"{flag}: it is of a video; add --video OUT.mp4")
    if args.video is not None and args.viewer:
        raise UsageError(f"--viewer {args.viewer}: with --video nothing else is shown")
    video = output_file("--video", args.video, ".mp4")
    strip = output_file("--strip", args.strip, ".png")
    views = output_file("--views", args.views, ".png")
    source = _open(args)
    if views is not None and not source.cfg.task.views():
        raise UsageError(f"--views {views}: the policy of {source.card.task} sees no images")
    if video is None:
        if _view(args) == "browser":
            return _browse(source, args)
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
    common: Any = {"seed": args.seed, "size": args.size, "fine": args.fine}
    if args.tiles:
        tiled = {"tiles": args.tiles, "info": args.info}
        return [shoot_tiles(source.env, source.act, **common, **tiled)]
    own = {"episodes": args.episodes, "successful": args.successful}
    return shoot(source.env, source.act, **common, **own)


def _open(args: argparse.Namespace) -> LoadedPolicy:
    """Return what acts, in its environment: a policy, or an agent in the task that is named.

    Raises:
        UsageError: neither is there, or both name a policy.
    """
    agent = args.agent
    if agent not in (None, *AGENTS):
        if args.policy:
            raise UsageError(f"--agent {agent}: the policy is {args.policy} already")
        args.policy, agent = agent, None
    if agent is None:
        if not args.policy:
            raise UsageError("say which policy, or --agent zero|random with task=NAME")
        return open_policy(pathlib.Path(args.policy), args.overrides)
    if args.policy:
        source = open_policy(pathlib.Path(args.policy), args.overrides)
        cfg, task, name = source.cfg, source.task, source.card.task
    else:
        if not typed(args.overrides, "task"):
            raise UsageError(f"--agent {agent}: say in which task, task=NAME")
        cfg, task, _ = compose_train(args.overrides)
        name = task_name(task)
    channels, dt = task(cfg.task).actions, cfg.task.control_dt
    card = PolicyCard(task=name, inputs=(), actions=channels, joints=(), control_dt=dt, run=agent)
    return LoadedPolicy(cfg, task, card, AGENTS[agent](len(card.actions), args.seed))


def _zero(naction: int, seed: int) -> Act:
    return lambda root: torch.zeros(*root.batch_size, naction, device=root.device)


def _random(naction: int, seed: int) -> Act:
    rng = torch.Generator().manual_seed(seed)

    def act(root: TensorDictBase) -> torch.Tensor:
        draw = torch.rand(*root.batch_size, naction, generator=rng)
        return (2.0 * draw - 1.0).to(root.device)

    return act


AGENTS: dict[str, Callable[[int, int], Act]] = {"zero": _zero, "random": _random}
"""What can act in a policy's place: no action at all, or uniform noise; (naction, seed) -> act."""


def _view(args: argparse.Namespace) -> str:
    """Return where to show it: a window where there is a display, else a page.

    Raises:
        UsageError: a window is asked for and there is no display.
    """
    has_display = sys.platform != "linux" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if args.viewer == "window" and not has_display:
        raise UsageError("there is no display to open a window on; --viewer browser needs none")
    return args.viewer or ("window" if has_display else "browser")


def _browse(source: LoadedPolicy, args: argparse.Namespace) -> int:
    """Serve a page until a signal comes."""
    try:
        check_installed()
    except ValueError as error:
        raise UsageError(f"{error}; or --video OUT.mp4") from error
    env = source.env(args.num_envs, args.seed)
    viewer = BrowserViewer(env, source.act, host=args.host, port=args.port)
    try:
        if args.json:
            print_json({"address": viewer.address, "task": source.card.task})
        else:
            print(f"{source.card.task} on {viewer.address}; Ctrl-C ends", flush=True)
        viewer.run()
    finally:
        viewer.close()
    return EXIT_OK
