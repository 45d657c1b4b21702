"""Environments of MuJoCo Playground as tasks: `penspin train task=playground:CartpoleBalance`.

Needs the package `playground`. Physics, observations, rewards and ends are Playground's own, one
compiled program of JAX's (`PlaygroundSim`); the episodes, their true last observations, faults,
statistics, evaluations and checkpoints are those of any task.

| of the task | is |
| --- | --- |
| `observation` | Playground's, of a dictionary the part `state`; in the group `teacher` |
| `privileged` | of a dictionary the part `privileged_state`; in the group `critic` |
| the reward `reward` | Playground's |
| terminated | what Playground calls done |
| success | never: the score is the return |
| `task.control_dt`, `task.episode_length` | its `ctrl_dt` and `episode_length` |
| `task.playground.KEY` | the other keys of its configuration; null for its infinity |
| figures of an episode | sums of its `metrics`, `reward/upright` as `reward_upright` |
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mujoco
import torch
from torch import Tensor

from penspin_style.bridge.playground_sim import PlaygroundSim
from penspin_style.bridge.start import import_extra, import_jax
from penspin_style.env.task import ObsTerm, Task, TaskConfig
from penspin_style.features import ActionChannel
from penspin_style.sim.sim import Sim

PREFIX = "playground:"
_TERMS = {"state": ("teacher", "observation"), "privileged_state": ("critic", "privileged")}
"""Part of Playground's observation -> the group that reads it, what the term is called."""
_OURS = ("ctrl_dt", "episode_length", "action_repeat", "impl")
"""Keys of Playground's that are ours under other names, or not to be chosen."""


@dataclass
class PlaygroundConfig(TaskConfig):
    """What can be set of an environment of MuJoCo Playground."""

    playground: dict[str, Any] = field(default_factory=dict)
    """Its own configuration, less what the keys of every task say."""
    randomize: bool = False
    reward: dict[str, float] = field(default_factory=lambda: {"reward": 1.0})

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.randomize:
            raise ValueError(
                "task.randomize must be false: MuJoCo Playground's randomisers of the model are "
                "not applied here"
            )


class PlaygroundTask(Task[Any]):
    """A task of MuJoCo Playground; `playground_task` makes the class of one."""

    Config = PlaygroundConfig
    units: ClassVar[dict[str, str]] = {name: "1" for _, name in _TERMS.values()}
    score = "return"
    environment: ClassVar[str]
    """Its name in Playground's registry."""

    @functools.cached_property
    def env(self) -> Any:
        """Playground's own object, shared by tasks of the same configuration."""
        config = json.dumps(self.cfg.playground, sort_keys=True)
        return _load(self.environment, config, self.cfg.control_dt)

    def spec(self) -> mujoco.MjSpec:
        """Return the world as its file has it; `compile` says what is simulated."""
        text = pathlib.Path(self.env.xml_path).read_text()
        return mujoco.MjSpec.from_string(text, assets=self.env.model_assets)

    def compile(self) -> mujoco.MjModel:
        """Return Playground's model."""
        return self.env.mj_model

    def make_sim(
        self, model: mujoco.MjModel, num_envs: int, device: torch.device, **settings: Any
    ) -> Sim:
        """Return Playground's step as a simulation.

        Raises:
            ValueError: another engine is asked for, or parameters that differ.
        """
        engine, fields = settings.get("engine", "auto"), settings.get("per_env")
        if engine not in ("auto", "mjx"):
            raise ValueError(
                f"{self.found_as} steps on JAX alone: sim.engine must be auto or mjx, got {engine}"
            )
        if fields:
            raise ValueError(
                f"{self.found_as}: no field of the model can differ between environments, got "
                f"{', '.join(fields)}"
            )
        return PlaygroundSim(self.env, num_envs, device)

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return channels named after the actuators, if there is one for each."""
        model, n = self.env.mj_model, self.env.action_size
        names = [model.actuator(i).name for i in range(model.nu)]
        if len(names) != n or len({*names} - {""}) != n:
            names = [f"action_{i}" for i in range(n)]
        return tuple(ActionChannel(name, "1", 1.0, -1.0, 1.0, "absolute") for name in names)

    def reset(self, sim: Any, mask: Tensor, rng: torch.Generator) -> None:
        """Draw a key of JAX's for each episode."""
        shape = (sim.num_envs, 2)
        keys = torch.randint(2**31 - 1, shape, generator=rng, device=sim.device)
        sim.begin(mask, keys.to(torch.int32))

    def apply_action(self, sim: Any, action: Tensor) -> None:
        """Keep the action for Playground's step."""
        sim.action.copy_(action)

    def observe(self, sim: Any) -> dict[str, Tensor]:
        """Return Playground's observation."""
        parts = _parts(sim.state.obs)
        return {name: sim.look(parts[k]) for k, (_, name) in _TERMS.items() if k in parts}

    def reward(self, sim: Any, action: Tensor) -> dict[str, Tensor]:
        """Return Playground's reward."""
        return {"reward": sim.look(sim.state.reward)}

    def terminated(self, sim: Any) -> Tensor:
        """Return what Playground calls done."""
        return sim.look(sim.state.done) > 0

    def success(self, sim: Sim) -> Tensor:
        """Return that there is none."""
        return torch.zeros(sim.num_envs, dtype=torch.bool, device=sim.device)

    def step_metrics(self, sim: Any) -> dict[str, Tensor]:
        """Return Playground's metrics that are one number for each environment."""
        metrics = {key: value for key, value in sim.state.metrics.items() if value.ndim == 1}
        return {key.replace("/", "_"): sim.look(value) for key, value in metrics.items()}

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return their sums."""
        return sums


@functools.cache
def playground_task(name: str) -> type[PlaygroundTask]:
    """Return the task of an environment, as Playground's registry calls it.

    Raises:
        UnknownEnvironmentError: there is none of that name.
        ValueError: it cannot be loaded, or observes more than vectors.
        ImportError: Playground is not installed.
    """
    default = _default(name)
    settings = {key: _plain(value) for key, value in default.items() if key not in _OURS}
    env = _load(name, json.dumps(settings, sort_keys=True), float(default["ctrl_dt"]))
    groups = [_TERMS[part] for part in _check_vectors(name, env)]
    found = {
        "control_dt": field(default=float(default["ctrl_dt"])),
        "episode_length": field(default=int(default["episode_length"])),
        "observation": field(
            default_factory=lambda: {group: {term: ObsTerm()} for group, term in groups}
        ),
        "playground": field(default_factory=lambda: json.loads(json.dumps(settings))),
    }
    kinds = {f.name: f.type for f in dataclasses.fields(PlaygroundConfig)}
    config = dataclasses.make_dataclass(
        f"{name}Config",
        [(key, kinds[key], value) for key, value in found.items()],
        bases=(PlaygroundConfig,),
    )
    own = {"Config": config, "environment": name, "found_as": f"{PREFIX}{name}"}
    cameras = [env.mj_model.camera(i).name for i in range(env.mj_model.ncam)]
    own |= {"camera": cameras[0]} if cameras else {}
    return type(name, (PlaygroundTask,), {"__doc__": f"{PREFIX}{name}", **own})


class UnknownEnvironmentError(ValueError):
    """Playground has no environment of that name; `known` has the names."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"MuJoCo Playground has no environment {name!r}")
        self.known = known


