"""`penspin compare`: curves, aggregate and differences of runs, on one page."""

import argparse
import pathlib
import sys
from dataclasses import asdict

from penspin_style.cli.runs import HEAD, TEXT, as_dict, row
from penspin_style.system.terminal import aligned, print_json, printable
from penspin_style.train.comparison import (
    AtTime,
    Estimate,
    Group,
    at_equal_time,
    differences,
    estimate,
    grouped,
    mean_curve,
)
from penspin_style.train.runs import RunRecord, find_runs, read_run
from penspin_style.viewer.comparison import draw, said, write


def run(args: argparse.Namespace) -> int:
    """Compare the runs that the command line names, or that lie in folders that it names.

    Raises:
        ValueError: no runs, no such metric, or no matplotlib.
    """
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        need = "pip install 'penspin_style[plot]'"
        raise ValueError(f"a comparison is drawn by matplotlib ({error}): {need}") from error
    records = _records(args.runs)
    groups = grouped(records)
    curves, metrics = {}, {}
    for task in dict.fromkeys(group.task for group in groups):
        own = [group for group in groups if group.task == task]
        metrics[task] = args.metric or f"eval/{own[0].runs[0].score_name}"
        drawn = [(group, mean_curve(group.runs, metrics[task], args.x)) for group in own]
        curves[task] = [(group, curve) for group, curve in drawn if curve is not None]
        if not curves[task]:
            raise ValueError(_no_metric(metrics[task], own))
        for group, curve in drawn:
            if curve is None:
                text = f"{task}, {group.label}: no row has {metrics[task]}; it is not drawn"
                print(f"penspin: {printable(text)}", file=sys.stderr)
    aggregates = _aggregates(groups)
    changed = differences(records)
    names = [f"{record.task}/{record.name}" for record in records]
    told = [("key", *names), *((key, *values) for key, values in changed.items())]
    runs = [HEAD, *map(row, records)]
    timed = at_equal_time(groups, metrics)
    rows = _timed(timed, metrics)
    image = draw(curves, metrics, args.x)
    files = write(pathlib.Path(args.out), image, runs, aggregates, told, rows)
    if args.json:
        found = {
            label: {"iqm": each.value, "interval": each.interval}
            for label, each in aggregates.items()
        }
        told_runs = {"runs": [as_dict(record) for record in records]}
        paths = {"files": [str(file) for file in files]}
        print_json(
            {
                **told_runs,
                "aggregates": found,
                "at_equal_time": [asdict(each) for each in timed],
                "differences": changed,
                **paths,
            }
        )
        return 0
    print("\n".join(aligned(runs, left=TEXT)))
    lines = [(label, f"{e.value:.3f}", said(e.interval)) for label, e in aggregates.items()]
    print("\n".join(aligned([("configuration", "IQM", "95% interval"), *lines], left=(0, 1, 2))))
    print("\n".join(aligned(rows, left=(0, 1, 4, 6))))
    print(f"page in {files[0]}, curves in {files[1]}")
    return 0


def _records(names: list[str]) -> list[RunRecord]:
    records = []
    for name in names:
        folder = pathlib.Path(name)
        found = [read_run(path) for path in find_runs(folder)]
        if not found:
            raise ValueError(f"{folder} is no run folder and holds none")
        records += found
    return list({record.folder.resolve(): record for record in records}.values())


def _aggregates(groups: list[Group]) -> dict[str, Estimate]:
    """Return the interquartile mean of each configuration that has scores, over its tasks."""
    strata: dict[str, list[list[float]]] = {}
    for group in groups:
        strata.setdefault(group.label, []).append(group.scores)
    return {label: estimate(scores) for label, scores in strata.items() if any(scores)}


def _timed(timed: list[AtTime], metrics: dict[str, str]) -> list[tuple[str, ...]]:
    """Return what was reached at equal time as a table, its head first."""
    head = ("task", "configuration", "minutes", "samples", "metric", "mean", "95% interval")
    lines: list[tuple[str, ...]] = [head]
    for each in timed:
        when = (f"{each.minutes:.1f}", f"{each.samples:.0f}")
        reached = (f"{each.reached.value:.3f}", said(each.reached.interval))
        lines.append((each.task, each.label, *when, metrics[each.task], *reached))
    return lines


def _no_metric(metric: str, groups: list[Group]) -> str:
    known = sorted({key for group in groups for run in group.runs for r in run.rows for key in r})
    near = [key for key in known if key.startswith(("eval/", "env/", "reward/"))]
    return f"{metric}: no run of {groups[0].task} has this metric; there are {', '.join(near)}"
