"""What may go wrong beside a training and must not cost it: renderers, tasks that raise, goals."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from penspin_style.__main__ import main
from penspin_style.cli import doctor, run_videos, train
from penspin_style.cli.task_error import TRACEBACK
from penspin_style.train.compose import compose_train
from penspin_style.train.run import Run
from tests.support import training

ROOT = pathlib.Path(__file__).parents[2]
ITERATION = 4 * 4
SMALL = (
    *("num_envs=4", "algo.horizon=4", "eval_every=0", "final_episodes=2"),
    *("checkpoint_every=1", "loggers=[csv]", f"total_samples={ITERATION}"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


# A renderer that fails.


CRASHES = {
    "raises": ("raise AttributeError('no EGL here')", "AttributeError: no EGL here"),
    "crashes": ("import os; os.kill(os.getpid(), 11)", "ended with SIGSEGV"),
    "exits": ("import sys; sys.exit(7)", "exit code 7"),
    "hangs": ("import time; time.sleep(60)", "it took longer than 3 s"),
}


@pytest.mark.parametrize("kind", CRASHES)
def test_a_renderer_that_fails_costs_the_video_and_nothing_else(tmp_path, capfd, monkeypatch, kind):
    code, says = CRASHES[kind]
    start = subprocess.Popen

    def play(command, **kwargs):
        if "play" in command:
            command = [sys.executable, "-c", code]
        return start(command, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", play)
    monkeypatch.setattr(run_videos, "SECONDS", 3.0)
    overrides = ["task=panda_lift_cube", "name=run", *SMALL, f"out={tmp_path}", "video=true"]
    assert main(["train", "--json", *overrides]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["exit_code"] == 0
    assert err.count("\n") == 1 and "penspin: no video: " in err and says in err
    assert (tmp_path / "panda_lift_cube" / "run" / "policy" / "card.json").exists()


@pytest.mark.parametrize("kind", ["raises", "crashes"])
def test_the_doctor_reports_a_renderer_that_fails(capfd, monkeypatch, kind):
    code, _ = CRASHES[kind]
    monkeypatch.setattr(doctor, "_DRAW", code)
    main(["doctor", "--json"])
    (problem,) = (p for p in json.loads(capfd.readouterr().out)["problems"] if "videos" in p)
    assert {"raises": "no EGL here", "crashes": "SIGSEGV"}[kind] in problem


@pytest.mark.parametrize("name", ["_gpu", "_warp_cache", "_opengl", "_memory_gib", "versions"])
def test_the_doctor_survives_whatever_it_looks_at(capfd, monkeypatch, name):
    def fail(*_):
        raise RuntimeError("it is\nbroken")

    monkeypatch.setattr(doctor, name, fail)
    if name != "_opengl":
        monkeypatch.setattr(doctor, "_opengl", lambda: {"platform": "egl", "error": None})
    assert main(["doctor", "--json"]) == (3 if name == "versions" else 0)
    report = json.loads(capfd.readouterr().out)
    assert f"{name.strip('_')}: RuntimeError: it is broken" in report["problems"]
    assert report["ok"] is (name != "versions")


# A task that raises.


TASK = """
import torch
from tests.support.toy import Cart, Config

def deeper(x):
    return x[0] / 0

class Wrong(Cart):
    def {hook}(self, *args):
        {body}

