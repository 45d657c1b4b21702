"""Policies and episodes on the Hugging Face Hub, or in a local folder laid out like a repository.

| kind | files |
| --- | --- |
| `model` | `policy/` as a training publishes it, `policy.onnx`, or both; `README.md` |
| `dataset` | episodes, `*.h5`; `README.md` |

What is sent and what is fetched is checked first, in a folder of its own: weights against their
manifest, an exported policy and its card by loading it, every value of every episode. Files of
other names are neither sent nor taken; nothing here opens a pickle or runs code of a repository.

A repository is `ORG/NAME`, or a local folder: `.`, `..`, or what begins with `./`, `../` or `/`.
The client is `huggingface_hub`, extra `hub`; its own settings hold (`HF_TOKEN`, `HF_HOME`,
`HF_ENDPOINT`, `HF_HUB_OFFLINE=1`: what has been fetched before is taken from its cache).
"""

import contextlib
import json
import pathlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from penspin_style import storage
from penspin_style.data.check import verify
from penspin_style.deploy.bundle import Bundle
from penspin_style.features import PolicyCard
from penspin_style.nets.policy import WEIGHTS, load_policy

KINDS = ("model", "dataset")
_PATTERNS = {"model": ("policy/*", "policy.onnx", "config.yaml"), "dataset": ("*.h5", "**/*.h5")}
_README = "README.md"
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubError(ValueError):
    """A repository cannot be reached, read or written, or what is in it cannot be trusted."""


@dataclass(frozen=True)
class Moved:
    """What was sent or fetched."""

    kind: str
    """`model` or `dataset`."""
    where: str
    """An address, or a folder."""
    files: tuple[str, ...]
    """Relative to it, sorted."""


def push(
    what: pathlib.Path,
    repo: str,
    *,
    private: bool = False,
    message: str = "",
    licence: str = "",
) -> Moved:
    """Send a policy or episodes, with a README.

    what: a run folder, a policy folder, an .onnx file, or a folder of episodes.
    repo: is made if it is not there; a local folder must not exist, or be empty.
    licence: an identifier of the Hub, as apache-2.0; empty for none stated.

    Raises:
        HubError: see there.
        storage.DamagedError: a policy does not match its manifest.
        ValueError: `what` holds neither a policy nor episodes; the licence is no identifier.
    """
    _check_repo(repo)
    if licence and not _LICENCE.fullmatch(licence):
        raise ValueError(f"licence {licence!r} is no identifier of the Hub, as apache-2.0 or mit")
    with _folder() as stage:
        kind = _stage(what, stage)
        try:
            checked = _check(kind, stage)
        except ValueError as error:
            said = str(error).replace(f"{stage}/", "")
            kind_of = storage.DamagedError if isinstance(error, storage.DamagedError) else HubError
            raise kind_of(f"{what} is not sent: {said}") from error
        (stage / _README).write_text(_readme(kind, checked, repo, licence))
        files = _files(stage)
        if not _is_local(repo):
            return Moved(kind, _upload(kind, stage, repo, private, message), files)
        target = pathlib.Path(repo)
        _publish(stage, target)
        return Moved(kind, str(target), files)


def pull(repo: str, out: pathlib.Path, *, kind: str = "model", revision: str = "") -> Moved:
    """Fetch a policy or episodes into a folder that must not exist, or be empty.

    kind: of `KINDS`. revision: a branch, tag or commit; empty for the newest.

    Raises:
        HubError: see there; `out` is as it was.
    """
    _check_repo(repo)
    with _folder() as stage:
        source = pathlib.Path(repo) if _is_local(repo) else _download(kind, repo, revision)
        if not source.is_dir():
            raise HubError(f"{repo} is no folder")
        for pattern in (*_PATTERNS[kind], _README):
            for file in sorted(source.glob(pattern)):
                if file.is_file():
                    _copy(file, stage / file.relative_to(source))
        try:
            _check(kind, stage)
        except ValueError as error:
            said = str(error).replace(f"{stage}/", "")
            raise HubError(f"{repo} holds no {kind} that can be trusted: {said}") from error
        _publish(stage, out)
        return Moved(kind, str(out), _files(out))


# What is sent.


def _stage(what: pathlib.Path, stage: pathlib.Path) -> str:
    """Copy the files that are sent; return their kind."""
    if what.is_file() and what.suffix == ".onnx":
        _copy(what, stage / "policy.onnx")
        return "model"
    policy = what / "policy" if (what / "policy").is_dir() else what
    if (policy / "card.json").is_file():
        for file in policy.iterdir():
            _copy(file, stage / "policy" / file.name)
        for name in ("policy.onnx", "config.yaml"):
            if policy != what and (what / name).is_file():
                _copy(what / name, stage / name)
        return "model"
    episodes = sorted(what.rglob("*.h5")) if what.is_dir() else []
    if not episodes:
        raise ValueError(
            f"{what} holds neither a policy nor episodes: give a run folder, a policy folder, an "
            ".onnx file or a folder of .h5 files"
        )
    for file in episodes:
        _copy(file, stage / file.relative_to(what))
    return "dataset"


def _check(kind: str, stage: pathlib.Path) -> Any:
    """Return the card of a policy, or the facts of episodes.

    Raises:
        ValueError: they cannot be trusted, or are not there.
    """
    if kind == "dataset":
        results = list(verify(sorted(stage.rglob("*.h5"))))
        if bad := next((r.fault for r in results if r.fault is not None), None):
            raise ValueError(str(bad))
        if not results:
            raise ValueError("there is no .h5 file")
        return [result.facts for result in results]
    folder, exported = stage / "policy", stage / "policy.onnx"
    card = load_policy(folder)[1] if folder.is_dir() else None
    if not exported.is_file():
        if card is None:
            raise ValueError("there is neither policy/ nor policy.onnx")
        return card
    theirs = Bundle.load(exported).card
    if card is None:
        return theirs
    weights = storage.read_manifest(folder)["sha256"][WEIGHTS]
    if theirs.weights_sha256 != weights:
        raise ValueError("policy.onnx was not exported from policy/: export again")
    return card


