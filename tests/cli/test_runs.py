"""`penspin runs` and `penspin compare`: run folders as a table, curves, an aggregate, a page."""

import fcntl
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from penspin_style.__main__ import main
from penspin_style.train.comparison import estimate, grouped, iqm, mean_curve
from penspin_style.train.folder import new_name, newest_name
from penspin_style.train.runs import find_runs, read_run


def make(folder, seed=0, *, gamma=0.9, task="reach", values=(0.0, 0.5, 1.0), score=None, step=100):
    """A run folder as `Run` leaves it, with evaluations of these values, `step` samples apart."""
    (folder / "checkpoints" / "00000001").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"task_name: {task}\ntask:\n  lag: 0\nalgo:\n  name: ppo\n  gamma: {gamma}\n"
        f"seed: {seed}\nname: {folder.name}\n"
    )
    head = "iteration,samples,time/rollout,time/update,time/eval,eval/success_at_end\n"
    rows = [f"{i},{step * i},30,15,15,{value}\n" for i, value in enumerate(values)]
    (folder / "metrics.csv").write_text(head + "".join(rows))
    (folder / "git.txt").write_text("0123456789abcdef0123456789abcdef01234567\n")
    (folder / "git.diff").write_text("")
    (folder / "score.txt").write_text("success_at_end")
    if score is not None:
        (folder / "policy").mkdir()
        said = {"success_rate": 1.0, "success_at_end": score, "episodes": 100}
        said |= {"scored_by": "success_at_end"}
        (folder / "policy" / "card.json").write_text(json.dumps({"score": said}))
    return folder