def _registry() -> Any:
    what, remedy = "a task of MuJoCo Playground", "penspin_style[playground]"
    return import_extra("mujoco_playground", what, remedy).registry


def _default(name: str) -> dict[str, Any]:
    registry = _registry()
    if name not in registry.ALL_ENVS:
        raise UnknownEnvironmentError(name, sorted(registry.ALL_ENVS))
    return registry.get_default_config(name).to_dict()


@functools.cache
def _load(name: str, settings: str, control_dt: float) -> Any:
    """Return an environment of Playground's, its physics those of MJX on JAX.

    settings: JSON of its configuration.

    Raises:
        ValueError: it cannot be made so; says why.
    """
    registry, default = _registry(), _default(name)
    changed = {"ctrl_dt": control_dt, **({"impl": "jax"} if "impl" in default else {})}
    given, before = (dict(_leaves(x)) for x in (json.loads(settings), _plain(default)))
    changed |= {key: value for key, value in given.items() if value != before.get(key)}
    try:
        return registry.load(name, config_overrides=changed)
    except Exception as error:  # whatever Playground, MJX or a missing asset raise
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"MuJoCo Playground cannot load {name}: {type(error).__name__}: {reason}"
        ) from error


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        return [(prefix, node)]
    inner = [_leaves(value, f"{prefix}.{key}".lstrip(".")) for key, value in node.items()]
    return [leaf for leaves in inner for leaf in leaves]


def _plain(value: Any) -> Any:
    """Return a value of Playground's configuration as a file holds it: null for infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    # our configurations hold numbers alone
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parts(obs: Any) -> Mapping[str, Any]:
    return obs if isinstance(obs, Mapping) else {"state": obs}


def _check_vectors(name: str, env: Any) -> list[str]:
    """Return the parts of the observation that are learned from.

    Raises:
        ValueError: there is no `state`, or one is no vector.
    """
    jax = import_jax("a task of MuJoCo Playground")
    key = jax.ShapeDtypeStruct((2,), jax.numpy.uint32)
    parts = _parts(jax.eval_shape(env.reset, key).obs)
    found = [part for part in _TERMS if part in parts]
    if "state" not in found or any(len(parts[part].shape) != 1 for part in found):
        raise ValueError(f"{PREFIX}{name} observes {', '.join(parts)}; a vector `state` is needed")
    return found
