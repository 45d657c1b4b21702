"""RLinf's `PandaPickCube-v0` and `PandaPickCubeVision-v0` on the lifting tasks, for Gymnasium.

    gymnasium.make("tasks:penspin_style/PandaPickCube-v0", horizon=100)
    gymnasium.make_vec("tasks:penspin_style/PandaPickCubeVision-v0", num_envs=8)

The observation is RLinf's dictionary: `states` (float32) and, with `Vision`, `main_images` (front)
and `wrist_images` (uint8, height x width x 3) and the text `task_descriptions`. Without images
`states` has ten numbers by sorted key, `box_pos gripper tcp_pos tcp_vel`; with images what the
robot knows of itself, `gripper tcp_pos tcp_vel`. The action has four numbers, x, y, z of the tool
centre point and the gripper. The reward is dense, 0.3 for the reach and 0.7 for the lift, at most
1. `info` has `success`, `success_once` (so far in the episode), `fault`, and the episode's `return`
and `episode_len` so far. docs/tasks/panda.md says what differs from RLinf.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Text
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from penspin_style.env.env import Env
from penspin_style.env.gym_env import pack, viewer
from penspin_style.env.task import Camera, ObsTerm
from tasks.panda import lift_cube, lift_cube_vision

DESCRIPTION = "pick up the cube"
STATE = ("box_pos", "gripper", "tcp_pos", "tcp_vel")
REWARD = {"reach": 0.0, "grasp": 0.3, "close": 0.0, "lift": 0.7}
PIXELS = 128

Obs = dict[str, Any]


class Lift:
    """A batch of lifting tasks in RLinf's layout; the caller restarts episodes that have ended."""

    def __init__(
        self,
        num_envs: int,
        *,
        vision: bool,
        horizon: int | None = None,
        use_rel_reward: bool = False,
        pixels: int = PIXELS,
        seed: int = 0,
        config: dict[str, Any] | None = None,
        device: str = "cpu",
        engine: str = "auto",
    ) -> None:
        """Build the environments.

        horizon: steps of an episode; RLinf trains with 200, from images with 100.
        use_rel_reward: pay the change of the reward since the step before; it was 0 at the start.
        config: further fields of the task's `Config`.

        Raises:
            ValueError: the horizon has no step.
        """
        steps = (100 if vision else 200) if horizon is None else horizon
        if steps < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        names = (*(n for n in STATE if n != "box_pos" or not vision),)
        if vision:
            names = (*names, "front_rgb", "wrist_rgb")
        # what the task computes some group must read
        groups = {"states": names, "rest": lift_cube.PRIVILEGED}
        observation = {group: {n: ObsTerm() for n in own} for group, own in groups.items()}
        kind: Any = lift_cube_vision.TASK if vision else lift_cube.TASK
        own: dict[str, Any] = {"episode_length": steps, "reward": dict(REWARD)}
        own |= {"observation": observation, "latency": {}}
        if vision:
            own["cameras"] = {name: Camera(pixels, pixels) for name in ("front", "wrist")}
        cfg = kind.Config(**own, **(config or {}))
        self.env = Env(kind(cfg), num_envs, device, seed=seed, engine=engine)
        self.vision, self.use_rel_reward = vision, use_rel_reward
        numbers = next(i for i in self.env.inputs if i.name == "states")
        spaces: dict[str, Any] = {"states": Box(-np.inf, np.inf, (numbers.size,), np.float32)}
        if vision:
            image = Box(0, 255, (pixels, pixels, 3), np.uint8)
            spaces |= {"main_images": image, "wrist_images": image}
            spaces["task_descriptions"] = Text(len(DESCRIPTION), charset=frozenset(DESCRIPTION))
        self.observation_space = Dict(spaces)
        self.action_space = Box(-1.0, 1.0, (len(self.env.task.actions),), np.float32)
        self.once = np.zeros(num_envs, dtype=np.bool_)
        self.total, self.before = np.zeros(num_envs), np.zeros(num_envs)
        self.length = np.zeros(num_envs, dtype=np.int64)
        self._renderer: Any = None

    def reset(self, seed: int | None = None, mask: np.ndarray | None = None) -> Obs:
        """Begin an episode everywhere, or where the mask (num_envs,) says; return what is seen."""
        if seed is not None:
            self.env.set_seed(seed)
        where = np.ones(len(self.once), dtype=np.bool_) if mask is None else mask
        if mask is None:
            root = self.env.reset()
        else:
            root = self.env.current()
            root["_reset"] = torch.from_numpy(mask)[:, None].to(self.env.device)
            root = self.env.reset(root)
        self.once &= ~where
        for value in (self.total, self.before, self.length):
            value[where] = 0
        return self._seen(root)

    def step(self, actions: np.ndarray) -> tuple[Obs, np.ndarray, np.ndarray, np.ndarray, Obs]:
        """Return what is seen, rewards, terminations, truncations (num_envs,) and the info."""
        shape = (len(self.once), *self.action_space.shape)
        after: Any = self.env.step(pack(self.env, actions, shape))["next"]
        dense = _column(after["reward"]).astype(np.float64)
        reward = dense - self.before if self.use_rel_reward else dense
        self.before = dense.copy()  # a reset writes into it
        success = _column(after["success"])
        self.once |= success
        self.total += reward
        self.length += 1
        info = {
            "success": success,
            "success_once": self.once.copy(),
            "fault": _column(after["fault"]),
            "return": self.total.copy(),
            "episode_len": self.length.copy(),
        }
        seen = self._seen(after)
        return seen, reward, _column(after["terminated"]), _column(after["truncated"]), info

    def image(self, env_id: int) -> np.ndarray:
        """Return the image of the task's camera, (height, width, 3) uint8."""
        if self._renderer is None:
            self._renderer = viewer(self.env)
        return self._renderer.render(env_id)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _seen(self, td: Any) -> Obs:
        seen: Obs = {"states": td["states"].cpu().numpy().copy()}
        if self.vision:
            for name, camera in (("main_images", "front_rgb"), ("wrist_images", "wrist_rgb")):
                seen[name] = td[camera].cpu().numpy().copy()
            seen["task_descriptions"] = (DESCRIPTION,) * len(self.once)
        return seen


