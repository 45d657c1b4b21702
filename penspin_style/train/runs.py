"""What run folders tell: their configuration, their curves, their score. Nothing is written.

A table of them and their comparison need neither torch nor a simulation: a folder is text.
"""

import csv
import fcntl
import json
import math
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from penspin_style import storage
from penspin_style.system.interval import wilson
from penspin_style.system.plain_yaml import read_mapping

SCORE = "score.txt"
"""File that names what a run's task scores by, as `success_at_end` or a measure of its own."""
_TIMES = ("time/rollout", "time/update", "time/eval")
_MAX_CARD = 2**20  # bytes


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as it has got."""

    folder: pathlib.Path
    task: str
    config: dict[str, Any] = field(repr=False)
    rows: list[dict[str, float]] = field(repr=False)
    """`metrics.csv`; empty without that logger."""
    score_name: str
    """`success_once`, `success_at_end` or the task's own figure."""
    score: float | None
    """Of the published policy; before there is one, of the last evaluation."""
    interval: tuple[float, float] | None
    """95 %, of a success rate."""
    state: str
    """`finished`, `running` or `stopped`."""
    git: str
    """Short commit, with a + for changes of the code on top."""

    @property
    def name(self) -> str:
        """Return the run's name beside others of its task."""
        return self.folder.name

    @property
    def algo(self) -> str:
        """Return the algorithm's name."""
        return str((self.config.get("algo") or {}).get("name", ""))

    @property
    def seed(self) -> int:
        """Return the seed."""
        return int(self.config.get("seed") or 0)

    @property
    def samples(self) -> int:
        """Return the environment steps so far."""
        return int(self.rows[-1].get("samples", 0)) if self.rows else 0

    @property
    def minutes(self) -> float:
        """Return how long roll-outs, updates and evaluations have taken."""
        return sum(row.get(name, 0.0) for row in self.rows for name in _TIMES) / 60

    def curve(self, metric: str, x: str = "samples") -> tuple[list[float], list[float]]:
        """Return (x, values) of the rows that have a metric; x: `samples` or `minutes`, as above.

        The minutes of a resumed run go on where its last row was.
        """
        points, spent = [], 0.0
        for row in self.rows:
            spent += sum(row.get(name, 0.0) for name in _TIMES) / 60
            if metric in row and "samples" in row:
                points.append((spent if x == "minutes" else row["samples"], row[metric]))
        return [at for at, _ in points], [value for _, value in points]


def is_run(folder: pathlib.Path) -> bool:
    """Return whether a folder is a run's."""
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def find_runs(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the run folders that a folder is, or holds up to three levels below; sorted."""
    if is_run(folder):
        yield folder
        return
    found = {p for depth in range(1, 4) for p in folder.glob("*/" * depth) if is_run(p)}
    yield from sorted(found)


def read_run(folder: pathlib.Path) -> RunRecord:
    """Return what a run's folder tells.

    Raises:
        ValueError: it is no run's, or its configuration cannot be read.
    """
    if not is_run(folder):
        raise ValueError(f"{folder} is no run folder: it has no config.yaml and checkpoints")
    config = read_mapping(folder / "config.yaml")
    rows = read_rows(folder / "metrics.csv")
    card = _card(folder)
    score = card.get("score") or {}
    found = folder / SCORE
    asked = found.read_text() if found.is_file() else "success_rate"
    name = str(score.get("scored_by") or asked)
    name = "success_once" if name == "success_rate" else name
    key = "success_rate" if name == "success_once" else name
    value, interval = score.get(key), None
    if value is None:
        values = [row[f"eval/{name}"] for row in rows if f"eval/{name}" in row]
        value = values[-1] if values else None
    elif name.startswith("success_"):
        interval = wilson(float(value), int(score.get("episodes") or 0))
    return RunRecord(
        folder=folder,
        task=str(config.get("task_name", "")),
        config=config,
        rows=rows,
        score_name=name,
        score=None if value is None else float(value),
        interval=interval,
        state=_state(folder, bool(card)),
        git=_git(folder),
    )


def read_rows(path: pathlib.Path) -> list[dict[str, float]]:
    """Return the rows of a `metrics.csv`, also of one that grows; what is no number is left out."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for fields in csv.DictReader(lines):
        row = {key: _number(text) for key, text in fields.items() if key and text}
        if row := {key: value for key, value in row.items() if value is not None}:
            rows.append(row)
    return rows


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _card(folder: pathlib.Path) -> dict[str, Any]:
    try:
        card = json.loads(storage.read_file(folder / "policy" / "card.json", _MAX_CARD))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _state(folder: pathlib.Path, has_policy: bool) -> str:
    try:
        with (folder / storage.LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:  # a copy of a run has none
        pass
    return "finished" if has_policy else "stopped"


def _git(folder: pathlib.Path) -> str:
    try:
        commit = (folder / "git.txt").read_text().strip()
        changed = bool((folder / "git.diff").read_text().strip())
    except OSError:
        return ""
    is_commit = len(commit) == 40 and set(commit) <= set("0123456789abcdef")
    return f"{commit[:8]}{'+' if changed else ''}" if is_commit else ""
