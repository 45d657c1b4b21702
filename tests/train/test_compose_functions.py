"""Functions that a configuration names: the user may run code, a file may not."""

import pytest

from penspin_style.train.compose import UsageError, compose_train, saved_overrides

TASK = ["task=real2sim_pick_place", "task.objects=[box]"]
LEFT = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    name = f"rewards_{tmp_path.name.replace('-', '_')}"
    code = f"{LEFT}def reward(state):\n    return state['object_to_goal'][:, 0]\n"
    (tmp_path / f"{name}.py").write_text(code)
    return name


def saved(tmp_path, *overrides):
    text = compose_train([*TASK, *overrides])[2]
    (tmp_path / "config.yaml").write_text(text)
    return saved_overrides(tmp_path / "config.yaml")


def test_a_function_in_the_current_folder_is_imported_when_the_user_names_it(tmp_path, module):
    cfg, task, _ = compose_train([*TASK, f"task.reward_fn={module}:reward"])
    assert (tmp_path / "ran").exists()
    assert task(cfg.task).reward_fn.__name__ == "reward"


@pytest.mark.parametrize("key", ["task.reward_fn", "eval.task.reward_fn"])
def test_a_file_that_names_a_function_runs_nothing(tmp_path, module, key):
    lines = [*saved(tmp_path), f"{key}={module}:reward"]
    with pytest.raises(UsageError, match=rf"names the function '{module}:reward'.* say {key}="):
        compose_train([], lines)
    assert not (tmp_path / "ran").exists()
    compose_train([f"{key}=''"], lines)
    assert not (tmp_path / "ran").exists()
    compose_train([f"{key}={module}:reward"], lines)
    assert (tmp_path / "ran").exists()


def test_a_typed_function_that_is_none_is_one_line(module):
    with pytest.raises(UsageError, match=rf"{module} has no function 'other'") as caught:
        compose_train([*TASK, f"task.reward_fn={module}:other"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="there is no module no_such, neither installed nor"):
        compose_train([*TASK, "task.reward_fn=no_such:reward"])
