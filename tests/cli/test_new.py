"""`penspin new`: what it writes trains, passes its own tests and installs; what it refuses."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from penspin_style.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("num_envs=8", "algo.horizon=4", "total_samples=64", "final_episodes=4", "loggers=[csv]")


def run(*argv, cwd, path=str(ROOT)):
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def penspin(*argv, cwd):
    """The installed command: unlike `python -m`, it has no current folder on its path."""
    code = f"import sys; from penspin_style.__main__ import main; sys.exit(main({list(argv)!r}))"
    return run("-P", "-c", code, cwd=cwd)


def test_a_new_task_trains_is_evaluated_and_exported_by_the_installed_command(tmp_path, capsys):
    assert main(["new", "task", "balance_it", "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [pathlib.Path(f).name for f in said["files"]] == ["balance_it.py", "test_balance_it.py"]
    assert len(said["commands"]) == 5 and said["commands"][0] == f"cd {tmp_path}"
    done = penspin("train", "task=balance_it", "name=first", "video=false", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "success_at_end; 95% interval" in done.stderr  # what the task scores by
    folder = tmp_path / "outputs" / "balance_it" / "first"
    assert (folder / "policy" / "card.json").exists()
    done = penspin("eval", str(folder), cwd=tmp_path)  # a file names the module: not imported
    assert done.returncode == 2 and "say task=balance_it yourself" in done.stderr
    argv = ("eval", str(folder), "task=balance_it", "--episodes", "2", "--json")
    done = penspin(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["success"] == found["success_at_end"] and "success_once" in found


def test_the_tests_of_a_new_project_pass(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "project", "poles"]) == 0
    assert "cd poles" in capsys.readouterr().out
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / "poles")
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout


def test_a_new_project_installs_as_a_plug_in_that_is_listed_with_its_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "project", "poles"]) == 0
    site = tmp_path / "site"
    build = (
        "import sys; from setuptools import setup;"
        f"sys.argv[1:] = ['-q', 'install', '--root', '/', '--install-lib', {str(site)!r},"
        "'--single-version-externally-managed']; setup()"
    )
    done = run("-W", "ignore", "-c", build, cwd=tmp_path / "poles")
    assert done.returncode == 0, done.stderr
    away = tmp_path / "away"
    away.mkdir()
    path = os.pathsep.join((str(ROOT), str(site)))
    done = run("-m", "penspin_style", "tasks", cwd=away, path=path)
    assert re.search(r"^poles +poles 0\.1\.0 +Balance a pole on a cart", done.stdout, re.MULTILINE)
    done = run("-m", "penspin_style", "train", "task=poles", "--print-config", cwd=away, path=path)
    assert done.stdout.startswith("task_name: poles.cartpole\n"), done.stderr


def test_tasks_of_the_current_folder_are_listed_without_being_imported(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text('"""Mine."""\nraise SystemExit(1)\nTASK = None\n')
    (tmp_path / "odd.py").write_text('"""Odd."""\nTASK = (\n')
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    (tmp_path / "pack" / "reach.py").write_text('"""Reach.\n\nMore."""\nTASK: type = None\n')
    assert main(["tasks", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["origins"]["mine"] == "./mine.py" and said["tasks"]["mine"] == "Mine."
    assert (
        said["tasks"]["pack.reach"] == "Reach." and said["origins"]["pack.reach"][-8:] == "reach.py"
    )
    assert said["tasks"]["odd"].startswith("broken: ")
    assert said["origins"]["pen_spin"] == "penspin_style"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class", "'class' is no name of a Python module"),
        ("2legs", "'2legs' is no name"),
        ("a/b", "'a/b' is no name"),
        ("json", "there is a Python module json already"),
        ("pen_spin", "there is a task pen_spin already"),
    ],
)
def test_a_name_that_would_not_be_found_is_refused(tmp_path, monkeypatch, capsys, name, text):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "task", name]) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_balance.py").write_text("mine")
    assert main(["new", "task", "balance"]) == 2
    assert "test_balance.py exists already" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test_balance.py"]


def test_an_unfinished_task_is_answered_with_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["new", "task", "unfinished_one"]) == 0
    file = tmp_path / "unfinished_one.py"
    text = file.read_text()
    file.write_text(text.replace("def terminated", "def ended"))
    capsys.readouterr()
    assert main(["train", "task=unfinished_one"]) == 2
    err = capsys.readouterr().err
    line = text[: text.index("class CartPole")].count("\n") + 1
    assert f"CartPole ({file}:{line}) must define terminated. terminated: Return which" in err
    assert err.count("\n") == 1
