"""Copies of one environment of MuJoCo Playground as a `Sim`: its step is the whole control step.

What Playground computes beside the physics, observations, rewards and ends, is in `state`; actions
are given in `action`, and episodes begin by `begin`. Fields of `data` are there to be read: JAX's
arrays are constants, and what is written into a copy of them moves nothing.

The programs are compiled at their first call, once per process, environment, configuration and
number of environments; nothing passes through the host in a step.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from penspin_style.bridge.dlpack import to_jax, to_torch
from penspin_style.bridge.start import compiler_options, import_jax
from penspin_style.sim.sim import DATA_FIELDS, Fault, FieldView, check_mask, check_rows


class PlaygroundSim:
    """`Sim` of `num_envs` copies of an environment with an `MjxEnv`'s interface. See the module."""

    def __init__(self, env: Any, num_envs: int, device: str | torch.device) -> None:
        """Begin all episodes alike; `begin` draws others.

        env: `reset`, `step`, `action_size`, `dt`, `sim_dt` and `mj_model`, as Playground's have.

        Raises:
            ValueError: JAX finds no such device.
        """
        self.model, self.num_envs = env.mj_model, num_envs
        self.device = torch.device(device)
        self.timestep = float(env.sim_dt)
        self.n_substeps = round(float(env.dt) / self.timestep)
        self.faults = torch.zeros(num_envs, dtype=torch.int32, device=self.device)
        self.action = torch.zeros(num_envs, env.action_size, device=self.device)
        """(num_envs, naction) in [-1, 1], of the next step; to be written in place."""
        place = _find_device(self.device)
        self._begin, self._advance, self._pack, self._unpack = _programs(env, place.platform)
        self.state = _zeros(env, num_envs, place)
        """The last `State` of Playground, a leading num_envs everywhere."""
        self._served: dict[str, Tensor] = {}
        names = [name for name in DATA_FIELDS if self._leaf(name) is not None]
        self.data = FieldView(self._serve, names, "data")
        self.params = FieldView(self._serve, (), "params")
        everywhere = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        self.begin(everywhere, torch.zeros(num_envs, 2, dtype=torch.int32, device=self.device))

    def begin(self, mask: Tensor, keys: Tensor) -> None:
        """Begin new episodes where the mask says.

        keys: (num_envs, 2) int32, a key of JAX's for each; every draw of the episode follows.
        """
        check_mask(mask, self.num_envs)
        given = to_jax(keys.view(torch.uint32))
        self._take(self._begin(self.state, to_jax(mask.clone()), given))

    def step(
        self,
        nstep: int = 1,
        inputs: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Let Playground take a control step with `action`.

        Raises:
            ValueError: another number of substeps than a control step has, or inputs.
        """
        if nstep != self.n_substeps or inputs:
            raise ValueError(
                f"MuJoCo Playground takes whole control steps, of {self.n_substeps} substeps and "
                f"with nothing changed in between; got {nstep}, inputs {sorted(inputs or {})}"
            )
        state, bad = self._advance(self.state, to_jax(self.action))
        self._take(state)
        self.faults |= to_torch(bad) * int(Fault.NONFINITE)

    def reset(self, mask: Tensor | None = None, keyframe: int = -1) -> None:
        """Change nothing: Playground draws where episodes begin, see `begin`."""

    def forward(self, mask: Tensor | None = None) -> None:
        """Change nothing: all fields are current at all times."""

    def set_const(self, mask: Tensor | None = None) -> None:
        """Change nothing: no parameter of the model differs."""

    def overflow_hint(self) -> str:
        """Say what makes room for contacts."""
        return "task.playground.naconmax and njmax make room for them"

    def get_state(self) -> Tensor:
        """Return all that a step reads, (num_envs, k) int32: the bits of Playground's `State`.

        With what it remembers beside the physics; so these are no rows of mjSTATE_INTEGRATION.
        """
        return to_torch(self._pack(self.state))

    def set_state(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Write such rows where the mask says, bit for bit."""
        before = self.get_state()
        check_rows(rows, before)
        if mask is not None:
            check_mask(mask, self.num_envs)
            rows = torch.where(mask[:, None], rows, before)
        rows = rows.to(self.device, torch.int32, copy=True)
        self._take(self._unpack(self.state, to_jax(rows.contiguous())))

    def look(self, value: Any) -> Tensor:
        """Return a tensor (num_envs, ...) float32 on what Playground has computed; to be read."""
        return to_torch(value).float()

    def _take(self, state: Any) -> None:
        self.state = state
        for name, tensor in self._served.items():
            tensor.copy_(to_torch(self._leaf(name)))

    def _leaf(self, name: str) -> Any:
        """Return a field of the state's `mjx.Data`, None if it has none of this name."""
        data = self.state.data
        value = getattr(data, name, None)
        value = getattr(getattr(data, "_impl", None), name, None) if value is None else value
        return value if hasattr(value, "dtype") else None

    def _serve(self, name: str) -> Tensor:
        self._served[name] = to_torch(self._leaf(name)).clone()
        return self._served[name]


def _find_device(device: torch.device) -> Any:
    """Return JAX's name of a device of torch's.

    Raises:
        ValueError: JAX has none of that kind.
    """
    jax = import_jax("PlaygroundSim")
    try:
        return jax.devices(device.type)[device.index or 0]
    except RuntimeError as error:
        raise ValueError(
            f"JAX finds no {device.type} here ({str(error).splitlines()[0]}); install "
            "jax[cuda13], or use device=cpu"
        ) from error


def _zeros(env: Any, num_envs: int, place: Any) -> Any:
    """Return a state of nothing, of the right shapes and types."""
    jax = import_jax("PlaygroundSim")
    keys = jax.ShapeDtypeStruct((num_envs, 2), jax.numpy.uint32)
    shapes = jax.eval_shape(jax.vmap(env.reset), keys)
    return jax.tree_util.tree_map(
        lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype, device=place), shapes
    )


