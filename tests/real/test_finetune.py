"""Fine-tuning: it learns, from what it may, with what it must not touch untouched."""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
import subprocess

import numpy as np
import pytest
import torch

from penspin_style import storage
from penspin_style.data.dataset import join, windows
from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.export import export
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import load_policy, save_policy
from penspin_style.nets.student import StudentPolicy
from penspin_style.nets.temporal import TemporalPolicy
from penspin_style.train.evaluate import acting
from penspin_style.train.load_policy import open_policy
from real.finetune import FinetuneConfig, Finetuner, check_mode, main, parser, split
from tests.support.episodes import columns, image_card, record, taught, vector_card

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
    **{"recent": 2, "normalize_history": True, "width": 8, "heads": 2, "layers": 1},
    **{"feedforward": 16, "dropout": 0.1, "latent": 6, "fingertips": [16, 8]},
    **{"fingertip_noise": 0.01, "ends": [6], "points": [6], "trunk": [16]},
}
SEES = {
    **{"pool": True, "latent": 8, "depth_pixels": 4, "max_depth": {"front": 2.0}},
    **{"hidden": [16], "activation": "relu", "train_encoder": False, "layer_norm": True},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def student():
    """A small student of joints with statistics of its own, and its card."""
    card = vector_card()
    policy = TemporalPolicy(card.inputs, 3, rng=torch.Generator().manual_seed(5), **SMALL)
    policy.normalizer.update(torch.rand(50, card.inputs[0].size) + 0.1)
    return policy.eval(), dataclasses.replace(card, network=policy.describe())


def seeing(**network):
    card = image_card()
    card = dataclasses.replace(
        card,
        inputs=tuple(
            dataclasses.replace(
                i,
                features=tuple(
                    dataclasses.replace(f, shape=(32, 32, *f.shape[2:])) if i.is_image else f
                    for f in i.features
                ),
            )
            for i in card.inputs
        ),
    )
    settings = {**SEES, **network}
    policy = StudentPolicy(card.inputs, 3, rng=torch.Generator().manual_seed(5), **settings)
    policy.normalizer.update(torch.rand(50, 3))
    return policy.eval(), dataclasses.replace(card, network=policy.describe())


def demonstrations(folder, card, count=6, steps=20):
    return [windows(record(folder, card, taught(card, steps, seed=i)), card) for i in range(count)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Six trajectories of a student of joints."""
    return demonstrations(tmp_path_factory.mktemp("rows"), vector_card())


def tuned(policy, card, rows, **cfg):
    cfg = {"num_epochs": 16, "lr": 5e-3, "eval_freq": 4, "val_ratio": 0.34, **cfg}
    tuner = Finetuner(policy, card, rows, FinetuneConfig(**cfg))
    return tuner, tuner.fit()


def states(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


# It learns.


def test_weights_move_and_what_is_learned_holds_on_other_trajectories(rows, tmp_path):
    policy, card = student()
    before = states(policy)
    tuner, result = tuned(policy, card, rows)
    after = result.policy.state_dict()
    learned = {name for name, _ in policy.named_parameters()}
    assert all(not torch.equal(before[name], after[name]) for name in learned)
    assert result.best < 0.5 * result.before
    # by hand, on a trajectory that was neither learned from nor validated on
    (fresh,) = demonstrations(tmp_path, card, 1, 40)
    fresh = windows(record(tmp_path / "other", card, taught(card, 40, seed=99)), card)
    errors = [
        np.abs(p.act(torch.from_numpy(fresh.inputs["student"])).detach().numpy() - fresh.labels)
        for p in (policy, result.policy)
    ]
    assert errors[1].mean() < 0.5 * errors[0].mean()
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())  # a copy learned
    assert len(tuner.train) == 80 and len(tuner.val) == 40


def test_every_weight_that_learns_has_a_gradient(rows):
    policy, card = student()
    tuner, _ = tuned(policy, card, rows, num_epochs=1, eval_freq=1)
    for name, weight in tuner.policy.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_the_normalisers_of_pre_training_stay_as_they_are(rows):
    policy, card = student()
    _, result = tuned(policy, card, rows)
    for name in ("mean", "var", "count"):
        assert torch.equal(
            getattr(result.policy.normalizer, name), getattr(policy.normalizer, name)
        )
    _, fresh = tuned(policy, card, rows, from_scratch=True, num_epochs=1)
    inputs = join([rows[i] for i in fresh.train]).inputs["student"]
    assert fresh.policy.normalizer.count == len(inputs) == 80
    tips = torch.from_numpy(inputs[:, -3:]).mean(dim=0)
    assert torch.allclose(fresh.policy.normalizer.mean[-3:], tips, atol=1e-5)


def test_the_loss_is_the_mean_distance_over_all_numbers(rows):
    policy, card = student()
    for loss, power in (("l1", 1), ("l2", 2)):
        _, result = tuned(policy, card, rows, loss=loss, num_epochs=1)
        val = join([rows[i] for i in result.validation])
        action = policy.act(torch.from_numpy(val.inputs["student"])).detach().numpy()
        assert result.before == pytest.approx((np.abs(action - val.labels) ** power).mean(), 1e-5)
    assert FinetuneConfig().loss == "l1"


# From what, and how long.


def test_a_batch_larger_than_the_data_is_the_whole_data(rows):
    policy, card = student()
    tuner, result = tuned(policy, card, rows, real_batch_size=8192)
    assert result.best < result.before
    steps = next(iter(tuner.optimizer.state.values()))["step"]
    assert steps == 16  # one an epoch


def test_trajectories_are_split_whole(rows):
    policy, card = student()
    tuner, result = tuned(policy, card, rows, num_epochs=1)
    assert sorted([*result.train, *result.validation]) == list(range(6))
    for ids, found in ((result.train, tuner.train), (result.validation, tuner.val)):
        assert torch.equal(found["label"], torch.from_numpy(join([rows[i] for i in ids]).labels))


@pytest.mark.parametrize(
    ("count", "ratio", "validating"), [(45, 0.1, 4), (15, 0.1, 2), (3, 0.1, 1), (5, 0.0, 0)]
)
def test_at_least_one_trajectory_validates_unless_none_shall(count, ratio, validating):
    train, val = split(count, ratio, 0)
    assert (len(train), len(val)) == (count - validating, validating)
    assert not set(train) & set(val)
    assert split(count, ratio, 0) == (train, val)
    if validating:
        assert split(45, 0.2, 0) != split(45, 0.2, 1)


def test_one_trajectory_cannot_be_split():
    with pytest.raises(ValueError, match=r"1 trajectories cannot be split.* --val-ratio=0"):
        split(1, 0.1, 0)


def test_the_best_weights_by_validation_are_kept_and_training_stops_after_them(tmp_path):
    policy, card = student()
    rows = [windows(record(tmp_path, card, columns(card, 20, seed=i)), card) for i in range(4)]
    seen = []
    tuner = Finetuner(
        policy, card, rows, FinetuneConfig(lr=1e-2, eval_freq=1, patience=4, val_ratio=0.5)
    )
    result = tuner.fit(seen.append)  # what is random can only be learned by heart
    losses = [row["val/loss"] for row in seen]
    assert result.best == min(losses) and result.epoch == int(np.argmin(losses))
    assert seen[-1]["epoch"] == result.epoch + 4
    assert tuner.validate() == result.best
    assert seen[-1]["train/loss"] < seen[1]["train/loss"]


def test_no_weights_are_kept_before_the_epoch_that_is_asked_for(tmp_path):
    policy, card = student()
    rows = [windows(record(tmp_path, card, columns(card, 20, seed=i)), card) for i in range(4)]
    cfg = {"lr": 1e-2, "eval_freq": 1, "val_ratio": 0.5, "num_epochs": 12, "patience": 0}
    _, result = tuned(policy, card, rows, eval_start_epoch=8, **cfg)
    assert 8 <= result.epoch <= 12


def test_without_validation_the_last_weights_are_kept(rows):
    policy, card = student()
    tuner, result = tuned(policy, card, rows, val_ratio=0.0, num_epochs=7)
    assert (result.before, result.best, result.epoch) == (None, None, 7)
    assert len(tuner.train) == 120


def test_the_seed_alone_decides(rows):
    policy, card = student()
    seeds = (3, 3, 4)
    one, two, other = (
        states(tuned(policy, card, rows, seed=s, num_epochs=4)[1].policy) for s in seeds
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# Students that see.


def test_frozen_encoders_stay_and_see_every_image_once(tmp_path, monkeypatch):
    policy, card = seeing()
    rows = demonstrations(tmp_path, card, 3, 10)
    calls = []
    whole = StudentPolicy.encode
    monkeypatch.setattr(
        StudentPolicy, "encode", lambda self, *a: calls.append(len(a[0])) or whole(self, *a)
    )
    _, result = tuned(policy, card, rows, num_epochs=20, eval_freq=10)
    assert len(calls) == 2  # to learn from, and to validate on
    after = result.policy.state_dict()
    for name, value in policy.state_dict().items():
        assert torch.equal(value, after[name]) == name.startswith(("encoders.", "normalizer.")), (
            name
        )
    assert result.best < result.before


def test_augmented_views_are_added_to_the_plain_one(tmp_path):
    policy, card = seeing()
    rows = demonstrations(tmp_path, card, 3, 10)
    tuner, _ = tuned(policy, card, rows, num_epochs=1, views=3)
    assert len(tuner.train) == 60 and len(tuner.val) == 10
    plain, changed = tuner.train[:20], tuner.train[20:40]
    assert torch.equal(plain["label"], changed["label"])
    assert not torch.equal(plain["seen/front_rgb"], changed["seen/front_rgb"])
    rgb = torch.from_numpy(join([rows[i] for i in tuner.train_ids]).inputs["front_rgb"])
    seen = policy.encode({"front": rgb.permute(0, 3, 1, 2).float() / 255}, {})
    assert torch.allclose(plain["seen/front_rgb"], seen["front_rgb"], atol=1e-5)


def test_encoders_that_learned_in_pre_training_learn_here(tmp_path):
    policy, card = seeing(train_encoder=True)
    rows = demonstrations(tmp_path, card, 3, 6)
    _, result = tuned(policy, card, rows, num_epochs=2, eval_freq=1, patience=0, eval_start_epoch=2)
    before, after = policy.encoders.state_dict(), result.policy.encoders.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_from_scratch_keeps_frozen_encoders_alone(tmp_path):
    policy, card = seeing()
    rows = demonstrations(tmp_path, card, 3, 6)
    tuner = Finetuner(policy, card, rows, FinetuneConfig(from_scratch=True, seed=7))
    mine = tuner.policy.state_dict()
    for name, value in policy.state_dict().items():
        if name.startswith("encoders."):
            assert torch.equal(value, mine[name])
        elif name.endswith("weight"):
            assert not torch.equal(value, mine[name])


# The command.


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A student's policy folder, a folder of episodes, one of them a failure."""
    folder = tmp_path_factory.mktemp("published")
    policy, card = student()
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
    folder = tmp_path / "toy" / "mine"
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
    assert "learning_rate" not in score and card.run.startswith("toy/mine/")
    with (folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["0.0", "5.0", "10.0", "15.0", "20.0"]
    assert "finetuned:" in (folder / "config.yaml").read_text()
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
    _, card = load_policy(tmp_path / "toy" / "finetuned" / "policy")
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
        ("--val-ratio=1", "--val-ratio=1.0: must be in [0, 1)"),
        ("--lr=0", "--lr=0.0: must be positive and finite"),
        ("--real-batch-size=0", "--real-batch-size=0: must be at least 1"),
        ("--eval-start-epoch=1001", "--eval-start-epoch=1001: must be at most 1000 epochs"),
        (
            "--input-mode=proprio-tactile",
            "the policy does not read 'tactile', it reads proprio, fi",
        ),
        ("--checkpoint-path=best_120.74.pth", "is no policy; give the run folder"),
        ("--real-dataset-folder=nowhere", "nowhere holds no episodes"),
        ("--device=cuda:99", "torch finds no GPU here; use device=cpu"),
        ("--lr=fast", "argument --lr: invalid float value: 'fast'; see finetune_ppo.sh --help"),
        ("--epochs=3", "unrecognized arguments: --epochs=3; see finetune_ppo.sh --help"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(published, tmp_path, capsys, word, message):
    if word.startswith("--device") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    try:
        code = main(argv(published, tmp_path, word))
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / "toy").exists()


def test_input_modes_are_spelled_as_penspins():
    _, card = student()
    for mode in ("", "proprio", "proprio-fingertips", "proprio-fingertip"):
        check_mode(mode, card)
    with pytest.raises(ValueError, match="does not read 'pen_ends'"):
        check_mode("proprio-ends", card)


def test_a_teacher_is_not_fine_tuned(rows):
    _, card = student()
    policy = GaussianPolicy(
        *("student", 27, 3),
        **{"hidden": [4], "activation": "elu", "init_std": 1.0, "rng": torch.Generator()},
    )
    card = dataclasses.replace(card, network=policy.describe())
    with pytest.raises(ValueError, match="kind 'gaussian': only students can be fine-tuned"):
        Finetuner(policy, card, rows, FinetuneConfig())


def test_the_script_hands_on_all_arguments(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\nfor w in "$@"; do echo "$w"; done > {tmp_path}/told\n')
    stub.chmod(0o755)
    env = {**os.environ, "PENSPIN_SKIP_INSTALL": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = "scripts/finetune_ppo.sh --real-dataset-folder='a b' --checkpoint-path=c --seed 3"
    subprocess.run(["bash", *shlex.split(line)], cwd=ROOT, env=env, check=True, timeout=20)
    told = (tmp_path / "told").read_text().splitlines()
    assert told == [
        *("-m", "real.finetune", "--real-dataset-folder=a b", "--checkpoint-path=c", "--seed", "3")
    ]


def test_every_option_of_penspins_is_there():
    text = parser().format_help()
    for option in (
        *("real-dataset-folder", "checkpoint-path", "real-batch-size", "val-ratio", "lr"),
        *("num-epochs", "weight-decay", "eval-freq", "eval-start-epoch", "seed", "input-mode"),
    ):
        assert f"--{option} " in text and f"--{option.replace('-', '_')} " in text
