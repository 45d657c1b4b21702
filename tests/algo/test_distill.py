"""Distillation of a teacher that is a formula, by students that see numbers alone."""

import copy
import itertools
import math

import pytest
import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import DivergedError
from penspin_style.train.checkpoint import Checkpoints
from tests.support.formula import SIZE, N, T, close, collected, learn, make, root, taught, weights

# Labels and actions.


def test_the_label_is_the_teachers_action_on_what_only_it_sees(teacher):
    distill = make(teacher)
    td = distill.act(root())
    close(td["label"], taught(td["teacher"]))
    other = root()
    other["student"] += 1.0
    assert torch.equal(distill.act(other)["label"], td["label"])
    other = root()
    other["teacher"] += 1.0
    assert not (distill.act(other)["label"] == td["label"]).any()


def test_where_the_object_is_absent_the_label_is_to_do_nothing(teacher):
    distill = make(teacher)
    absent = torch.tensor([True, False, False, True, False, True])
    td = distill.act(root().set("is_absent", absent[:, None]))
    assert (td["label"][absent] == 0.0).all() and (td["action"][absent] == 0.0).all()
    close(td["label"][~absent], taught(td["teacher"])[~absent])


def test_where_the_task_says_what_is_right_that_is_the_label(teacher):
    distill = make(teacher)
    own = torch.full((6, 2), float("nan"))
    own[0], own[1, 1] = torch.tensor([0.25, -0.5]), 0.75
    td = distill.act(root().set("task_label", own))
    expected = taught(td["teacher"])
    expected[0], expected[1, 1] = own[0], 0.75
    close(td["label"], expected)
    assert torch.equal(td["action"], td["label"])  # the first iteration is the label's


def test_the_teacher_drives_the_first_iteration_and_the_student_all_others(teacher):
    distill = make(teacher)
    td = distill.act(root())
    assert torch.equal(td["action"], td["label"])
    for iteration in (1, 2, 9):
        distill.iteration = iteration
        td = distill.act(root())
        with torch.no_grad():
            own = distill.policy.act(td["student"])
        assert torch.equal(td["action"], own)
        assert (own != td["label"]).all()


@pytest.mark.parametrize(
    ("over", "shares"),
    [(0, [0.0] * 3), (1, [1.0, 0.0, 0.0]), (4, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0])],
)
def test_the_teachers_share_falls_to_nothing_over_the_given_iterations(teacher, over, shares):
    distill, seen = make(teacher, beta_iterations=over), []
    for _ in shares:
        seen.append(distill.beta)
        (row,) = learn(distill, 1)
        assert row["train/beta"] == seen[-1]
    assert seen == shares


def test_who_drives_is_drawn_for_every_environment_and_step(teacher):
    distill = make(teacher, beta_iterations=4)
    distill.iteration = 1
    n, seen = 1000, []
    for seed in range(2):
        td = distill.act(root(seed, n))
        by_teacher = (td["action"] == td["label"]).all(dim=1)
        with torch.no_grad():
            own = distill.policy.act(td["student"])
        assert torch.equal(td["action"], torch.where(by_teacher[:, None], td["label"], own))
        assert 695 <= by_teacher.sum() <= 805  # 750 expected, sd 13.7
        seen.append(by_teacher)
    assert 0.28 < (seen[0] != seen[1]).float().mean() < 0.47  # 2 * 3/4 * 1/4 expected, sd 0.015


def test_the_reported_error_is_the_students_also_where_the_teacher_drives(teacher):
    distill = make(teacher)
    batch = collected(distill)
    with torch.no_grad():
        own = distill.policy.act(batch["student"])
    error = (own - taught(batch["teacher"])).square().sum(dim=-1)
    close(batch["imitated"], error, atol=1e-5)
    distill.process(batch)
    row = distill.update()
    assert row["train/imitation_error"] == pytest.approx(error.mean().item(), rel=1e-5)
    assert row["rollout/rewards"] == 2.0  # the mean of steps 0 to 4


# The loss.

FAULTS = ((0, 1), (2, 3), (4, 5))


def healthy(batch):
    return ~batch["next", "fault"].reshape(-1)


def test_the_loss_is_the_mean_of_sums_over_the_numbers_of_the_action(teacher):
    distill = make(teacher, epochs=1, minibatch_size=T * N)
    batch = collected(distill, 0, T, *FAULTS)
    before = copy.deepcopy(distill.policy)
    distill.process(batch)
    row = distill.update()
    before.normalizer.load_state_dict(distill.policy.normalizer.state_dict())
    flat = batch.reshape(-1)[healthy(batch)]
    assert len(flat) == T * N - 3
    with torch.no_grad():
        error = before.act(flat["student"]) - taught(flat["teacher"])
    assert row["train/loss"] == pytest.approx((error**2).sum().item() / len(flat), rel=1e-5)
    assert row["train/memory"] == T * N and row["train/skipped_updates"] == 0.0


