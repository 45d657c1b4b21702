"""Fine-tuning: it learns, from what it may, with what it must not touch untouched."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from penspin_style.algo.clone import CloneConfig, check_mode
from penspin_style.algo.recorded import split
from penspin_style.config import TrainConfig
from penspin_style.data.dataset import join, windows
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.student import StudentPolicy
from tests.support.episodes import columns, record, taught, vector_card
from tests.support.learning import cloning, demonstrated, fit, seeing, student

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Six trajectories of a student of joints."""
    return demonstrated(tmp_path_factory.mktemp("rows"), vector_card())


def tuned(policy, card, rows, **cfg):
    cfg = {"num_epochs": 16, "lr": 5e-3, "eval_freq": 4, "val_ratio": 0.34, **cfg}
    tuner = cloning(policy, card, rows, **cfg)
    fit(tuner)
    return tuner


def states(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


# It learns.


def test_weights_move_and_what_is_learned_holds_on_other_trajectories(rows, tmp_path):
    policy, card = student()
    before = states(policy)
    tuner = tuned(policy, card, rows)
    after = tuner.policy.state_dict()
    learned = {name for name, _ in policy.named_parameters()}
    assert all(not torch.equal(before[name], after[name]) for name in learned)
    assert tuner.best < 0.5 * tuner.before
    # by hand, on a trajectory that was neither learned from nor validated on
    (fresh,) = demonstrated(tmp_path, card, 1, 40)
    fresh = windows(record(tmp_path / "other", card, taught(card, 40, seed=99)), card)
    errors = [
        np.abs(p.act(torch.from_numpy(fresh.inputs["student"])).detach().numpy() - fresh.labels)
        for p in (policy, tuner.policy)
    ]
    assert errors[1].mean() < 0.5 * errors[0].mean()
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())  # a copy learned
    assert len(tuner.train) == 80 and len(tuner.val) == 40


def test_every_weight_that_learns_has_a_gradient(rows):
    policy, card = student()
    tuner = tuned(policy, card, rows, num_epochs=1, eval_freq=1)
    for name, weight in tuner.policy.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_the_normalisers_of_pre_training_stay_as_they_are(rows):
    policy, card = student()
    tuner = tuned(policy, card, rows)
    for name in ("mean", "var", "count"):
        assert torch.equal(getattr(tuner.policy.normalizer, name), getattr(policy.normalizer, name))
    fresh = tuned(policy, card, rows, from_scratch=True, num_epochs=1)
    inputs = join([rows[i] for i in fresh.train_ids]).inputs["student"]
    assert fresh.policy.normalizer.count == len(inputs) == 80
    tips = torch.from_numpy(inputs[:, -3:]).mean(dim=0)
    assert torch.allclose(fresh.policy.normalizer.mean[-3:], tips, atol=1e-5)


def test_the_loss_is_the_mean_distance_over_all_numbers(rows):
    policy, card = student()
    for loss, power in (("l1", 1), ("l2", 2)):
        tuner = tuned(policy, card, rows, loss=loss, num_epochs=1)
        val = join([rows[i] for i in tuner.val_ids])
        action = policy.act(torch.from_numpy(val.inputs["student"])).detach().numpy()
        assert tuner.before == pytest.approx((np.abs(action - val.labels) ** power).mean(), 1e-5)
    assert CloneConfig().loss == "l1"


# From what, and how long.


def test_a_batch_larger_than_the_data_is_the_whole_data(rows):
    policy, card = student()
    tuner = tuned(policy, card, rows, real_batch_size=8192)
    assert tuner.best < tuner.before
    steps = next(iter(tuner.optimizer.state.values()))["step"]
    assert steps == 16  # one an epoch


def test_trajectories_are_split_whole(rows):
    policy, card = student()
    tuner = tuned(policy, card, rows, num_epochs=1)
    assert sorted([*tuner.train_ids, *tuner.val_ids]) == list(range(6))
    for ids, found in ((tuner.train_ids, tuner.train), (tuner.val_ids, tuner.val)):
        assert torch.equal(found["label"], torch.from_numpy(join([rows[i] for i in ids]).labels))


