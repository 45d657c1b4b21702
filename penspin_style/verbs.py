"""What the command line's verbs do. Each takes the parsed words and returns an exit code."""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch

from penspin_style import storage
from penspin_style.checkpoint import Checkpoints, NoCheckpointError
from penspin_style.compose import UsageError, compose_train, find_task, saved_words, task_names
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.evaluate import Act, Evaluation, evaluate
from penspin_style.features import PolicyCard
from penspin_style.metrics import print_json
from penspin_style.nets.policy import GaussianPolicy, load_policy
from penspin_style.run import (
    EXIT_DATA,
    EXIT_OK,
    EXIT_USAGE,
    FaultyRunError,
    Run,
    resolve_device,
    versions,
)

STRIP_TAIL = 4
"""Frames after the first success that a strip still shows: what follows is standing still."""


def run(args: argparse.Namespace) -> int:
    """Run the verb that the words name; turn what users can mend into one line and an exit code."""
    name = f"{args.verb}_{args.kind}" if args.verb == "bench" else args.verb
    try:
        torch.set_num_threads(_threads())
        return _VERBS[name](args)
    except (FaultyRunError, NoCheckpointError, storage.DamagedError) as error:
        code = EXIT_DATA
        message = error
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        code = EXIT_USAGE
        message = error
        if _ran_out(error):
            message = "not enough memory; a smaller num_envs or algo.hidden needs less"
        elif isinstance(error, RuntimeError):
            raise
    print(f"penspin: {' '.join(str(message).split())}", file=sys.stderr)
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
        print(resolved, end="")
        return EXIT_OK
    trained = Run(cfg, task, resolved)
    code = trained.fit(quiet=args.json)
    if code == EXIT_OK and cfg.video and not trained.interrupted:
        _film_run(trained)
    if args.json:
        print_json(
            {
                "folder": str(trained.folder),
                "iteration": trained.iteration,
                "samples": trained.samples,
                "success_rate": trained.score,
                "exit_code": code,
            }
        )
    return code


def _film_run(trained: Run) -> None:
    from penspin_style.render.gl_renderer import NoOpenGLError

    source = _open(trained.folder, [])
    folder = trained.folder / "videos"
    folder.mkdir(exist_ok=True)
    try:
        _film(source, folder / "episode.mp4", folder / "episode.png", seed=7, episodes=1, size=480)
    except NoOpenGLError as error:
        print(f"penspin: no video: {error}", file=sys.stderr)


class _Source:
    """A policy from anywhere, and the environment that it was trained for."""

    def __init__(self, cfg: TrainConfig, task: Any, card: PolicyCard, act: Act) -> None:
        self.cfg, self.task, self.card, self.act = cfg, task, card, act

    def env(self, num_envs: int, seed: int) -> Env:
        """Return the environment.

        Raises:
            UsageError: it does not observe what the policy reads.
        """
        sim = self.cfg.sim
        env = Env(
            self.task(self.cfg.task),
            num_envs,
            resolve_device(self.cfg.device),
            seed=seed,
            engine=sim.engine,
            nthread=sim.nthread,
            nconmax=sim.nconmax,
            njmax=sim.njmax,
        )
        observed = {i.name: i for i in env.inputs}
        for wanted in self.card.inputs:
            found = observed.get(wanted.name)
            if found != wanted:
                raise UsageError(
                    f"the policy reads {wanted.name!r}, {wanted.size} numbers; task.observation "
                    f"now gives {f'other {found.size}' if found else 'none of that name'}"
                )
        return env