def test_a_step_follows_the_gradient_of_that_loss(teacher):
    distill = make(teacher, epochs=1, minibatch_size=T * N, max_grad_norm=1e9)
    batch = collected(distill, 0, T, *FAULTS)
    distill.process(batch)
    twin = copy.deepcopy(distill.policy)  # with the statistics that the step will see
    flat = batch.reshape(-1)[healthy(batch)]
    loss = (twin.act(flat["student"]) - taught(flat["teacher"])).square().sum() / len(flat)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    optimizer = torch.optim.Adam(twin.parameters(), lr=4e-4)
    optimizer.step()
    row = distill.update()
    assert row["train/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    moved = torch.cat([p.detach().flatten() for p in twin.parameters()])
    close(weights(distill), moved, atol=1e-6)
    assert (weights(distill) - weights(make(teacher))).abs().max() > 3e-4


@pytest.mark.parametrize("replay_capacity", [0, 100])
def test_faulty_rows_influence_nothing_bit_for_bit(teacher, replay_capacity):
    results = []
    for garbage in (1e15, -1e30):
        distill = make(teacher, epochs=2, replay_capacity=replay_capacity)
        batch = collected(distill, 0, T, *FAULTS)
        for step, env in FAULTS:
            for key in ("label", "student"):
                batch[key][step, env] = garbage
        distill.process(batch)
        row = distill.update()
        assert row["train/skipped_updates"] == 0.0
        results.append((row, weights(distill), distill.policy.normalizer.mean.clone()))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1:], results[1][1:], strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()


def test_the_normaliser_has_seen_the_healthy_rows_and_the_first_root(teacher):
    distill = make(teacher)
    batch = collected(distill, 0, T, *FAULTS)
    first = batch[0]["student"]
    assert distill.policy.normalizer.count == N
    close(distill.policy.normalizer.mean, first.mean(dim=0))
    distill.process(batch)
    rows = torch.cat((first, batch["student"].reshape(-1, SIZE)[healthy(batch)]))
    assert distill.policy.normalizer.count == len(rows)
    close(distill.policy.normalizer.mean, rows.mean(dim=0), atol=1e-5)
    close(distill.policy.normalizer.var, rows.var(dim=0, correction=0), atol=1e-5)


# Minibatches and memory.


def watch(distill):
    """Note the minibatches that the learner is given, by the number in `student`."""
    seen, step = [], distill._step

    def noting(mb):
        seen.append(mb["student"][:, 0].round().long().tolist())
        return step(mb)

    distill._step = noting
    return seen


def numbered(distill, first, steps=T):
    """A batch whose rows count up from `first` in the student's first number."""
    batch = collected(distill, first, steps)
    batch["student"][..., 0] = torch.arange(first, first + steps * N).view(steps, N).float()
    return batch


def test_without_replay_every_sample_is_used_once_in_each_epoch_and_never_again(teacher):
    distill = make(teacher, epochs=3, minibatch_size=12)
    seen = watch(distill)
    for first in (0, 1000):
        seen.clear()
        distill.process(numbered(distill, first))
        distill.update()
        assert [len(mb) for mb in seen] == [12, 12, 6] * 3
        epochs = [list(itertools.chain(*seen[i : i + 3])) for i in range(0, 9, 3)]
        assert all(sorted(order) == list(range(first, first + 30)) for order in epochs)
        assert len({tuple(order) for order in epochs}) == 3


def kept(distill):
    return sorted(distill._replay.content["student"][:, 0].round().long().tolist())


def test_the_replay_is_a_ring_that_forgets_the_oldest(teacher):
    distill = make(teacher, replay_capacity=70, epochs=1)
    for k, there in enumerate(
        [range(0, 30), range(0, 60), range(20, 90), range(50, 120), range(80, 150)]
    ):
        distill.process(numbered(distill, 30 * k))
        assert kept(distill) == list(there)
        row = distill.update()
        assert row["train/memory"] == len(there)
    rows = distill._replay.content
    assert set(rows.keys()) == {"student", "label", "weight"}
    assert len(rows) == 70


def test_a_batch_larger_than_the_capacity_leaves_its_end_there(teacher):
    distill = make(teacher, replay_capacity=8)
    for first in (0, 100):
        distill.process(numbered(distill, first))
        assert kept(distill) == list(range(first + 22, first + 30))


def test_the_replay_keeps_each_rows_own_label_and_weight(teacher):
    distill = make(teacher, replay_capacity=50)
    labels, faulty = {}, {}
    for k in range(3):
        batch = collected(distill, k, T, *FAULTS)
        batch["student"][..., 0] = torch.arange(30 * k, 30 * k + 30).view(T, N).float()
        flat = batch.reshape(-1)
        for row, ok in zip(flat, healthy(batch), strict=True):
            number = int(row["student"][0])
            labels[number], faulty[number] = row["label"].tolist(), not ok
        distill.process(batch)
        distill.update()
    content = distill._replay.content
    for row in content:
        number = int(row["student"][0])
        assert row["label"].tolist() == labels[number]
        assert (row["weight"].item() == 0.0) is faulty[number]
    assert sum(content["weight"] == 0) in (5, 6)


