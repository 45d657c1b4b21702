"""PenSpin's options of fine-tuning: what they lead to, and what is refused."""

import csv
import hashlib
import json
import os
import pathlib
import shlex
import subprocess

import pytest
import torch

from penspin_style import storage
from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.export import export
from penspin_style.nets.policy import load_policy, save_policy
from penspin_style.system.plain_yaml import read_mapping
from penspin_style.train.checkpoint import Checkpoints
from penspin_style.train.evaluate import acting
from penspin_style.train.load_policy import open_policy
from penspin_style.train.run import Run
from real.cli.finetune import FINETUNE
from tests.support.episodes import columns, record, taught
from tests.support.learning import TASK, student, toy_task

ROOT = pathlib.Path(__file__).parents[3]

__all__ = ["toy_task"]
pytestmark = pytest.mark.usefixtures("one_thread", "toy_task")
main = FINETUNE.main


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A student's policy folder, a folder of episodes, one of them a failure."""
    folder = tmp_path_factory.mktemp("published")
    policy, card = student(TASK)
    save_policy(policy, card, folder / "run" / "policy")
    for seed in range(5):
        record(folder / "data", card, taught(card, 20, seed), success=seed != 2)
    return folder


def argv(folder, out, *more):
    own = [f"--real-dataset-folder={folder / 'data'}", f"--checkpoint-path={folder / 'run'}"]
    return [*own, f"--out={out}", "--device=cpu", "--quiet", *more]


def test_the_command_leaves_a_run_folder_that_says_what_it_is_of(published, tmp_path):
    given = [
        "--num_epochs=20",
        "--lr=0.003",
        "--eval-freq=5",
        "--name=mine",
        "--input-mode=proprio",
    ]
    assert main(argv(published, tmp_path, *given)) == 0
    folder = tmp_path / TASK / "mine"
    policy, card = load_policy(folder / "policy")
    storage.verify(folder / "policy")
    score = card.score
    weights = (published / "run" / "policy" / "policy.safetensors").read_bytes()
    origin = hashlib.sha256(weights).hexdigest()
    assert score["finetuned_from"]["policy.safetensors"] == origin
    sums = {**score["episodes"], **score["validation_episodes"]}
    files = {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (published / "data").iterdir()
    }
    assert len(sums) == 4 and len(score["validation_episodes"]) == 1
    assert sums.items() < files.items()  # the failure is not among them
    assert score["validation_loss"] < score["validation_loss_before"]
    assert "learning_rate" not in score and card.run == f"{TASK}/mine/seed0/samples1200"
    with (folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["iteration"] for row in table] == [str(i) for i in range(1, 21)]
    validated = {row["iteration"]: float(row["val/loss"]) for row in table if row["val/loss"]}
    assert list(validated) == ["5", "10", "15", "20"]
    assert min(validated.values()) == score["validation_loss"] == validated[str(score["epoch"])]
    described = read_mapping(folder / "config.yaml")["algo"]
    assert (described["name"], described["num_epochs"], described["lr"]) == ("clone", 20, 0.003)
    assert described["data"] == str(published / "data")
    assert json.loads((folder / "versions.json").read_text())["torch"]
    # and it can be exported
    report = export(policy, card, tmp_path / "policy.onnx", samples=100)
    assert report.max_abs_diff < 1e-5
    assert Bundle.load(tmp_path / "policy.onnx").card.score == score


def test_a_run_is_never_written_over(published, tmp_path, capsys):
    assert main(argv(published, tmp_path, "--num-epochs=1", "--all")) == 0
    assert main(argv(published, tmp_path, "--num-epochs=1")) == 2
    said = capsys.readouterr().err
    assert "holds a run already; --name=OTHER" in said and said.count("\n") == 1
    _, card = load_policy(tmp_path / TASK / "finetuned" / "policy")
    assert len(card.score["episodes"]) + len(card.score["validation_episodes"]) == 5