class RLinfEnv(gymnasium.Env[Obs, np.ndarray]):
    """One environment; its arguments are those of `Lift`."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}  # type: ignore[misc]

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        self.render_mode = render_mode
        self._lift = Lift(1, seed=int(self.np_random.integers(2**62)), **settings)
        self.observation_space = self._lift.observation_space
        self.action_space = self._lift.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode. After a seed, everything is determined."""
        super().reset(seed=seed)
        return _first(self._lift.reset(seed)), {}

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Return observation, reward, terminated, truncated and info.

        Raises:
            ValueError: the action has another shape, or is not finite real numbers.
        """
        seen, reward, terminated, truncated, info = self._lift.step(np.asarray(action)[None])
        return (
            _first(seen),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {name: value[0].item() for name, value in info.items()},
        )

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return the image of the task's camera, (height, width, 3) uint8."""
        return None if self.render_mode is None else self._lift.image(0)

    def close(self) -> None:
        """Free the renderer."""
        self._lift.close()


class RLinfVectorEnv(VectorEnv[Obs, np.ndarray, np.ndarray]):
    """Many environments in one batch; its arguments are those of `Lift`.

    One whose episode ends restarts in the same step; what was last seen of the old episode is in
    `infos["final_obs"]`, of the environments that `infos["_final_obs"]` names.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self, num_envs: int = 1, *, render_mode: str | None = None, **settings: Any
    ) -> None:
        self.num_envs, self.render_mode = num_envs, render_mode
        self._lift = Lift(num_envs, seed=int(self.np_random.integers(2**62)), **settings)
        self.single_observation_space = self._lift.observation_space
        self.single_action_space = self._lift.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def torch_env(self) -> Env:
        """The environments that this is a front of."""
        return self._lift.env

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode everywhere."""
        super().reset(seed=seed)
        return self._lift.reset(seed), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[Obs, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Return observations, rewards, terminations, truncations (num_envs,) and infos."""
        seen, reward, terminated, truncated, infos = self._lift.step(actions)
        return (
            self._restarted(seen, terminated | truncated, infos),
            reward,
            terminated,
            truncated,
            infos,
        )

    def chunk_step(
        self, chunks: np.ndarray
    ) -> tuple[Obs, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Carry out chunks of actions (num_envs, steps, 4).

        Rewards, terminations and truncations are (num_envs, steps). Where an episode ends within a
        chunk, what the rest of it does pays nothing and counts for nothing; it restarts after the
        chunk.

        Raises:
            ValueError: there is no step, or an action is not as `step` wants it.
        """
        chunks = np.asarray(chunks)
        if chunks.ndim != 3 or not chunks.shape[1]:
            raise ValueError(f"chunks must be (num_envs, steps, 4), got {chunks.shape}")
        over = np.zeros(self.num_envs, dtype=np.bool_)
        ends: dict[str, list[np.ndarray]] = {"reward": [], "terminated": [], "truncated": []}
        infos: dict[str, Any] = {}
        seen: Obs = {}
        for k in range(chunks.shape[1]):
            now, reward, terminated, truncated, info = self._lift.step(chunks[:, k])
            live = ~over
            ends["reward"].append(np.where(live, reward, 0.0))
            ends["terminated"].append(terminated & live)
            ends["truncated"].append(truncated & live)
            seen = _where(live, now, seen)
            infos = {n: np.where(live, v, infos.get(n, v)) for n, v in info.items()}
            over |= terminated | truncated
        rewards, terminated, truncated = (np.stack(ends[name], axis=1) for name in ends)
        return self._restarted(seen, over, infos), rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """Return one image of the task's camera per environment, (height, width, 3) uint8."""
        if self.render_mode is None:
            return None
        return tuple(self._lift.image(env_id) for env_id in range(self.num_envs))

    def close_extras(self, **kwargs: object) -> None:
        """Free the renderer."""
        self._lift.close()

    def _restarted(self, seen: Obs, over: np.ndarray, infos: dict[str, Any]) -> Obs:
        """Return what is seen after the episodes that are over have begun anew; note their end."""
        if not over.any():
            return seen
        infos |= {"final_obs": seen, "_final_obs": over.copy()}
        return self._lift.reset(mask=over)


def _where(mask: np.ndarray, new: Obs, old: Obs) -> Obs:
    """Return what is new where the mask says."""
    if not old:
        return new
    return {
        name: value
        if isinstance(value, tuple)
        else np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, old[name])
        for name, value in new.items()
    }


def _first(seen: Obs) -> Obs:
    return {name: value[0] for name, value in seen.items()}


def _column(value: torch.Tensor) -> np.ndarray:
    return value.squeeze(1).cpu().numpy().copy()