def test_with_replay_as_many_updates_are_drawn_from_all_that_is_there(teacher):
    distill = make(teacher, replay_capacity=1000, epochs=2, minibatch_size=10)
    seen = watch(distill)
    for k in range(10):
        seen.clear()
        distill.process(numbered(distill, 30 * k))
        distill.update()
        assert [len(mb) for mb in seen] == [10] * 6
    for epoch in (seen[:3], seen[3:]):
        drawn = list(itertools.chain(*epoch))
        assert len(set(drawn)) == 30  # of 300, none twice
        assert len({number // 30 for number in drawn}) >= 5


# Learning.


def test_a_student_that_sees_enough_learns_the_formula(teacher):
    distill = make(teacher, hidden=[32], learning_rate=5e-3, epochs=8, replay_capacity=600)
    errors = []
    for k in range(25):
        batch = []
        for t in range(T):
            td = root(100 * k + t)
            td["student"][:, :3] = td["teacher"]
            td = distill.act(td)
            td["next"] = TensorDict({"fault": td["fault"], "reward": torch.zeros(N, 1)}, [N])
            batch.append(td)
        distill.process(torch.stack(batch))
        errors.append(distill.update()["train/imitation_error"])
    assert errors[0] > 0.5
    assert sum(errors[-3:]) / 3 < 0.02


def test_the_learning_rate_falls_along_a_line(teacher):
    distill = make(teacher, learning_rate=1e-3, final_learning_rate=2e-4, iterations=4)
    rates = [row["train/lr"] for row in learn(distill, 6)]
    assert rates == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4, 2e-4])


def test_a_rate_that_a_diverged_run_has_halved_stays_halved(teacher):
    for final, rates in ((1e-3, [1e-3, 5e-4, 5e-4]), (2e-4, [8e-4, 3e-4, 2e-4])):
        distill = make(teacher, learning_rate=1e-3, final_learning_rate=final, iterations=4)
        learn(distill, 1)
        seen = [learn(distill, 1)[0]["train/lr"]]
        for group in distill.optimizer.param_groups:
            group["lr"] *= 0.5
        seen += [row["train/lr"] for row in learn(distill, 2)]
        assert seen == pytest.approx(rates)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(teacher):
    torch.manual_seed(5)
    one, two, three = (make(teacher, seed=seed) for seed in (1, 1, 2))
    for distill in (one, two, three):
        learn(distill, 2)
        torch.manual_seed(6)  # nothing may draw from the global generator
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(three))


@pytest.mark.parametrize("replay_capacity", [0, 50])
@pytest.mark.parametrize("used", [False, True])
def test_a_restored_learner_continues_bit_for_bit(teacher, tmp_path, replay_capacity, used):
    settings = {
        "replay_capacity": replay_capacity,
        "beta_iterations": 5,
        "final_learning_rate": 1e-5,
    }
    distill, other = (make(teacher, seed=seed, **settings) for seed in (1, 2))
    learn(distill, 3)
    learn(other, int(used), first=50)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"algo": distill.state_dict()}, None)
    other.load_state_dict(checkpoints.newest()[1]["algo"])
    assert torch.equal(weights(distill), weights(other))
    first, second = learn(distill, 3, first=3), learn(other, 3, first=3)
    assert first == second
    assert torch.equal(weights(distill), weights(other))
    assert torch.equal(distill.policy.normalizer.var, other.policy.normalizer.var)
    if replay_capacity:
        a, b = distill._replay.content, other._replay.content
        assert len(a) == 50 and all(torch.equal(a[key], b[key]) for key in a.keys())  # noqa: SIM118


def test_steps_that_are_not_finite_are_skipped_and_too_many_mean_divergence(teacher):
    distill = make(teacher, epochs=1)
    distill.process(collected(distill))
    before = weights(distill)
    distill._batch["label"][:] = math.nan
    row = distill.update()
    assert row["train/skipped_updates"] == 3.0
    assert torch.equal(weights(distill), before)
    distill.process(collected(distill))
    distill._batch["label"][:] = math.nan
    with pytest.raises(DivergedError, match="5 updates in a row"):
        distill.update()


def test_update_needs_a_processed_batch(teacher):
    distill = make(teacher)
    with pytest.raises(RuntimeError, match=r"call process\(\) first"):
        distill.update()
    learn(distill, 1)
    with pytest.raises(RuntimeError, match=r"call process\(\) first"):
        distill.update()
