"""`penspin doctor`: versions, OpenGL, GPU, Warp's cache, folders, how many envs fit."""

import argparse
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from penspin_style.env.env import Env
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import UsageError, compose_train
from penspin_style.train.environment import resolve_device
from penspin_style.train.run import EXIT_DATA, EXIT_OK, versions

_FIT_STEPS = 20
_DRAW_SECONDS = 60.0


def run(args: argparse.Namespace) -> int:
    """Say what this machine can do."""
    report = examine(fit=args.fit, warm=args.warm, overrides=args.overrides)
    if args.json:
        print_json(report)
    else:
        show(report)
    return EXIT_OK if report["ok"] else EXIT_DATA


def examine(*, fit: bool, warm: bool, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the findings; `ok` is False when something that the quickstart needs is missing.

    overrides: they choose the task whose environments `fit` counts and `warm` compiles for.
    """
    if overrides:  # invalid ones are said whether or not anything is measured with them
        compose_train(overrides)
    report: dict[str, Any] = {"problems": []}
    problems = report["problems"]
    opengl: dict[str, str | None] = {"platform": None, "error": "see above"}
    for name, find, otherwise in (
        ("python", platform.python_version, None),
        ("cores", os.cpu_count, None),
        ("memory_gib", _memory_gib, None),
        ("versions", versions, {}),
        ("gpu", _gpu, None),
        ("opengl", _opengl, opengl),
        ("warp_cache", _warp_cache, None),
        ("folders", _folders, {}),
    ):
        report[name] = _tried(name, find, otherwise, problems)
    missing = [name for name, version in report["versions"].items() if version == "not installed"]
    problems += [f"{name} is not installed: pip install -e ." for name in missing]
    problems += [f"{p} is not writable" for p, ok in report["folders"].items() if not ok]
    if not report["opengl"]["platform"]:
        problems.append(f"no videos and images: {report['opengl']['error']}")
    if warm:
        report["warm_seconds"] = _tried("warm", lambda: _warm(overrides), None, problems)
    if fit:
        report["fit"] = _tried("fit", lambda: _fit(overrides), [], problems)
    needed = all(report[name] for name in ("versions", "folders"))
    report["ok"] = needed and not missing and all(report["folders"].values())
    return report


def show(report: dict[str, Any]) -> None:
    """Print the findings for a person."""
    for key in ("python", "cores", "memory_gib", "gpu", "warp_cache"):
        print(f"{key:12} {report[key] if report[key] is not None else 'none'}")
    for name, version in report["versions"].items():
        print(f"{name:14} {version}")
    print(f"{'opengl':12} {report['opengl']['platform'] or 'none'}")
    for row in report.get("fit", []):
        print(
            f"{row['num_envs']:7} envs  {row['env_steps_per_s']:9.0f} env steps/s  "
            f"{row['memory_mib']:7.0f} MiB"
        )
    for problem in report["problems"]:
        print(f"problem: {problem}")
    print("ok" if report["ok"] else "not ok")


def _tried(name: str, find: Callable[[], Any], otherwise: Any, problems: list[str]) -> Any:
    """Return what is found; what goes wrong meanwhile is one of the problems.

    Raises:
        UsageError: the overrides are at fault, not the machine.
    """
    try:
        return find()
    except UsageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        problems.append(f"{name}: {type(error).__name__}{f': {reason}' if reason else ''}")
        return otherwise


def _gpu() -> str | None:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _folders() -> dict[str, bool]:
    return {str(p): _writable(p) for p in (pathlib.Path("outputs"), pathlib.Path.home())}


_DRAW = """
import mujoco
from penspin_style.render.gl_renderer import choose_platform
name = choose_platform()
renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
renderer.update_scene(mujoco.MjData(renderer.model))
renderer.render()
print("platform", name, flush=True)
"""


def _opengl() -> dict[str, str | None]:
    """Return which platform has drawn an image, in a process of its own: it may crash or hang."""
    done = subprocess.run(
        [sys.executable, "-c", _DRAW],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_DRAW_SECONDS,
        check=False,
    )
    found = re.search(r"^platform (\w+)$", done.stdout, re.MULTILINE)
    if found:  # whatever happened at the exit, it can draw
        return {"platform": found[1], "error": None}
    lines = done.stderr.strip().splitlines()
    how = f"exit code {done.returncode}"
    if done.returncode < 0:
        how = f"ended by {signal.Signals(-done.returncode).name}"
    return {"platform": None, "error": lines[-1] if lines and done.returncode > 0 else how}


def _warp_cache() -> str:
    import warp

    from penspin_style.sim.warp_log import start_warp

    start_warp()
    folder = pathlib.Path(str(warp.config.kernel_cache_dir))
    kernels = sum(1 for f in folder.glob("*") if f.is_dir()) if folder.is_dir() else 0
    return f"{folder} ({kernels} modules)"


def _writable(folder: pathlib.Path) -> bool:
    while not folder.exists():
        folder = folder.absolute().parent
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 1 << 28


def _warm(overrides: Sequence[str]) -> float:
    """Compile Warp's kernels for the task by stepping one environment; return the seconds."""
    cfg, task, _ = compose_train(overrides)
    began = time.perf_counter()
    env = Env(task(cfg.task), 1, resolve_device(cfg.device), engine="warp")
    env.rollout(2)
    return round(time.perf_counter() - began, 1)


def _fit(overrides: Sequence[str]) -> list[dict[str, float]]:
    """Double the number of environments until memory or speed says stop."""
    cfg, task, _ = compose_train(overrides)
    device = resolve_device(cfg.device)
    rows: list[dict[str, float]] = []
    num_envs = 64
    while num_envs <= 65536:
        before = _used_mib(device)
        try:
            env = Env(task(cfg.task), num_envs, device, engine=cfg.sim.engine)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            break
        td = env.current()
        td.set("action", torch.zeros(num_envs, len(env.task.actions), device=device))
        env.step_and_maybe_reset(td)
        began = time.perf_counter()
        for _ in range(_FIT_STEPS):
            env.step_and_maybe_reset(td)
        if device.type == "cuda":
            torch.cuda.synchronize()
        speed = _FIT_STEPS * num_envs / (time.perf_counter() - began)
        memory = max(_used_mib(device) - before, 0.0)
        rows.append({"num_envs": num_envs, "env_steps_per_s": speed, "memory_mib": memory})
        del env
        if len(rows) > 1 and speed < 1.02 * rows[-2]["env_steps_per_s"]:
            break
        num_envs *= 2
    return rows


def _used_mib(device: torch.device) -> float:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
