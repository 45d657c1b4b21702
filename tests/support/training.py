"""A run to its end, and what it left behind."""

import csv

from penspin_style.storage import MANIFEST
from penspin_style.train.compose import compose_train
from penspin_style.train.run import Run


def make(out, *overrides):
    return Run(*compose_train([*overrides, f"out={out}"]))


def fit(out, *overrides):
    run = make(out, *overrides)
    assert run.fit(quiet=True) == 0
    return run


def rows(run):
    with (run.folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(run):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows(run)]


def manifest(run, iteration):
    """The checksums of everything that the run is at an iteration."""
    return (run.checkpoints.folder / f"{iteration:08d}" / MANIFEST).read_text()
