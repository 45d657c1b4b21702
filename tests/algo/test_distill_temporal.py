"""Distillation of a hand's student, in every mode of what it feels."""

import copy
import math

import pytest
import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import Interface
from penspin_style.algo.distill import Distill
from penspin_style.algo.imitation import DistillConfig, TemporalConfig
from penspin_style.algo.registry import make_algorithm
from penspin_style.config import TrainConfig
from penspin_style.data.rollouts import LABEL, RolloutWriter
from penspin_style.features import Feature, Input
from penspin_style.nets.temporal import TemporalPolicy
from tests.support.formula import (
    ACTIONS,
    CPU,
    NACTION,
    TEACHER,
    N,
    T,
    close,
    seeded,
    taught,
    weights,
)

TERMS = {
    "proprio": Feature("proprio", (8,), "rad", history=5),
    "fingertips": Feature("fingertips", (4, 3), "m"),
    "pen_ends": Feature("pen_ends", (2, 3), "m", history=3),
    "tactile": Feature("tactile", (3,), "1", history=5),
    "pen_points": Feature("pen_points", (9, 3), "m"),
}
PROPRIO = ("proprio", "fingertips")
MODES = {
    "proprio": PROPRIO,
    "proprio-ends": (*PROPRIO, "pen_ends"),
    "proprio-tactile": ("tactile", *PROPRIO),
    "proprio-points": ("pen_points", *PROPRIO),
    "all": tuple(TERMS),
}
modes = pytest.mark.parametrize("mode", MODES)
SMALL = {"width": 8, "feedforward": 16, "latent": 6, "fingertips": [8, 4], "trunk": [16]}


def group(mode):
    return Input("student", tuple(TERMS[name] for name in MODES[mode]))


def make(teacher, mode="proprio", *, seed=0, iterations=10, temporal=None, **cfg):
    cfg = {"horizon": T, "minibatch_size": 10, "network": "temporal", **cfg}
    temporal = TemporalConfig(**{**SMALL, **(temporal or {})})
    return Distill(
        DistillConfig(teacher=str(teacher), temporal=temporal, **cfg),
        (TEACHER, group(mode)),
        ("student",),
        NACTION,
        iterations=iterations,
        per_iteration=T * N,
        device=CPU,
        seed=seed,
    )


def observed(mode, seed=0, n=N):
    """A root in which the world is the same whatever the mode, and the group a part of it."""
    rng, world = seeded(seed), {}
    for name, feature in TERMS.items():
        world[name] = torch.randn(n, feature.size, generator=rng)
    world["tactile"] = (world["tactile"] > 1.0).float()
    vector = torch.cat([world[name] for name in MODES[mode]], dim=1)
    x = world["proprio"][:, -8:-5]  # the teacher knows what the newest frame begins with
    fault = torch.zeros(n, 1, dtype=torch.bool)
    return TensorDict({"teacher": x, "student": vector, "fault": fault}, [n])


def collected(distill, mode="proprio", seed=0, steps=T):
    batch = []
    for t in range(steps):
        td = distill.act(observed(mode, 100 * seed + t))
        td["next"] = TensorDict({"fault": td["fault"], "reward": torch.zeros(N, 1)}, [N])
        batch.append(td)
    return torch.stack(batch)


def learn(distill, iterations, mode="proprio", first=0):
    rows = []
    for k in range(first, first + iterations):
        distill.process(collected(distill, mode, k))
        rows.append(distill.update())
    return rows


def span(mode, name):
    start = 0
    for feature in group(mode).features:
        if feature.name == name:
            return slice(start, start + feature.size)
        start += feature.size
    raise AssertionError(name)


# Modes of input.

STREAMS = {
    "proprio": "history.blocks.0.query.weight",
    "fingertips": "fingertips.0.weight",
    "pen_ends": "ends.net.0.weight",
    "tactile": "history.project.weight",
    "pen_points": "points.net.0.weight",
}


@modes
def test_a_mode_feels_all_of_its_terms_and_nothing_else(teacher, mode):
    distill = make(teacher, mode)
    rows = learn(distill, 2, mode)
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    assert all(row["train/skipped_updates"] == 0.0 for row in rows)
    policy = distill.policy
    names = dict(policy.named_parameters())
    projected = policy.history.project is not None
    assert projected is ("tactile" in MODES[mode])  # frames of 8 are as wide as tokens are
    td = observed(mode)
    with torch.no_grad():
        action = policy.act(td["student"])
    assert td["student"].shape[1] == sum(TERMS[name].size for name in MODES[mode])
    for name in TERMS:
        if name not in MODES[mode]:
            assert STREAMS[name] not in names
            continue
        other = td["student"].clone()
        where = span(mode, name)
        other[:, where] = 1.0 - other[:, where]
        with torch.no_grad():
            assert ((policy.act(other) - action).abs().amax(dim=1) > 1e-6).all()


