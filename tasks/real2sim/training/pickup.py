"""Pick-and-place by other names: an environment, and a trainer that reads YAML.

    env = Real2SimPickAndPlace(num_parallel_envs=4096, max_episode_steps=200)
    trainer = Real2SimTrainer("my_settings.yaml", "fast", "gpu_8gb")
    result = trainer.train_ppo(trainer.create_environment())
    print(f"Success rate: {trainer.evaluate_model(result['model_path'])['success_rate']:.1%}")

Both only translate: the environment is the task `real2sim_pick_place` in Gymnasium's vector front,
a training is `penspin train task=real2sim_pick_place`, and both print the overrides that they lead
to. `settings.py` says what the YAML files may hold.
"""

import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from penspin_style.env.gym_env import GymVectorEnv
from penspin_style.train.compose import assignment, compose_train
from penspin_style.train.environment import resolve_device
from penspin_style.train.evaluate import evaluate
from penspin_style.train.keys import nearest
from penspin_style.train.load_policy import open_policy
from penspin_style.train.run import Run
from tasks.real2sim.shipped import OBJECTS, TRAINING
from tasks.real2sim.training import settings
from tasks.real2sim.training.settings import SettingsError

TASK = "real2sim_pick_place"
RECONSTRUCTED = "outputs/reconstructed_objects"
"""Where `scripts/run_pipeline.py 1` puts objects."""
_CODE = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
_MESHES = (".stl", ".obj", ".ply", ".npz", ".xyz")
_EVAL_SEED = 2_000_003
Path = str | os.PathLike[str]


class Real2SimPickAndPlace:
    """Parallel environments of the task `real2sim_pick_place`, each with an object of its own.

    Observations are (num_parallel_envs, 25) float32, actions (num_parallel_envs, 9) in [-1, 1];
    the task's docstring says what the numbers are. `reset` and `step` are those of Gymnasium's
    `VectorEnv`; the first use builds the worlds.
    """

    def __init__(
        self,
        num_parallel_envs: int = 4096,
        max_episode_steps: int = 200,
        reconstructed_objects_dir: Path | None = None,
        objects: Sequence[str] | None = None,
        env_config: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        overrides: Sequence[str] = (),
    ) -> None:
        """Translate the arguments into overrides of `penspin train`.

        reconstructed_objects_dir: folder of object folders; None: `outputs/reconstructed_objects`
            if that is there, else the objects that come with the package, for training.
        objects: names in it; None for all.
        env_config: further keys of the section `environment`, as `vision_enabled`.
        overrides: further ones, which come last.

        Raises:
            SettingsError: a key or an object that there is not.
        """
        section = {
            "num_parallel_envs": num_parallel_envs,
            "max_episode_steps": max_episode_steps,
            **settings.checked_environment(env_config or {}),
        }
        keys = settings.environment_overrides(section)
        keys |= _object_overrides(reconstructed_objects_dir, objects)
        keys["seed"] = seed
        self.overrides = [f"task={TASK}"]
        self.overrides += [assignment(key, value) for key, value in keys.items()]
        self.overrides += overrides
        self.cfg = compose_train(self.overrides)[0]
        self._vector: GymVectorEnv | None = None

    @property
    def num_envs(self) -> int:
        """Number of environments."""
        return self.cfg.num_envs

    @property
    def vector(self) -> GymVectorEnv:
        """The environments in Gymnasium's vector front, built when first asked for."""
        if self._vector is None:
            self._vector = GymVectorEnv(
                TASK,
                self.cfg.num_envs,
                config=vars(self.cfg.task),
                device=str(resolve_device(self.cfg.device)),
                engine=self.cfg.sim.engine,
            )
            self._vector.reset(seed=self.cfg.seed)
        return self._vector

    @property
    def observation_space(self) -> Box:
        """Of one environment."""
        return self.vector.single_observation_space  # type: ignore[return-value]

    @property
    def action_space(self) -> Box:
        """Of one environment."""
        return self.vector.single_action_space  # type: ignore[return-value]

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode everywhere; as Gymnasium's `VectorEnv.reset`."""
        return self.vector.reset(seed=seed)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment; as Gymnasium's `VectorEnv.step`."""
        return self.vector.step(actions)

    def images(self) -> dict[str, np.ndarray]:
        """Return what the cameras see now, by name; empty unless vision is enabled.

        Each is (num_parallel_envs, height, width, 3) uint8, or for depth (..., height, width) m.
        """
        images = self.vector.torch_env.images()
        return {name: image.cpu().numpy().copy() for name, image in images.items()}

    def close(self) -> None:
        """Free the environments."""
        if self._vector is not None:
            self._vector.close()
            self._vector = None