@pytest.mark.parametrize(
    ("count", "ratio", "held"), [(45, 0.1, 4), (15, 0.1, 2), (3, 0.1, 1), (5, 0.0, 0)]
)
def test_at_least_one_trajectory_validates_unless_none_shall(count, ratio, held):
    train, val = split(count, ratio, 0)
    assert (len(train), len(val)) == (count - held, held)
    assert not set(train) & set(val)
    assert split(count, ratio, 0) == (train, val)
    if held:
        assert split(45, 0.2, 0) != split(45, 0.2, 1)


def test_one_trajectory_cannot_be_split():
    with pytest.raises(ValueError, match=r"1 trajectories cannot be split.* algo\.val_ratio=0"):
        split(1, 0.1, 0)


def test_the_best_weights_by_validation_are_kept_and_training_stops_after_them(tmp_path):
    policy, card = student()
    rows = [windows(record(tmp_path, card, columns(card, 20, seed=i)), card) for i in range(4)]
    tuner = cloning(policy, card, rows, lr=1e-2, eval_freq=1, patience=4, val_ratio=0.5)
    seen = fit(tuner)  # what is random can only be learned by heart
    losses = [tuner.before, *(row["val/loss"] for row in seen)]
    assert tuner.best == min(losses) and tuner.best_epoch == int(np.argmin(losses))
    assert tuner.epoch == len(seen) == tuner.best_epoch + 4
    assert tuner.validate() == tuner.best
    assert seen[-1]["train/loss"] < seen[0]["train/loss"]


def test_no_weights_are_kept_before_the_epoch_that_is_asked_for(tmp_path):
    policy, card = student()
    rows = [windows(record(tmp_path, card, columns(card, 20, seed=i)), card) for i in range(4)]
    cfg = {"lr": 1e-2, "eval_freq": 1, "val_ratio": 0.5, "num_epochs": 12, "patience": 0}
    tuner = tuned(policy, card, rows, eval_start_epoch=8, **cfg)
    assert 8 <= tuner.best_epoch <= 12


def test_without_validation_the_last_weights_are_kept(rows):
    policy, card = student()
    tuner = tuned(policy, card, rows, val_ratio=0.0, num_epochs=7)
    assert (tuner.before, tuner.best, tuner.best_epoch) == (None, None, 7)
    assert len(tuner.train) == 120