@functools.cache
def _programs(env: Any, platform: str) -> tuple[Any, Any, Any, Any]:
    """Return the compiled beginning and step, and what makes rows of states and back."""
    jax = import_jax("PlaygroundSim")
    jnp, tree_map = jax.numpy, jax.tree_util.tree_map

    def choose(mask: Any, one: Any, other: Any) -> Any:
        def leaf(a: Any, b: Any) -> Any:
            return jnp.where(mask.reshape(-1, *(1 for _ in b.shape[1:])), a.astype(b.dtype), b)

        return tree_map(leaf, one, other)

    def begin(state: Any, mask: Any, keys: Any) -> Any:
        def fresh(state: Any) -> Any:
            return choose(mask, jax.vmap(env.reset)(keys), state)

        return jax.lax.cond(mask.any(), fresh, lambda state: state, state)

    def advance(state: Any, action: Any) -> tuple[Any, Any]:
        after = jax.vmap(env.step)(state, action)
        # the types of the beginning: another one would be compiled again
        after = tree_map(lambda a, b: jax.lax.convert_element_type(a, b.dtype), after, state)
        found = [getattr(after.data, name, None) for name in ("qpos", "qvel")]
        bad = [~jnp.isfinite(x).all(axis=1) for x in found if x is not None]
        none = jnp.zeros(len(action), bool)
        return after, functools.reduce(jnp.logical_or, bad, none).astype(jnp.int32)

    def pack(state: Any) -> Any:
        leaves = jax.tree_util.tree_leaves(state)
        return jnp.concatenate([_bits(jax, x).reshape(len(x), -1) for x in leaves], axis=1)

    def unpack(like: Any, rows: Any) -> Any:
        leaves, tree = jax.tree_util.tree_flatten(like)
        new, at = [], 0
        for leaf in leaves:
            size = leaf.size // len(leaf)
            part = rows[:, at : at + size].reshape(leaf.shape)
            is_bits = leaf.dtype.itemsize == 4
            as_bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=leaf.dtype)
            new.append(as_bits(part) if is_bits else part.astype(leaf.dtype))
            at += size
        return jax.tree_util.tree_unflatten(tree, new)

    options = compiler_options(platform)
    compiled = functools.partial(jax.jit, compiler_options=options)
    return compiled(begin), compiled(advance), compiled(pack), compiled(unpack)


def _bits(jax: Any, leaf: Any) -> Any:
    """Return the bits of numbers of 32 bits, and smaller whole numbers, as int32.

    Raises:
        TypeError: it is something else.
    """
    if leaf.dtype.itemsize == 4:
        return jax.lax.bitcast_convert_type(leaf, jax.numpy.int32)
    if leaf.dtype.itemsize < 4 and leaf.dtype.kind in "biu":
        return leaf.astype(jax.numpy.int32)
    raise TypeError(f"a state of Playground's holds {leaf.dtype}, which has no place in a row")
