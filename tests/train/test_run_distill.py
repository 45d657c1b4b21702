"""A run that distils: the same again after a stop, and what it leaves behind."""

import json
import signal

import pytest
import torch

from penspin_style.nets.policy import load_policy
from tests.support import training
from tests.support.training import manifest
from tests.support.training import untimed as rows

SMALL = (
    *("task=panda_lift_cube_vision", "num_envs=4", "algo.horizon=3", "algo.minibatch_size=6"),
    *(
        "algo.replay_capacity=20",
        "algo.absent_object=0.3",
        "algo.beta_iterations=3",
        "task.episode_length=4",
    ),
    *("eval_every=2", "eval_episodes=2", "final_episodes=2", "checkpoint_every=1"),
    *("loggers=[csv]", "video=false", "algo.hidden=[16]", "algo.latent=8", "total_samples=48"),
)


pytestmark = pytest.mark.usefixtures("one_thread")


def make(out, *overrides):
    return training.make(out, *SMALL, *overrides)


def fit(out, *overrides):
    return training.fit(out, *SMALL, *overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), "keep_last=9")


def test_the_run_reports_what_it_learned(whole):
    assert [row["iteration"] for row in rows(whole)] == list("1234")
    betas = [float(row["train/beta"]) for row in rows(whole)]
    assert betas == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    memory = [float(row["train/memory"]) for row in rows(whole)]
    assert memory == [12.0, 20.0, 20.0, 20.0]
    for row in rows(whole):
        assert float(row["train/loss"]) > 0.0 and float(row["train/skipped_updates"]) == 0.0


def test_a_stopped_and_resumed_distillation_is_the_unbroken_one_bit_for_bit(whole, tmp_path):
    stopped = make(tmp_path, "keep_last=9")
    log = stopped._log

    def stop(*args):
        log(*args)
        if stopped.iteration == 2:
            signal.raise_signal(signal.SIGTERM)

    stopped._log = stop
    assert stopped.fit(quiet=True) == 4
    resumed = fit(tmp_path, "keep_last=9", "resume=true")
    for i in (2, 3, 4):  # weights, memory, generators, physics, rings of late images
        assert manifest(resumed, i) == manifest(whole, i)
    assert len({manifest(whole, i) for i in (2, 3, 4)}) == 3
    assert rows(resumed) == rows(whole)
    state = whole.checkpoints.newest()[1]
    assert {"terms/student/front_rgb/ring", "terms/late/student"} <= set(state["env"])
    assert state["algo"]["replay"].count == 48


def test_inputs_that_are_ignored_are_no_part_of_the_student(tmp_path):
    run = fit(tmp_path, "algo.ignored_inputs=[front_depth,wrist_rgb]", "total_samples=12")
    policy, card = load_policy(run.folder / "policy")
    assert [i.name for i in card.inputs] == ["student", "front_rgb", "wrist_depth"]
    assert set(policy.depth) == {"wrist"} and set(policy.encoders) == {"front"}
    every = "student, front_rgb, front_depth, wrist_rgb, wrist_depth"
    for names, said in (
        ("back_rgb", f"names back_rgb; the group student has {every}"),
        (every.replace(" ", ""), "leaves nothing of the group student to read"),
    ):
        with pytest.raises(ValueError, match=f"algo.ignored_inputs {said}"):
            make(tmp_path / "wrong", f"algo.ignored_inputs=[{names}]")


def test_training_removes_cubes_and_evaluation_does_not(whole):
    assert whole.env.absent_object == 0.3 and not whole.env.final_images
    evaluation = whole._make_env(2, 1)
    assert evaluation.absent_object == 0.0 and "is_absent" not in set(evaluation.current().keys())


def test_the_policy_folder_holds_the_student_and_its_card(whole):
    policy, card = load_policy(whole.folder / "policy")
    assert [i.name for i in card.inputs] == list(policy.in_keys) == [
        *("student", "front_rgb", "front_depth", "wrist_rgb", "wrist_depth")
    ]  # fmt: skip
    assert card.network["kind"] == "student" and card.network["activation"] == "relu"
    assert set(card.preprocessing) == set(policy.in_keys) - {"student"}
    assert json.loads(card.to_json())["score"]["episodes"] == 2
    values = [whole.env.current()[name] for name in policy.in_keys]
    with torch.no_grad():
        assert policy.act(*values).shape == (4, 4)
