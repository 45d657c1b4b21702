"""Stages of a training: when they change, what goes along, and that a resume is exact."""

import pytest
import torch

from penspin_style.config import StageConfig
from penspin_style.train.curriculum import Curriculum
from tests.support import training
from tests.support.small_run import ITERATION, fit, make, weights_sha256
from tests.support.toy import Config
from tests.support.training import untimed

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = "curriculum=[{task:{episode_length:20},samples:256},{task:{},until:2.0},{}]"


def stages(*each):
    return [StageConfig(**stage) for stage in each]


def test_a_stage_ends_with_its_samples_or_with_a_score():
    plan = Curriculum(
        stages(
            {"task": {"start": 0.1}, "samples": 100, "until": 0.9},
            {"task": {"start": 0.5}, "until": 0.5},
            {},
        ),
        Config(),
    )
    assert plan.task.start == 0.1
    assert not plan.advance(50, 0.8) and plan.advance(60, 0.9)
    assert plan.task.start == 0.5 and plan.since == 60
    assert not plan.advance(10_000, None) and not plan.advance(10_000, 0.49)
    assert plan.advance(20_000, 0.5) and plan.task.start == 1.0
    assert not plan.advance(10**9, 1.0)  # the last one does not end

    timed = Curriculum(stages({"samples": 100}, {"samples": 100}, {}), Config())
    assert [timed.advance(n, None) for n in (99, 100, 199, 200)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({}, r"curriculum\[0\] has no end: give it samples or until"),
        (
            {"task": {"rial": 1.0}, "samples": 1},
            r"curriculum\[0\].task: .*rial.*did you mean rail\?",
        ),
        ({"task": {"control_dt": -1.0}, "samples": 1}, r"curriculum\[0\]: task.control_dt must be"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(stage, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(stages(stage, {}), Config())


def test_a_stage_changes_a_task_whose_observation_is_made_of_switches():
    from tasks.pen.spin import Config as PenConfig

    task = PenConfig(tactile=False, point_cloud=False)
    plan = Curriculum(stages({"task": {"physics": "fast"}, "samples": 1}, {}), task)
    assert plan.task.physics == "fast" and plan.tasks[1] == task
    assert plan.task.observation == task.observation


def test_a_run_goes_through_its_stages_and_is_evaluated_on_the_task_as_it_is(tmp_path):
    run = make(tmp_path, STAGES)
    lengths = []

    def note(*_):
        lengths.append(run.env.cfg.episode_length)

    log = run._log
    run._log = lambda *args: (note(), log(*args))
    assert run.fit(quiet=True) == 0
    whole = run.cfg.task.episode_length
    # 256 samples are two iterations; 2.0 is no success rate, so the second stage never ends
    assert lengths == [20, 20, whole, whole, whole, whole]
    assert run.curriculum.index == 1
    assert run._make_env(1, 0).cfg.episode_length == whole


def test_a_resume_in_a_later_stage_is_exact(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    a = fit(whole, STAGES)
    fit(part, STAGES, f"total_samples={3 * ITERATION}")
    b = fit(part, STAGES, "resume=true")
    assert a.curriculum.index == b.curriculum.index == 1
    assert weights_sha256(a) == weights_sha256(b)
    assert len(untimed(a)) == 6 and untimed(a) == untimed(b)


def test_what_was_reached_goes_along_into_the_next_stage(tmp_path):
    run = training.make(
        tmp_path,
        *("task=pen_spin", "recipe=teacher_cpu", "num_envs=16", "algo.horizon=8", "video=false"),
        *("eval_every=0", "final_episodes=2", "loggers=[csv]", "total_samples=256"),
        "curriculum=[{task:{physics:fast,difficulty:0.0},samples:128},{}]",
    )
    kept = torch.arange(61.0).expand(16, 61)
    run.env.starts.archives["far"].add(torch.ones(16, dtype=torch.bool), kept, torch.ones(16))
    run._enter_stage()
    far = run.env.starts.archives["far"]
    assert far.count == 16 and torch.equal(far.rows[:16], kept)
    run._lock.close()