def test_what_is_fine_tuned_is_evaluated_in_its_own_environment(tmp_path):
    shipped = ROOT / "outputs" / "pretrained" / "panda_lift_cube_vision"
    _, card = load_policy(shipped / "policy")
    for seed in range(2):
        record(tmp_path / "data", card, columns(card, 4, seed, reach=0.1))
    own = [f"--real-dataset-folder={tmp_path / 'data'}", f"--checkpoint-path={shipped}"]
    assert main([*own, f"--out={tmp_path}", "--num-epochs=1", "--device=cpu", "--quiet"]) == 0
    source = open_policy(tmp_path / "panda_lift_cube_vision" / "finetuned", ["sim.nthread=1"])
    assert list(source.cfg.task.latency) == ["student"]  # as it was pre-trained
    env = source.env(2, 0)
    action = source.act(env.current())
    assert action.shape == (2, 4) and action.isfinite().all()
    before = acting(load_policy(shipped / "policy")[0])(env.current())
    assert not torch.equal(action, before)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--val-ratio=1", "--val-ratio must be in [0, 1), got 1.0"),
        ("--lr=0", "--lr must be positive and finite, got 0.0"),
        ("--real-batch-size=0", "--real-batch-size must be at least 1, got 0"),
        (
            "--eval-start-epoch=1001",
            "--eval-start-epoch must be at most 1000, --num-epochs, got 1001",
        ),
        (
            "--input-mode=proprio-tactile",
            "the policy does not read 'tactile', it reads proprio, fi",
        ),
        (
            "--checkpoint-path=best_120.74.pth",
            "--checkpoint-path=best_120.74.pth holds no policy: train a policy to the end, or g",
        ),
        ("--real-dataset-folder=nowhere", "nowhere holds no episodes"),
        ("--device=cuda:99", "torch finds no GPU here; use device=cpu"),
        ("--lr=fast", "argument --lr: invalid float value: 'fast'; see finetune_ppo.sh --help"),
        ("--epochs=3", "unrecognized arguments: --epochs=3; see finetune_ppo.sh --help"),
    ],
)
def test_invalid_options_are_refused_in_one_line(published, tmp_path, capsys, word, message):
    if word.startswith("--device") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    try:
        code = main(argv(published, tmp_path, word))
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / TASK).exists()


def test_a_run_that_was_stopped_goes_on_with_the_same_command(published, tmp_path, monkeypatch):
    given = argv(published, tmp_path, "--num-epochs=12", "--lr=0.003", "--eval-freq=3")
    assert main([*given, "--name=whole"]) == 0
    close, stop = Run._close_iteration, 5

    def stopping(self, *args):
        close(self, *args)
        if self.iteration == stop:
            self._stop(15, None)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_close_iteration", stopping)
        assert main([*given, "--name=cut"]) == 4
    cut, whole = (tmp_path / TASK / name for name in ("cut", "whole"))
    assert not (cut / "policy").exists()
    assert main([*given, "--name=cut"]) == 0
    one, two = (Checkpoints(folder / "checkpoints").published()[-1] for folder in (cut, whole))
    assert one.name == two.name == "00000012"
    for name in ("state.safetensors", "state.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    weights = [(f / "policy" / "policy.safetensors").read_bytes() for f in (cut, whole)]
    assert weights[0] == weights[1]


def test_another_data_folder_is_refused_by_the_option_that_says_so(published, tmp_path, capsys):
    given = argv(published, tmp_path, "--num-epochs=1")
    given[0] = f"--real-dataset-folder={tmp_path}"
    record(tmp_path, student(TASK)[1], success=False)
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "was a success; collect successful ones, or learn from failures too by --all" in said


def test_the_script_hands_on_all_arguments(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\nfor w in "$@"; do echo "$w"; done > {tmp_path}/told\n')
    stub.chmod(0o755)
    env = {**os.environ, "PENSPIN_SKIP_INSTALL": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = "scripts/finetune_ppo.sh --real-dataset-folder='a b' --checkpoint-path=c --seed 3"
    subprocess.run(["bash", *shlex.split(line)], cwd=ROOT, env=env, check=True, timeout=20)
    told = (tmp_path / "told").read_text().splitlines()
    assert told == [
        *(
            "-m",
            "real.cli.finetune",
            "--real-dataset-folder=a b",
            "--checkpoint-path=c",
            "--seed",
            "3",
        )
    ]


def test_every_option_of_penspins_is_there():
    text = FINETUNE.parser().format_help()
    for option in (
        *("real-dataset-folder", "checkpoint-path", "real-batch-size", "val-ratio", "lr"),
        *("num-epochs", "weight-decay", "eval-freq", "eval-start-epoch", "seed", "input-mode"),
    ):
        assert f"--{option} " in text and f"--{option.replace('-', '_')} " in text
