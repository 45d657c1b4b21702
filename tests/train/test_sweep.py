"""Sweeps: what a file may say, exact resume in the middle of a trial, who is ended early."""

import json
import pathlib
import signal

import pytest

from penspin_style.__main__ import main
from penspin_style.train.compose import UsageError
from penspin_style.train.run import Run
from penspin_style.train.sweep import Sweep, SweepConfig, read_sweep

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    *("task=panda_lift_cube", "num_envs=2", "algo.horizon=4", "algo.critic_hidden=[8]"),
    *("eval_every=1", "eval_episodes=1", "final_episodes=1", "loggers=[csv]", "video=false"),
    *("total_samples=24", "sim.nthread=1", "learn_threads=1", "task.episode_length=8"),
)
SPACE = {
    "algo.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "algo.epochs": {"low": 1, "high": 3},
    "algo.hidden": {"choices": [[8], [8, 8]]},
    "algo.activation": {"choices": ["elu", "tanh"]},
}


def written(tmp_path, **values):
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps({"space": SPACE, "overrides": list(SMALL), **values}))
    return path


def state(folder):
    """What trials proposed and what came of them, and the last checkpoint of each."""
    sweep = Sweep(read_sweep(folder.parent / "space.yaml"), folder, ())
    trials = [vars(t) for t in sweep.trials()]
    sweep.close()
    runs = sorted((folder / "runs" / "panda_lift_cube").iterdir())
    last = [sorted((r / "checkpoints").glob("0*"))[-1] / "manifest.json" for r in runs]
    return trials, [path.read_text() for path in last]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("whole")
    path = written(tmp_path, trials=3, pruner="none", sampler="random")
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def test_a_sweep_leaves_one_table_a_plot_and_its_runs(whole, capsys):
    trials, _ = state(whole)
    assert {t["state"] for t in trials} == {"complete"} and len(trials) == 3
    assert all(1e-4 <= t["values"]["algo.learning_rate"] <= 1e-2 for t in trials)
    assert all(t["values"]["algo.epochs"] in (1, 2, 3) for t in trials)
    assert all(t["values"]["algo.hidden"] in ([8], [8, 8]) for t in trials)
    assert [t["score"] for t in trials] == sorted((t["score"] for t in trials), reverse=True)
    header, *lines = (whole / "trials.csv").read_text().splitlines()
    assert header == "trial,score,state,evaluations," + ",".join(SPACE)
    assert len(lines) == 3
    assert (whole / "trials.png").read_bytes().startswith(b"\x89PNG")
    config = (whole / "runs" / "panda_lift_cube" / "trial-0000" / "config.yaml").read_text()
    first = next(t for t in trials if t["number"] == 0)
    assert f"epochs: {first['values']['algo.epochs']}\n" in config
    assert main(["sweep", str(whole.parent / "space.yaml"), "--out", str(whole)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["trial", "score", "state"]


@pytest.mark.slow
def test_a_sweep_stopped_within_a_trial_goes_on_exactly_there(tmp_path, whole, monkeypatch):
    path = written(tmp_path, trials=3, pruner="none", sampler="random")
    argv = ["sweep", str(path), "--out", str(tmp_path / "out"), "--json"]
    log = Run._log

    def stop(self, *args):
        log(self, *args)
        if self.cfg.name == "trial-0001" and self.iteration == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Run, "_log", stop)
    assert main(argv) == 4
    monkeypatch.setattr(Run, "_log", log)
    assert main(argv) == 0
    assert state(tmp_path / "out") == state(whole)


@pytest.mark.slow
def test_more_trials_go_on_and_another_space_is_refused(tmp_path, whole, capsys):
    path = written(tmp_path, trials=3, pruner="none", sampler="random", seed=1)
    assert main(["sweep", str(path), "--out", str(whole)]) == 2
    err = capsys.readouterr().err
    assert err == (
        f"penspin: {whole} holds a sweep with seed=0, now 1; leave that as it was, or name another "
        "folder with --out\n"
    )


@pytest.mark.slow
def test_a_damaged_study_is_said_in_one_line_and_nothing_is_lost(tmp_path, capsys):
    path, out = written(tmp_path, trials=1), tmp_path / "out"
    out.mkdir()
    (out / "study.db").write_bytes(b"no database" * 99)
    for _ in range(2):  # the folder is not left locked
        assert main(["sweep", str(path), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"penspin: {out / 'study.db'} is damaged, or no study of Optuna: ")
        assert line.endswith("move it away to begin a new study: the runs beside it stay")
    assert (out / "study.db").read_bytes() == b"no database" * 99


@pytest.mark.slow
def test_a_trial_that_is_not_among_the_best_is_ended(tmp_path, monkeypatch):
    """Scores are set by hand: of three trials the first is best from the first evaluation on."""
    cfg = read_sweep(written(tmp_path, trials=3, reduction=2, sampler="random"))
    sweep = Sweep(cfg, tmp_path / "out", ())
    scores = {"trial-0000": 0.9, "trial-0001": 0.1, "trial-0002": 0.2}
    maybe = Run._maybe_evaluate

    def scored(self):
        row = maybe(self)
        self.score = scores[self.cfg.name]
        return row

    monkeypatch.setattr(Run, "_maybe_evaluate", scored)
    said = []
    assert sweep.run(said.append, quiet=True) == 0
    trials = sweep.trials()
    sweep.close()
    assert [(t.number, t.state, t.evaluations) for t in trials] == [
        (0, "complete", 3),
        (2, "pruned", 1),
        (1, "pruned", 1),
    ]
    assert trials[1].score == 0.2
    assert "trial-0001: ended, it is not among the best" in said


def test_a_trial_that_fails_is_named_and_the_others_go_on(tmp_path):
    space = {"algo.num_minibatches": {"choices": [1]}, "seed": {"low": 0, "high": 5}}
    cfg = SweepConfig(space=space, overrides=list(SMALL), trials=2, pruner="none")
    sweep = Sweep(cfg, tmp_path / "out", ())
    taken = tmp_path / "out" / "runs" / "panda_lift_cube" / "trial-0000"
    taken.parent.mkdir(parents=True)
    taken.write_text("a file where the folder should be")
    said = []
    assert sweep.run(said.append, quiet=True) == 0
    assert [t.state for t in sweep.trials()] == ["complete", "failed"]
    sweep.close()
    assert any(line.startswith("trial-0000: failed: ") for line in said)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"space": {}}, "space must be a mapping of keys to what they may be"),
        ({"spaces": {}}, "unknown key 'spaces'; did you mean space?"),
        ({"trials": 0}, "trials must be >= 1, got 0"),
        ({"trials": "many"}, "trials must be a int, got many"),
        ({"pruner": "median"}, "pruner must be asha, hyperband, none, got median"),
        ({"space": {"algo.gamma": 0.9}}, "space.algo.gamma must be {low: A, high: B}"),
        ({"space": {"algo.gamma": {"low": 1, "high": 0}}}, "low <= high"),
        ({"space": {"algo.gamma": {"low": 0, "high": 1, "log": True}}}, "above 0 with log"),
        ({"space": {"algo.gama": {"low": 0, "high": 1}}}, "did you mean algo.gamma?"),
        ({"space": {"algo.gamma": {"low": 0.5, "high": 2.0}}}, "algo.gamma must be in [0, 1]"),
        ({"space": {"name": {"choices": ["a"]}}}, "name: a sweep says itself"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_before_anything_is_trained(
    tmp_path, capsys, changes, says
):
    path = written(tmp_path, **changes)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match=r"needs Optuna .*: pip install 'penspin_style\[sweep\]'"):
        Sweep(read_sweep(written(tmp_path)), pathlib.Path(tmp_path / "out"), ())