def _open(path: pathlib.Path, words: list[str]) -> _Source:
    """Open a run folder, a policy folder or an ONNX file.

    Raises:
        UsageError: it is none of these.
    """
    if not path.exists():
        raise UsageError(
            f"{path} does not exist; give a run folder, a policy folder or an .onnx file"
        )
    if path.suffix == ".onnx":
        return _open_bundle(path, words)
    folder = path / "policy" if (path / "policy").is_dir() else path
    config = next(
        (f / "config.yaml" for f in (path, path.parent) if (f / "config.yaml").exists()), None
    )
    if (folder / "card.json").exists():
        policy, card = load_policy(folder)
        start = saved_words(config) if config else [f"task={card.task}"]
        cfg, task, _ = compose_train([*start, *words])
    elif (path / "checkpoints").is_dir() and config:
        cfg, task, _ = compose_train([*saved_words(config), *words])
        try:
            policy, card = _from_checkpoint(path, cfg, task)
        except RuntimeError as error:  # torch lists every weight
            if not words:
                raise
            raise UsageError(
                f"{' '.join(words)}: the checkpoints of {path} are of other sizes; leave it out"
            ) from error
    else:
        raise UsageError(f"{path} is neither a run folder, a policy folder nor an .onnx file")
    device = resolve_device(cfg.device)
    policy.to(device)
    return _Source(cfg, task, card, lambda td: policy.act(td[policy.in_key]))


def _open_bundle(path: pathlib.Path, words: list[str]) -> _Source:
    from penspin_style.deploy.bundle import Bundle

    bundle = Bundle.load(path)
    config = path.parent / "config.yaml"
    start = saved_words(config) if config.exists() else [f"task={bundle.card.task}"]
    cfg, task, _ = compose_train([*start, *words])
    names = [i.name for i in bundle.card.inputs]

    def act(td: Any) -> torch.Tensor:
        action = bundle({name: td[name].cpu().numpy() for name in names})
        return torch.from_numpy(np.asarray(action)).to(td.device)

    return _Source(cfg, task, bundle.card, act)


def _from_checkpoint(
    path: pathlib.Path, cfg: TrainConfig, task: Any
) -> tuple[GaussianPolicy, PolicyCard]:
    """Return the policy of an unfinished run's newest whole checkpoint."""
    from penspin_style.algo.ppo import PPO

    _, state, messages = Checkpoints(path / "checkpoints").newest()
    for message in messages:
        print(f"penspin: {message}", file=sys.stderr)
    env = Env(task(cfg.task), 1, "cpu")
    algo = PPO(cfg.algo, env.inputs, len(env.task.actions), device=torch.device("cpu"), seed=0)
    algo.load_state_dict(state["algo"])
    card = env.card(
        task=task.__module__.removeprefix("tasks."),
        run=f"{path}/iteration{state['run']['iteration']}",
        network=algo.policy.describe(),
        score={},
        versions=versions(),
        in_keys=(algo.policy.in_key,),
    )
    return algo.policy, card


def _eval(args: argparse.Namespace) -> int:
    source = _open(pathlib.Path(args.policy), args.overrides)
    began = time.perf_counter()
    result = evaluate(source.env(args.episodes, args.seed), source.act, seed=args.seed)
    if args.json:
        print_json({"policy": args.policy, "task": source.card.task, **result.as_dict()})
    else:
        _print_evaluation(source.card.task, result, time.perf_counter() - began)
    return EXIT_OK


def _print_evaluation(task: str, result: Evaluation, seconds: float) -> None:
    low, high = result.interval
    print(f"{task}: {result.episodes} episodes, seed {result.seed}, {seconds:.0f} s")
    print(f"  success     {result.success_rate:7.1%}   95% interval {low:.1%} to {high:.1%}")
    print(f"  at the end  {result.success_at_end:7.1%}")
    print(f"  return      {result.return_:7.2f}")
    for name, value in result.reward.items():
        print(f"    {name:10}{value:7.2f}")
    print(f"  length      {result.episode_len:7.1f} steps")
    print(f"  faults      {result.faults:7d}")


def _play(args: argparse.Namespace) -> int:
    if args.size % 2:
        raise UsageError(f"--size {args.size}: the video format needs an even number of pixels")
    if args.strip and args.video is None:
        raise UsageError(f"--strip {args.strip}: a strip is cut from a film; add --video OUT.mp4")
    video = _target("--video", args.video, ".mp4") if args.video is not None else None
    strip = _target("--strip", args.strip, ".png") if args.strip else None
    source = _open(pathlib.Path(args.policy), args.overrides)
    if video is None:
        return _play_window(source, args.seed)
    from penspin_style.render.gl_renderer import NoOpenGLError

    try:
        frames = _film(
            source,
            video,
            strip,
            seed=args.seed,
            episodes=args.episodes,
            size=args.size,
            successful=args.successful,
        )
    except NoOpenGLError as error:
        raise UsageError(f"no film: {error}") from error
    if args.json:
        print_json({"video": str(video), "strip": args.strip, "frames": frames})
    else:
        print(f"{frames} frames in {video}" + (f", strip in {strip}" if strip else ""))
    return EXIT_OK


