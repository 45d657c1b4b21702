"""Recipes, ablations and students: the keys that a name of `cfg/` stands for."""

import pytest

from penspin_style.train.compose import (
    FOLDER,
    UsageError,
    compose_train,
    differences,
    saved_overrides,
)
from tests.support.composed import RECORDED, is_as_recorded, leaves, saved


@pytest.mark.parametrize("line", [line for line in RECORDED if "recipe" in line])
def test_a_recipe_says_what_it_said(line):
    assert is_as_recorded(compose_train(line.split())[2], *line.split())


INGREDIENTS = {  # of recipe=teacher_cpu: what each ablation changes
    "no_posture": {"task.reward.posture": 0.0},
    "no_sides": {"task.reward.sides": 0.0},
    "no_starts": {f"algo.starts.{kind}": 0.0 for kind in ("far", "falls", "bank")},
    "published_observation": {
        "algo.encoders.privileged": [64, 32],
        "task.observes": "published",
        "task.point_cloud": False,
        "task.tactile": False,
    },
    "published_physics": {
        "curriculum": [
            {"task": {"balanced": True, "difficulty": 0.2}, "samples": 3000000, "until": None},
            {"task": {"balanced": True, "difficulty": 0.5}, "samples": 3000000, "until": None},
            {"task": {"balanced": True}, "samples": 0, "until": None},
        ]
    },
    "stall_as_limit": {"algo.stall.fails": False, "algo.stall.penalty": 0.0},
}
INSERTION = {"published_scale"}  # of `aloha_peg_insertion`
NAMED = [
    (task, group, file.stem)
    for group, task in (("ablation", "pen_spin"), ("student", "pen_spin_student"))
    for file in sorted((FOLDER / group).glob("*.yaml"))
    if file.stem not in INGREDIENTS and file.stem not in INSERTION
]


def test_there_are_the_published_changes():
    names = [(group, name) for _, group, name in NAMED]
    ablations = {"no_tactile", "no_point_cloud", "no_privileged", "no_z_reward"}
    assert {name for group, name in names if group == "ablation"} == ablations
    modes = {"proprio", "proprio_ends", "proprio_tactile", "proprio_tactile_ends"}
    students = {name for group, name in names if group == "student"}
    assert students == {*modes, *(f"dagger_{mode}" for mode in modes), "proprio_points"}


@pytest.mark.parametrize("name", INGREDIENTS)
def test_an_ablation_of_the_recipe_takes_one_ingredient_out(name):
    recipe, without = (
        dict(leaves(compose_train(["task=pen_spin", "recipe=teacher_cpu", *more])[2]))
        for more in ([], [f"ablation={name}"])
    )
    assert {k: v for k, v in without.items() if recipe[k] != v} == INGREDIENTS[name]


def test_the_published_scale_of_aloha_is_its_tasks_alone():
    cfg = compose_train(["task=aloha_peg_insertion", "ablation=published_scale"])[0].task
    assert (cfg.action_scale, cfg.gripper_scale) == (0.02, 0.02)
    with pytest.raises(UsageError, match=r"=published_scale sets .* it is for task=aloha_p"):
        compose_train(["task=pen_spin", "ablation=published_scale"])


@pytest.mark.parametrize(("task", "group", "name"), NAMED)
def test_a_named_change_comes_back_from_the_saved_configuration(tmp_path, task, group, name):
    path, text = saved(tmp_path, f"task={task}", f"{group}={name}")
    assert is_as_recorded(text, f"task={task}", f"{group}={name}")
    default = compose_train([f"task={task}"])[2]
    assert bool(differences(text, default)) is (name != "proprio")  # that one is the default
    again = compose_train(saved_overrides(path))
    assert differences(text, again[2]) == {}
    assert again[0] == compose_train([f"task={task}", f"{group}={name}"])[0]


def test_a_word_wins_over_a_named_change_wherever_it_stands():
    overrides = ["task=pen_spin", "ablation=no_tactile", "task.tactile=true"]
    for order in (overrides, overrides[::-1]):
        assert compose_train(order)[0].task.tactile
    assert not compose_train(overrides[:2])[0].task.tactile


def test_a_teachers_ablation_and_a_students_inputs_go_together():
    overrides = ["task=pen_spin_student", "ablation=no_tactile", "student=dagger_proprio_tactile"]
    overrides.append("task.observes=published")
    cfg, _, _ = compose_train(overrides)
    assert list(cfg.task.observation["student"]) == ["proprio", "fingertips", "tactile"]
    assert "tactile" not in cfg.task.observation["privileged"]
    assert (cfg.algo.driver, cfg.algo.beta_iterations, cfg.algo.network) == (
        "student",
        0,
        "temporal",
    )