class Real2SimTrainer:
    """Trainings and evaluations as YAML files say."""

    def __init__(self, *files: Path, overrides: Sequence[str] = ()) -> None:
        """Read files of settings, later ones over earlier ones.

        files: paths, or names of presets: fast, stable, gpu_8gb, gpu_16gb, gpu_24gb; none for the
            preset real2sim_config. overrides: of `penspin train`, which come last.

        Raises:
            SettingsError: names file and key, and what is legal.
        """
        names = [os.fspath(file) for file in files] or [settings.DEFAULT]
        self.settings = settings.read_settings(names)
        self.overrides = list(overrides)
        # what concerns the world: another algorithm's keys are none of another one's
        self._world = [word for word in overrides if not word.startswith(("algo=", "algo."))]
        settings.training_overrides(self.settings["training"])  # refuses before minutes pass

    def create_environment(self) -> Real2SimPickAndPlace:
        """Return the environment that the section `environment` describes."""
        section = dict(self.settings["environment"])
        folder, objects = (section.pop(key, None) for key in settings.OBJECTS)
        known = {
            key: section.pop(key)
            for key in ("num_parallel_envs", "max_episode_steps")
            if key in section
        }
        seed = self.settings["training"].get("seed", 0)
        return Real2SimPickAndPlace(
            **known,
            reconstructed_objects_dir=folder,
            objects=objects,
            env_config=section,
            seed=seed,
            overrides=self._world,
        )

    def train_ppo(self, env: Real2SimPickAndPlace | None = None) -> dict[str, Any]:
        """Train by proximal policy optimisation; see `train`."""
        return self.train("ppo", env)

    def train_sac(self, env: Real2SimPickAndPlace | None = None) -> dict[str, Any]:
        """Train by soft actor-critic; see `train`."""
        return self.train("sac", env)

    def train_ddpg(self, env: Real2SimPickAndPlace | None = None) -> dict[str, Any]:
        """Train by deep deterministic policy gradient (TD3 unless set otherwise); see `train`."""
        return self.train("ddpg", env)

    def train(self, algorithm: str, env: Real2SimPickAndPlace | None = None) -> dict[str, Any]:
        """Train a policy into a run folder; return what it came to.

        env: whose settings to train in; None for `create_environment()`. The training builds its
            own copies of them.

        Returns:
            algorithm, total_timesteps, training_time (s), success_rate (of the final evaluation,
            None if it was interrupted), model_path (the run folder) and exit_code, see `penspin`.
        """
        env = self.create_environment() if env is None else env
        began = time.perf_counter()
        cfg, task, resolved = compose_train(self.words(algorithm, env))
        if cfg.device == "auto" and not torch.cuda.is_available():
            print("use_gpu: torch finds no GPU here; training on the CPU", file=sys.stderr)
        run = Run(cfg, task, resolved)
        code = run.fit()
        return {
            "algorithm": algorithm,
            "total_timesteps": run.samples,
            "training_time": time.perf_counter() - began,
            "success_rate": run.final.success(task.score) if run.final else None,
            "model_path": str(run.folder),
            "exit_code": code,
        }

    def words(self, algorithm: str, env: Real2SimPickAndPlace) -> list[str]:
        """Return the overrides of `penspin train` that a training amounts to."""
        keys = {"name": algorithm, **settings.training_overrides(self.settings["training"])}
        keys |= settings.algorithm_overrides(algorithm, self.settings[algorithm])
        own = [assignment(key, value) for key, value in keys.items()]
        return [*env.overrides, *own, *self.overrides]

    def evaluate_model(
        self, path: Path, num_episodes: int = 100, *, overrides: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Evaluate a policy, deterministic, in the environment that it was trained for.

        path: a run folder, a policy folder or an .onnx file; overrides: changes of the environment.

        Returns:
            success_rate, with its 95 % interval; mean_reward, mean_episode_length, num_episodes.

        Raises:
            ValueError: a pickle, or no policy.
        """
        if pathlib.Path(path).suffix in _CODE:
            raise ValueError(
                f"{os.fspath(path)}: a file of this kind can run any program when it is opened; "
                "give a run folder, a policy folder or an .onnx file, as training writes them"
            )
        source = open_policy(pathlib.Path(path), [*self._world, *overrides])
        if source.card.task != TASK:
            raise ValueError(f"{os.fspath(path)} is a policy of the task {source.card.task}")
        found = evaluate(source.env(num_episodes, _EVAL_SEED), source.act, seed=_EVAL_SEED)
        return {
            "success_rate": found.success(source.task.score),
            "interval": found.interval,
            "mean_reward": found.return_,
            "mean_episode_length": found.episode_len,
            "num_episodes": found.episodes,
        }


def _object_overrides(folder: Path | None, names: Sequence[str] | None) -> dict[str, Any]:
    """Return the override that lists the objects.

    Raises:
        SettingsError: the folder holds none, or not one that is named.
    """
    given = pathlib.Path(RECONSTRUCTED if folder is None else folder)
    found = {file.parent.name: str(file.parent) for file in sorted(given.glob("*/object.json"))}
    if folder is not None and not found:
        raise SettingsError(
            f"reconstructed_objects_dir {given} holds no object, a folder with an object.json in "
            f"it; penspin real2sim convert FILES --density KG/M3 --out {given} makes them"
        )
    if names is None:
        if not found:
            print(f"{given} holds no object: training on those of the package", file=sys.stderr)
        return {"task.objects": list(found.values()) or list(TRAINING)}
    shipped = (
        {} if folder else {f.parent.name: f.parent.name for f in OBJECTS.glob("*/object.json")}
    )
    return {"task.objects": [_object(given, found, shipped, name) for name in names]}


def _object(
    folder: pathlib.Path, found: Mapping[str, str], shipped: Mapping[str, str], name: str
) -> str:
    """Return what the task calls an object that is named as a folder or as a file of a mesh.

    found, shipped: those in the folder and those of the package; a file's is in the folder alone.
    """
    if name.endswith(_MESHES):
        stem = pathlib.PurePath(name).stem
        if stem in found:
            return found[stem]
        raise SettingsError(
            f"objects: {folder} holds no object {stem}; penspin real2sim convert {folder / name} "
            f"--density KG/M3 --out {folder} makes it of that file"
        )
    known = {**shipped, **found}
    if name not in known:
        raise SettingsError(f"objects: there is no {name!r} in {folder}{nearest(name, known)}")
    return known[name]