def _readme(kind: str, checked: Any, repo: str, licence: str) -> str:
    """Return a card of the Hub: YAML of what its search knows, then text."""
    name = pathlib.PurePath(repo).name
    head: dict[str, Any] = {"tags": ["robotics", "mujoco", "penspin_style"]}
    if licence:
        head["license"] = licence
    if kind == "model":
        head |= {"library_name": "penspin_style", "pipeline_tag": "robotics"}
        body = _about_policy(name, repo, checked, head)
    else:
        head["task_categories"] = ["robotics"]
        body = _about_episodes(name, repo, checked)
    # JSON is YAML
    lines = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---", "", *body, ""])


def _about_policy(name: str, repo: str, card: PolicyCard, head: dict[str, Any]) -> list[str]:
    score = card.score
    lines = [f"# {name}", "", f"A policy of the task `{card.task}`, {1 / card.control_dt:g} Hz."]
    if "success_rate" in score:
        low, high = score["interval"]
        said = f"{score['success_rate']:.1%} ({low:.1%} to {high:.1%}) of {score['episodes']}"
        lines += ["", f"Success in simulation: {said} episodes."]
        metric = {"type": "success_rate", "value": score["success_rate"]}
        about = {"type": card.task, "name": card.task}
        result = {"task": {"type": "robotics"}, "dataset": about, "metrics": [metric]}
        head["model-index"] = [{"name": name, "results": [result]}]
    own = f"outputs/hub/{name}"
    lines += ["", "```bash", f"penspin hub pull {repo} --out {own}"]
    lines += [f"penspin eval {own} --episodes 500", "```", ""]
    lines += ["| input | shape | unit |", "| --- | --- | --- |"]
    features = [feature for group in card.inputs for feature in group.features]
    lines += [f"| `{f.name}` | {'x'.join(map(str, f.shape)) or 1} | {f.unit} |" for f in features]
    lines += ["", "| action | unit | kind |", "| --- | --- | --- |"]
    return [*lines, *(f"| `{a.name}` | {a.unit} | {a.mode} |" for a in card.actions)]


def _about_episodes(name: str, repo: str, facts: list[Any]) -> list[str]:
    tasks = sorted({each.task for each in facts if each.task})
    seconds = sum(each.seconds for each in facts)
    return [
        *(f"# {name}", ""),
        f"{len(facts)} files of episodes, {seconds:.0f} s, {', '.join(tasks) or 'of no task'}.",
        *("", "```bash", f"penspin hub pull {repo} --dataset --out {name}"),
        *(f"penspin data info {name}", "```"),
    ]


# Where it goes.


def _check_repo(repo: str) -> None:
    if not _is_local(repo) and not _NAME.fullmatch(repo):
        raise HubError(f"{repo!r} is no repository: give ORG/NAME, or a local folder as ./FOLDER")


def _is_local(repo: str) -> bool:
    return repo in (".", "..") or repo.startswith(("./", "../", "/"))


def _upload(kind: str, stage: pathlib.Path, repo: str, private: bool, message: str) -> str:
    with _client() as hub:
        api = hub.HfApi()
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        said = message or "Upload by penspin_style"
        api.upload_folder(repo_id=repo, repo_type=kind, folder_path=stage, commit_message=said)
        prefix = "" if kind == "model" else "datasets/"
        return f"{api.endpoint}/{prefix}{repo}"


def _download(kind: str, repo: str, revision: str) -> pathlib.Path:
    with _client() as hub:
        patterns = [*_PATTERNS[kind], _README]
        options: dict[str, Any] = {"repo_type": kind, "revision": revision or None}
        return pathlib.Path(hub.snapshot_download(repo, allow_patterns=patterns, **options))


@contextlib.contextmanager
def _client() -> Iterator[Any]:
    """Give the client; what it raises becomes one line."""
    try:
        import httpx
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise HubError(
            f"the Hub needs a package that is missing ({error}): pip install 'penspin_style[hub]'"
        ) from error
    try:
        yield huggingface_hub
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            "the Hub is not reached, and the repository has not been fetched before"
        ) from error
    except (errors.OfflineModeIsEnabled, httpx.TransportError) as error:
        raise HubError(f"the Hub is not reached: {_first_line(error)}") from error
    except errors.HfHubHTTPError as error:
        hint = "is the name right, and HF_TOKEN that of somebody who may?"
        raise HubError(f"the Hub refuses: {_first_line(error)}; {hint}") from error
    except errors.HFValidationError as error:
        raise HubError(f"the Hub knows no such name: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


# Files.


@contextlib.contextmanager
def _folder() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="penspin-hub-") as folder:
        yield pathlib.Path(folder)


def _copy(file: pathlib.Path, to: pathlib.Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)  # of the cache's links, what they point to


def _files(folder: pathlib.Path) -> tuple[str, ...]:
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return tuple(sorted(map(str, found)))


def _publish(stage: pathlib.Path, target: pathlib.Path) -> None:
    """Copy the stage to a folder, complete or not at all."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HubError(f"{target} exists already and is not empty: choose another folder")
    storage.make_folder(target.parent)
    fresh = target.parent / f"{storage.STAGE}{uuid.uuid4().hex}"
    try:
        shutil.copytree(stage, fresh)
        storage.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
