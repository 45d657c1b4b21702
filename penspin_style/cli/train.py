"""`penspin train`: train a policy, then write a video of it."""

import argparse
import pathlib
import sys
from typing import Any

from penspin_style.cli.run_videos import EvaluationVideos, draw, wait_for
from penspin_style.env.task import task_name
from penspin_style.system import ranks
from penspin_style.system.plain_yaml import parse_mapping
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import assignment, typed
from penspin_style.train.folder import new_name, newest_name
from penspin_style.train.load_policy import compose_training
from penspin_style.train.run import EXIT_OK, Run


def run(args: argparse.Namespace) -> int:
    """Train what the overrides say, or print the configuration that they lead to."""
    cfg, task, resolved = compose_training(args.overrides)
    # several processes would name it apart, by their own clocks
    if not args.print_config and ranks.size() == 1 and not typed(args.overrides, "name"):
        parent = pathlib.Path(cfg.out) / task_name(task)
        name = newest_name(parent) if cfg.resume else new_name(parent)
        cfg, task, resolved = compose_training([*args.overrides, assignment("name", name)])
    if args.print_config and not ranks.is_first():
        return EXIT_OK
    if args.print_config:
        if args.json:
            print_json(parse_mapping(resolved))
        else:
            print(resolved, end="")
        return EXIT_OK
    trained = Run(cfg, task, resolved)
    videos = EvaluationVideos(trained)
    if cfg.video_every:
        trained.watch = videos
    code = trained.fit(quiet=args.json)
    videos.finish()
    for note in videos.notes():
        print(f"penspin: {note}", file=sys.stderr)
    if args.json and ranks.is_first():
        print_json(result(trained, code))
    if trained.final is not None and cfg.video and not trained.interrupted:
        _write_video(trained)
    return code


def result(trained: Run, code: int) -> dict[str, Any]:
    """Return what a training came to, as JSON values."""
    final, score = trained.final, trained.task.score
    name = "validation_loss" if trained.env is None else score
    return {
        "folder": str(trained.folder),
        "iteration": trained.iteration,
        "samples": trained.samples,
        # the success that the task asks for: of the policy, or of the last evaluation before
        **({"success_once": final.success_rate} if final else {}),
        **({"success_at_end": final.success_at_end} if final else {}),
        "success_rate": final.success(score) if final else trained.success_rate,
        "score": {"name": name, "value": final.score(score) if final else trained.score},
        "exit_code": code,
    }


def _write_video(trained: Run) -> None:
    """Write an episode's video and the images cut from it."""
    folder = trained.folder / "videos"
    more = ["--seed", "7", "--episodes", "1", "--video", str(folder / "episode.mp4")]
    more += ["--strip", str(folder / "episode.png")]
    more += ["--views", str(folder / "views.png")] if trained.cfg.task.views() else []
    try:
        folder.mkdir(exist_ok=True)
        reason = wait_for(draw(trained.folder, trained.task_name, *more))
    except OSError as error:
        reason = str(error)
    if reason:
        again = f"penspin play {trained.folder} --video OUT.mp4 tries again"
        print(f"penspin: no video: {reason}; {again}", file=sys.stderr)
