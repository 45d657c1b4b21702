"""The contract of a batched simulation, and the choice of its engine.

A `Sim` steps `num_envs` copies of one MuJoCo model. Its fields carry MuJoCo's names and a leading
`num_envs`, whichever engine runs underneath:

    sim = make_sim(model, 256, "cpu", per_env=("body_mass",))
    sim.data.ctrl[:] = action          # state fields are live: writing in place writes the state
    sim.step(10)
    height = sim.data.xpos[:, box, 2]  # derived fields are current after every call
    sim.params.body_mass[3, box] = 0.2

| field | BatchSim (CPU) | WarpSim (GPU, or Warp's CPU device), MjxSim (JAX) |
| --- | --- | --- |
| state: qpos qvel act ctrl time mocap_* xfrc_applied ... | float64, writable | float32, writable |
| derived: xpos xmat site_xpos sensordata cvel ... | float32, read only | float32, read only |
| params: body_mass dof_damping ... | engine's precision, writable | float32, writable |

What is written into a field takes the field's precision, as in `sim.data.qpos[mask] = start`.

`eq_active` is 0.0 or 1.0 on BatchSim, bool on the others: write numbers, compare with `> 0`.
`history` holds the same past on BatchSim and WarpSim, but Warp stores a delayed sensor's sample one
call earlier; MJX knows no delays. MjxSim has no `light_xpos`, `light_xdir`, `qfrc_spring` and
`qfrc_damper`. Matrices (`xmat`, `ximat`, `geom_xmat`, `site_xmat`, `cam_xmat`) are
(num_envs, n, 3, 3) on all.
Position- and velocity-stage fields and sensors describe the state after the call; forces and other
acceleration-stage values are those that acted in the last substep.
"""

import difflib
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import mujoco
import torch
from torch import Tensor

STATE_FIELDS = (
    "time",
    "qpos",
    "qvel",
    "act",
    "history",
    "qacc_warmstart",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
    "userdata",
)
DERIVED_FIELDS = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat"),
    *("site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
    *("subtree_com", "cdof", "cinert", "actuator_length", "ten_length"),
    *("cvel", "cdof_dot", "actuator_velocity", "ten_velocity"),
    *("qfrc_bias", "qfrc_passive", "qfrc_spring", "qfrc_damper", "qfrc_gravcomp", "sensordata"),
)
ACCELERATION_FIELDS = (
    *("qacc", "qacc_smooth", "act_dot", "actuator_force"),
    *("qfrc_actuator", "qfrc_constraint", "qfrc_smooth"),
)
# Missing on purpose: what an engine computes only if some sensor needs it (cfrc_ext,
# subtree_linvel), and what the engines lay out differently (contacts, M, qLD). Sensors serve both.
DATA_FIELDS = STATE_FIELDS + DERIVED_FIELDS + ACCELERATION_FIELDS
INPUT_FIELDS = (
    *("ctrl", "qfrc_applied", "xfrc_applied", "eq_active", "mocap_pos", "mocap_quat", "userdata"),
)
"""State fields that only the user writes; they may differ between the substeps of a `step`."""
MESH_FIELDS = (*("geom_dataid", "geom_pos", "geom_quat", "geom_size", "geom_aabb", "geom_rbound"),)
"""The mesh of a geom, and what follows from it: one per environment without the others is wrong."""
MATRIX_FIELDS = frozenset({"xmat", "ximat", "geom_xmat", "site_xmat", "cam_xmat"})


class Fault(enum.IntFlag):
    """Why a simulation, or the environment around it, is not to be trusted. Bits add up.

    `NONFINITE` to `OVERFLOW` are set by a `Sim`, the rest by `Env`.
    """

    NONFINITE = 1
    """A state value is NaN or infinite."""
    WARNING = 2
    """The engine found a bad state; MuJoCo C then restarts that world without a word."""
    ERROR = 4
    """The engine raised for this world and kept its earlier state."""
    OVERFLOW = 8
    """A contact or constraint did not fit its buffer and was dropped."""
    ACTION = 16
    """The policy sent a NaN or infinite action."""
    OBSERVATION = 32
    """An observation is NaN, infinite or beyond `Task.largest`."""
    REWARD = 64
    """The reward is NaN, infinite or beyond `Task.largest`."""