def test_the_seed_alone_decides(rows):
    policy, card = student()
    seeds = (3, 3, 4)
    one, two, other = (
        states(tuned(policy, card, rows, seed=s, num_epochs=4).policy) for s in seeds
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# Students that see.


def test_frozen_encoders_stay_and_see_every_image_once(tmp_path, monkeypatch):
    policy, card = seeing()
    rows = demonstrated(tmp_path, card, 3, 10)
    calls = []
    whole = StudentPolicy.encode
    monkeypatch.setattr(
        StudentPolicy, "encode", lambda self, *a: calls.append(len(a[0])) or whole(self, *a)
    )
    tuner = tuned(policy, card, rows, num_epochs=20, eval_freq=10)
    assert len(calls) == 2  # to learn from, and to validate on
    after = tuner.policy.state_dict()
    for name, value in policy.state_dict().items():
        assert torch.equal(value, after[name]) == name.startswith(("encoders.", "normalizer.")), (
            name
        )
    assert tuner.best < tuner.before


def test_augmented_views_are_added_to_the_plain_one(tmp_path):
    policy, card = seeing()
    rows = demonstrated(tmp_path, card, 3, 10)
    tuner = tuned(policy, card, rows, num_epochs=1, views=3)
    assert len(tuner.train) == 60 and len(tuner.val) == 10
    plain, changed = tuner.train[:20], tuner.train[20:40]
    assert torch.equal(plain["label"], changed["label"])
    assert not torch.equal(plain["seen/front_rgb"], changed["seen/front_rgb"])
    rgb = torch.from_numpy(join([rows[i] for i in tuner.train_ids]).inputs["front_rgb"])
    seen = policy.encode({"front": rgb.permute(0, 3, 1, 2).float() / 255}, {})
    assert torch.allclose(plain["seen/front_rgb"], seen["front_rgb"], atol=1e-5)


def test_encoders_that_learned_in_pre_training_learn_here(tmp_path):
    policy, card = seeing(train_encoder=True)
    rows = demonstrated(tmp_path, card, 3, 6)
    tuner = tuned(policy, card, rows, num_epochs=2, eval_freq=1, patience=0, eval_start_epoch=2)
    before, after = policy.encoders.state_dict(), tuner.policy.encoders.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_from_scratch_keeps_frozen_encoders_alone(tmp_path):
    policy, card = seeing()
    rows = demonstrated(tmp_path, card, 3, 6)
    tuner = cloning(policy, card, rows, from_scratch=True, seed=7)
    mine = tuner.policy.state_dict()
    for name, value in policy.state_dict().items():
        if name.startswith("encoders."):
            assert torch.equal(value, mine[name])
        elif name.endswith("weight"):
            assert not torch.equal(value, mine[name])


# The same again.


@pytest.mark.parametrize("see", [False, True])
def test_cloning_resumes_bit_for_bit_from_any_epoch(tmp_path, see):
    policy, card = seeing() if see else student()
    rows = demonstrated(tmp_path, card, 4, 8)
    cfg = {"num_epochs": 9, "lr": 5e-3, "eval_freq": 2, "val_ratio": 0.3, "views": 2}
    whole = cloning(policy, card, rows, real_batch_size=10, **cfg)
    told, states = [], []
    while not whole.finished:
        states.append(copy.deepcopy(whole.state_dict()))
        told.append(whole.update())
    for k in (0, 3, 8):
        again = cloning(policy, card, rows, real_batch_size=10, **cfg)
        again.load_state_dict(copy.deepcopy(states[k]))
        assert fit(again) == told[k:]
        assert (again.best, again.best_epoch, again.before) == (
            *(whole.best, whole.best_epoch, whole.before),
        )
        kept = whole.state_dict()["kept"]
        assert all(torch.equal(kept[name], v) for name, v in again.policy.state_dict().items())


def test_other_episodes_than_it_began_with_are_refused(rows):
    policy, card = student()
    state = cloning(policy, card, rows).state_dict()
    with pytest.raises(ValueError, match="other episodes in "):
        cloning(policy, card, rows[1:]).load_state_dict(state)


def test_it_asks_for_no_environment_and_its_rows_add_up(rows):
    policy, card = student()
    tuner = cloning(policy, card, rows, num_epochs=7, val_ratio=0.34)
    assert tuner.env_settings(tuner.cfg, training=True) is None and not tuner.collects
    assert (tuner.horizon, tuner.total_samples) == (80, 560)
    assert tuner.about().startswith("6 trajectories, 0 failures left out: 4 to learn from (80 row")
    with pytest.raises(ValueError, match="algo=clone has no policy before it is finished"):
        tuner.untrained(TrainConfig(algo=tuner.cfg).algo, None)


# What is refused.


def test_input_modes_are_spelled_as_penspins():
    _, card = student()
    for mode in ("", "proprio", "proprio-fingertips", "proprio-fingertip"):
        check_mode(mode, card)
    with pytest.raises(ValueError, match=r"algo\.input_mode=.*does not read 'pen_ends'"):
        check_mode("proprio-ends", card)


def test_a_teacher_is_not_fine_tuned(rows):
    _, card = student()
    policy = GaussianPolicy(
        *("student", 27, 3),
        **{"hidden": [4], "activation": "elu", "init_std": 1.0, "rng": torch.Generator()},
    )
    card = dataclasses.replace(card, network=policy.describe())
    with pytest.raises(ValueError, match="kind 'gaussian': only students can be fine-tuned"):
        cloning(policy, card, rows)
