"""The pick-and-place training by its published names: classes, scripts, settings."""

import importlib.util
import pathlib
import shutil

import numpy as np
import pytest

from penspin_style.train.compose import compose_train
from tasks.real2sim.shipped import OBJECTS, TRAINING
from tasks.real2sim.training.pickup import Real2SimPickAndPlace, Real2SimTrainer
from tasks.real2sim.training.settings import SettingsError

ROOT = pathlib.Path(__file__).parents[3]
SMALL = (
    *("num_envs=4", "total_samples=160", "eval_every=0", "final_episodes=4", "video=false"),
    *("task.episode_length=20", "loggers=[csv]", "sim.nthread=1", "learn_threads=1"),
)
OF_ALGORITHM = {
    "ppo": ("algo.horizon=10", "algo.hidden=[8]", "algo.critic_hidden=[8]"),
    "sac": ("algo.horizon=10", "algo.warmup=20", "algo.batch_size=8", "algo.updates=2"),
    "ddpg": ("algo.horizon=10", "algo.warmup=20", "algo.batch_size=8", "algo.updates=2"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _script(name):
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The environment.


def test_the_published_constructor_describes_4096_worlds_of_200_steps(here):
    shutil.copytree(OBJECTS / "mug", here / "outputs" / "reconstructed_objects" / "mug")
    env = Real2SimPickAndPlace(
        num_parallel_envs=4096,
        max_episode_steps=200,
        reconstructed_objects_dir="outputs/reconstructed_objects",
    )
    assert env.num_envs == 4096
    assert env.cfg.task.episode_length == 200
    assert env.cfg.task.objects == ["outputs/reconstructed_objects/mug"]
    assert Real2SimPickAndPlace().overrides == env.overrides  # these are the defaults


def test_without_reconstructed_objects_those_of_the_package_are_trained_on(here, capsys):
    assert Real2SimPickAndPlace().cfg.task.objects == list(TRAINING)
    assert "outputs/reconstructed_objects holds no object" in capsys.readouterr().err


def test_25_numbers_are_observed_and_9_act(here):
    env = Real2SimPickAndPlace(num_parallel_envs=3, objects=["mug", "t_block"])
    assert env.observation_space.shape == (25,)
    assert env.action_space.shape == (9,)
    first, _ = env.reset(seed=5)
    assert first.shape == (3, 25) and first.dtype == np.float32
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    other, _ = env.reset(seed=6)
    assert np.abs(first - other).max() > 0.01
    new, _ = env.reset()
    assert np.abs(new - other).max() > 0.01  # without a seed every episode is another one
    after, reward, terminated, truncated, info = env.step(np.zeros((3, 9)))
    assert after.shape == (3, 25) and reward.shape == (3,)
    assert not terminated.any() and not truncated.any() and not info["success"].any()
    assert env.images() == {}
    env.close()


def test_a_sparse_reward_is_minus_one_until_the_object_is_placed(here):
    env = Real2SimPickAndPlace(
        2, objects=["box"], env_config={"reward_type": "sparse"}, overrides=["sim.nthread=1"]
    )
    env.reset()
    assert env.step(np.zeros((2, 9)))[1].tolist() == [-1.0, -1.0]


def test_vision_gives_images_beside_the_25_numbers(here):
    config = {
        "vision_enabled": True,
        "camera_resolution": (64, 64),
        "observation_type": "rgb_and_state",
    }
    env = Real2SimPickAndPlace(2, objects=["cylinder"], env_config=config)
    observations, _ = env.reset()
    assert observations.shape == (2, 25)
    images = env.images()
    assert list(images) == ["front_rgb"]
    assert images["front_rgb"].shape == (2, 64, 64, 3) and images["front_rgb"].dtype == np.uint8
    assert images["front_rgb"].std() > 5
    env.close()


def test_objects_are_named_as_the_files_that_they_were_made_of(here):
    folder = here / "scans"
    for name, shape in (("bunny", "egg"), ("cube", "box"), ("sphere", "pillow")):
        shutil.copytree(OBJECTS / shape, folder / name)
        facts = folder / name / "object.json"
        facts.write_text(facts.read_text().replace(f'"{shape}"', f'"{name}"'))
    env = Real2SimPickAndPlace(
        3, reconstructed_objects_dir=folder, objects=["bunny.stl", "cube.stl", "sphere.stl"]
    )
    assert [pathlib.Path(name).name for name in env.cfg.task.objects] == ["bunny", "cube", "sphere"]
    assert env.reset()[0].shape == (3, 25)


def test_objects_that_there_are_not_are_named_with_the_remedy(here):
    with pytest.raises(SettingsError, match=r"no object mug; penspin real2sim convert .*/mug\.stl"):
        Real2SimPickAndPlace(objects=["mug.stl"])  # not the one of the package
    with pytest.raises(SettingsError, match=r"there is no 'mugg' in .*; did you mean mug"):
        Real2SimPickAndPlace(objects=["mugg"])
    with pytest.raises(SettingsError, match=r"scans holds no object, .*convert FILES --density"):
        Real2SimPickAndPlace(reconstructed_objects_dir="scans")
    shutil.copytree(OBJECTS / "box", here / "mine" / "box")
    with pytest.raises(SettingsError, match="there is no 'mug' in mine; there are box"):
        Real2SimPickAndPlace(reconstructed_objects_dir="mine", objects=["mug"])
    with pytest.raises(SettingsError, match="unknown key vision; there are camera_resolution"):
        Real2SimPickAndPlace(env_config={"vision": True})
    with pytest.raises(ValueError, match="num_envs must be >= 1, got 0"):
        Real2SimPickAndPlace(0)


# The trainer.


def test_a_training_is_penspin_train_with_these_overrides(here):
    (here / "mine.yaml").write_text(
        "environment: {num_parallel_envs: 64, reward_type: sparse, objects: [mug]}\n"
        "training: {total_timesteps: 9000, use_gpu: false, seed: 3}\n"
    )
    trainer = Real2SimTrainer("mine.yaml", "fast", overrides=["algo.gamma=0.9"])
    env = trainer.create_environment()
    cfg, task, _ = compose_train(trainer.words("ppo", env))
    assert task.__module__ == "tasks.real2sim.pick_place"
    assert (cfg.num_envs, cfg.total_samples, cfg.device, cfg.seed) == (64, 9000, "cpu", 3)
    assert (cfg.algo.learning_rate, cfg.algo.epochs, cfg.algo.gamma) == (1e-3, 5, 0.9)
    assert (cfg.task.reward_type, cfg.task.objects, cfg.name) == ("sparse", ["mug"], "ppo")


@pytest.mark.parametrize("algorithm", ["ppo", "sac", "ddpg"])
def test_each_algorithm_trains_and_its_model_is_evaluated(here, algorithm):
    (here / "s.yaml").write_text("training: {use_gpu: false}\n")
    trainer = Real2SimTrainer("s.yaml", overrides=[*SMALL, *OF_ALGORITHM[algorithm]])
    env = trainer.create_environment()
    results = getattr(trainer, f"train_{algorithm}")(env)
    assert results["algorithm"] == algorithm and results["exit_code"] == 0
    assert results["total_timesteps"] == 160
    assert results["model_path"] == f"outputs/real2sim_pick_place/{algorithm}"
    found = trainer.evaluate_model(results["model_path"], num_episodes=3)
    assert 0.0 <= found["success_rate"] <= 1.0
    assert found["num_episodes"] == 3 and found["mean_episode_length"] <= 20
    assert f"Success rate: {found['success_rate']:.1%}".endswith("%")


@pytest.mark.parametrize("name", ["ppo_model.pkl", "model.pt", "a.joblib"])
def test_a_pickle_is_refused_because_it_could_run_anything(here, name):
    with pytest.raises(ValueError, match=f"{name}: a file of this kind can run any program"):
        Real2SimTrainer().evaluate_model(f"data/trained_models/{name}")


def test_a_model_that_is_not_there_or_of_another_task_is_refused(here):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        Real2SimTrainer().evaluate_model("nowhere")
    lift = ROOT / "outputs" / "pretrained" / "panda_lift_cube"
    with pytest.raises(ValueError, match="is a policy of the task panda_lift_cube"):
        Real2SimTrainer().evaluate_model(lift)


# The scripts.


def test_the_published_commands_train_and_evaluate(here, capsys):
    main = _script("train_real2sim_pickup").main
    words = ["--algorithm", "ppo", "--preset", "fast", "--episodes", "3"]
    assert main([*words, *SMALL, *OF_ALGORITHM["ppo"]]) == 0
    said = capsys.readouterr().out
    assert "outputs/real2sim_pick_place/ppo: trained in" in said
    assert "Success rate: " in said
    model = "outputs/real2sim_pick_place/ppo"
    assert main(["--eval-only", "--episodes", "3", "--model-path", model]) == 0
    assert "3 episodes)" in capsys.readouterr().out
    assert main(["--algorithm", "ppo", *SMALL, *OF_ALGORITHM["ppo"]]) == 2
    assert "ppo holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--eval-only --model-path data/trained_models/ppo_model.pkl", "can run any program"),
        ("--preset fats", "there is no preset 'fats'; did you mean fast?"),
        ("algo.gama=1", "unknown key 'algo.gama'; did you mean algo.gamma?"),
        ("--config none.yaml", "none.yaml is not readable"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(here, capsys, line, says):
    assert _script("train_real2sim_pickup").main(line.split()) == 2
    lines = [text for text in capsys.readouterr().err.splitlines() if "no object" not in text]
    assert len(lines) == 1 and says in lines[0] and lines[0].startswith("train_real2sim_pickup.py:")
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--eval-only", "--eval-only and --model-path PATH go together"),
        ("--model-path x", "--eval-only and --model-path PATH go together"),
        ("--algorithm td3", "invalid choice: 'td3'"),
        ("--episodes 0", "'0' is not a whole number of at least 1"),
    ],
)
def test_an_invalid_option_ends_the_script_at_once(here, capsys, line, says):
    with pytest.raises(SystemExit) as caught:
        _script("train_real2sim_pickup").main(line.split())
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
