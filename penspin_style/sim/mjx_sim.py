"""The JAX engine: MuJoCo MJX, one compiled program for all that moves. For users of JAX.

**Memory.** Each field is one tensor of torch's for good, and a JAX array on the same memory (see
`bridge.dlpack`). A call gives the program the arrays of the state and of `params`, which it reads
where they are; no value passes through the host. What the program computes JAX puts into buffers of
its own, and those of the state, and of the derived fields that somebody has touched, are copied on
the device, once a call, into the tensors. So to write a field in place costs nothing, and a call
costs one copy of what is served: `copied_bytes`. JAX cannot save it: it would have to compute into
memory that it does not own, and makes a copy itself where such memory is donated to it.

**The program** is compiled when the first simulation of its kind is made, which takes tens of
seconds of CPU for an arm (`compile_seconds`): once per process, model, number of worlds, `per_env`
and keys of `inputs`; with `JAX_COMPILATION_CACHE_DIR` once for all processes. It runs any number of
substeps; its last pass leaves positions, velocities and their sensors current.

Contacts are all considered at all times, and none can overflow; `sim/mjx_limits.py` names what is
not simulated at all. Arithmetic is float32.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import mujoco.batch
import numpy as np
import torch
from torch import Tensor

from penspin_style.bridge.dlpack import to_jax, to_torch
from penspin_style.bridge.start import compiler_options, import_extra, import_jax
from penspin_style.sim.mjx_contact import contacts_of_mujoco
from penspin_style.sim.mjx_limits import check_model, check_per_env
from penspin_style.sim.sim import (
    ACCELERATION_FIELDS,
    DERIVED_FIELDS,
    STATE_FIELDS,
    Fault,
    FieldView,
    check_inputs,
    check_mask,
    check_rows,
)

jax: Any = import_jax("engine=mjx")
mjx: Any = import_extra("mujoco.mjx", "engine=mjx")
_forward: Any = import_extra("mujoco.mjx._src.forward", "engine=mjx")
_sensor: Any = import_extra("mujoco.mjx._src.sensor", "engine=mjx")
_solver: Any = import_extra("mujoco.mjx._src.solver", "engine=mjx")
jnp = jax.numpy

_ABSENT = ("light_xpos", "light_xdir", "qfrc_spring", "qfrc_damper")  # MJX computes none of them
FIELDS = tuple(f for f in STATE_FIELDS + DERIVED_FIELDS + ACCELERATION_FIELDS if f not in _ABSENT)
_INNER = ("cinert", "ten_velocity", "actuator_velocity")  # that MJX keeps in data._impl
# what follows from per-environment fields, as far as MJX reads it
_CONSTANTS = (
    *("body_subtreemass", "body_invweight0", "dof_invweight0", "tendon_invweight0"),
    *("tendon_length0", "actuator_acc0", "dof_M0", "geom_rbound", "geom_aabb"),
    *("cam_pos0", "cam_poscom0"),
)
_FRICTION = {
    "dof_frictionloss": "_impl.dof_hasfrictionloss",
    "tendon_frictionloss": "_impl.tendon_hasfrictionloss",
}
# MJX holds fast what has a row of friction and a limit of exactly 0; N or N m
_LEAST_FRICTION = 1e-7


class MjxSim:
    """`Sim` on MuJoCo MJX; all fields are float32, `eq_active` is bool. See the module."""

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        device: str | torch.device,
        *,
        per_env: Sequence[str] = (),
    ) -> None:
        check_model(model)
        check_per_env(per_env)
        self.model = model
        self.num_envs = num_envs
        self.device = torch.device(device)
        self._jax_device = _find_device(self.device)
        self.timestep = float(model.opt.timestep)
        self.faults = torch.zeros(num_envs, dtype=torch.int32, device=self.device)
        self._host = mujoco.MjData(model)
        self._put(per_env)
        self._reset_rows: dict[int, dict[str, Tensor]] = {}
        self._program = _compiled(self._jax_device.platform)
        self._served: dict[str, Tensor] = {}  # derived fields that somebody has touched
        self.data = FieldView(self._bind, FIELDS, "data")
        self.params = FieldView(self._params.__getitem__, per_env, "params")
        began = time.perf_counter()
        self.reset()
        self.forward()
        self.compile_seconds = time.perf_counter() - began

    @property
    def copied_bytes(self) -> int:
        """Return how many bytes a call copies on the device to serve the fields."""
        served = (*self._state.values(), *self._served.values())
        return sum(tensor.nbytes for tensor in served)

    def step(
        self,
        nstep: int = 1,
        inputs: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Advance all simulations nstep substeps; then recompute position and velocity stages.

        mask: changes nothing; the program steps all.
        """
        inputs = inputs or {}
        check_inputs(inputs, nstep, self.data)
        # one more row: the last pass only makes what was reached current
        given = {
            name: torch.cat((values, values[-1:])).to(self._state[name].dtype).contiguous()
            for name, values in inputs.items()
        }
        self._run(nstep, accelerate=False, inputs=given, mask=self._all)

    def reset(self, mask: Tensor | None = None, keyframe: int = -1) -> None:
        """Set the masked states to a keyframe or the defaults; `forward` makes the rest current."""
        if not -1 <= keyframe < self.model.nkey:
            raise ValueError(f"keyframe must be -1 or one of {self.model.nkey}, got {keyframe}")
        mask = self._checked(mask)
        for name, row in self._defaults(keyframe).items():
            state = self._state[name]
            state.copy_(torch.where(_wide(mask, state), row, state))

    def forward(self, mask: Tensor | None = None) -> None:
        """Compute everything but time where the mask says; the others keep all that they have."""
        self._run(0, accelerate=True, inputs={}, mask=self._checked(mask))

    def set_const(self, mask: Tensor | None = None) -> None:
        """Run `mj_setConst` on the host, for all; `params` go there and what follows comes back.

        For start and resets: unlike a step it waits for the device.
        """
        self._checked(mask)
        if not self._constants:
            return
        batch = self._constant_batch
        if batch is None:
            batch = self._constant_batch = mujoco.batch.Batch(self.model, self.num_envs)
        for name, value in self._params.items():
            target = batch.expand(name)
            target[:] = value.cpu().numpy().reshape(target.shape)
        batch.set_const(None)
        for name, value in self._constants.items():
            found = batch.expanded(name)
            if found is not None:
                found = np.array(found, dtype=np.float32).reshape(value.shape)
                value.copy_(torch.from_numpy(found))

    def overflow_hint(self) -> str:
        """Say that nothing can overflow."""
        return "MJX makes room for every contact; none is dropped"

    def get_state(self) -> Tensor:
        """Return a copy of the integration rows, (num_envs, nstate) float32."""
        parts = [self._state[n].reshape(self.num_envs, -1).float() for n in STATE_FIELDS]
        return torch.cat(parts, dim=1)

    def set_state(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Write integration rows, (num_envs, nstate), where the mask says; then `forward` there."""
        check_rows(rows, self.get_state())
        mask = self._checked(mask)
        sizes = [self._state[name][0].numel() for name in STATE_FIELDS]
        for name, part in zip(STATE_FIELDS, rows.split(sizes, dim=1), strict=True):
            state = self._state[name]
            new = part.reshape(state.shape).to(state.dtype)
            state.copy_(torch.where(_wide(mask, state), new, state))
        self.forward(mask)

    # Memory.

    @property
    def jax_data(self) -> Any:
        """Return what was computed last, an `mjx.Data` with a leading num_envs everywhere."""
        return self._data

    def jax_model(self) -> Any:
        """Return the `mjx.Model` on the memory of `params`; those have a leading num_envs."""
        own = {**self._params, **self._constants}
        return self._m.tree_replace({name: to_jax(value) for name, value in own.items()})

    def _put(self, per_env: Sequence[str]) -> None:
        """Put model and data on the device; allocate what torch and JAX share."""
        n = self.num_envs
        try:
            m = mjx.put_model(self.model, device=self._jax_device, impl="jax")
            one = mjx.make_data(self.model, device=self._jax_device, impl="jax")
        except NotImplementedError as error:
            raise ValueError(f"engine=mjx cannot simulate this model: {error}") from error
        for name in {*_FRICTION} & {*per_env}:  # rub also where the shared model does not
            everywhere = np.ones(np.shape(getattr(self.model, name)), bool)
            m = m.tree_replace({_FRICTION[name]: everywhere})
        one = mjx.make_data(m, device=self._jax_device, impl="jax") if per_env else one
        self._data = jax.tree_util.tree_map(
            lambda x: jnp.repeat(jnp.asarray(x)[None], n, axis=0), one
        )
        self._state = {name: self._own(self._leaf(name)) for name in STATE_FIELDS}
        self._state["eq_active"] = self._state["eq_active"].bool()
        self._params = {name: self._repeated(m, name) for name in per_env}
        needs = mujoco.MjModel._setconst_inputs
        follow = _CONSTANTS if any(name in needs for name in per_env) else ()
        self._constants = {
            name: self._repeated(m, name)
            for name in follow
            if name not in per_env and np.size(getattr(self.model, name))
        }
        self._constant_batch: mujoco.batch.Batch | None = None
        self._m = m
        self.varying = (*self._params, *self._constants)
        """Fields of the model that have a value per world."""
        self._all = torch.ones(n, dtype=torch.bool, device=self.device)

    def _repeated(self, m: Any, name: str) -> Tensor:
        """Return memory for a model field's value in each world."""
        value = m
        for part in name.split("."):
            value = getattr(value, part)
        return self._own(jnp.repeat(jnp.asarray(value)[None], self.num_envs, axis=0))

    def _own(self, array: Any) -> Tensor:
        """Return a copy in memory of torch's, which may be written."""
        return to_torch(array).clone()

    def _leaf(self, name: str) -> Any:
        """Return the array of a field that the program has computed last."""
        return getattr(self._data._impl if name in _INNER else self._data, name)

    def _bind(self, name: str) -> Tensor:
        if name in self._state:
            return self._state[name]
        self._served[name] = self._own(self._leaf(name))
        return self._served[name]

    # The program.

    def _run(
        self, nstep: int, *, accelerate: bool, inputs: Mapping[str, Tensor], mask: Tensor
    ) -> None:
        """Run the program on what the tensors hold now; put what it computed into the tensors."""
        m = self.jax_model()
        d = self._data.replace(**{name: to_jax(value) for name, value in self._state.items()})
        given = {name: to_jax(values) for name, values in inputs.items()}
        self._data, bad = self._program(
            *(self.varying, m, d, given, jnp.int32(nstep), jnp.bool_(accelerate), to_jax(mask))
        )
        for name, tensor in (*self._state.items(), *self._served.items()):
            tensor.copy_(to_torch(self._leaf(name)))
        self.faults |= to_torch(bad) * int(Fault.NONFINITE)

    def _checked(self, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self._all
        check_mask(mask, self.num_envs)
        return mask.clone()  # a view may lie on an address that JAX does not take

    def _defaults(self, keyframe: int) -> dict[str, Tensor]:
        """Return what `mj_resetData` gives each state field, with a leading 1 or num_envs."""
        if keyframe not in self._reset_rows:
            if keyframe < 0:
                mujoco.mj_resetData(self.model, self._host)
            else:
                mujoco.mj_resetDataKeyframe(self.model, self._host, keyframe)
            rows = {name: np.array(getattr(self._host, name)) for name in STATE_FIELDS}
            self._reset_rows[keyframe] = {
                name: torch.from_numpy(np.atleast_1d(row).astype(np.float32))
                .reshape(1, *self._state[name].shape[1:])
                .to(self.device, self._state[name].dtype)
                for name, row in rows.items()
            }
        rows = dict(self._reset_rows[keyframe])
        if keyframe < 0 and "qpos0" in self._params:
            rows["qpos"] = self._params["qpos0"]
        moved = np.flatnonzero(self.model.body_mocapid >= 0)
        moved = moved[np.argsort(self.model.body_mocapid[moved])]
        for name in ("pos", "quat"):
            if keyframe < 0 and f"body_{name}" in self._params and len(moved):
                rows[f"mocap_{name}"] = self._params[f"body_{name}"][:, moved]
        return rows


def _find_device(device: torch.device) -> Any:
    """Return JAX's name of a device of torch's.

    Raises:
        ValueError: JAX has none of that kind.
    """
    try:
        found = jax.devices("cpu" if device.type == "cpu" else device.type)
    except RuntimeError as error:
        raise ValueError(
            f"engine=mjx: JAX finds no {device.type} here ({str(error).splitlines()[0]}); install "
            "jax[cuda13], or use device=cpu"
        ) from error
    return found[device.index or 0]


@functools.cache
def _compiled(platform: str) -> Any:
    """Return the program of a platform; simulations alike share what is compiled of it."""
    options = compiler_options(platform)
    return jax.jit(_work, static_argnums=0, compiler_options=options)


def _work(
    varying: tuple[str, ...], m: Any, d: Any, inputs: Any, nstep: Any, accelerate: Any, mask: Any
) -> tuple[Any, Any]:
    """Take nstep substeps and make the rest current; return data, and which states are bad.

    varying: fields of the model with a value per world.
    inputs: field -> values before each pass, (nstep + 1, num_envs, ...).
    accelerate: whether the last pass computes accelerations as well.
    mask: (num_envs,), the others keep all of their data.
    """
    for name in set(varying) & {*_FRICTION}:
        m = m.replace(**{name: jnp.maximum(getattr(m, name), _LEAST_FRICTION)})
    axes = jax.tree_util.tree_map(lambda _: None, m)
    axes = (axes.tree_replace(dict.fromkeys(varying, 0)), 0)
    current, accelerated, integrated = (
        jax.vmap(stage, in_axes=axes) for stage in (_current, _accelerated, _integrated)
    )

    def substep(i: Any, d: Any) -> Any:
        d = d.replace(**{name: values[i] for name, values in inputs.items()})
        d = current(m, d)
        d = jax.lax.cond((i < nstep) | accelerate, lambda d: accelerated(m, d), lambda d: d, d)
        return jax.lax.cond(i < nstep, lambda d: integrated(m, d), lambda d: d, d)

    before = _is_bad(d)  # a rotation is made of a NaN quaternion, a bound of a NaN control
    with contacts_of_mujoco():
        new = jax.lax.fori_loop(0, nstep + 1, substep, d)
    kept = jax.tree_util.tree_map(
        lambda a, b: jnp.where(mask.reshape(-1, *(1 for _ in a.shape[1:])), a, b), new, d
    )
    return kept, before | _is_bad(new)


def _current(m: Any, d: Any) -> Any:
    """Run the stages of position and velocity with their sensors, for one world."""
    d = _sensor.sensor_pos(m, _forward.fwd_position(m, d))
    return _sensor.sensor_vel(m, _forward.fwd_velocity(m, d))


def _accelerated(m: Any, d: Any) -> Any:
    """Run the stage of acceleration with its sensors, for one world."""
    d = _forward.fwd_acceleration(m, _forward.fwd_actuation(m, d))
    is_free = d._impl.efc_J.size == 0
    d = d.replace(qacc=d.qacc_smooth) if is_free else _solver.solve(m, d)
    return _sensor.sensor_acc(m, d)


def _integrated(m: Any, d: Any) -> Any:
    """Advance state and time of one world."""
    kind = mujoco.mjtIntegrator(int(m.opt.integrator))
    integrate = {
        mujoco.mjtIntegrator.mjINT_EULER: _forward.euler,
        mujoco.mjtIntegrator.mjINT_RK4: _forward.rungekutta4,
        mujoco.mjtIntegrator.mjINT_IMPLICITFAST: _forward.implicit,
    }[kind]
    if kind == mujoco.mjtIntegrator.mjINT_IMPLICITFAST:
        m = _without_clamped(m, d)
    return integrate(m, d)


def _without_clamped(m: Any, d: Any) -> Any:
    """Return a model whose actuators at their force limit do not answer to velocity.

    As `mjd_actuator_vel` of MuJoCo C does; MJX takes their derivative as if nothing held them.
    """
    force, limits = d.actuator_force, m.actuator_forcerange
    held = m.actuator_forcelimited & ((force <= limits[:, 0]) | (force >= limits[:, 1]))
    return m.replace(
        actuator_gainprm=m.actuator_gainprm.at[:, 2].multiply(~held),
        actuator_biasprm=m.actuator_biasprm.at[:, 2].multiply(~held),
    )


def _is_bad(d: Any) -> Any:
    """Return where a state value is NaN or infinite, (num_envs,) int32."""
    fields = (d.qpos, d.qvel, d.act, d.ctrl)
    finite = [jnp.isfinite(field).all(axis=1) for field in fields]
    return (~jnp.stack(finite).all(axis=0)).astype(jnp.int32)


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask (num_envs,) with the field's number of axes."""
    return mask.view(-1, *(1 for _ in like.shape[1:]))
