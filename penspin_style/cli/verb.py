"""What the command line's verbs do. Each takes the parsed words and returns an exit code."""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import torch

from penspin_style import storage
from penspin_style.algo.algorithm import torch_threads
from penspin_style.cli import task_error
from penspin_style.cli.report import check_plotting, plot, print_evaluation
from penspin_style.env.task import task_name
from penspin_style.nets.policy import load_policy
from penspin_style.system.plain_yaml import parse_mapping
from penspin_style.system.terminal import one_line
from penspin_style.train.checkpoint import NoCheckpointError
from penspin_style.train.compose import (
    UsageError,
    compose_train,
    find_task,
    nearest,
    task_names,
    typed_tasks,
)
from penspin_style.train.evaluate import blinded, evaluate
from penspin_style.train.load_policy import Source, open_source
from penspin_style.train.logging import print_json
from penspin_style.train.run import EXIT_DATA, EXIT_OK, EXIT_USAGE, FaultyRunError, Run
from penspin_style.viewer import video as video_file

FILM_SECONDS = 900.0
"""Longest that the video at the end of a training may take."""


def run(args: argparse.Namespace) -> int:
    """Run the verb that the words name; turn what users can mend into one line and an exit code."""
    name = f"{args.verb}_{args.kind}" if args.verb == "bench" else args.verb
    try:
        torch.set_num_threads(_threads())
        return _VERBS[name](args)
    except (FaultyRunError, NoCheckpointError, storage.DamagedError) as error:
        code = EXIT_DATA
        message = error
    except Exception as error:
        code = EXIT_USAGE
        message = task_error.describe(error) or error
        if _ran_out(error):
            message = "not enough memory; a smaller num_envs or algo.hidden needs less"
        elif message is error and not isinstance(error, ValueError | OSError):
            raise
    print(f"penspin: {one_line(message)}", file=sys.stderr)
    return code


