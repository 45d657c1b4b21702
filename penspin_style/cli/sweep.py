"""`penspin sweep`: find good values of some keys by training with many."""

import argparse
import csv
import io
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from penspin_style import storage
from penspin_style.cli.report import check_plotting
from penspin_style.system.terminal import aligned, one_line, print_json
from penspin_style.train.sweep import Sweep, Trial, read_sweep


def run(args: argparse.Namespace) -> int:
    """Run the trials that are missing; print and keep one table, and draw it."""
    path = pathlib.Path(args.space)
    cfg = read_sweep(path)
    cfg.trials = args.trials or cfg.trials
    check_plotting()
    folder = pathlib.Path(args.out or f"outputs/sweeps/{path.stem}")
    sweep = Sweep(cfg, folder, args.overrides)
    try:
        code = sweep.run(_say, quiet=args.json)
        trials = sweep.trials()
    finally:
        sweep.close()
    keys = list(cfg.space)
    storage.write_file(folder / "trials.csv", _csv(trials, keys).encode())
    drawn = [t for t in trials if t.score is not None]
    if drawn:
        plot(folder / "trials.png", drawn, keys, cfg.space)
    if args.json:
        print_json({"folder": str(folder), "trials": [vars(t) for t in trials], "exit_code": code})
    else:
        print("\n".join(table(trials, keys)))
        print(f"{folder / 'trials.csv'}" + (f", {folder / 'trials.png'}" if drawn else ""))
    return code


def table(trials: Sequence[Trial], keys: Sequence[str]) -> list[str]:
    """Return lines: a trial each, in the order given."""
    rows = [["trial", "score", "state", "evaluations", *keys]]
    for t in trials:
        score = "" if t.score is None else f"{t.score:.4g}"
        values = [_short(t.values.get(key, "")) for key in keys]
        rows.append([str(t.number), score, t.state, str(t.evaluations), *values])
    return aligned(rows, left=())


def plot(
    path: pathlib.Path, trials: Sequence[Trial], keys: Sequence[str], space: dict[str, Any]
) -> None:
    """Write parallel coordinates: an axis for each key and the score, a line for each trial.

    Lines of trials that were ended early are dashed.
    """
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(2.0 + 1.8 * len(keys), 4.5), layout="constrained")
    axes = figure.subplots()
    columns = [_axis([t.values[key] for t in trials], space[key]) for key in keys]
    columns.append(_axis([t.score for t in trials], {}))
    shades = columns[-1][0]
    for row in sorted(range(len(trials)), key=lambda k: shades[k]):
        color = (0.85 - 0.85 * shades[row], 0.85 - 0.4 * shades[row], 0.9 - 0.2 * shades[row])
        line = "-" if trials[row].state == "complete" else "--"
        axes.plot([c[0][row] for c in columns], line, color=color, linewidth=1.6)
    for x, (_, ticks) in enumerate(columns):
        axes.axvline(x, color="0.3", linewidth=0.8)
        for y, text in ticks:
            axes.text(x + 0.03, y, text, fontsize=8, va="center")
    axes.set_xticks(range(len(columns)), [*keys, "score"], rotation=20, ha="right")
    axes.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.1, len(keys) + 0.35))
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(path, dpi=120)


def _axis(values: Sequence[Any], range_: dict[str, Any]) -> tuple[list[float], list[Any]]:
    """Return where values lie on an axis from 0 to 1, and its (place, text) marks."""
    if "choices" in range_:
        texts = [_short(v) for v in range_["choices"]]
        places = [k / max(1, len(texts) - 1) for k in range(len(texts))]
        at = dict(zip(texts, places, strict=True))
        return [at[_short(v)] for v in values], list(zip(places, texts, strict=True))
    low, high = range_.get("low", min(values)), range_.get("high", max(values))
    to = math.log if range_.get("log") else float
    span = to(high) - to(low) or 1.0
    return [(to(v) - to(low)) / span for v in values], [(0.0, _short(low)), (1.0, _short(high))]


def _csv(trials: Sequence[Trial], keys: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["trial", "score", "state", "evaluations", *keys])
    for t in trials:
        score = "" if t.score is None else repr(t.score)
        values = [json.dumps(t.values.get(key)) for key in keys]
        writer.writerow([t.number, score, t.state, t.evaluations, *values])
    return text.getvalue()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)
