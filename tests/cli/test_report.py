"""What people are shown of an evaluation, and a run of a task that has figures of its own."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from penspin_style.cli.report import plot, survival, table
from penspin_style.storage import MANIFEST
from penspin_style.train.compose import compose_train
from penspin_style.train.evaluate import Episodes, Evaluation, Measure, normal, wilson
from penspin_style.train.run import Run
from tests.support.terminal import call, check_refusal


def evaluation(n=200, *, kinds=("short", "long"), faulty=()):
    """An evaluation of made-up episodes of 100 steps at most; each second one falls."""
    draw = torch.Generator().manual_seed(1)
    terminated = torch.arange(n) % 4 < 2
    steps = torch.where(terminated, torch.randint(1, 100, (n,), generator=draw), 100).float()
    turns = steps / 50 + 0.2 * torch.randn(n, generator=draw)
    record = Episodes(
        steps=steps,
        terminated=terminated,
        faulty=torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor(faulty).long(), True),
        kind=torch.arange(n) % 2,
        kind_names=kinds,
        values={"turns": turns, "survival": ~terminated, "time_to_fall": 0.05 * steps},
    )
    return Evaluation(
        *(0.5, (0.4, 0.6), 0.5, 1.0, 60.0, None, {"near": 1.0}),
        episodes=n,
        seed=7,
        faults=len(faulty),
        measures=record.measures(),
        record=record,
    )


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_table_has_a_line_for_each_measure_and_each_of_its_kinds():
    share = Measure(0.5, wilson(0.5, 4), True, 4, {"L/D 5": Measure(1.0, wilson(1.0, 2), True, 2)})
    mean = Measure(2.5, (1.234, 3.766), False, 4, {"L/D 5": Measure(2.0, None, False, 1)})
    # 1 / (1 + z z / 2) = 0.3424 and, for two of four, the half width 0.34996
    assert table({"survival": share, "turns": mean, "lost": Measure(None, None, False, 0)}) == [
        "  survival     50.0%   95% interval 15.0% to 85.0%   4 episodes",
        "    L/D 5     100.0%   95% interval 34.2% to 100.0%   2 episodes",
        "  turns         2.50   95% interval 1.23 to 3.77   4 episodes",
        "    L/D 5       2.00   1 episodes",
        "  lost          none   0 episodes",
    ]


def test_survival_is_the_share_that_has_not_fallen():
    steps, terminated = torch.tensor([3.0, 10.0, 5.0, 3.0]), torch.tensor([True, False, True, True])
    times, shares = survival(steps, terminated)
    assert times.tolist() == [0, 3, 5]
    assert shares.tolist() == [1.0, 0.5, 0.25]
    times, shares = survival(steps[1:2], terminated[1:2])
    assert (times.tolist(), shares.tolist()) == ([0], [1.0])


@pytest.mark.parametrize("kinds", [("short", "long"), ()])
def test_the_plot_shows_a_curve_and_a_histogram_of_each_mean(kinds, tmp_path):
    plot(tmp_path / "x.png", "cart", evaluation(kinds=kinds, faulty=(0, 5)), 0.05)
    image = pixels(tmp_path / "x.png")
    height, width, _ = image.shape
    assert 2.5 < width / height < 5  # three panels beside each other
    panels = np.array_split(image, 3, axis=1)
    assert all((panel.min(axis=-1) < 128).mean() > 0.01 for panel in panels)
    hue = [(panel.max(axis=-1) - panel.min(axis=-1) > 100).mean() > 1e-3 for panel in panels]
    assert hue == [bool(kinds)] * 3  # a colour for each kind, grey for all together


def test_a_plot_of_a_task_without_figures_is_the_curve_alone(tmp_path):
    result = evaluation(kinds=())
    result.record.values.clear()
    plot(tmp_path / "x.png", "cart", result, 0.05)
    height, width, _ = pixels(tmp_path / "x.png").shape
    assert 1.0 < width / height < 1.6


def test_faulty_episodes_alone_make_no_plot(tmp_path):
    with pytest.raises(ValueError, match="nothing to plot, every episode was faulty"):
        plot(tmp_path / "x.png", "cart", evaluation(2, faulty=(0, 1)), 0.05)
    assert list(tmp_path.iterdir()) == []


# A run.

OVERRIDES = (
    *("task=tests.support.measured", "num_envs=16", "algo.horizon=20", "total_samples=1920"),
    *("task.episode_length=10", "algo.hidden=[8]", "algo.critic_hidden=[8]", "eval_every=2"),
    *("eval_episodes=4", "final_episodes=6", "keep_last=9", "loggers=[csv]", "video=false"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    trained = Run(*compose_train([*OVERRIDES, f"out={folder}"]))
    assert trained.fit(quiet=True) == 0
    return trained


def test_a_run_logs_the_tasks_figures_and_keeps_the_best_by_its_score(run):
    with (run.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(-1.0 < float(row["env/travel"]) < 1.0 for row in rows)
    assert all(0.0 <= float(row["env/survival"]) <= 1.0 for row in rows)
    scores = {int(r["iteration"]): float(r["eval/travel"]) for r in rows if r["eval/travel"]}
    saved = {
        int(f.name): json.loads((f / MANIFEST).read_text())["score"]
        for f in run.checkpoints.published()
    }
    assert list(scores) == [2, 4, 6]
    assert {i: saved[i] for i in scores} == pytest.approx(scores)
    best = max(scores, key=lambda i: scores[i])
    assert int(run.checkpoints.best().name) == best
    rates = {int(r["iteration"]): r["eval/success_once"] for r in rows}
    assert run.success_rate == float(rates[6]) and run.score == pytest.approx(scores[6])


def test_the_card_and_the_json_have_the_figures_and_the_plot_is_written(run, tmp_path, capsys):
    score = json.loads((run.folder / "policy" / "card.json").read_text())["score"]
    assert score["travel"] == score["measures"]["travel"]["mean"]
    capsys.readouterr()
    target = tmp_path / "eval.png"
    line = f"eval {run.folder} task=tests.support.measured --episodes 6 --seed {run.cfg.eval_seed}"
    assert call(f"{line} --json --plot {target}") == 0
    raw = json.loads(capsys.readouterr().out)
    assert raw["measures"] == score["measures"]
    assert {"travel", "survival", "time_to_fall", "share_far"} <= raw.keys()
    assert pixels(target).std() > 10
    assert call(line) == 0
    out = capsys.readouterr().out.splitlines()
    low, high = raw["measures"]["travel"]["interval"]
    (shown,) = [text for text in out if text.startswith("  travel")]
    assert shown.split() == [
        *("travel", f"{raw['travel']:.2f}", "95%", "interval"),
        *(f"{low:.2f}", "to", f"{high:.2f}", "6", "episodes"),
    ]
    assert sum(text.startswith("    even") for text in out) == 4


def test_the_interval_of_a_mean_takes_every_episode_into_account():
    result = evaluation(faulty=(3,))
    kept = result.record.values["turns"][~result.record.faulty]
    assert len(kept) == 199 and result.measures["turns"].interval == normal(kept)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [("x.pdf", "--plot x.pdf: the file must end in .png"), ("none/x.png", "none does not exist")],
)
def test_a_plot_that_cannot_be_written_is_refused_first(target, complaint, run, capfd):
    code = call(f"eval {run.folder} --plot {target}")
    check_refusal(code, *capfd.readouterr(), 2, complaint)


def test_a_missing_matplotlib_is_said_first(run, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code = call(f"eval {run.folder} --plot x.png")
    check_refusal(code, *capfd.readouterr(), 2, "pip install 'penspin_style[plot]'")