def test_a_run_is_read_from_its_folder_alone(tmp_path):
    run = read_run(make(tmp_path / "one", 3, score=0.8))
    assert (run.task, run.algo, run.seed, run.samples, run.minutes) == ("reach", "ppo", 3, 200, 3.0)
    assert (run.score_name, run.score, run.state, run.git) == (
        *("success_at_end", 0.8, "finished", "01234567"),
    )
    assert run.interval == pytest.approx((0.7112, 0.8666), abs=1e-4)  # Wilson's, of 80 of 100
    with (tmp_path / "one" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (tmp_path / "one" / "git.diff").write_text("+x")
        busy = read_run(tmp_path / "one")
    assert (busy.state, busy.git) == ("running", "01234567+")
    other = read_run(make(tmp_path / "two"))
    assert (other.state, other.score, other.interval) == ("stopped", 1.0, None)  # of its last row
    early = read_run(make(tmp_path / "three", values=()))
    assert (early.score_name, early.score) == ("success_at_end", None)


def test_the_table_lists_every_run_below_a_folder_and_names_a_damaged_one(tmp_path, capsys):
    make(tmp_path / "reach" / "a", score=0.5)
    make(tmp_path / "reach" / "b", 1)
    make(tmp_path / "reach" / "c")
    (tmp_path / "reach" / "c" / "config.yaml").write_text("a: [\n")
    assert main(["runs", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[:3] == ["run", "algo", "seed"]
    assert re.search(r"reach/a +ppo +0 +200 +3\.0 +success_at_end 50\.0% \(40\.4% to", out)
    assert re.search(r"reach/b +ppo +1 +200 +3\.0 +success_at_end 100\.0% +stopped", out)
    assert "reach/c/config.yaml is not readable" in err
    assert main(["runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert {r["name"]: r["score"] for r in found} == {"a": 0.5, "b": 1.0}
    assert main(["runs", str(tmp_path / "nowhere")]) == 2


def test_the_interquartile_mean_cuts_a_quarter_off_either_end():
    assert iqm(np.array([100.0, 1.0, 2.0, 3.0, -50.0, 4.0, 5.0, 6.0])) == 3.5  # of 2, 3, 4, 5
    assert iqm(np.array([1.0, 2.0, 6.0])) == 3.0  # a quarter of three is none
    assert iqm(np.array([7.0])) == 7.0


def test_the_bootstrap_draws_within_tasks():
    """A task whose runs agree adds no spread; one run says nothing of others."""
    alike = estimate([[0.5] * 4, [0.5] * 4])
    assert (alike.value, alike.interval) == (0.5, (0.5, 0.5))
    assert estimate([[0.3], [0.9]]).interval is None
    # of [0, 1] drawn twice the mean is 0, 1/2, 1/2 or 1: a quarter of the draws at either end
    wide = estimate([[0.0, 1.0]], lambda x: float(x.mean()))
    assert wide.value == 0.5 and wide.interval == (0.0, 1.0)
    # stratified, the means of two such tasks are summed: all 0 in 1 of 16 draws only
    both = estimate([[0.0, 1.0], [10.0, 11.0]], lambda x: float(x.mean()))
    assert both.value == 5.5 and both.interval == (5.0, 6.0)
    with pytest.raises(ValueError, match="no run has a score yet"):
        estimate([[]])


def test_a_curve_is_read_off_where_all_runs_have_been(tmp_path):
    a = read_run(make(tmp_path / "a", values=(0.0, 1.0, 1.0)))  # at 0, 100, 200
    b = read_run(make(tmp_path / "b", 1, values=(0.0, 0.6), step=150))  # at 0, 150
    curve = mean_curve([a, b], "eval/success_at_end")
    assert curve.x.tolist() == [0.0, 100.0, 150.0]
    assert curve.mean.tolist() == pytest.approx([0.0, 0.7, 0.8])  # 0.4 of b at 100
    assert curve.low.tolist() == pytest.approx([0.0, 0.4, 0.6])
    assert curve.high.tolist() == pytest.approx([0.0, 1.0, 1.0])
    assert mean_curve([a, b], "env/none") is None


def test_runs_are_grouped_by_what_they_were_told_but_for_their_seeds(tmp_path):
    runs = [
        make(tmp_path / "a", 0), make(tmp_path / "b", 1),
        make(tmp_path / "c", 0, gamma=0.99), make(tmp_path / "d", 0, task="lift"),
    ]  # fmt: skip
    groups = grouped([read_run(run) for run in runs])
    assert [(g.task, g.label, len(g.runs)) for g in groups] == [
        ("reach", "ppo algo.gamma=0.9", 2),
        ("reach", "ppo algo.gamma=0.99", 1),
        ("lift", "ppo", 1),
    ]


def test_another_algorithm_is_told_by_its_name_not_by_all_its_settings(tmp_path):
    runs = [make(tmp_path / "a", 0), make(tmp_path / "b", 0, gamma=0.99), make(tmp_path / "c")]
    config = tmp_path / "c" / "config.yaml"
    config.write_text(config.read_text().replace("name: ppo", "name: sac\n  tau: 0.005"))
    groups = grouped([read_run(run) for run in runs])
    assert [g.label for g in groups] == ["ppo algo.gamma=0.9", "ppo algo.gamma=0.99", "sac"]


def test_a_comparison_is_one_page_with_curves_aggregate_and_differences(tmp_path, capsys):
    for name, gamma, score in (("a", 0.9, 0.2), ("b", 0.9, 0.4), ("c", 0.99, 1.0)):
        make(tmp_path / "runs" / name, ord(name), gamma=gamma, score=score)
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "runs"), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["differences"] == {"algo.gamma": ["0.9", "0.9", "0.99"]}
    told = said["aggregates"]["ppo algo.gamma=0.9"]
    assert told == {"iqm": pytest.approx(0.3), "interval": pytest.approx([0.2, 0.4])}
    page = (out / "compare.html").read_text()
    assert "<svg" in page and "ppo algo.gamma=0.99" in page and "reach/a" in page
    assert not re.search(r"(src|href)=.https?:", page)  # self-contained
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert "IQM" in capsys.readouterr().out


def test_runs_are_compared_at_the_time_that_the_shortest_of_a_task_has_had(tmp_path, capsys):
    # a row of a run takes a minute
    make(tmp_path / "runs" / "a", 1, values=(0.1, 0.2, 0.3, 0.4), step=100)
    make(tmp_path / "runs" / "b", 2, values=(0.3, 0.4, 0.5), step=100)
    make(tmp_path / "runs" / "c", 1, gamma=0.99, values=(0.0, 0.1, 0.7, 0.9, 1.0), step=300)
    run = read_run(tmp_path / "runs" / "a")
    assert run.curve("eval/success_at_end", "minutes") == ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4])
    argv = ["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--x", "minutes"]
    assert main([*argv, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["at_equal_time"]
    assert (first["label"], first["minutes"], first["samples"]) == ("ppo algo.gamma=0.9", 3, 200)
    assert first["reached"]["value"] == pytest.approx(0.4)  # of 0.3 and 0.5
    assert first["reached"]["interval"] == pytest.approx([0.3, 0.5])
    assert (second["minutes"], second["samples"]) == (3, 600)
    assert second["reached"] == {"value": 0.7, "interval": None}
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "At equal time" in page and "minutes, evaluations included" in page


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["compare"], "required: RUN"),
        (["compare", "nowhere"], "nowhere is no run folder and holds none"),
        (["compare", "a", "--metric", "eval/sucess"], "eval/sucess: no run of reach has this"),
        (["runs", "nowhere"], "nowhere is no folder"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, monkeypatch, capsys, argv, text):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a")
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code
    err = capsys.readouterr().err
    assert code == 2 and text in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_reading_runs_imports_no_torch():
    code = "import sys, penspin_style.cli.runs, penspin_style.cli.compare; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "mujoco", "matplotlib"} & set(done.stdout.split())


# Names.


def test_a_run_that_is_not_named_is_called_by_when_it_began_and_none_is_written_over(tmp_path):
    name = new_name(tmp_path)
    assert re.fullmatch(r"\d{8}-\d{6}", name)
    for taken in (name, f"{name}-2"):
        (tmp_path / taken).mkdir()
    again = new_name(tmp_path)
    assert again in (f"{name}-3", again[:15])  # a second may have passed
    assert not (tmp_path / again).exists()


def test_without_a_name_the_newest_run_is_resumed(tmp_path):
    with pytest.raises(ValueError, match="holds no run; leave resume out to start one"):
        newest_name(tmp_path)
    make(tmp_path / "b")
    make(tmp_path / "a")
    assert newest_name(tmp_path) == "a"
    (tmp_path / "b" / "checkpoints" / "00000002").mkdir()
    assert newest_name(tmp_path) == "b"
    assert [p.name for p in find_runs(tmp_path)] == ["a", "b"]


SMALL = ("task=tests.support.toy", "num_envs=4", "algo.horizon=4", "final_episodes=2")
SMALL += ("eval_every=0", "video=false", "loggers=[csv]", "algo.hidden=[4]")


def test_the_same_line_twice_is_two_runs_and_a_resume_goes_on_with_the_newest(tmp_path, capsys):
    line = ["train", *SMALL, f"out={tmp_path}", "total_samples=16", "--json"]
    folders = []
    for _ in range(2):
        assert main(line) == 0
        folders.append(json.loads(capsys.readouterr().out)["folder"])
    assert len(set(folders)) == 2 and sorted(folders) == folders
    assert main([*line, "resume=true", "total_samples=32"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["folder"], said["samples"]) == (folders[1], 32)


def test_a_resume_with_changes_refuses_by_name_or_is_allowed_and_noted(tmp_path, capsys):
    line = ["train", *SMALL, f"out={tmp_path}", "name=one", "total_samples=16", "--json"]
    assert main(line) == 0
    more = [*line, "resume=true", "total_samples=32", "algo.gamma=0.5", "algo.clip_coef=0.1"]
    assert main(more) == 2
    err = capsys.readouterr().err
    assert "algo.gamma=0.99, now 0.5" in err and "algo.clip_coef=0.2, now 0.1" in err
    assert "resume_changes=[algo.gamma,algo.clip_coef], or resume_changes=allow" in err
    assert main([*more, "resume_changes=some"]) == 2
    assert "resume_changes must be [KEY,...] or allow, got some" in capsys.readouterr().err
    assert main([*more, "resume_changes=allow"]) == 0
    (folder,) = (tmp_path / "tests.support.toy").iterdir()
    (noted,) = map(json.loads, (folder / "changes.jsonl").read_text().splitlines())
    assert noted["changes"]["algo.gamma"] == ["0.99", "0.5"] and noted["after_iteration"] == 1
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    finished = {p: p.stat().st_mtime_ns for p in files}
    assert main([*more, "resume_changes=allow", "algo.gamma=0.4"]) == 2
    assert "is finished, nothing would be trained with the changed" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in files} == finished