def _ran_out(error: Exception) -> bool:
    """Tell whether memory ran out: each library has its own way to say it."""
    ways = ("bad_alloc", "allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(way in str(error).lower() for way in ways)


def _threads() -> int:
    """Return torch's thread count: one, unless asked otherwise.

    Policies are small: a second thread gains less in them than its busy waiting takes from the
    physics threads (measured on two cores: roll-outs 2.7 times slower with two).
    """
    text = os.environ.get("OMP_NUM_THREADS", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"OMP_NUM_THREADS={text}: must be a whole number of at least 1")
    return int(text)


def _tasks(args: argparse.Namespace) -> int:
    rows = {}
    for name in task_names():
        summary = (sys.modules[find_task(name).__module__].__doc__ or "").strip().splitlines()[0]
        rows[name] = summary
    if args.json:
        print_json({"tasks": rows})
    else:
        width = max(map(len, rows))
        for name, summary in rows.items():
            print(f"{name:{width}}  {summary}")
    return EXIT_OK


def _train(args: argparse.Namespace) -> int:
    cfg, task, resolved = compose_train(args.overrides)
    if args.print_config:
        if args.json:
            print_json(parse_mapping(resolved))
        else:
            print(resolved, end="")
        return EXIT_OK
    trained = Run(cfg, task, resolved)
    code = trained.fit(quiet=args.json)
    if args.json:
        print_json(_result(trained, code))
    if trained.final is not None and cfg.video and not trained.interrupted:
        _film_run(trained)
    return code


def _result(trained: Run, code: int) -> dict[str, Any]:
    """Return what a training came to, as JSON values."""
    final, score = trained.final, trained.task.score
    return {
        "folder": str(trained.folder),
        "iteration": trained.iteration,
        "samples": trained.samples,
        # the success that the task asks for: of the policy, or of the last evaluation before
        "success_rate": final.success(score) if final else trained.success_rate,
        "score": {"name": score, "value": final.score(score) if final else trained.score},
        "exit_code": code,
    }


def _film_run(trained: Run) -> None:
    """Film an episode, in a process of its own: whatever a renderer does, the result is there."""
    folder = trained.folder / "videos"
    video = folder / "episode.mp4"
    command = [sys.executable, "-m", "penspin_style", "play", str(trained.folder)]
    command += [f"task={trained.task_name}", "--seed", "7", "--episodes", "1"]
    command += ["--video", str(video), "--strip", str(folder / "episode.png")]
    command += ["--views", str(folder / "views.png")] if trained.cfg.task.views() else []
    try:
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=FILM_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if not done.returncode:
            return
        reason = f"exit code {done.returncode}"
        if done.returncode < 0:
            reason = f"the renderer ended with {signal.Signals(-done.returncode).name}"
        lines = done.stderr.strip().splitlines()
        reason = f"{reason}: {lines[-1].removeprefix('penspin: ')}" if lines else reason
    print(
        f"penspin: no video: {reason}; penspin play {trained.folder} --video OUT.mp4 tries again",
        file=sys.stderr,
    )


def _eval(args: argparse.Namespace) -> int:
    target = _target("--plot", args.plot, ".png") if args.plot else None
    if target is not None:
        check_plotting()
    source = open_source(pathlib.Path(args.policy), args.overrides)
    began = time.perf_counter()
    act = source.act
    if args.blank:
        pictures = [i.name for i in source.card.inputs if i.is_picture]
        if unknown := sorted(set(args.blank) - set(pictures)):
            what = f"such picture{nearest(unknown[0], pictures)}" if pictures else "pictures"
            raise UsageError(f"--blank {unknown[0]}: the policy reads no {what}")
        act = blinded(act, args.blank)
    result = evaluate(source.env(args.episodes, args.seed), act, seed=args.seed)
    if args.json:
        print_json({"policy": args.policy, "task": source.card.task, **result.as_dict()})
    else:
        print_evaluation(source.card.task, result, time.perf_counter() - began)
    if target is not None:
        plot(target, source.card.task, result, source.cfg.task.control_dt)
    return EXIT_OK


def _play(args: argparse.Namespace) -> int:
    if args.size % 2:
        raise UsageError(f"--size {args.size}: the video format needs an even number of pixels")
    for flag, path in (("--strip", args.strip), ("--views", args.views)):
        if path and args.video is None:
            raise UsageError(f"{flag} {path}: it is cut from a film; add --video OUT.mp4")
    video = _target("--video", args.video, ".mp4") if args.video is not None else None
    strip = _target("--strip", args.strip, ".png") if args.strip else None
    views = _target("--views", args.views, ".png") if args.views else None
    source = open_source(pathlib.Path(args.policy), args.overrides)
    if views is not None and not source.cfg.task.views():
        raise UsageError(f"--views {views}: the policy of {source.card.task} sees no pictures")
    if video is None:
        if sys.platform == "linux" and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            raise UsageError("there is no display to open a window on; use --video OUT.mp4")
        video_file.play_window(source.env(1, args.seed), source.act)
        return EXIT_OK
    frames = _film(
        source,
        video,
        strip,
        views,
        seed=args.seed,
        episodes=args.episodes,
        size=args.size,
        successful=args.successful,
    )
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


def _film(
    source: Source,
    video: pathlib.Path,
    strip: pathlib.Path | None = None,
    views: pathlib.Path | None = None,
    *,
    seed: int,
    episodes: int,
    size: int,
    successful: bool = False,
) -> int:
    """Film episodes; return the number of frames.

    Raises:
        UsageError: there is no OpenGL, or no episode as wanted.
    """
    from penspin_style.render.gl_renderer import NoOpenGLError

    try:
        films = video_file.shoot(
            source.env, source.act, seed=seed, episodes=episodes, size=size, successful=successful
        )
    except NoOpenGLError as error:
        raise UsageError(f"no film: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    video_file.write(films, video, strip, views, fps=1.0 / source.cfg.task.control_dt)
    return sum(len(shot.frames) for shot in films)


def _target(flag: str, text: str, suffix: str) -> pathlib.Path:
    """Return the file that a film or plot goes to, before the minutes that making it takes.

    Raises:
        UsageError: another kind of file, or a folder that is not there.
    """
    path = pathlib.Path(text)
    if path.suffix != suffix:
        raise UsageError(f"{flag} {path}: the file must end in {suffix}")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: the folder {path.parent} does not exist")
    return path


def _export(args: argparse.Namespace) -> int:
    from penspin_style.deploy.bundle import Bundle
    from penspin_style.deploy.export import export

    path = pathlib.Path(args.policy)
    folder = path / "policy" if (path / "policy").is_dir() else path
    if not (folder / "card.json").exists():
        raise UsageError(f"{path} holds no policy: train to the end, or give a policy folder")
    policy, card = load_policy(folder)
    out = pathlib.Path(args.out) if args.out else path / "policy.onnx"
    if out.suffix != ".onnx":
        raise UsageError(f"--out {out}: the file must end in .onnx")
    report = export(policy, card, out, samples=args.samples, tolerance=args.tolerance)
    if args.json:
        print_json({"onnx": str(out), **report.as_dict()})
    else:
        print(
            f"{out}: {report.bytes} bytes; torch and onnxruntime differ by at most "
            f"{report.max_abs_diff:.1e} over {report.samples} observations"
        )
        print(Bundle.load(out).describe())
    return EXIT_OK


def _record(args: argparse.Namespace) -> int:
    from penspin_style.data.rollouts import LABEL, RolloutWriter

    words, path = list(args.overrides), pathlib.Path(args.policy)
    named = typed_tasks(words)
    source = open_source(path, [] if named else words, trusted=named)
    cfg, task = source.cfg, source.task
    if named:
        cfg, task, _ = compose_train(words)
        source = Source(cfg, task, source.card, source.act)
    env = source.env(args.num_envs, args.seed)
    facts = {"task": task_name(task), "policy": source.card.run}
    facts |= {"control_dt": cfg.task.control_dt, "seed": args.seed}
    writer = RolloutWriter(pathlib.Path(args.out), env.inputs, facts)
    root = env.current()
    with torch.no_grad():
        for _ in range(-(-args.episodes // args.num_envs) * env.cfg.episode_length):
            root.set("action", source.act(root))
            rows = {i.name: root[i.name] for i in env.inputs}
            writer.add({**rows, LABEL: root["action"]})
            _, root = env.step_and_maybe_reset(root)
    writer.close()
    report = {"folder": args.out, "rows": writer.rows, "shards": writer.shards}
    if args.json:
        print_json(report)
    else:
        print(f"{writer.rows} rows in {args.out}")
    return EXIT_OK


def _pretrain(args: argparse.Namespace) -> int:
    from penspin_style.pretrain.cifar import PretrainConfig, pretrain
    from penspin_style.pretrain.renders import RendersConfig, pretrain_on_renders

    out, data = pathlib.Path(args.out), pathlib.Path(args.data)
    given = {k: v for k in ("epochs", "seed") if (v := getattr(args, k)) is not None}

    def show(row: dict[str, float]) -> None:
        ((name, value),) = ((k, v) for k, v in row.items() if k.startswith("test/"))
        print(
            f"epoch {row['epoch']:.0f}/{row['epochs']:.0f}  loss {row['loss']:.3f}  "
            f"{name} {value:.2%}  {row['seconds']:.0f} s",
            file=sys.stderr,
        )

    with torch_threads(os.cpu_count() or 1):
        if (data / "card.json").exists():
            card = pretrain_on_renders(data, out, RendersConfig(**given), show)
            result = f"explains {card['explained_variance']:.1%} of the privileged numbers"
        else:
            card = pretrain(data, out, PretrainConfig(**given), show)
            result = f"{card['test_accuracy']:.2%} of {card['test_images']} test images"
    if args.json:
        print_json({"encoder": str(out), **card})
    else:
        print(f"{result}; encoder in {out}")
    return EXIT_OK


def _bench(args: argparse.Namespace) -> int:
    from penspin_style.bench import render as bench_render
    from penspin_style.bench import sim_train

    if args.kind == "onnx":
        result = sim_train.onnx(pathlib.Path(args.policy), calls=args.calls)
    else:
        cfg, task, _ = compose_train(args.overrides)
        measure = {"sim": sim_train.sim, "train": sim_train.train, "render": bench_render.render}[
            args.kind
        ]
        result = measure(cfg, task, rounds=args.rounds, steps=args.steps)
    if args.json:
        print_json(result)
    else:
        print(json.dumps(result, indent=1))
    return EXIT_OK


def _doctor(args: argparse.Namespace) -> int:
    from penspin_style.cli import doctor

    report = doctor.examine(fit=args.fit, warm=args.warm, words=args.overrides)
    if args.json:
        print_json(report)
    else:
        doctor.show(report)
    return EXIT_OK if report["ok"] else EXIT_DATA


_VERBS = {
    "tasks": _tasks,
    "train": _train,
    "eval": _eval,
    "play": _play,
    "export": _export,
    "bench_sim": _bench,
    "bench_train": _bench,
    "bench_render": _bench,
    "bench_onnx": _bench,
    "pretrain": _pretrain,
    "record": _record,
    "doctor": _doctor,
}
