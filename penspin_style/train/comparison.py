"""Compare runs: curves over seeds, an aggregate over runs and tasks, what they were told otherwise.

Intervals are percentiles of a bootstrap that draws runs with replacement, within each task of its
own, and the aggregate is the mean of the middle half of all runs' scores: Agarwal et al. 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice" (rliable).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penspin_style.train.keys import leaves
from penspin_style.train.runs import RunRecord

REPETITIONS = 2000
"""Draws of a bootstrap."""
_PERCENTILES = (2.5, 97.5)
_NOT_COMPARED = frozenset(
    (
        *("seed", "name", "out", "resume", "resume_changes", "loggers", "video", "device"),
        *("learn_threads", "sim.nthread", "keep_last", "checkpoint_every", "task_name"),
        *("eval_every", "eval_episodes", "final_episodes", "eval_seed"),
        *("video_every", "video_tiles", "video_info", "video_fps"),
    )
)
"""Keys in which runs of one group may differ: they are no matter of what is learned."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, None where one run alone says nothing of others."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Curve:
    """The mean over runs, at samples, or minutes, that all of them have reached."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True)
class Group:
    """Runs of one task and one configuration: they differ in their seed alone."""

    task: str
    label: str
    """The algorithm, and the keys in which the task's groups of this algorithm differ."""
    runs: tuple[RunRecord, ...]

    @property
    def scores(self) -> list[float]:
        """Return the scores of the runs that have one."""
        return [run.score for run in self.runs if run.score is not None]


def grouped(records: Sequence[RunRecord]) -> list[Group]:
    """Return the runs by task and configuration, in the order in which they are given."""
    told = {id(r): _told(r) for r in records}
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        kin = [r for r in records if (r.task, r.algo) == (record.task, record.algo)]
        own = told[id(record)]
        keys = changed_keys([told[id(r)] for r in kin])
        label = " ".join([record.algo, *(f"{k}={own[k]}" for k in keys if k in own)])
        found.setdefault((record.task, label), []).append(record)
    return [Group(task, label, tuple(runs)) for (task, label), runs in found.items()]


def differences(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return the keys in which runs differ: key -> the value of each run, "" where it has none."""
    told = [_told(record) for record in records]
    return {key: [own.get(key, "") for own in told] for key in changed_keys(told)}


def changed_keys(told: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys that have not one value everywhere, sorted; `algo.name` is the label's."""
    keys = sorted({key for own in told for key in own})
    return [k for k in keys if k != "algo.name" and len({own.get(k) for own in told}) > 1]


def _told(record: RunRecord) -> dict[str, str]:
    values = leaves(record.config)
    return {key: str(value) for key, value in values if key not in _NOT_COMPARED}


def iqm(scores: np.ndarray) -> float:
    """Return the interquartile mean of (n,) scores: a quarter is cut off at either end."""
    ordered = np.sort(scores)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def estimate(
    strata: Sequence[Sequence[float]],
    statistic: Callable[[np.ndarray], float] = iqm,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of all scores and its stratified bootstrap interval.

    strata: the scores of each task's runs.

    Raises:
        ValueError: there are no scores.
    """
    arrays = [np.asarray(scores, float) for scores in strata if len(scores)]
    if not arrays:
        raise ValueError("no run has a score yet")
    value = statistic(np.concatenate(arrays))
    if max(map(len, arrays)) < 2:
        return Estimate(value, None)
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.concatenate([rng.choice(scores, len(scores)) for scores in arrays]))
        for _ in range(REPETITIONS)
    ]
    low, high = np.percentile(draws, _PERCENTILES)
    return Estimate(value, (float(low), float(high)))


@dataclass(frozen=True)
class AtTime:
    """What the runs of a group had reached at the time that all groups of a task have had."""

    task: str
    label: str
    minutes: float
    samples: float
    """Mean over runs."""
    reached: Estimate
    """The mean of the metric."""


def at_equal_time(groups: Sequence[Group], metrics: dict[str, str]) -> list[AtTime]:
    """Return each group at the minutes of the shortest run of its task, evaluations included.

    A run is worth its last row before that: nothing is read off between rows, or beyond them.
    metrics: of each task.
    """
    found = []
    for task, metric in metrics.items():
        own = [g for g in groups if g.task == task]
        runs = [r for g in own for r in g.runs if r.curve(metric)[0]]
        common = min(r.curve(metric, "minutes")[0][-1] for r in runs)
        for group in own:
            last = [_last(r, metric, common) for r in group.runs if r in runs]
            there = [each for each in last if each is not None]
            if there:
                reached = estimate([[value for _, value in there]], lambda v: float(v.mean()))
                samples = float(np.mean([samples for samples, _ in there]))
                found.append(AtTime(task, group.label, common, samples, reached))
    return found


def _last(run: RunRecord, metric: str, minutes: float) -> tuple[float, float] | None:
    """Return the samples and the value of a run's last row until then."""
    times, values = run.curve(metric, "minutes")
    until = [i for i, at in enumerate(times) if at <= minutes]
    return (run.curve(metric)[0][until[-1]], values[until[-1]]) if until else None


def mean_curve(
    runs: Sequence[RunRecord], metric: str, x: str = "samples", seed: int = 0
) -> Curve | None:
    """Return the mean of a metric over runs, with its bootstrap interval; None if none has it.

    Runs are read off between their rows; the curve ends where the shortest run does.
    x: `samples` or `minutes`.
    """
    curves = [c for c in (run.curve(metric, x) for run in runs) if c[0]]
    if not curves:
        return None
    first, last = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
    grid = np.unique([x for samples, _ in curves for x in samples if first <= x <= last])
    if not len(grid):
        return None
    values = np.stack([np.interp(grid, *curve) for curve in curves])  # (runs, points)
    mean = values.mean(axis=0)
    if len(values) < 2:
        return Curve(grid, mean, None, None)
    rows = np.random.default_rng(seed).integers(len(values), size=(REPETITIONS, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), _PERCENTILES, axis=0)
    return Curve(grid, mean, low, high)
