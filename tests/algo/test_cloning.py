"""Cloning recorded roll-outs with the student of distillation, and what either refuses."""

import copy
import dataclasses

import pytest
import torch

from penspin_style.algo.algorithm import Interface
from penspin_style.algo.distill import Distill
from penspin_style.algo.imitation import DistillConfig
from penspin_style.algo.registry import make_algorithm
from penspin_style.config import TrainConfig
from penspin_style.data.rollouts import LABEL, RolloutWriter
from penspin_style.features import Feature, Input
from tests.support.formula import (
    ACTIONS,
    BOTH,
    CPU,
    NACTION,
    SIZE,
    TEACHER,
    N,
    T,
    close,
    make,
    publish,
    root,
    taught,
    weights,
)

# Cloning.


def record(folder, shards=4, n=60, inputs=BOTH, naction=NACTION):
    writer = RolloutWriter(folder, inputs, {"task": "toy"})
    for k in range(shards):
        td = root(k, n)
        td["student"][:, :3] = td["teacher"]
        writer.add(
            {**{i.name: td[i.name] for i in inputs}, LABEL: taught(td["teacher"])[:, :naction]}
        )
    writer.close()
    return folder


def test_recorded_roll_outs_are_cloned_by_the_same_student(tmp_path):
    folder = record(tmp_path / "r")
    settings = {"hidden": [32], "learning_rate": 5e-3, "epochs": 8}
    distill = make("nowhere", rollouts=str(folder), **settings)  # the labels are recorded
    assert not distill.collects
    rows = []
    for _ in range(25):
        distill.process(None)
        batch = distill._batch
        assert len(batch) == T * N and (batch["weight"] == 1.0).all()
        close(batch["label"], taught(batch["student"][:, :3]))
        rows.append(distill.update())
    assert rows[0]["train/loss"] > 0.3 and rows[-1]["train/loss"] < 0.02
    assert distill.policy.normalizer.count == 25 * T * N
    fresh = root(99, 200)
    fresh["student"][:, :3] = fresh["teacher"]
    with torch.no_grad():
        error = distill.policy.act(fresh["student"]) - taught(fresh["teacher"])
    assert error.square().sum(dim=1).mean() < 0.05


def test_cloning_resumes_bit_for_bit(tmp_path):
    folder = record(tmp_path / "r")
    one, two = (make("", rollouts=str(folder), seed=seed) for seed in (1, 2))

    def iterate(distill, count):
        rows = []
        for _ in range(count):
            distill.process(None)
            rows.append(distill.update())
        return rows

    iterate(one, 2)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert iterate(one, 2) == iterate(two, 2)
    assert torch.equal(weights(one), weights(two))


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"inputs": (TEACHER,)}, r"has not recorded 'student' as the student reads it; it holds"),
        (
            {"inputs": (TEACHER, Input("student", (Feature("z", (SIZE,), "m"),)))},
            r"has not recorded 'student' as the student reads it; it holds student, teacher",
        ),
        ({"naction": 1}, r"has 1 actions, the task 2"),
    ],
)
def test_roll_outs_that_do_not_fit_the_student_are_refused(tmp_path, recorded, message):
    folder = record(tmp_path / "r", **recorded)
    with pytest.raises(ValueError, match=rf"algo\.rollouts={folder} {message}"):
        make("", rollouts=str(folder))


def test_a_folder_that_is_no_recording_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no complete recording"):
        make("", rollouts=str(tmp_path))


# What is refused.


def test_a_teacher_that_is_not_there_is_refused_with_the_remedy(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"algo\.teacher={path} holds no policy: train a"):
            make(path)


def test_a_run_folder_will_do_for_a_teacher(teacher):
    assert teacher.name == "policy"
    td = make(teacher.parent).act(root())
    close(td["label"], taught(td["teacher"]))


@pytest.mark.parametrize(
    ("given", "naction", "message"),
    [
        (
            Input("teacher", (Feature("z", (3,), "m"),)),
            2,
            "'teacher' with z; the environment obser",
        ),
        (Input("teacher", (Feature("x", (3,), "mm"),)), 2, "reads 'teacher' with x; the env"),
        (Input("master", (Feature("x", (3,), "m"),)), 2, "observes nothing of that name"),
        (TEACHER, 3, "has 3 actions, the task has 2"),
    ],
)
def test_a_teacher_of_another_task_is_refused_by_name(tmp_path, given, naction, message):
    folder = publish(tmp_path / "policy", given, naction)
    with pytest.raises(ValueError, match=rf"algo\.teacher={folder} .*{message}"):
        make(folder)


def test_the_algorithm_is_chosen_by_its_configuration(teacher):
    cfg = TrainConfig(algo=DistillConfig(teacher=str(teacher), encoder="", hidden=[8], horizon=7))
    cfg.num_envs, cfg.total_samples = 3, 100

    def reads(group):
        return ("student",) if group == "student" else ()

    env = Interface(BOTH, ACTIONS, 0.05, reads)
    distill = make_algorithm(cfg, env, device=CPU, seed=0)
    assert isinstance(distill, Distill)
    assert (distill.per_iteration, distill.iterations, distill.horizon) == (21, 5, 7)
    cfg.algo.group = "camera"
    with pytest.raises(ValueError, match=r"algo\.group=camera: the task .* teacher, student"):
        make_algorithm(cfg, env, device=CPU, seed=0)


def test_a_teacher_of_another_rate_or_scale_is_refused_by_name(teacher):
    cfg = TrainConfig(algo=DistillConfig(teacher=str(teacher), encoder="", hidden=[8]))
    fast = Interface(BOTH, ACTIONS, 0.04, lambda name: (name,))
    with pytest.raises(ValueError, match=r"algo\.teacher=.* every 0\.05 s, the env.* 0\.04 s$"):
        make_algorithm(cfg, fast, device=CPU, seed=0)
    wide = (ACTIONS[0], dataclasses.replace(ACTIONS[1], scale=0.05))
    with pytest.raises(
        ValueError, match=r"algo\.teacher=.*: a1: the policy has scale 0\.1, .*0\.05"
    ):
        make_algorithm(
            cfg, dataclasses.replace(fast, actions=wide, control_dt=0.05), device=CPU, seed=0
        )
