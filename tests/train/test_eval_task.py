"""What evaluations have otherwise than training: `eval.task.KEY=VALUE`."""

import pathlib
import shutil

import pytest

from penspin_style.train import compose
from penspin_style.train.compose import UsageError, compose_train, saved_overrides
from penspin_style.train.curriculum import evaluated_task
from penspin_style.train.load_policy import open_policy
from tests.support.small_run import ITERATION, fit, make, weights_sha256
from tests.support.terminal import call, check_refusal
from tests.support.training import untimed

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ("eval.task.episode_length=7", "eval.task.randomize=false")
STAGES = "curriculum=[{task:{episode_length:20},samples:256},{}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_thread):
    return fit(tmp_path_factory.mktemp("out"), *SHORT, f"total_samples={2 * ITERATION}")


def test_a_run_learns_in_one_world_and_is_evaluated_in_the_other(run):
    trained, evaluated = run.env, run._make_env(2, 0)
    assert (trained.cfg.episode_length, trained.cfg.randomize) == (80, True)
    assert (evaluated.cfg.episode_length, evaluated.cfg.randomize) == (7, False)
    rows = untimed(run)
    assert float(rows[1]["eval/episode_len"]) == 7.0 == run.final.episode_len


def test_a_stage_does_not_change_what_is_evaluated_and_evaluations_change_no_stage(tmp_path):
    run = make(tmp_path, STAGES, *SHORT)
    assert [task.episode_length for task in run.curriculum.tasks] == [20, 80]
    assert run._make_env(1, 0).cfg.episode_length == 7
    run.curriculum.advance(256, None)
    assert run._make_env(1, 0, training=True).cfg.episode_length == 80
    assert run._make_env(1, 0).cfg.episode_length == 7
    run._lock.close()


def test_a_shipped_policy_is_evaluated_in_the_world_that_its_run_was(run, tmp_path):
    shutil.copytree(run.folder / "policy", tmp_path / "copy")
    opened = open_policy(tmp_path / "copy", [])
    env = opened.env(3, 0)
    assert (env.cfg.episode_length, env.cfg.randomize) == (7, False)
    world = opened.env(3, 0, training=True)
    assert (world.cfg.episode_length, world.cfg.randomize) == (80, True)


@pytest.mark.parametrize(
    ("overrides", "length", "randomize"),
    [
        (["task.episode_length=9"], 9, False),
        (["eval.task.episode_length=11"], 11, False),
        (["task.episode_length=9", "eval.task.episode_length=11"], 11, False),
        (["eval.task.randomize=true"], 7, True),
    ],
)
def test_what_is_typed_now_comes_before_what_the_run_was_evaluated_with(
    run, overrides, length, randomize
):
    cfg = open_policy(run.folder, overrides).env(1, 0).cfg
    assert (cfg.episode_length, cfg.randomize) == (length, randomize)


def test_a_saved_configuration_comes_back_with_nested_keys(tmp_path):
    noise = "task.observation.teacher.box_pos.noise"
    overrides = [f"{noise}=0.01", f"eval.{noise}=0.0", "eval.task.control_dt=0.1"]
    before, _, text = compose_train(["task=panda_lift_cube", *overrides])
    config = tmp_path / "config.yaml"
    config.write_text(text)
    after, _, again = compose_train([], saved_overrides(config))
    assert after.eval.task == before.eval.task and again == text
    changed = evaluated_task(after)
    assert (after.task.control_dt, changed.control_dt) == (0.05, 0.1)
    values = [task.observation["teacher"]["box_pos"].noise for task in (after.task, changed)]
    assert values == [0.01, 0.0]


@pytest.mark.parametrize("place", ["algo/panda_lift_cube/ppo", "recipe/mine"])
def test_a_file_of_the_repository_says_how_a_task_is_evaluated(place, tmp_path, monkeypatch):
    shutil.copytree(compose.FOLDER, tmp_path / "cfg")
    monkeypatch.setattr(compose, "FOLDER", tmp_path / "cfg")
    file = tmp_path / "cfg" / f"{place}.yaml"
    file.write_text("# @package _global_\neval:\n  task:\n    episode_length: 5\n")
    chosen = ["recipe=mine"] if place.startswith("recipe") else []
    cfg, _, _ = compose_train(["task=panda_lift_cube", *chosen, "task.episode_length=9"])
    assert (cfg.task.episode_length, evaluated_task(cfg).episode_length) == (9, 5)
    more = "eval.task.episode_length=6"
    cfg, _, _ = compose_train(["task=panda_lift_cube", *chosen, more])
    assert evaluated_task(cfg).episode_length == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.task.episode_lenght=3", "unknown key 'eval.task.episode_lenght'; did you mean "
         "eval.task.episode_length?"),
        ("eval.episodes=3", "unknown key 'eval.episodes'; did you mean"),
        ("eval.task=3", "eval.task is a group; set one of its keys"),
        ("eval.task.episode_length=0", "eval: task.episode_length must be at least 1, got 0"),
        ("eval.task.episode_length=often", "eval.task: Value 'often' of type 'str'"),
        ("eval.task.control_dt=nan", "eval.task.control_dt must be finite"),
    ],
)  # fmt: skip
def test_an_invalid_override_is_one_line(override, message, tmp_path, capsys):
    code = call(f"train task=panda_lift_cube {override} out={tmp_path}")
    check_refusal(code, *capsys.readouterr(), 2, message)


def test_a_file_with_a_key_that_the_task_does_not_have_is_refused_with_the_nearest(run, tmp_path):
    text = (run.folder / "config.yaml").read_text()
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("    episode_length: 7", "    episode_lenght: 7"))
    assert config.read_text() != text
    with pytest.raises(UsageError, match=r"did you mean eval.task.episode_length\?"):
        compose_train([], saved_overrides(config))


def test_a_world_that_the_policy_could_not_be_evaluated_in_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"eval.task changes the task's observation"):
        make(tmp_path, "eval.task.observation.teacher.box_pos.history=2")
    with pytest.raises(ValueError, match=r"eval.task changes the task's action"):
        make(tmp_path, "eval.task.move_scale=0.5")
    run = make(tmp_path, "eval.task.observation.teacher.box_pos.noise=0.001")
    run._lock.close()


def test_a_resume_is_exact_and_a_change_of_what_is_evaluated_needs_leave(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    a = fit(whole, *SHORT, f"total_samples={4 * ITERATION}")
    fit(part, *SHORT, f"total_samples={3 * ITERATION}")
    with pytest.raises(ValueError, match=r"eval.task.episode_length=7, now 8"):
        make(part, "eval.task.episode_length=8", SHORT[1], "resume=true")
    with pytest.raises(ValueError, match=r"eval.task.episode_length=7, now absent"):
        make(part, SHORT[1], "resume=true")
    b = fit(part, *SHORT, f"total_samples={4 * ITERATION}", "resume=true")
    assert weights_sha256(a) == weights_sha256(b) and untimed(a) == untimed(b)


def test_a_run_from_before_evaluations_had_their_own_resumes(tmp_path):
    run = fit(tmp_path, f"total_samples={ITERATION}")
    config = pathlib.Path(run.folder / "config.yaml")
    older = config.read_text().replace("eval:\n  task: {}\n", "")
    assert "\neval:" not in older
    config.write_text(older)
    assert fit(tmp_path, "resume=true", f"total_samples={2 * ITERATION}").iteration == 2
