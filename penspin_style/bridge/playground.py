"""Environments of MuJoCo Playground as a TorchRL `EnvBase`, for our algorithms to learn in.

    env = PlaygroundEnv("playground:CartpoleBalance", 64)
    algo = PPO(cfg, env.inputs, len(env.actions), device=env.device, seed=0)
    batch, root = rollout(env, algo, env.current(), None)

Needs the package `playground`. Physics, rewards and restarts are one compiled program of JAX's;
actions go to it, and what it computes comes back, on the memory that it lies in.

| key | shape | is |
| --- | --- | --- |
| teacher | (size,) float32 | Playground's observation, of a dictionary the part `state` |
| critic | (size,) float32 | of a dictionary the part `privileged_state`, if there is one |
| reward, terminated, truncated, done, fault, success | (1,) | as `Env` has them; no success |

`next` holds the true last observation of an episode, and the new root the first of the next one:
Playground's own wrapper for training puts the first observation of a new episode into both. An
episode is truncated at `episode_length`; what Playground calls done before is termination. Where an
observation or a reward is not finite the step is a fault: it ends the episode, and nothing is
learned from it.
"""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from penspin_style.bridge.dlpack import to_jax, to_torch
from penspin_style.bridge.start import compiler_options, import_extra, import_jax
from penspin_style.features import ActionChannel, Feature, Input

PREFIX = "playground:"
_GROUPS = {"state": "teacher", "privileged_state": "critic"}
_FLAGS = ("done", "terminated", "truncated")


