"""What a resume may change, what it leaves behind of the change, and what a finished run keeps."""

import json
import shutil
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from penspin_style.__main__ import main
from penspin_style.train import folder
from penspin_style.train.compose import compose_train
from penspin_style.train.find_task import task_names
from penspin_style.train.keys import keys_of
from tests.support import training
from tests.support.training import rows

ITERATION = 4 * 4
SMALL = (
    *("task=panda_lift_cube", "num_envs=4", "algo.horizon=4", "eval_every=0", "final_episodes=2"),
    *("checkpoint_every=1", "loggers=[csv]", "video=false", f"total_samples={2 * ITERATION}"),
)
MORE = f"total_samples={3 * ITERATION}"

pytestmark = pytest.mark.usefixtures("one_thread")


def snapshot(folder):
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != ".lock"]
    return {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return training.fit(tmp_path_factory.mktemp("finished"), *SMALL).folder


@pytest.fixture
def finished(trained, tmp_path):
    """A finished run, of each test its own."""
    folder = tmp_path / trained.parent.name / trained.name
    shutil.copytree(trained, folder)
    return SimpleNamespace(folder=folder, out=tmp_path)


def resume(run, *overrides):
    return main(["train", *SMALL, f"out={run.out}", "resume=true", *overrides])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("algo.gamma=0.5", "algo.gamma=0.97, now 0.5"),
        ("task.episode_length=7", "task.episode_length=80, now 7"),
        ("seed=3", "seed=0, now 3"),
        ("task.reward.lift=0", "task.reward.lift="),
        ("eval_seed=1", "eval_seed=1000003, now 1"),
    ],
)
@pytest.mark.parametrize("more", [(), (MORE,)])
def test_a_resume_that_would_learn_something_else_is_refused_by_name(
    finished, capsys, word, says, more
):
    before = snapshot(finished.folder)
    assert resume(finished, word, *more) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert says in err and f"resume_changes=[{word.partition('=')[0]}]" in err
    assert snapshot(finished.folder) == before


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    before = snapshot(finished.folder)
    assert resume(finished, "final_episodes=3", "loggers=[csv,tensorboard]") == 0
    assert "is finished, at iteration 2; nothing is done" in capsys.readouterr().err
    assert snapshot(finished.folder) == before


def test_a_finished_run_is_left_as_it_is_also_with_an_allowed_change(finished, capsys):
    before = snapshot(finished.folder)
    assert resume(finished, "algo.gamma=0.5", "resume_changes=[algo.gamma]") == 2
    assert "is finished, nothing would be trained with the changed algo.gamma" in (
        capsys.readouterr().err
    )
    assert snapshot(finished.folder) == before


def test_an_allowed_change_is_shown_and_noted_and_the_notes_only_grow(finished, capsys):
    notes = finished.folder / folder.CHANGES
    assert not notes.exists()
    overrides = ("algo.gamma=0.5", "resume_changes=[algo.gamma]")
    assert resume(finished, *overrides, MORE) == 0
    assert "changed from here on: algo.gamma=0.5, was 0.97" in capsys.readouterr().err
    first = notes.read_text()
    (line,) = map(json.loads, first.splitlines())
    assert line["after_iteration"] == 2
    assert line["changes"].pop("out")[1] == str(finished.out)  # the fixture has moved it
    assert line["changes"] == {
        "algo.gamma": ["0.97", "0.5"],
        "total_samples": [str(2 * ITERATION), str(3 * ITERATION)],
    }
    assert OmegaConf.load(finished.folder / "config.yaml").algo.gamma == 0.5
    assert [row["iteration"] for row in rows(finished)] == list("123")
    # the same overrides again, and back: what is changed is told from what it was last
    total = f"total_samples={4 * ITERATION}"
    assert resume(finished, "algo.gamma=0.5", total) == 0
    assert resume(finished, f"total_samples={5 * ITERATION}") == 2
    assert "algo.gamma=0.5, now 0.97" in capsys.readouterr().err
    assert notes.read_text().startswith(first)
    assert [json.loads(k)["after_iteration"] for k in notes.read_text().splitlines()] == [2, 3]


def test_a_resume_with_other_code_keeps_what_the_code_was(finished):
    (finished.folder / "git.txt").write_text("an older commit\n")
    (finished.folder / "git.diff").write_text("what was not committed\n")
    training.fit(finished.out, *SMALL, MORE, "resume=true")
    (line,) = map(json.loads, (finished.folder / folder.CHANGES).read_text().splitlines())
    assert line["files"]["git.txt"][0] == "an older commit\n"
    assert line["files"]["git.diff"][0] == "what was not committed\n"


@pytest.mark.parametrize("spoil", [None, b"a: [\n", b"\xff\xfe", b"- 3\n"])
def test_a_resume_without_a_readable_configuration_is_refused(finished, capsys, spoil):
    config = finished.folder / "config.yaml"
    config.unlink()
    if spoil is not None:
        config.write_bytes(spoil)
    assert resume(finished, MORE) == 2
    assert f"{config} is missing or unreadable" in capsys.readouterr().err


def test_changes_are_allowed_only_to_a_resume(tmp_path, capsys):
    assert main(["train", *SMALL, f"out={tmp_path}", "resume_changes=[seed]"]) == 2
    assert "resume_changes must be [] without resume=true" in capsys.readouterr().err


@pytest.mark.parametrize("task", task_names())
def test_the_same_overrides_change_nothing(tmp_path, task):
    overrides = [f"task={task}", "algo.learning_rate=1e-5"]
    (tmp_path / "config.yaml").write_text(compose_train(overrides)[2])
    assert folder.changes(tmp_path, compose_train([*overrides, "resume=true"])[2]) == {}


def test_every_key_that_is_free_is_one():
    known = keys_of(OmegaConf.create(compose_train(["task=panda_lift_cube"])[2]))
    assert known >= folder.FREE
    assert not any(key.startswith(("algo.", "task.")) for key in folder.FREE)