class LiveTensor(Tensor):
    """A float64 field of a simulation: what is written into it takes its precision.

    Tasks compute in float32, and torch refuses to mix the two where the index is a mask or a list
    of ids. Parts of a field are of this class too; what is computed from one is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(index).as_subclass(LiveTensor)

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value.to(self.dtype) if isinstance(value, Tensor) else value)


def _in_precision_of_self(name: str) -> Callable[..., Tensor]:
    method = getattr(Tensor, name)

    def write(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def cast(value: Any) -> Any:
            is_real = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(self.dtype) if is_real else value

        return method(self, *map(cast, args), **{key: cast(v) for key, v in kwargs.items()})

    return write


for _name in ("index_add_", "index_copy_", "index_put_", "masked_scatter_", "scatter_"):
    setattr(LiveTensor, _name, _in_precision_of_self(_name))


class FieldView:
    """Named fields as attributes; each a tensor with leading `num_envs`, to be written in place."""

    _get: Callable[[str], Tensor]
    _names: frozenset[str]
    _what: str

    def __init__(self, get: Callable[[str], Tensor], names: Iterable[str], what: str) -> None:
        object.__setattr__(self, "_get", get)
        object.__setattr__(self, "_names", frozenset(names))
        object.__setattr__(self, "_what", what)

    def __getattr__(self, name: str) -> Tensor:
        if name not in self._names:
            raise AttributeError(self._unknown(name))
        tensor = self._get(name)
        if tensor.dtype == torch.float64:
            tensor = tensor.as_subclass(LiveTensor)
        # from now on the attribute is found directly: no Python between a task and its tensor
        object.__setattr__(self, name, tensor)
        return tensor

    def __getitem__(self, name: str) -> Tensor:
        """Return the field, also one whose name has a dot: `params["opt.gravity"]`."""
        return getattr(self, name)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"{name} is a live view: rebinding it would leave the simulation unchanged; "
            f"write in place, {self._what}.{name}[:] = value"
        )

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __dir__(self) -> list[str]:
        return sorted(self._names)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._names, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"there are {sorted(self._names)}"
        if self._what == "params":
            hint += f" (a model field is per environment only if make_sim got per_env=({name!r},))"
        return f"{self._what} has no field {name!r}; {hint}"


class Sim(Protocol):
    """`num_envs` simulations of one model."""

    model: mujoco.MjModel
    """The shared model. Do not edit it: per-environment values live in `params`."""
    num_envs: int
    device: torch.device
    timestep: float
    """Seconds per substep."""
    data: FieldView
    """MjData fields."""
    params: FieldView
    """MjModel fields that differ between environments: those named in `per_env`."""
    faults: Tensor
    """(num_envs,) int32, `Fault` bits collected since the last `faults.zero_()`."""

    def step(
        self,
        nstep: int = 1,
        inputs: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Advance every simulation by nstep substeps.

        inputs: field of `INPUT_FIELDS` -> the values that it takes before each substep, (nstep,
            num_envs, ...); fields that are not named stay what they are. Afterwards a field holds
            its last values.
        mask: (num_envs,) bool, the simulations whose state is still wanted; an engine may leave
            the others where they are.

        Raises:
            ValueError: an input that is none of these fields, or of another shape.
        """
        ...

    def reset(self, mask: Tensor | None = None, keyframe: int = -1) -> None:
        """Set the state of the masked simulations to a keyframe, or to the model's defaults (-1).

        mask: (num_envs,) bool, or None for all. Derived fields are stale until `forward`.
        """
        ...

    def forward(self, mask: Tensor | None = None) -> None:
        """Make the derived fields of (at least) the masked simulations current, without time."""
        ...

    def set_const(self, mask: Tensor | None = None) -> None:
        """Recompute what follows from `params`: inverse weights, bounds of geoms, static poses."""
        ...

    def overflow_hint(self) -> str:
        """Say which setting to raise if `faults` has `OVERFLOW` or `ERROR`. Waits for the GPU."""
        ...

    def get_state(self) -> Tensor:
        """Return a copy of the mjSTATE_INTEGRATION rows, (num_envs, nstate), engine's precision."""
        ...

    def set_state(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Write the masked mjSTATE_INTEGRATION rows, bit for bit; make derived fields current."""
        ...


def check_rows(rows: Tensor, like: Tensor) -> None:
    """Refuse state rows of another shape than the simulation's own; copying would broadcast them.

    Raises:
        ValueError: the shapes differ.
    """
    if rows.shape != like.shape:
        raise ValueError(f"state rows must be {tuple(like.shape)}, got {tuple(rows.shape)}")


def check_mask(mask: Tensor, num_envs: int) -> None:
    """Refuse a mask that an engine would broadcast, or take for ids.

    Raises:
        ValueError: what it is, and what it must be.
    """
    if mask.shape != (num_envs,) or mask.dtype != torch.bool:
        got = f"{tuple(mask.shape)} {str(mask.dtype).removeprefix('torch.')}"
        raise ValueError(f"a mask must be ({num_envs},) bool, got {got}")


def check_inputs(inputs: Mapping[str, Tensor], nstep: int, data: FieldView) -> None:
    """Refuse inputs of `Sim.step` that are no inputs, or do not give each substep its values.

    Raises:
        ValueError: which one, and what it must be.
    """
    for name, values in inputs.items():
        if name not in INPUT_FIELDS:
            raise ValueError(f"inputs must be among {', '.join(INPUT_FIELDS)}, got {name!r}")
        shape = (nstep, *data[name].shape)
        if values.shape != shape:
            raise ValueError(f"inputs[{name!r}] must be {shape}, got {tuple(values.shape)}")


def check_mesh_fields(per_env: Sequence[str]) -> None:
    """Refuse meshes per environment without all that goes with them.

    Raises:
        ValueError: names the fields that are missing.
    """
    missing = [name for name in MESH_FIELDS if name not in per_env]
    if "geom_dataid" in per_env and missing:
        raise ValueError(
            "a mesh per environment (geom_dataid) has its own frame and bounds: per_env must hold "
            f"{', '.join(missing)} too (sim.variants.FIELDS)"
        )


def make_sim(
    model: mujoco.MjModel,
    num_envs: int,
    device: str | torch.device = "cpu",
    *,
    per_env: Sequence[str] = (),
    engine: str = "auto",
    nthread: int = 0,
    nconmax: int | None = None,
    njmax: int | None = None,
) -> Sim:
    """Build the simulation that fits the device: MuJoCo C on a CPU, MuJoCo Warp on a GPU.

    per_env: MjModel fields (MjOption fields as `opt.gravity`) that get a value per environment.
    engine: `auto`, `mujoco`, `warp` or `mjx`. `warp` on the CPU is for tests of the GPU path: it
        compiles kernels for about a minute, once, and is slower than MuJoCo C. `mjx` is for users
        of JAX: it needs the extra `jax`, simulates fewer models, and compiles at each start.
    nthread: threads of the CPU engine, 0 for all cores.
    nconmax, njmax: contacts and constraints per environment that Warp makes room for; None lets it
        guess. MuJoCo C grows by itself.

    Raises:
        ValueError: unknown engine, an engine that cannot run on the device, a field that cannot
            differ between environments, or not without another.
    """
    target = torch.device(device)
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    check_mesh_fields(per_env)
    if engine == "auto":
        engine = "mujoco" if target.type == "cpu" else "warp"
    if engine == "mujoco":
        if target.type != "cpu":
            raise ValueError(f"engine 'mujoco' runs on the CPU, not {device}; use engine='warp'")
        from penspin_style.sim.batch_sim import BatchSim

        return BatchSim(model, num_envs, per_env=per_env, nthread=nthread)
    if engine == "warp":
        from penspin_style.sim.warp_sim import WarpSim

        return WarpSim(model, num_envs, target, per_env=per_env, nconmax=nconmax, njmax=njmax)
    if engine == "mjx":
        try:
            from penspin_style.sim.mjx_sim import MjxSim
        except ImportError as error:
            raise ValueError(str(error)) from error

        return MjxSim(model, num_envs, target, per_env=per_env)
    raise ValueError(f"engine must be one of auto, mujoco, warp, mjx; got {engine!r}")
