"""Tasks as Gymnasium environments: one, or many in one batch.

    gymnasium.make("tasks:penspin_style/PandaLiftCube-v0", render_mode="rgb_array")
    gymnasium.make_vec("tasks:penspin_style/PandaLiftCube-v0", num_envs=64, config={"latency": {}})

`tasks:` lets Gymnasium import the package that registers the ids; after `import tasks` they do
without. Thin fronts of `Env` for programs that speak Gymnasium; training does not go through them.
Both take the name of a task, `render_mode` (None or `rgb_array`, the task's camera) and the fields
of `Settings`; they return NumPy arrays of their own. An action is finite real numbers in the shape
of the action space, anything else is a ValueError; what is outside [-1, 1] is clipped. `info` after
a step has

| key | type | meaning |
| --- | --- | --- |
| success | bool | the task's success holds now |
| fault | bool | simulation or action were not to be trusted; the episode is truncated |
| reward_terms | dict of float | the task's terms, weighted: their sum is the reward |
"""

from typing import Any, ClassVar, SupportsFloat, TypedDict, Unpack

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from tensordict import TensorDict, TensorDictBase

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.render.gl_renderer import GLRenderer

Info = dict[str, Any]


class Settings(TypedDict, total=False):
    """Optional arguments of both fronts."""

    config: Info
    """Fields of the task's `Config` that differ from its defaults."""
    group: str
    """Observation group to return, one without images; by default the first of the config."""
    device: str
    """As of `Env`."""
    engine: str
    """As of `Env`."""


class GymEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One environment of a task. The module's docstring explains arguments and `info`."""

    metadata: ClassVar[Info] = {"render_modes": ["rgb_array"]}  # type: ignore[misc]

    def __init__(
        self, task: str, *, render_mode: str | None = None, **settings: Unpack[Settings]
    ) -> None:
        self.render_mode = render_mode
        self._front = _Front(task, 1, seed=_seed(self.np_random), **settings)
        self.metadata = {**type(self).metadata, **self._front.metadata}  # type: ignore[misc]
        self.observation_space = self._front.observation_space
        self.action_space = self._front.action_space

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Begin an episode. After a seed, everything is determined."""
        super().reset(seed=seed)
        return self._front.reset(seed)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, SupportsFloat, bool, bool, Info]:
        """Return observation, reward, terminated, truncated and info.

        Raises:
            ValueError: the action has another shape, or is not finite real numbers.
        """
        front = self._front
        after: Any = front.env.step(front.pack(action, front.action_space.shape))["next"]
        info = front.info(after)
        terms = info.pop("reward_terms")
        return (
            front.observation(after)[0],
            after["reward"].item(),
            after["terminated"].item(),
            after["truncated"].item(),
            {
                **{name: value.item() for name, value in info.items()},
                "reward_terms": {name: value.item() for name, value in terms.items()},
            },
        )

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return the image of the task's camera, (height, width, 3) uint8."""
        return None if self.render_mode is None else self._front.image(0)

    def close(self) -> None:
        """Free the renderer."""
        self._front.close()


class GymVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many environments of a task. The module's docstring explains arguments and `info`.

    An environment whose episode ends restarts in the same step: its observation is then the first
    of the new episode; the last of the old is in `infos["final_obs"]`, and its info in
    `infos["final_info"]`. All environments draw from one generator, so there is one seed.
    """

    metadata: ClassVar[Info] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self._front = _Front(task, num_envs, seed=_seed(self.np_random), **settings)
        self.metadata = {**type(self).metadata, **self._front.metadata}  # type: ignore[misc]
        self.single_observation_space = self._front.observation_space
        self.single_action_space = self._front.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def torch_env(self) -> Env:
        """The environments that this is a front of: images are theirs alone."""
        return self._front.env

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Begin an episode everywhere, or where `options["reset_mask"]`, (num_envs,) bool, says.

        Raises:
            ValueError: more than one seed, or a mask of another shape or type.
        """
        if isinstance(seed, list | tuple | np.ndarray):
            raise ValueError("the environments draw from one generator: give one seed, not a list")
        super().reset(seed=seed)
        mask = None if options is None else options.get("reset_mask")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                got, legal = f"{mask.shape} {mask.dtype}", f"({self.num_envs},) bool"
                raise ValueError(f"options['reset_mask'] must be {legal}, got {got}")
        return self._front.reset(seed, mask), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """Return observations, rewards, terminations, truncations and infos.

        Raises:
            ValueError: the actions have another shape, or are not finite real numbers.
        """
        front = self._front
        packed = front.pack(actions, (self.num_envs, *front.action_space.shape))
        transition, root = front.env.step_and_maybe_reset(packed)
        after: Any = transition["next"]
        done = _column(after["done"])
        info = front.info(after)
        infos = {} if done.all() else _among(info, ~done)
        if done.any():
            last = np.full(self.num_envs, None, dtype=object)
            for env_id, observation in enumerate(front.observation(after)):
                last[env_id] = observation.copy() if done[env_id] else None
            infos |= {"final_obs": last, "_final_obs": done.copy()}
            infos |= {"final_info": _among(info, done), "_final_info": done.copy()}
        return (
            front.observation(root),
            _column(after["reward"]).astype(np.float64),
            _column(after["terminated"]),
            _column(after["truncated"]),
            infos,
        )

    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """Return one image of the task's camera per environment, (height, width, 3) uint8."""
        if self.render_mode is None:
            return None
        return tuple(self._front.image(env_id) for env_id in range(self.num_envs))

    def close_extras(self, **kwargs: object) -> None:
        """Free the renderer."""
        self._front.close()


