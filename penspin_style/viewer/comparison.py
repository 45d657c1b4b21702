"""A comparison of runs as one self-contained HTML page, and its curves as a PNG."""

import html
import io
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

from penspin_style.train.comparison import Curve, Estimate, Group

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#806000", "#777777")
"""Okabe and Ito 2008, told apart by the colour-blind; with a darker yellow, and grey for black."""
_AXES = {"samples": "environment steps", "minutes": "minutes, evaluations included"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 2rem }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: left }
svg { max-width: 100%; height: auto }
"""


def draw(
    curves: dict[str, list[tuple[Group, Curve]]], metrics: dict[str, str], x: str = "samples"
) -> Any:
    """Return a figure with a panel for each task: means over seeds, shaded by their intervals.

    curves, metrics: of each task. x: `samples` or `minutes`, over which they are drawn.
    """
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(6.4 * len(curves), 5.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (task, members) in zip(panels, curves.items(), strict=True):
        for i, (group, curve) in enumerate(members):
            color = COLORS[i % len(COLORS)]
            label = textwrap.fill(f"{group.label} (n = {len(group.runs)})", 64)
            axes.plot(curve.x, curve.mean, color=color, label=label)
            if curve.low is not None:
                shade = {"color": color, "alpha": 0.2, "linewidth": 0}
                axes.fill_between(curve.x, curve.low, curve.high, **shade)
        axes.set(title=task, xlabel=_AXES[x], ylabel=metrics[task])
        place = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.16)}  # long labels hide no curve
        axes.legend(frameon=False, fontsize="small", **place)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write(
    folder: pathlib.Path,
    figure: Any,
    runs: Sequence[Sequence[str]],
    aggregates: dict[str, Estimate],
    differences: Sequence[Sequence[str]],
    timed: Sequence[Sequence[str]],
) -> list[pathlib.Path]:
    """Write `compare.html` and `compare.png`; return their paths.

    runs, differences, timed: tables, their heads first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, image = folder / "compare.html", folder / "compare.png"
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    figure.savefig(image, dpi=120)
    svg = drawn.getvalue()
    head = ("configuration", "interquartile mean of the scores", "95% interval")
    middle = [(label, f"{e.value:.3f}", said(e.interval)) for label, e in aggregates.items()]
    parts = [
        "<!doctype html><meta charset='utf-8'><title>Comparison of runs</title>",
        f"<style>{_STYLE}</style><h1>Comparison of runs</h1>",
        "<p>Mean over seeds; the shade is the 95% interval of that mean, by a bootstrap over runs.",
        svg[svg.index("<svg") :],
        "<h2>Aggregate</h2>",
        "<p>Over all runs and tasks of a configuration; the interval by a bootstrap that is "
        "stratified by task (Agarwal et al. 2021).",
        _table([head, *middle]),
        "<h2>At equal time</h2>",
        "<p>Means over runs, each at its last evaluation in the time of the task's shortest run.",
        _table(timed),
        "<h2>Runs</h2>",
        _table(runs),
        "<h2>What they were told otherwise</h2>",
        _table(differences) if len(differences) > 1 else "<p>Nothing but seeds.",
    ]
    page.write_text("\n".join(parts))
    return [page, image]


def said(interval: tuple[float, float] | None) -> str:
    """Return an interval for people."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "one run says none"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for i, row in enumerate(rows):
        tag = "th" if i == 0 else "td"
        lines.append("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