def _target(flag: str, text: str, suffix: str) -> pathlib.Path:
    """Return the file that a film goes to, before the minutes that filming takes.

    Raises:
        UsageError: another kind of file, or a folder that is not there.
    """
    path = pathlib.Path(text)
    if path.suffix != suffix:
        raise UsageError(f"{flag} {path}: the file must end in {suffix}")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: the folder {path.parent} does not exist")
    return path


def _check_size(size: int, env: Env) -> None:
    limit = min(env.model.vis.global_.offwidth, env.model.vis.global_.offheight)
    if size > limit:
        raise UsageError(f"--size {size}: the task's model allows at most {limit} pixels")


def _film(
    source: _Source,
    video: pathlib.Path,
    strip: pathlib.Path | None,
    *,
    seed: int,
    episodes: int,
    size: int,
    successful: bool = False,
) -> int:
    """Film episodes one after the other; return the number of frames."""
    from penspin_style.render.gl_renderer import GLRenderer, write_strip, write_video

    films: list[list[np.ndarray]] = []
    strip_end = 0
    for attempt in range(20 * episodes):
        env = source.env(1, seed + attempt)
        _check_size(size, env)
        frames: list[np.ndarray] = []
        with GLRenderer(env.sim, env.task.camera, height=size, width=size) as renderer:
            result = evaluate(
                env,
                source.act,
                seed=seed,
                on_step=lambda r=renderer, f=frames: f.append(r.render()),
            )
        # the environment restarts at the end of its episode: what follows shows the next one
        frames = frames[: max(1, round(result.episode_len))]
        if not successful or result.success_rate == 1.0:
            films.append(frames)
            strip_end = strip_end or round(result.first_success or len(frames)) + STRIP_TAIL
        if len(films) == episodes:
            break
    if not films:
        raise UsageError(f"no successful episode among {20 * episodes}; leave out --successful")
    write_video(video, [f for film in films for f in film], 1.0 / source.cfg.task.control_dt)
    if strip is not None:
        write_strip(strip, films[0][:strip_end])
    return sum(len(film) for film in films)


def _play_window(source: _Source, seed: int) -> int:
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise UsageError("there is no display to open a window on; use --video OUT.mp4")
    import mujoco
    import mujoco.viewer

    env = source.env(1, seed)
    data = mujoco.MjData(env.model)
    root = env.current()
    with mujoco.viewer.launch_passive(env.model, data) as viewer:
        while viewer.is_running():
            began = time.perf_counter()
            root.set("action", source.act(root))
            _, root = env.step_and_maybe_reset(root)
            for name in ("qpos", "qvel", "mocap_pos", "mocap_quat"):
                if getattr(data, name).size:
                    getattr(data, name)[:] = env.sim.data[name][0].cpu().numpy()
            mujoco.mj_forward(env.model, data)
            viewer.sync()
            time.sleep(max(0.0, env.cfg.control_dt - (time.perf_counter() - began)))
    return EXIT_OK


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
    report = export(policy, card, out, samples=args.samples)
    if args.json:
        print_json({"onnx": str(out), **report.as_dict()})
    else:
        print(
            f"{out}: {report.bytes} bytes; torch and onnxruntime differ by at most "
            f"{report.max_abs_diff:.1e} over {report.samples} observations"
        )
        print(Bundle.load(out).describe())
    return EXIT_OK


def _bench(args: argparse.Namespace) -> int:
    from penspin_style import bench

    cfg, task, _ = compose_train(args.overrides)
    measure = bench.sim if args.kind == "sim" else bench.train
    result = measure(cfg, task, rounds=args.rounds, steps=args.steps)
    if args.json:
        print_json(result)
    else:
        print(json.dumps(result, indent=1))
    return EXIT_OK


def _doctor(args: argparse.Namespace) -> int:
    from penspin_style import doctor

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
    "doctor": _doctor,
}
