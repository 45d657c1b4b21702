"""`penspin runs`: a table of runs."""

import argparse
import pathlib
import sys
from typing import Any

from penspin_style.system.terminal import aligned, one_line, print_json, printable
from penspin_style.train.runs import RunRecord, find_runs, read_run

HEAD = ("run", "algo", "seed", "samples", "minutes", "score", "state", "code")
TEXT = (0, 1, 5, 6, 7)
"""The columns that are no numbers."""
"""Of the table."""


def run(args: argparse.Namespace) -> int:
    """List the runs of a folder, those that were written to last at the end."""
    folder = pathlib.Path(args.folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one that holds runs")
    records = []
    for path in find_runs(folder):
        try:
            records.append(read_run(path))
        except ValueError as error:
            print(f"penspin: {one_line(error)}", file=sys.stderr)
    records.sort(key=lambda r: (r.folder / "checkpoints").stat().st_mtime)
    if args.json:
        print_json({"runs": [as_dict(record) for record in records]})
    elif records:
        print("\n".join(aligned([HEAD, *map(row, records)], left=TEXT)))
    else:
        print(f"no runs in {folder}; penspin train makes one")
    return 0


def row(record: RunRecord) -> tuple[str, ...]:
    """Return a run's columns for people."""
    score = "none"
    if record.score is not None:
        is_share = record.score_name.startswith("success_")
        form = ".1%" if is_share else ".2f"
        score = f"{record.score_name} {record.score:{form}}"
        if record.interval:
            low, high = record.interval
            score += f" ({low:{form}} to {high:{form}})"
    title = printable(f"{record.task}/{record.name}")
    samples, minutes = f"{record.samples:,}", f"{record.minutes:.1f}"
    return title, record.algo, str(record.seed), samples, minutes, score, record.state, record.git


def as_dict(record: RunRecord) -> dict[str, Any]:
    """Return a run as JSON values."""
    return {
        "folder": str(record.folder),
        **{key: getattr(record, key) for key in ("task", "name", "algo", "seed", "samples")},
        **{key: getattr(record, key) for key in ("minutes", "score_name", "score", "interval")},
        **{key: getattr(record, key) for key in ("state", "git")},
    }
