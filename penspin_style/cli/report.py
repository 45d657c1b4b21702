"""Show an evaluation: as text, and as a plot of how long episodes last and what they amount to."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from penspin_style.system.interval import wilson
from penspin_style.train.evaluate import Evaluation, Measure
from penspin_style.viewer.comparison import COLORS


class _Group(NamedTuple):
    """Episodes that share a colour."""

    name: str
    mask: np.ndarray
    color: str


def print_evaluation(task: str, result: Evaluation, seconds: float, score: str) -> None:
    """Print an evaluation that took these seconds; score: as `Task.score` names it."""
    rate = result.success(score)
    low, high = wilson(rate, result.episodes)
    meant = "success_at_end" if score == "success_at_end" else "success_once"
    print(f"{task}: {result.episodes} episodes, seed {result.seed}, {seconds:.0f} s")
    print(f"  success         {rate:7.1%}   95% interval {low:.1%} to {high:.1%} ({meant})")
    print(f"  success_once    {result.success_rate:7.1%}")
    print(f"  success_at_end  {result.success_at_end:7.1%}")
    print(f"  return          {result.return_:7.2f}")
    for name, value in result.reward.items():
        print(f"    {name:14}{value:7.2f}")
    print(f"  length          {result.episode_len:7.1f} steps")
    print(f"  faults          {result.faults:7d}")
    if result.measures:
        print("\n".join(table(result.measures)))


def table(measures: dict[str, Measure]) -> list[str]:
    """Return lines: each measure with its interval, then each kind of episode with its own."""
    rows = []
    for name, measure in measures.items():
        rows.append((f"  {name}", measure))
        rows += [(f"    {kind}", part) for kind, part in measure.kinds.items()]
    width = max(len(label) for label, _ in rows)
    lines = []
    for label, measure in rows:
        line = f"{label:{width}}  {measure.text:>8}"
        if measure.interval is not None:
            low, high = map(measure.write, measure.interval)
            line += f"   95% interval {low} to {high}"
        lines.append(f"{line}   {measure.episodes} episodes")
    return lines


def check_plotting() -> None:
    """Refuse to plot before the minutes that an evaluation takes.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"a plot needs matplotlib ({error}): pip install 'penspin_style[plot]'"
        ) from error


def plot(path: Path, task: str, result: Evaluation, control_dt: float) -> None:
    """Write an image: the share of episodes still running over time, histograms of the means.

    Faulty episodes are left out. Kinds of episodes have a colour each, all together are black.

    control_dt: seconds of a control step.

    Raises:
        ValueError: every episode was faulty.
    """
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    record = result.record
    healthy = ~record.faulty
    if not healthy.any():
        raise ValueError(f"{path}: there is nothing to plot, every episode was faulty")
    every = _Group("all", healthy.numpy(), "0.25")
    kinds = [
        _Group(name, mask.numpy(), COLORS[i % len(COLORS)])
        for i, (name, mask) in enumerate(record.masks().items())
    ]
    means = {k: v.numpy() for k, v in record.values.items() if v.dtype != torch.bool}
    columns = min(3, 1 + len(means))
    rows = -(-(1 + len(means)) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    limit = record.steps.max().item() * control_dt
    for group in (*kinds, every):
        times, shares = survival(record.steps[group.mask], record.terminated[group.mask])
        x, y = np.append(times * control_dt, limit), np.append(shares, shares[-1])
        text = f"{group.name} (n = {group.mask.sum()})"
        wide = 2.2 if group is every else 1.4
        first.step(x, 100 * y, where="post", color=group.color, linewidth=wide, label=text)
    first.set(xlabel="time (s)", ylabel="episodes not ended by the task (%)", ylim=(0, 103))
    first.set_xlim(0, limit)
    first.legend(frameon=False)
    for axes, (name, values) in zip(others, means.items(), strict=False):
        _histogram(axes, name, values, kinds or [every])
    for axes in others[len(means) :]:
        axes.set_axis_off()
    figure.suptitle(f"{task}: {result.episodes} episodes, seed {result.seed}")
    figure.savefig(path, dpi=120)


def survival(steps: torch.Tensor, terminated: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return (control steps, share of episodes that did not fall up to and with them).

    Every episode that does not fall lasts to the time limit, so the share is a plain count.

    steps, terminated: (n,), as in `Episodes`.
    """
    times = np.unique(np.append(0.0, steps[terminated].numpy()))
    falls = (steps[terminated].numpy()[:, None] <= times).sum(axis=0)
    return times, 1.0 - falls / len(steps)


def _histogram(axes: Any, name: str, values: np.ndarray, groups: list[_Group]) -> None:
    """Draw the shares of episodes per bin: filled if there is one group, else outlines."""
    bins = np.histogram_bin_edges(np.concatenate([values[g.mask] for g in groups]), bins=30)
    for group in groups:
        own = values[group.mask]
        weights = np.full(len(own), 100 / len(own))
        look = {"histtype": "step"} if len(groups) > 1 else {"histtype": "stepfilled", "alpha": 0.5}
        axes.hist(own, bins, weights=weights, color=group.color, linewidth=1.4, **look)
        axes.axvline(own.mean(), color=group.color, linestyle="--", linewidth=1)
    axes.set(xlabel=f"{name} (dashed: mean)", ylabel="episodes (%)")