TASK = Wrong
"""
BODIES = {
    "return 1 / 0": ("ZeroDivisionError", "division by zero"),
    "return deeper([1])": ("ZeroDivisionError", "division by zero"),
    "raise ValueError('it is\\nwrong')": ("ValueError", "it is wrong"),
    "return torch.zeros(2) + torch.zeros(3)": ("RuntimeError", "must match"),
    "raise KeyError": ("KeyError", "(KeyError in"),
    "assert False": ("AssertionError", "(AssertionError in"),
}


COUNT = itertools.count()


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(hook, body):
        package = f"own_{next(COUNT)}"  # modules are imported once
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "wrong.py").write_text(TASK.format(hook=hook, body=body))
        return f"{package}.wrong", folder / "wrong.py"

    return write


@pytest.mark.parametrize("body", BODIES)
def test_a_task_that_raises_is_one_line_with_the_place(task, tmp_path, capfd, body):
    kind, text = BODIES[body]
    name, file = task("reward", body)
    overrides = [f"task={name}", *SMALL, f"out={tmp_path}", "video=false"]
    assert main(["train", *overrides]) == 2
    out, err = capfd.readouterr()
    line = 6 if "deeper" in body else 10
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    assert (
        text in err
        and f"({kind} in Wrong.reward, {file}:{line}; the contract: Return the named" in err
    )


@pytest.mark.parametrize(
    "hook",
    [
        "spec",
        "start",
        "reset",
        "apply_action",
        "observe",
        "terminated",
        "success",
        "episode_metrics",
    ],
)
def test_every_method_of_a_task_is_named(task, tmp_path, capfd, hook):
    name, file = task(hook, "raise TypeError('odd')")
    overrides = [f"task={name}", *SMALL, f"out={tmp_path}", "video=false"]
    assert main(["train", *overrides]) == 2
    assert f"odd (TypeError in Wrong.{hook}, {file}:10;" in capfd.readouterr().err


def test_the_whole_traceback_is_there_for_who_wants_it(task, tmp_path, capfd):
    name, _ = task("reset", "return 1 / 0")
    assert main(["train", TRACEBACK, f"task={name}", *SMALL, f"out={tmp_path}", "video=false"]) == 2
    err = capfd.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert (
        "in reset\n" in err and "return 1 / 0" in err and "(ZeroDivisionError in Wrong.reset" in err
    )


# A task that scores by the end.


def by_the_end(tmp_path, monkeypatch, *overrides):
    """A run whose evaluations say 96 % at some step and 25 % at the end."""
    from dataclasses import replace

    cfg, task, resolved = compose_train(
        ["task=panda_lift_cube", *SMALL, f"out={tmp_path}", "video=false", *overrides]
    )
    monkeypatch.setattr(task, "score", "success_at_end")
    run = Run(cfg, task, resolved)
    evaluate = run.evaluate
    run.evaluate = lambda *a: replace(evaluate(*a), success_rate=0.96, success_at_end=0.25)
    return run


def test_the_final_message_says_what_the_task_scores_by(tmp_path, monkeypatch, capsys):
    run = by_the_end(tmp_path, monkeypatch)
    assert run.fit() == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "success 25.0% (success_at_end; 95% interval " in err
    assert "2 episodes), success_once 96.0%; policy in" in err
    found = train.result(run, 0)
    assert found["success_rate"] == 0.25
    assert found["score"] == {"name": "success_at_end", "value": 0.25}


@pytest.mark.parametrize(("stop", "iterations"), [(0.2, 1), (0.9, 3)])
def test_a_training_stops_at_the_success_that_the_task_scores_by(
    tmp_path, monkeypatch, stop, iterations
):
    more = (f"total_samples={3 * ITERATION}", "eval_every=1", "eval_episodes=2")
    run = by_the_end(tmp_path, monkeypatch, *more, f"stop_at_success={stop}")
    assert run.fit(quiet=True) == 0
    assert run.iteration == iterations
    again = by_the_end(tmp_path, monkeypatch, *more, f"stop_at_success={stop}", "resume=true")
    assert again.fit(quiet=True) == 0  # it has reached its goal: nothing is done
    assert (again.iteration, again.final) == (iterations, None)


# An evaluation that a signal cuts short.


def test_a_signal_in_an_evaluation_leaves_it_and_the_resume_makes_up_for_it(tmp_path):
    import signal

    overrides = ("task=panda_lift_cube", *SMALL, "video=false", f"total_samples={3 * ITERATION}")
    overrides = (*overrides, "eval_every=2", "eval_episodes=2")
    whole = training.fit(tmp_path / "whole", *overrides)
    run = training.make(tmp_path / "other", *overrides)
    steps = []

    def note():
        steps.append(run.iteration)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGHUP)
        real()

    real, run._give_up_if_asked = run._give_up_if_asked, note
    assert run.fit(quiet=True) == 4
    assert steps == [2] * 5  # of 80: it was left at once
    assert run.checkpoints.newest()[0].name == "00000002"
    resumed = training.fit(tmp_path / "other", *overrides, "resume=true")
    for i in (2, 3):
        assert training.manifest(resumed, i) == training.manifest(whole, i)
    assert training.untimed(resumed) == training.untimed(whole)


def test_a_signal_in_the_last_evaluation_leaves_the_run_to_be_finished(tmp_path, capsys):
    import signal

    overrides = ("task=panda_lift_cube", *SMALL, "video=false")
    run = training.make(tmp_path, *overrides)
    train = run._train
    run._train = lambda *a: (train(*a), setattr(run, "_make_env", env))
    make = run._make_env

    def env(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return make(*args, **kwargs)

    assert run.fit() == 4
    assert "signal 15: saved iteration 1; resume=true continues" in capsys.readouterr().err
    assert not (run.folder / "policy").exists()
    done = training.fit(tmp_path, *overrides, "resume=true")
    assert done.final is not None and (done.folder / "policy" / "card.json").exists()


def test_a_lost_log_reader_does_not_end_a_training(tmp_path):
    """Its standard error is a pipe that nobody reads any more."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    overrides = ["task=panda_lift_cube", "name=run", *SMALL, f"out={tmp_path}", "video=false"]
    read, write = os.pipe()
    os.close(read)
    child = subprocess.Popen([sys.executable, "-m", "penspin_style", "train", *overrides],
                             env=env, stderr=write, cwd=ROOT)  # fmt: skip
    os.close(write)
    assert child.wait(120) == 0
    assert (tmp_path / "panda_lift_cube" / "run" / "policy" / "card.json").exists()
    assert torch.get_num_threads() == 1
