"""What a run's folder says that the run depends on, and which changes a resume may make.

`config.yaml`, `git.txt`, `git.diff` and `versions.json` are those of the last stretch of training.
`changes.jsonl` has a line for every resume that changed something: from which iteration on, and of
each key what it was and what it became. Lines are added, never removed, so the four files of every
earlier stretch can be told.
"""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import pathlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any

from yaml import YAMLError

from penspin_style import storage
from penspin_style.train.compose import differences
from penspin_style.train.runs import SCORE

CHANGES = "changes.jsonl"
FREE = frozenset(
    (
        *("resume", "resume_changes", "name", "out", "video", "loggers", "keep_last"),
        *("total_samples", "stop_at_success", "checkpoint_every"),
        *("eval_every", "eval_episodes", "final_episodes"),
        *("video_every", "video_tiles", "video_info", "video_fps"),
        *("device", "learn_threads", "sim.nthread", "sim.nconmax", "sim.njmax", "sim.renderer"),
        "launcher",
        *(f"cluster.{key}" for key in ("env", "learner", "cpus", "num_nodes", "address")),
        *("cluster.object_store", "cluster.component_placement.env"),
        *("cluster.component_placement.rollout", "cluster.component_placement.actor"),
    )
)
"""Keys that every resume may change: how long, where, how fast, how often something is kept; none
of them changes what is learned from, but for how many processes collect. (A distillation's learning
rate ends with `total_samples`.)"""
_UNSAID = frozenset(("resume", "resume_changes", "algo.init_from"))
"""Of no meaning for what goes on: the weights come from the checkpoint."""
_SINCE = {"launcher": ("local", ("cluster.", "rollout.")), "overlap": ("False", ())}
"""Key that older runs do not have -> what they did, and which keys mean nothing then."""


class BusyError(ValueError):
    """Another process trains in the same folder."""


def new_name(parent: pathlib.Path) -> str:
    """Return a name that says when a run began, and that no run in a folder has."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    names = (stamp if i == 1 else f"{stamp}-{i}" for i in itertools.count(1))
    return next(name for name in names if not (parent / name).exists())


def newest_name(parent: pathlib.Path) -> str:
    """Return the name of the run in a folder that was written to last.

    Raises:
        ValueError: there is none.
    """
    found = [(f.stat().st_mtime, f.parents[1].name) for f in parent.glob("*/checkpoints/*")]
    if not found:
        raise ValueError(f"resume=true, but {parent} holds no run; leave resume out to start one")
    return max(found)[1]


def lock(folder: pathlib.Path) -> IO[str]:
    """Make a run's folder; return the file whose closing gives it free.

    Raises:
        BusyError: another process has it.
        OSError: it cannot be made.
    """
    file = storage.lock(folder)
    if file is None:
        raise BusyError(f"another process trains in {folder}; choose another name")
    return file


@contextlib.contextmanager
def entered(folder: pathlib.Path, there: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context that a run needs; where that fails, leave no folder that holds nothing."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(there)
        except BaseException:
            if [path.name for path in folder.glob("*")] == [storage.LOCK]:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        yield


def check_use(
    folder: pathlib.Path, resolved: str, found: bool, *, resume: bool, allowed: Sequence[str]
) -> None:
    """Check that no run is written over, and none continued that is not there.

    found: whether the folder holds checkpoints; allowed: keys that a resume may change.

    Raises:
        ValueError: says what to do instead.
    """
    if found and not resume:
        raise ValueError(
            f"{folder} holds a run already: resume=true continues it, name=OTHER starts another"
        )
    if resume and not found:
        raise ValueError(
            f"resume=true, but {folder} holds no checkpoint: leave resume out to start"
        )
    if found:
        check_changes(folder, resolved, allowed)


def changes(folder: pathlib.Path, resolved: str) -> dict[str, tuple[str, str]]:
    """Return what the configuration has otherwise than `config.yaml`: key -> (there, now).

    Raises:
        ValueError: `config.yaml` is missing or unreadable.
    """
    path = folder / "config.yaml"
    try:
        found = differences(path.read_text(), resolved)
        if found.get("task_name", ("",))[0] == "absent":
            raise ValueError("it names no task")
    except (OSError, ValueError, YAMLError) as error:
        raise ValueError(
            f"{path} is missing or unreadable, so nobody can tell whether this is how the run was "
            f"trained ({error}); put it back, or write it with penspin train --print-config"
        ) from error
    for key, (done, theirs) in _SINCE.items():
        if found.get(key) == ("absent", done):
            found = {k: v for k, v in found.items() if not k.startswith((key, *theirs))}
    return {key: value for key, value in found.items() if key not in _UNSAID}


def check_changes(folder: pathlib.Path, resolved: str, allowed: Sequence[str]) -> list[str]:
    """Return the changed keys that needed to be, and were, allowed.

    allowed: keys, or "allow" for all.

    Raises:
        ValueError: others; names them, with what they were and what they would become.
    """
    found = {k: v for k, v in changes(folder, resolved).items() if k not in FREE}
    if refused := [key for key in found if allowed != "allow" and key not in allowed]:
        listed = ", ".join(f"{key}={found[key][0]}, now {found[key][1]}" for key in refused)
        raise ValueError(
            f"resume=true: {folder} was trained with {listed}; leave that as it was, or go on with "
            f"the change by resume_changes=[{','.join(found)}], or resume_changes=allow"
        )
    return list(found)


def describe(folder: pathlib.Path, resolved: str, score: str) -> None:
    """Write what the run depends on, and what its task scores by."""
    for name, text in {**_files(resolved), SCORE: score}.items():
        storage.write_file(folder / name, text.encode())


def note_changes(
    folder: pathlib.Path, resolved: str, iteration: int, others: dict[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Add a line of what a resume changes to `changes.jsonl`; return the changes of keys.

    iteration: after which they apply. others: changes of what is no key, noted as well.
    """
    found = changes(folder, resolved)
    files = {}
    for name, text in _files(resolved).items():
        path = folder / name
        before = path.read_text(errors="replace") if path.exists() else ""
        if name != "config.yaml" and before != text:
            files[name] = (before, text)
    if found or files or others:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"after_iteration": iteration, "time": now, "changes": {**found, **others}}
        line["files"] = files
        path = folder / CHANGES
        lines = path.read_bytes() if path.exists() else b""
        storage.write_file(path, lines + json.dumps(line).encode() + b"\n")
    return found


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    names = ("penspin_style", "torch", "torchrl", "tensordict", "mujoco", "mujoco-warp", "numpy")
    out = {}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def _files(resolved: str) -> dict[str, str]:
    return {
        "config.yaml": resolved,
        "git.txt": _git("rev-parse", "HEAD"),
        "git.diff": _git("diff", "HEAD"),
        "versions.json": json.dumps(versions(), indent=1),
    }


def _git(*arguments: str) -> str:
    """Return what git says about the code, or why it says nothing; never fail a run for it."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository further up is somebody else's
        return f"{root} is not a git checkout\n"
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no git: {error}\n"
    return done.stdout or done.stderr
