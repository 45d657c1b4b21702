"""The GPU engine: MuJoCo Warp, one graph per control step. Runs on Warp's CPU device too."""

import dataclasses
import difflib
import functools
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mujoco
import mujoco_warp as mjw
import numpy as np
import torch
import warp as wp
from mujoco_warp import OverflowType, SetConstGroup
from torch import Tensor

from penspin_style import rotation
from penspin_style.sim.sim import (
    ACCELERATION_FIELDS,
    DATA_FIELDS,
    MATRIX_FIELDS,
    Fault,
    FieldView,
    check_inputs,
    check_mask,
    check_rows,
)
from penspin_style.sim.warp_log import start_warp

if TYPE_CHECKING:  # Warp's own hints know no subscripts
    Floats = Any
    Ints = Any
else:
    Floats, Ints = wp.array2d[float], wp.array[int]

_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_NONFINITE = wp.constant(int(Fault.NONFINITE))
_OVERFLOW = wp.constant(int(Fault.OVERFLOW))
# a solver that stops at its iteration limit has dropped nothing
_DROPPED = wp.constant(int(~(OverflowType.ITERATIONS | OverflowType.LS_ITERATIONS)))

_KIN, _INERT = int(SetConstGroup.KIN0), int(SetConstGroup.INERT0)
# per-environment fields that mjw.set_const reads -> the groups of constants that follow from them
_READ = {
    "geom_size": int(SetConstGroup.FIXED),
    "body_mass": int(SetConstGroup.FIXED) | _KIN | _INERT,
    **dict.fromkeys(("body_inertia", "body_iquat", "dof_armature"), _INERT),
    **dict.fromkeys(("tendon_armature", "actuator_armature", "actuator_gear"), _INERT),
    **dict.fromkeys(("cam_pos", "cam_quat", "light_pos", "light_dir", "eq_data"), _KIN),
    **dict.fromkeys(("qpos0", "body_ipos", "body_pos", "body_quat"), _KIN | _INERT),
    **dict.fromkeys(("jnt_pos", "jnt_axis", "geom_pos", "geom_quat"), _KIN | _INERT),
    **dict.fromkeys(("site_pos", "site_quat"), _KIN | _INERT),
}
_WRITTEN = {
    int(SetConstGroup.FIXED): ("body_subtreemass", "geom_aabb", "geom_rbound"),
    _KIN: (
        *("tendon_length0", "eq_data", "cam_pos0", "cam_poscom0", "cam_mat0"),
        *("light_pos0", "light_poscom0", "light_dir0"),
    ),
    _INERT: ("dof_invweight0", "body_invweight0", "tendon_invweight0", "actuator_acc0"),
}


_CONTACTS = 16
"""Of a world, whose constraints have room where nothing is said."""


@wp.kernel(enable_backward=False)
def _collect_faults(
    qpos: Floats,
    qvel: Floats,
    act: Floats,
    ctrl: Floats,
    overflow: Ints,
    overflowed: Ints,
    faults: Ints,
) -> None:
    """Add each world's faults to `faults`, keep its overflow bits in `overflowed`, clear them."""
    world = wp.tid()
    bad = int(0)  # noqa: UP018, RUF046 - a literal would be a constant to Warp
    for i in range(qpos.shape[1]):
        if not wp.isfinite(qpos[world, i]):
            bad = _NONFINITE
    for i in range(qvel.shape[1]):
        if not wp.isfinite(qvel[world, i]):
            bad = _NONFINITE
    for i in range(act.shape[1]):
        if not wp.isfinite(act[world, i]):
            bad = _NONFINITE
    for i in range(ctrl.shape[1]):
        if not wp.isfinite(ctrl[world, i]):
            bad = _NONFINITE
    bits = overflow[world] & _DROPPED
    if bits != 0:
        bad = bad | _OVERFLOW
        overflowed[world] = overflowed[world] | bits
    overflow[world] = 0
    faults[world] = faults[world] | bad