@modes
def test_every_weight_learns_in_every_mode(teacher, mode):
    distill = make(teacher, mode, epochs=1, minibatch_size=T * N)
    distill.process(collected(distill, mode))
    before = {k: v.clone() for k, v in distill.policy.state_dict().items()}
    assert distill._step(distill._batch) is not None
    for name, weight in distill.policy.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0.0, name
        if name.endswith("key_value.bias"):  # a key's bias moves all scores alike
            continue
        assert not torch.equal(weight, before[name]), name


def test_the_student_learns_the_formula_in_spite_of_dropout_and_noise(teacher):
    distill = make(teacher, "proprio-ends", learning_rate=5e-3, epochs=8, replay_capacity=600)
    errors = [row["train/imitation_error"] for row in learn(distill, 25, "proprio-ends")]
    assert errors[0] > 0.5
    assert sum(errors[-3:]) / 3 < 0.1


# Who drives, and what is drawn.


def test_labels_are_the_teachers_and_the_student_acts_as_it_will_be_exported(teacher):
    distill = make(teacher)
    distill.iteration = 1
    before = torch.get_rng_state()
    td = distill.act(observed("proprio"))
    close(td["label"], taught(td["teacher"]))
    with torch.no_grad():
        own = distill.policy.act(td["student"])
    assert torch.equal(td["action"], own)
    close(td["imitated"], (own - td["label"]).square().sum(dim=1))
    learn(distill, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_teacher_that_drives_does_so_to_the_end(teacher):
    distill = make(teacher, driver="teacher", beta_iterations=1)
    rows = learn(distill, 3)
    assert [row["train/beta"] for row in rows] == [1.0] * 3
    td = distill.act(observed("proprio"))
    assert torch.equal(td["action"], td["label"])
    with torch.no_grad():
        own = distill.policy.act(td["student"])
    close(td["imitated"], (own - td["label"]).square().sum(dim=1))


def test_learning_draws_dropout_and_noise_from_the_learners_generator(teacher):
    actions = {}
    for name, temporal in (("noisy", {}), ("plain", {"dropout": 0.0, "fingertip_noise": 0.0})):
        distill = make(teacher, temporal=temporal)
        distill.process(collected(distill))
        with torch.no_grad():
            twice = [distill._actor(distill._batch.clone())["action"] for _ in range(2)]
            own = distill.policy.act(distill._batch["student"])
        actions[name] = torch.equal(twice[0], twice[1]), torch.equal(twice[0], own)
    assert actions == {"noisy": (False, False), "plain": (True, True)}


@pytest.mark.parametrize(("loss", "power"), [("l1", 1.0), ("l2", 2.0)])
def test_the_loss_is_the_mean_of_sums_of_distances(teacher, loss, power):
    quiet = {"dropout": 0.0, "fingertip_noise": 0.0}
    distill = make(teacher, loss=loss, temporal=quiet, epochs=1, minibatch_size=T * N)
    batch = collected(distill)
    distill.process(batch)
    twin = copy.deepcopy(distill.policy)
    row = distill.update()
    with torch.no_grad():
        error = twin.act(batch["student"].flatten(0, 1)) - taught(batch["teacher"].flatten(0, 1))
    expected = error.abs().pow(power).sum(dim=1).mean().item()
    assert row["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_the_normaliser_has_seen_every_frame(teacher):
    distill = make(teacher)
    batch = collected(distill)
    distill.process(batch)
    vector = torch.cat((batch[0]["student"], batch["student"].flatten(0, 1)))
    frames = vector[:, span("proprio", "proprio")].reshape(-1, 8)
    mean = distill.policy.normalizer.mean[span("proprio", "proprio")].view(5, 8)
    close(mean, frames.mean(dim=0).expand(5, 8), atol=1e-5)


@pytest.mark.parametrize("replay_capacity", [0, 50])
def test_a_restored_learner_continues_bit_for_bit(teacher, replay_capacity):
    settings = {"replay_capacity": replay_capacity, "beta_iterations": 5, "loss": "l1"}
    one, two = (make(teacher, "all", seed=seed, **settings) for seed in (1, 2))
    learn(one, 3, "all")
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    first, second = learn(one, 2, "all", first=3), learn(two, 2, "all", first=3)
    assert first == second
    assert torch.equal(weights(one), weights(two))
    assert torch.equal(one.policy.normalizer.var, two.policy.normalizer.var)


def test_recorded_roll_outs_are_cloned(teacher, tmp_path):
    writer = RolloutWriter(tmp_path / "r", (TEACHER, group("proprio")), {"task": "toy"})
    for k in range(3):
        td = observed("proprio", k, 40)
        inputs = {name: td[name] for name in ("teacher", "student")}
        writer.add({**inputs, LABEL: taught(td["teacher"])})
    writer.close()
    distill = make("nowhere", rollouts=str(tmp_path / "r"), learning_rate=5e-3, epochs=8)
    losses = []
    for _ in range(12):
        distill.process(None)
        losses.append(distill.update()["train/loss"])
    assert losses[-1] < 0.3 * losses[0]


# What is chosen, and what is refused.


def test_the_network_is_chosen_by_its_configuration(teacher):
    temporal = TemporalConfig(**SMALL)
    algo = DistillConfig(
        teacher=str(teacher), network="temporal", temporal=temporal, absent_object=0.0
    )
    cfg = TrainConfig(algo=algo, num_envs=3, total_samples=100)
    inputs = (TEACHER, group("all"))
    env = Interface(inputs, ACTIONS, 0.05, lambda name: (name,))
    made = make_algorithm(cfg, env, device=CPU, seed=0)
    assert isinstance(made.policy, TemporalPolicy)
    described = made.policy.describe()
    assert described.items() >= {"kind": "temporal", "heads": 2, **SMALL}.items()


IMAGE = Input("front_rgb", (Feature("front_rgb", (32, 32, 3), "1", "uint8"),))


@pytest.mark.parametrize(
    ("student", "reads", "message"),
    [
        (group("proprio"), ("student", "front_rgb"), "reads one vector, got student, front_rgb"),
        (
            Input("student", (TERMS["pen_points"],)),
            ("student",),
            "needs the term 'proprio', found pen",
        ),
        (
            Input("student", (TERMS["proprio"], Feature("pen_end", (2, 3), "m"))),
            ("student",),
            "unknown term 'pen_end', .* did you mean pen_ends",
        ),
    ],
)
def test_a_group_that_the_network_cannot_read_is_refused_by_its_keys(
    teacher, student, reads, message
):
    cfg = DistillConfig(teacher=str(teacher), network="temporal")
    where = r"algo\.network=temporal, algo\.group=student: .*"
    with pytest.raises(ValueError, match=where + message):
        Distill(
            cfg,
            (TEACHER, student, IMAGE),
            reads,
            NACTION,
            iterations=1,
            per_iteration=1,
            device=CPU,
            seed=0,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "mage"}, "algo.network must be images or temporal or gaussian, got mage"),
        ({"driver": "nobody"}, "algo.driver must be student or teacher, got nobody"),
        ({"loss": "huber"}, "algo.loss must be l2 or l1, got huber"),
    ],
)
def test_an_invalid_distillation_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({key: 0}, rf"algo\.temporal\.{key} must be >= 1, got 0")
            for key in ("recent", "width", "heads", "layers", "feedforward", "latent")
        ),
        ({"width": 33, "heads": 3}, r"algo\.temporal\.width must be even: .*, got 33"),
        ({"heads": 3}, r"algo\.temporal\.heads must be a divisor of the width, 32, got 3"),
        *(
            ({"dropout": value}, r"algo\.temporal\.dropout must be in \[0, 1\)")
            for value in (-0.1, 1.0, math.nan)
        ),
        ({"fingertip_noise": -1.0}, r"algo\.temporal\.fingertip_noise must be finite and >= 0"),
        *(
            ({key: value}, rf"algo\.temporal\.{key} must be a list of sizes >= 1")
            for key in ("fingertips", "ends", "points")
            for value in ([], [3, 0])
        ),
        ({"trunk": [0]}, r"algo\.temporal\.trunk must be a list of sizes >= 1"),
    ],
)
def test_an_invalid_temporal_network_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TemporalConfig(**changes)
