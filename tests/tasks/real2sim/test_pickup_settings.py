"""YAML settings of the pick-and-place training: what they become, and what is refused."""

import pathlib

import pytest

from tasks.real2sim.training.settings import (
    PRESETS,
    SettingsError,
    algorithm_overrides,
    checked_environment,
    environment_overrides,
    read_settings,
    training_overrides,
)


def _file(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return file


def test_the_defaults_are_the_published_ones():
    read = read_settings(["real2sim_config"])
    assert environment_overrides(read["environment"]) == {
        "num_envs": 4096,
        "task.episode_length": 200,
    }
    assert training_overrides(read["training"]) == {"total_samples": 1_000_000, "device": "auto"}
    assert algorithm_overrides("ppo", read["ppo"]) == {
        "algo": "ppo",
        "algo.learning_rate": 3e-4,
        "algo.epochs": 10,
    }


@pytest.mark.parametrize(
    ("preset", "section", "values"),
    [
        ("fast", "ppo", {"learning_rate": 1e-3, "num_epochs": 5}),
        ("stable", "ppo", {"learning_rate": 3e-4, "num_epochs": 10}),
        ("gpu_8gb", "environment", {"num_parallel_envs": 2048}),
        ("gpu_16gb", "environment", {"num_parallel_envs": 4096}),
        ("gpu_24gb", "environment", {"num_parallel_envs": 8192}),
    ],
)
def test_presets_say_what_they_are_named_for_and_nothing_else(preset, section, values):
    read = read_settings([preset])
    assert read.pop(section) == values
    assert not any(read.values())


def test_every_preset_that_is_shipped_is_tested():
    found = {file.stem for file in PRESETS.glob("*.yaml")}
    assert found == {"real2sim_config", "fast", "stable", "gpu_8gb", "gpu_16gb", "gpu_24gb"}


def test_later_files_count_and_leave_the_rest_as_it_is(tmp_path):
    mine = _file(tmp_path, "environment: {num_parallel_envs: 7}\ntraining:\n  use_gpu: false\n")
    read = read_settings(["real2sim_config", mine, "fast"])
    assert read["environment"] == {"num_parallel_envs": 7, "max_episode_steps": 200}
    assert training_overrides(read["training"])["device"] == "cpu"
    assert read["ppo"] == {"learning_rate": 1e-3, "num_epochs": 5}


def test_groups_of_the_randomisation_are_switches(tmp_path):
    one = _file(tmp_path, "environment: {domain_randomization: {sensor: true, enabled: true}}")
    (other := tmp_path / "b.yaml").write_text("environment: {domain_randomization: {sensor: no}}")
    assert environment_overrides(read_settings([one, other])["environment"]) == {
        "task.randomization.sensor.on": False,
        "task.randomize": True,
    }
    with pytest.raises(
        SettingsError, match=r"key domain_randomization\.mass; there are enabled, obj"
    ):
        checked_environment({"domain_randomization": {"mass": True}})


def test_names_of_algorithms_settings_are_translated(tmp_path):
    text = "algorithms: {sac: {buffer_size: 9, tau: 0.1}, ddpg: {twin: false}, ppo: {ent_coef: 0}}"
    read = read_settings([_file(tmp_path, text)])
    assert algorithm_overrides("sac", read["sac"]) == {
        "algo": "sac",
        "algo.replay_capacity": 9,
        "algo.tau": 0.1,
    }
    assert algorithm_overrides("ddpg", read["ddpg"]) == {"algo": "ddpg", "algo.twin": False}
    assert algorithm_overrides("ppo", read["ppo"]) == {"algo": "ppo", "algo.entropy_coef": 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("enviroment: {}", "unknown key enviroment; there are algorithms, environment, training"),
        ("environment: {num_envs: 3}", r"environment\.num_envs; there are .*num_parallel_envs"),
        ("training: {timesteps: 3}", r"training\.timesteps; there are name, seed, total_time"),
        ("algorithms: {td3: {}}", r"algorithms\.td3; there are ddpg, ppo, sac"),
        ("algorithms: {ppo: {tau: 1}}", r"algorithms\.ppo\.tau; there are .*num_epochs"),
        ("algorithms: {sac: {num_epochs: 1}}", r"algorithms\.sac\.num_epochs; there are "),
        ("algorithms: {ppo: {name: sac}}", r"algorithms\.ppo\.name; there are "),
        (
            "environment: {domain_randomization: {wind: 1}}",
            r"domain_randomization\.wind; there are",
        ),
        ("environment: {domain_randomization: true}", r"domain_randomization must hold KEY: VAL"),
        ("environment: {reward_fn: os:abort}", r"unknown key environment\.reward_fn"),
        ("environment: 3", "environment must hold KEY: VALUE, not 3"),
        ("algorithms: {ppo: [1]}", r"algorithms\.ppo must hold KEY: VALUE, not \[1\]"),
        ("- 1", "it must be a mapping, it is list"),
        ("a: 1\na: 2", "the key 'a' for the second time"),
        ("training: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(tmp_path, text, says):
    file = _file(tmp_path, text)
    with pytest.raises(SettingsError, match=says) as caught:
        read_settings([file])
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_files_and_presets_that_there_are_not_are_named(tmp_path):
    with pytest.raises(SettingsError, match="no preset 'fats'; did you mean fast"):
        read_settings(["fats"])
    with pytest.raises(SettingsError, match=r"none\.yaml is not readable"):
        read_settings([tmp_path / "none.yaml"])


def test_a_gpu_is_used_or_not():
    with pytest.raises(SettingsError, match=r"use_gpu must be true or false, not 'yes please'"):
        training_overrides({"use_gpu": "yes please"})


def test_a_resolution_may_be_a_tuple_in_python():
    given = checked_environment({"vision_enabled": True, "camera_resolution": (64, 64)})
    assert environment_overrides(given)["task.camera_resolution"] == [64, 64]
    with pytest.raises(SettingsError, match="unknown key resolution; there are camera_resolution"):
        checked_environment({"resolution": 3})