class WarpSim:
    """`Sim` on MuJoCo Warp; all fields are float32 views of the engine's own arrays.

    No call waits for the GPU, but for `overflow_hint` and the first two calls of each kind: the
    first one runs kernel by kernel, which compiles the kernels, the second is captured as a graph.
    Contact memory is shared: if one world overflows it, others may lose contacts and all are told.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        device: str | torch.device,
        *,
        per_env: Sequence[str] = (),
        nconmax: int | None = None,
        njmax: int | None = None,
    ) -> None:
        start_warp()
        self._wp_device = wp.device_from_torch(torch.device(device))
        self.model = model
        self.num_envs = num_envs
        self.device = torch.device(wp.device_to_torch(self._wp_device))
        self.timestep = float(model.opt.timestep)
        self._check_per_env(per_env)
        self._set_const_groups = 0
        for name in per_env:
            self._set_const_groups |= _READ.get(name, 0)
        with wp.ScopedDevice(self._wp_device):  # m and d are public for renderers
            self.m = self._put_model(per_env)
            self.d = mjw.make_data(model, num_envs, nconmax=nconmax, njmax=njmax)
            if njmax is None and self.d.njmax < (rows := constraint_rows(model)):
                self.d = mjw.make_data(model, num_envs, nconmax=nconmax, njmax=rows)
            wp.synchronize_device()
        self._graphs: dict[Hashable, Any] = {}  # None: has run once
        self._inputs: dict[tuple[str, int], Tensor] = {}
        self._template = mujoco.MjData(model)
        self.data = FieldView(self._bind, DATA_FIELDS, "data")
        self.params = FieldView(self._bind_param, per_env, "params")
        self._accelerations = [self.data[n] for n in (*ACCELERATION_FIELDS, "sensordata")]
        self._make_buffers()
        self._find_static_geoms(per_env)
        self.forward()

    def step(
        self,
        nstep: int = 1,
        inputs: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Advance all simulations nstep substeps; then recompute position and velocity stages.

        mask: changes nothing; a captured graph steps all.
        """
        inputs = inputs or {}
        check_inputs(inputs, nstep, self.data)
        copies = []  # (from, to) of each substep; the graph reads the same buffers at every call
        for name in sorted(inputs):
            buffer = self._input_buffer(name, nstep)
            buffer.copy_(inputs[name])
            target = wp.from_torch(self.data[name].flatten())
            copies.append([(wp.from_torch(row.flatten()), target) for row in buffer])
        key = ("step", nstep, *sorted(inputs))
        self._run(key, lambda: self._step(nstep, list(zip(*copies, strict=True))))

    def _input_buffer(self, name: str, nstep: int) -> Tensor:
        """Return the memory in which graphs find a field's values, (nstep, num_envs, ...)."""
        if (name, nstep) not in self._inputs:
            field = self.data[name]
            self._inputs[name, nstep] = field.new_empty((nstep, *field.shape))
        return self._inputs[name, nstep]

    def reset(self, mask: Tensor | None = None, keyframe: int = -1) -> None:
        """Set the masked states to a keyframe or the defaults; `forward` makes the rest current."""
        if not -1 <= keyframe < self.model.nkey:
            raise ValueError(f"keyframe must be -1 or one of {self.model.nkey}, got {keyframe}")
        self._set_mask(mask)
        if keyframe < 0:
            self._run("reset", lambda: mjw.reset_data(self.m, self.d, self._wp_mask))
            return
        # Warp leaves a world alone whose keyframe is -1
        self._keyframes.fill_(-1).masked_fill_(self._mask, keyframe)
        self._run("keyframe", lambda: mjw.reset_data_keyframe(self.m, self.d, self._wp_keyframes))

    def forward(self, mask: Tensor | None = None) -> None:
        """Run `forward` everywhere; only the masked keep its accelerations and force sensors."""
        before = [] if mask is None else [field.clone() for field in self._accelerations]
        self._run("forward", self._forward)
        if mask is not None:
            for field, kept in zip(self._accelerations, before, strict=True):
                field.copy_(torch.where(mask[:, None], field, kept))

    def set_const(self, mask: Tensor | None = None) -> None:
        """Run Warp's `set_const`, always everywhere, and pose the geoms of static bodies."""
        if self._set_const_groups:
            self._run("set_const", lambda: mjw.set_const(self.m, self.d, self._set_const_groups))
        if self._static_geoms is not None:
            self._pose_static_geoms(self._static_geoms)

    def overflow_hint(self) -> str:
        """Name the setting to raise after all overflows so far. Waits for the GPU."""
        bits = functools.reduce(operator.or_, self._overflowed.tolist())
        if not bits:
            return "no buffer has overflowed"
        remedies = []
        if bits & (OverflowType.NEFC | OverflowType.NJMAX_NNZ):
            remedies.append(f"sim.njmax={max(1, 2 * self.d.njmax)}")
        if bits & (OverflowType.BROADPHASE | OverflowType.NARROWPHASE | OverflowType.CCD):
            remedies.append(f"sim.nconmax={max(1, 2 * self.d.naconmax // self.num_envs)}")
        names = "|".join(str(bit.name) for bit in OverflowType if bit & bits)
        return f"{names} overflowed; set {' '.join(remedies) or 'fewer contacts in the model'}"

    def get_state(self) -> Tensor:
        """Return a copy of the integration rows, (num_envs, nstate) float32."""
        self._run("get_state", lambda: mjw.get_state(self.m, self.d, self._wp_rows, _STATE))
        return self._rows.clone()

    def set_state(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Write integration rows, (num_envs, nstate), where the mask says; then `forward` there."""
        check_rows(rows, self._rows)
        self._rows.copy_(rows)
        self._set_mask(mask)
        self._run(
            "set_state",
            lambda: mjw.set_state(self.m, self.d, self._wp_rows, _STATE, self._wp_mask),
        )
        self.forward(mask)

    def _step(self, nstep: int, copies: Sequence[Sequence[tuple[Any, Any]]]) -> None:
        """Run nstep substeps; copies: what to copy before each, or nothing at all."""
        # before too: Warp makes a rotation of a NaN quaternion, and a bound of a NaN control
        self._collect_faults()
        for i in range(nstep):
            for values, field in copies[i] if copies else ():
                wp.copy(field, values)
            mjw.step(self.m, self.d)
        self._collect_faults()
        # not step1: it zeroes sensordata, and force sensors must keep what acted
        mjw.fwd_position(self.m, self.d, factorize=False)
        mjw.sensor_pos(self.m, self.d)
        mjw.fwd_velocity(self.m, self.d)
        mjw.sensor_vel(self.m, self.d)

    def _forward(self) -> None:
        mjw.forward(self.m, self.d)
        self._collect_faults()

    def _collect_faults(self) -> None:
        d = self.d
        state = [d.qpos, d.qvel, d.act, d.ctrl]
        buffers = [d.overflow, self._wp_overflowed, self._wp_faults]
        wp.launch(_collect_faults, dim=self.num_envs, inputs=state, outputs=buffers)

    def _run(self, key: Hashable, work: Callable[[], object]) -> None:
        """Run device work in the order of torch's stream, as a graph from the second time on.

        Work under one key may differ between calls only in the contents of arrays.
        """
        stream = None
        if self._wp_device.is_cuda:
            stream = wp.stream_from_torch(torch.cuda.current_stream(self.device))
        if key not in self._graphs:
            self._graphs[key] = None
            with wp.ScopedDevice(self._wp_device), wp.ScopedStream(stream):
                work()
            return
        if self._graphs[key] is None:
            # captured on Warp's own stream, since CUDA cannot capture torch's default one
            with wp.ScopedDevice(self._wp_device), wp.ScopedCapture() as capture:
                work()
            self._graphs[key] = capture.graph
        wp.capture_launch(self._graphs[key], stream=stream)

    def _set_mask(self, mask: Tensor | None) -> None:
        if mask is None:
            self._mask.fill_(True)
        else:
            check_mask(mask, self.num_envs)
            self._mask.copy_(mask)

    def _make_buffers(self) -> None:
        """Allocate what graphs read and write beside the engine's own arrays."""
        n, nstate = self.num_envs, mujoco.mj_stateSize(self.model, _STATE)
        self.faults = torch.zeros(n, dtype=torch.int32, device=self.device)
        self._overflowed = torch.zeros_like(self.faults)
        self._keyframes = torch.zeros_like(self.faults)
        self._mask = torch.zeros(n, dtype=torch.bool, device=self.device)
        self._rows = torch.zeros(n, nstate, device=self.device)
        self._wp_faults = wp.from_torch(self.faults)
        self._wp_overflowed = wp.from_torch(self._overflowed)
        self._wp_keyframes = wp.from_torch(self._keyframes)
        self._wp_mask = wp.from_torch(self._mask)
        self._wp_rows: Floats = wp.from_torch(self._rows)

    def _put_model(self, per_env: Sequence[str]) -> mjw.Model:
        """Put the model on the device; fields that differ between worlds get their memory now.

        Replaced later, an array would leave captured graphs with a pointer to the old one.
        """
        options = [name.removeprefix("opt.") for name in per_env if name.startswith("opt.")]
        fields = [name for name in per_env if not name.startswith("opt.")]
        for group, written in _WRITTEN.items():
            if self._set_const_groups & group:
                fields += written
        m = mjw.put_model(self.model, batch_sizes=dict.fromkeys(fields, self.num_envs))
        for name in options:
            shared = getattr(m.opt, name)
            values = shared.numpy().repeat(self.num_envs, axis=0)
            setattr(m.opt, name, wp.array(values, dtype=shared.dtype))
        m.opt.warn_overflow = 0  # faults tell, the kernels need not print
        return m

    def _check_per_env(self, per_env: Sequence[str]) -> None:
        legal = sorted(
            [name for name in _batched(mjw.Model) if hasattr(self.model, name)]
            + [f"opt.{name}" for name in _batched(mjw.Option) if hasattr(self.model.opt, name)]
        )
        for name in per_env:
            if name not in legal:
                close = ", ".join(difflib.get_close_matches(name, legal, n=3))
                hint = f" (did you mean {close}?)" if close else ""
                raise ValueError(
                    f"{name!r} cannot differ between environments in MuJoCo Warp{hint}; "
                    f"these can: {', '.join(legal)}"
                )

    def _bind(self, name: str) -> Tensor:
        shape = np.shape(getattr(self._template, name))
        if name in MATRIX_FIELDS:
            shape = (shape[0], 3, 3)
        return self._view(getattr(self.d, name), shape)

    def _bind_param(self, name: str) -> Tensor:
        if name.startswith("opt."):
            name = name.removeprefix("opt.")
            return self._view(getattr(self.m.opt, name), np.shape(getattr(self.model.opt, name)))
        return self._view(getattr(self.m, name), getattr(self.model, name).shape)

    def _view(self, array: wp.array, shape: tuple[int, ...]) -> Tensor:
        if array.size == 0:
            return torch.zeros(self.num_envs, *shape, device=self.device)
        return wp.to_torch(array).view(self.num_envs, *shape)

    def _find_static_geoms(self, per_env: Sequence[str]) -> None:
        """Find the geoms that Warp poses only once, if a parameter could move them."""
        self._static_geoms: Tensor | None = None
        if {"geom_pos", "geom_quat", "body_pos", "body_quat"}.isdisjoint(per_env):
            return
        m = self.model
        root = m.body_rootid[m.geom_bodyid]
        static = (m.body_weldid[m.geom_bodyid] == 0) & (m.body_mocapid[root] == -1)
        self._static_geoms = torch.from_numpy(static.nonzero()[0]).to(self.device)
        self._static_bodies = torch.from_numpy(m.geom_bodyid[static]).long().to(self.device)

    def _pose_static_geoms(self, geoms: Tensor) -> None:
        pos = wp.to_torch(self.m.geom_pos)[:, geoms]
        quat = wp.to_torch(self.m.geom_quat)[:, geoms]
        body_quat = self.data.xquat[:, self._static_bodies]
        self.data.geom_xpos[:, geoms] = self.data.xpos[:, self._static_bodies] + rotation.rotate(
            body_quat, pos
        )
        self.data.geom_xmat[:, geoms] = rotation.to_matrix(rotation.multiply(body_quat, quat))


def constraint_rows(model: mujoco.MjModel) -> int:
    """Return how many rows equality constraints, friction of joints and 16 contacts take.

    Warp's own guess is 64 for most models: it looks at none of these, and two hands that hold
    something which touches something else need more.
    """
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    dim = int(model.geom_condim.max(initial=1))
    is_pyramid = model.opt.cone == int(mujoco.mjtCone.mjCONE_PYRAMIDAL)
    contact = 2 * (dim - 1) if is_pyramid and dim > 1 else dim
    return int(data.ne + data.nf) + _CONTACTS * contact


def _batched(owner: type) -> list[str]:
    """Names of the arrays of Model or Option that may have a value per world."""
    fields = dataclasses.fields(owner)
    return [f.name for f in fields if tuple(getattr(f.type, "shape", ()))[:1] == ("*",)]
