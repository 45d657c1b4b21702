"""PenSpin's options of ACT: what they lead to, and what is refused."""

import csv
import hashlib

import numpy as np
import pytest

from penspin_style.deploy.torch_policy import load_act
from penspin_style.nets.policy import save_policy
from penspin_style.system.plain_yaml import read_mapping
from real.cli.train_act import TRAIN_ACT
from tests.support.episodes import record, taught
from tests.support.learning import SMALL_ACT, TASK, student, toy_task

__all__ = ["toy_task"]
pytestmark = pytest.mark.usefixtures("one_thread", "toy_task")
main = TRAIN_ACT.main


def test_the_command_leaves_a_policy_that_acts_as_the_trained_one(tmp_path):
    policy, card = student(TASK)
    save_policy(policy, card, tmp_path / "run" / "policy")
    for seed in range(3):
        record(tmp_path / "data", card, taught(card, 20, seed), success=seed < 2)
    argv = [f"--real-dataset-folder={tmp_path / 'data'}", f"--checkpoint-path={tmp_path / 'run'}"]
    argv += [f"--{k}={v}" for k, v in SMALL_ACT.items()]
    argv += ["--num-epochs=4", "--eval-freq=2", "--eval-start-epoch=2", f"--out={tmp_path}"]
    assert main([*argv, "--device=cpu", "--quiet"]) == 0
    folder = tmp_path / TASK / "act"
    policy = load_act(folder)
    assert policy.horizon == 5
    assert len(policy.card.score["episodes"]) == 1 == len(policy.card.score["validation_episodes"])
    with (folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["iteration"] for row in table if row["val/loss"]] == ["2", "4"]
    assert main([*argv, "--device=cpu", "--quiet"]) == 2  # never written over
    described = read_mapping(folder / "config.yaml")
    assert (described["algo"]["name"], described["seed"]) == ("act", 20230915)
    origin = tmp_path / "run" / "policy" / "policy.safetensors"
    digest = hashlib.sha256(origin.read_bytes()).hexdigest()
    assert policy.card.score["act_from"]["policy.safetensors"] == digest
    again = load_act(folder / "policy")
    inputs = {"numbers": np.random.default_rng(0).random(9, np.float32)}
    batch = {"numbers": inputs["numbers"][None].repeat(2, axis=0)}
    assert np.array_equal(policy.act(inputs), again.act(inputs)) and policy.act(inputs).shape == (
        5,
        3,
    )
    assert np.allclose(policy.act(batch), policy.act(inputs), atol=1e-6)
    with pytest.raises(ValueError, match="kind 'temporal', no ACT"):
        load_act(tmp_path / "run")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--num-queries=0", "--num-queries must be at least 1, got 0"),
        ("--hidden_dim=60", "--hidden-dim must be a multiple of 8, got 60"),
        ("--kl_weight=-1", "--kl-weight must be at least 0 and finite, got -1.0"),
        (
            "--eval-start-epoch=2001",
            "--eval-start-epoch must be at most 2000, --num-epochs, got 2001",
        ),
        ("--lr=inf", "--lr must be positive and finite, got inf"),
    ],
)
def test_invalid_options_are_refused_in_one_line(capsys, word, message):
    assert main(["--real-dataset-folder=d", "--checkpoint-path=c", word]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_every_option_of_penspins_is_there_with_its_default():
    own = TRAIN_ACT.parser()
    given = own.parse_args(["--real-dataset-folder=d", "--checkpoint-path=c"])
    text = own.format_help()
    for option, default in {
        **{"lr": 3e-4, "weight_decay": 1e-2, "kl_weight": 20.0, "dim_feedforward": 3200},
        **{"num_epochs": 2000, "real_batch_size": 64, "num_queries": 30, "hidden_dim": 64},
        **{"val_ratio": 0.1, "eval_freq": 100, "eval_start_epoch": 400, "seed": 20230915},
        **{"latent_dim": 32, "enc_layers": 4, "dec_layers": 7, "nheads": 8},
    }.items():
        assert getattr(given, option) == default and f"--{option} " in text
        assert f"--{option.replace('_', '-')} " in text
    assert "--input-mode " in text and "--real-dataset-folder " in text