class PlaygroundEnv(EnvBase):
    """`num_envs` copies of one environment of MuJoCo Playground. See the module."""

    def __init__(
        self,
        name: str | Any,
        num_envs: int,
        *,
        seed: int = 0,
        episode_length: int | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        """Load the environment, compile its program, begin every episode.

        name: as Playground's registry has it, `playground:` before it or not; or an environment
            with `reset`, `step`, `action_size` and `dt` as an `MjxEnv` has them.
        episode_length: control steps; None for what its configuration says.
        overrides: of its configuration; physics run on JAX unless `impl` says otherwise.

        Raises:
            ValueError: there is no environment of that name, or it observes more than vectors.
            ImportError: Playground is not installed.
        """
        self._jax = import_jax("PlaygroundEnv")
        env, length = _load(name, overrides or {}) if isinstance(name, str) else (name, 1000)
        place = self._jax.devices()[0]
        device = torch.device("cpu" if place.platform == "cpu" else f"cuda:{place.id}")
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        self.name = name.removeprefix(PREFIX) if isinstance(name, str) else type(name).__name__
        self.episode_length = length if episode_length is None else episode_length
        self.control_dt = float(env.dt)
        self.actions = tuple(
            ActionChannel(f"action_{i}", "1", 1.0, -1.0, 1.0, "absolute")
            for i in range(env.action_size)
        )
        self._begin, self._advance = _programs(self._jax, env, num_envs, self.episode_length)
        self._set_seed(seed)
        self._restart()
        self.inputs = tuple(
            Input(group, (Feature("observation", tuple(value.shape[1:])),))
            for group, value in self._observed.items()
        )
        self._make_specs()
        self._sums = torch.zeros(2, num_envs, device=device)  # return, steps
        self._ended = torch.zeros(3, device=device)  # returns, steps, number

    @property
    def num_envs(self) -> int:
        """Number of environments."""
        return self.batch_size[0]

    def current(self) -> TensorDict:
        """Return the root from which the next step starts."""
        return self._tensordict(self._observed, {name: self._never for name in _FLAGS})

    def step_and_maybe_reset(
        self, tensordict: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        """Step; restart what is done. Return (the transition, the next root), as TorchRL does."""
        given: Any = tensordict["action"]
        # a copy: what samples actions may write over them before JAX has read them
        action = to_jax(given.to(self.device, torch.float32).contiguous().clone())
        self._carry, step = self._advance(self._carry, action)
        seen = {name: to_torch(value) for name, value in step.items() if name != "next"}
        last = {_GROUPS[k]: to_torch(v) for k, v in step["next"].items()}
        ended = {name: seen[name][:, None] for name in _FLAGS}
        transition = self._tensordict(
            last, ended, reward=seen["reward"][:, None], fault=seen["fault"][:, None]
        )
        self._count(seen)
        self._observed = self._look()
        tensordict.set("next", transition)
        return tensordict, self.current()

    def metrics(self) -> dict[str, float]:
        """Return env/return, env/episode_len, env/num_trajectories of what ended since; clear."""
        total, steps, number = self._ended.tolist()
        self._ended.zero_()
        found = {"env/num_trajectories": number}
        if number:
            found |= {"env/return": total / number, "env/episode_len": steps / number}
        return found

    def state_dict(self, **_: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return every tensor that a bit-exact continuation needs, flat."""
        leaves = self._jax.tree_util.tree_leaves(self._carry)
        state = {f"state/{i}": to_torch(leaf).clone() for i, leaf in enumerate(leaves)}
        return {**state, "sums": self._sums.clone(), "ended": self._ended.clone()}

    def load_state_dict(self, state_dict: dict[str, Any], **_: Any) -> None:  # type: ignore
        """Continue exactly where `state_dict` was taken; `current()` is then the root."""
        leaves, tree = self._jax.tree_util.tree_flatten(self._carry)
        new = [to_jax(state_dict[f"state/{i}"].clone()) for i in range(len(leaves))]
        self._carry = self._jax.tree_util.tree_unflatten(tree, new)
        self._sums.copy_(state_dict["sums"])
        self._ended.copy_(state_dict["ended"])
        self._observed = self._look()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        raise NotImplementedError("PlaygroundEnv restarts in its step: use step_and_maybe_reset")

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        """Begin every episode anew."""
        self._restart()
        return self.current()

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._key = self._jax.random.PRNGKey(seed)

    def _restart(self) -> None:
        self._never = torch.zeros(self.num_envs, 1, dtype=torch.bool, device=self.device)
        self._key, key = self._jax.random.split(self._key)
        self._carry = self._begin(key)
        self._observed = self._look()

    def _look(self) -> dict[str, Tensor]:
        state = self._carry["state"]
        return {_GROUPS[k]: to_torch(v) for k, v in _vectors(state.obs).items()}

    def _count(self, seen: dict[str, Tensor]) -> None:
        self._sums += torch.stack((seen["reward"], torch.ones_like(seen["reward"])))
        done = seen["done"] & ~seen["fault"]
        sums = torch.where(done, self._sums, 0.0).sum(dim=1)
        self._ended += torch.cat((sums, done.sum()[None].float()))
        self._sums.mul_(~seen["done"])

    def _tensordict(
        self, observed: dict[str, Tensor], ended: dict[str, Tensor], **extra: Tensor
    ) -> TensorDict:
        flags = {"fault": self._never, "success": self._never, **ended, **extra}
        return TensorDict({**observed, **flags}, batch_size=self.batch_size, device=self.device)

    def _make_specs(self) -> None:
        n, device = self.batch_size, self.device

        def flag() -> Binary:
            return Binary(n=1, shape=torch.Size([*n, 1]), dtype=torch.bool, device=device)

        spec: dict[str, Any] = {
            name: Unbounded(value.shape, device=device) for name, value in self._observed.items()
        }
        spec |= {name: flag() for name in ("fault", "success")}
        self.observation_spec = Composite(spec, shape=n, device=device)
        self.action_spec = Bounded(-1.0, 1.0, torch.Size([*n, len(self.actions)]), device=device)
        self.reward_spec = Unbounded(torch.Size([*n, 1]), device=device)
        ends = {name: flag() for name in _FLAGS}
        self.full_done_spec = Composite(ends, shape=n, device=device)


def _load(name: str, overrides: dict[str, Any]) -> tuple[Any, int]:
    """Return an environment of Playground's registry, and the length of its episodes."""
    registry: Any = import_extra("mujoco_playground", "PlaygroundEnv", "playground").registry
    name = name.removeprefix(PREFIX)
    if name not in registry.ALL_ENVS:
        raise ValueError(
            f"MuJoCo Playground has no environment {name!r}; it has "
            f"{', '.join(sorted(registry.ALL_ENVS))}"
        )
    config = registry.get_default_config(name)
    physics = {"impl": "jax"} if "impl" in config else {}
    env = registry.load(name, config_overrides={**physics, **overrides})
    return env, int(overrides.get("episode_length", config.episode_length))


def _vectors(obs: Any) -> dict[str, Any]:
    """Return the observations that are learned from, by Playground's names."""
    parts = obs if hasattr(obs, "items") else {"state": obs}
    found = {name: parts[name] for name in _GROUPS if name in parts}
    if "state" not in found or any(value.ndim != 2 for value in found.values()):
        raise ValueError(
            f"this environment observes {', '.join(parts)}; a vector `state` is needed: load it "
            "with overrides={'vision': False}"
        )
    return found


def _programs(jax: Any, env: Any, num_envs: int, episode_length: int) -> tuple[Any, Any]:
    """Return the compiled beginning, and step with restart."""
    jnp = jax.numpy

    def fresh(key: Any) -> Any:
        return jax.vmap(env.reset)(jax.random.split(key, num_envs))

    def choose(mask: Any, one: Any, other: Any) -> Any:
        def leaf(a: Any, b: Any) -> Any:
            return jnp.where(mask.reshape(-1, *(1 for _ in a.shape[1:])), a, b)

        return jax.tree_util.tree_map(leaf, one, other)

    def begin(key: Any) -> Any:
        key, own = jax.random.split(key)
        return {"state": fresh(own), "key": key, "age": jnp.zeros(num_envs, jnp.int32)}

    def finite(value: Any) -> Any:
        return jnp.isfinite(value).reshape(num_envs, -1).all(axis=1)

    def advance(carry: Any, action: Any) -> tuple[Any, Any]:
        before = carry["state"]
        bad = ~finite(action)
        action = jnp.clip(jnp.where(bad[:, None], 0.0, action), -1.0, 1.0)
        after = jax.vmap(env.step)(before, action)
        last, age = _vectors(after.obs), carry["age"] + 1
        fault = bad | ~finite(after.reward)
        for value in last.values():
            fault = fault | ~finite(value)
        last = {k: choose(fault, _vectors(before.obs)[k], v) for k, v in last.items()}
        terminated = (after.done > 0) & ~fault
        truncated = (age >= episode_length) | fault
        done = terminated | truncated
        key, own = jax.random.split(carry["key"])
        begun = jax.lax.cond(done.any(), fresh, lambda _: after, own)
        carry = {"state": choose(done, begun, after), "key": key, "age": jnp.where(done, 0, age)}
        return carry, {
            "next": last,
            "reward": jnp.where(fault, 0.0, after.reward).astype(jnp.float32),
            "terminated": terminated,
            "truncated": truncated,
            "done": done,
            "fault": fault,
        }

    options = compiler_options(jax.default_backend())
    return jax.jit(begin, compiler_options=options), jax.jit(advance, compiler_options=options)