class _Front:
    """What both have in common: the environment, its spaces, and the way to NumPy and back."""

    def __init__(
        self,
        task: str,
        num_envs: int,
        *,
        seed: int,
        config: Info | None = None,
        group: str | None = None,
        device: str = "cpu",
        engine: str = "auto",
    ) -> None:
        kind = load_task(task)
        self.env = Env(
            kind(kind.Config(**(config or {}))), num_envs, device, seed=seed, engine=engine
        )
        sizes = {i.name: i.size for i in self.env.inputs if not i.is_image}
        groups = list(self.env.cfg.observation)
        self.group = groups[0] if group is None else group
        if self.group not in groups:
            raise ValueError(f"{task} has no observation group {group!r}; it has {groups}")
        if self.env.groups.reads(self.group) != (self.group,):
            raise ValueError(
                f"{task}: group {self.group!r} has images, and this front serves one vector; use "
                "penspin_style.env.env.Env, which TorchRL understands"
            )
        self.metadata = {"render_fps": round(1.0 / self.env.cfg.control_dt)}
        self.observation_space = Box(-np.inf, np.inf, (sizes[self.group],), np.float32)
        self.action_space = Box(-1.0, 1.0, (self.env.action_spec.shape[-1],), np.float32)
        self.renderer: GLRenderer | None = None

    def reset(self, seed: int | None, mask: np.ndarray | None = None) -> np.ndarray:
        if seed is not None:
            self.env.set_seed(seed)
        if mask is None:
            return self.observation(self.env.reset())
        root = self.env.current()
        root["_reset"] = torch.from_numpy(mask)[:, None].to(self.env.device)
        return self.observation(self.env.reset(root))

    def pack(self, given: np.ndarray, shape: tuple[int, ...]) -> TensorDict:
        return pack(self.env, given, shape)

    def observation(self, td: TensorDictBase) -> np.ndarray:
        value: Any = td[self.group]
        return value.cpu().numpy().copy()

    def info(self, after: TensorDictBase) -> Info:
        terms = self.env.reward_terms
        return {
            "success": _column(after["success"]),
            "fault": _column(after["fault"]),
            "reward_terms": {name: value.cpu().numpy().copy() for name, value in terms.items()},
        }

    def image(self, env_id: int) -> np.ndarray:
        if self.renderer is None:
            self.renderer = viewer(self.env)
        return self.renderer.render(env_id)

    def close(self) -> None:
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None


def viewer(env: Env) -> GLRenderer:
    """Return what draws environments as their task's camera sees them."""
    return GLRenderer(env.sim, env.task.camera)


def pack(env: Env, given: np.ndarray, shape: tuple[int, ...]) -> TensorDict:
    """Return actions of this shape, the last axis an environment's, as a root for `env`.

    Raises:
        ValueError: they have another shape, or are not finite real numbers.
    """
    actions = np.asarray(given)
    if actions.shape != shape or actions.dtype.kind not in "fiu":
        got = f"{actions.shape} {actions.dtype}"
        raise ValueError(f"the action must be {shape} real numbers, got {got}")
    finite = np.isfinite(actions)
    if not finite.all():
        at = np.argwhere(~finite)[0]
        raise ValueError(f"the action must be finite, got {actions[*at]} at {at.tolist()}")
    rows = torch.from_numpy(actions.clip(-1.0, 1.0).astype(np.float32))
    action = rows.view(env.num_envs, shape[-1]).to(env.device)
    return TensorDict({"action": action}, env.batch_size, device=env.device)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**62))


def _column(value: torch.Tensor) -> np.ndarray:
    """Return (num_envs, 1) as a NumPy array (num_envs,) of its own."""
    return value.squeeze(1).cpu().numpy().copy()


def _among(info: Info, mask: np.ndarray) -> Info:
    """Return infos as Gymnasium batches them: `key` zeroed elsewhere, and `_key` the mask."""
    out: Info = {}
    for name, value in info.items():
        if isinstance(value, dict):
            out[name] = _among(value, mask)
        else:
            out[name] = np.where(mask, value, np.zeros_like(value))
        out[f"_{name}"] = mask.copy()
    return out
