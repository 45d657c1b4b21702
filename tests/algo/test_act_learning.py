"""ACT, the baseline: it learns chunks of actions, and resumes where it was."""

import copy

import pytest
import torch

from penspin_style.algo.chunks import chunk_inputs, eyes_of
from tests.support.episodes import vector_card
from tests.support.learning import act_reads, chunking, demonstrated, fit, seeing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three trajectories as ACT reads them."""
    return demonstrated(tmp_path_factory.mktemp("rows"), act_reads(), 3)


def test_two_iterations_reduce_the_loss(rows):
    trainer = chunking(rows, real_batch_size=64)

    def loss():
        rows = trainer.train
        chunk, kl = trainer.policy(rows.numbers, rows.seen, rows.label, rows.padded)
        there = (~rows.padded)[..., None].expand_as(chunk)
        return ((chunk - rows.label).abs()[there].mean() + kl.mean()).item()

    losses = [loss()]
    for _ in range(2):
        trainer.update()
        losses.append(loss())
    assert losses[0] > losses[1] > losses[2]


def test_what_is_learned_holds_on_what_only_validates(rows):
    trainer = chunking(rows, num_epochs=80, eval_freq=20)
    losses = [row["val/loss"] for row in fit(trainer) if "val/loss" in row]
    assert trainer.best == min(losses) and trainer.validate() == trainer.best
    assert trainer.best < trainer.before - 0.02 and len(losses) == 4
    assert sorted([*trainer.train_ids, *trainer.val_ids]) == [0, 1, 2]


def test_the_seed_alone_decides(rows):
    def weights(seed):
        trainer = chunking(rows, num_epochs=3, seed=seed)
        fit(trainer)
        return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_every_chunk_is_the_actions_from_its_step_on_and_ends_with_its_trajectory(rows):
    trainer = chunking(rows, val_ratio=0.0)
    labels = [torch.from_numpy(r.labels) for r in rows]
    assert len(trainer.train.label) == 60
    assert torch.equal(trainer.train.label[3], labels[0][3:8])
    last = trainer.train.label[19], trainer.train.padded[19]
    assert torch.equal(last[0][0], labels[0][19]) and (last[0][1:] == 0).all()
    assert last[1].tolist() == [False, True, True, True, True]


def test_it_reads_the_newest_values_of_what_the_student_reads():
    card = vector_card(history=30, delay=1)
    (given,) = chunk_inputs(card)
    assert [(f.name, f.history, f.delay) for f in given.features] == [
        *(("proprio", 1, 0), ("fingertips", 1, 0))
    ]
    (given,) = chunk_inputs(card, "fingertips")
    assert [f.name for f in given.features] == ["fingertips"]
    with pytest.raises(ValueError, match="no 'obj_ends', the student reads"):
        chunk_inputs(card, "proprio-obj_ends")


def test_images_are_seen_through_the_students_frozen_encoder(tmp_path):
    policy, card = seeing()
    own = act_reads(card)
    rows = demonstrated(tmp_path, own, 3, 8)
    trainer = chunking(rows, own, eyes_of(policy), num_epochs=2, eval_freq=1)
    before = {k: v.clone() for k, v in policy.encoders.state_dict().items()}
    fit(trainer)
    assert all(
        torch.equal(before[k], v) for k, v in trainer.policy.eyes.encoders.state_dict().items()
    )
    given = [torch.from_numpy(rows[0].inputs[i.name]) for i in own.inputs]
    said = trainer.policy.act(*given)
    black = [torch.zeros_like(v) if v.dtype == torch.uint8 else v for v in given]
    assert not torch.allclose(said, trainer.policy.act(*black), atol=1e-4)
    with pytest.raises(ValueError, match="nothing encodes"):
        chunking(rows, own)


def test_act_resumes_bit_for_bit_from_any_epoch(rows):
    whole = chunking(rows, num_epochs=6, eval_freq=2, eval_start_epoch=4)
    told, states = [], []
    while not whole.finished:
        states.append(copy.deepcopy(whole.state_dict()))
        told.append(whole.update())
    assert whole.best_epoch in (4, 6) and states[3]["kept"] == {}
    for k in (0, 3, 5):
        again = chunking(rows, num_epochs=6, eval_freq=2, eval_start_epoch=4)
        again.load_state_dict(copy.deepcopy(states[k]))
        assert fit(again) == told[k:]
        kept = whole.state_dict()["kept"]
        assert all(torch.equal(kept[name], v) for name, v in again.policy.state_dict().items())
