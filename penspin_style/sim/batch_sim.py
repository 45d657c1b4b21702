"""The CPU engine: MuJoCo C, many worlds on a native thread pool (`mujoco.batch`)."""

import contextlib
import ctypes
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import mujoco
import mujoco.batch
import numpy as np
import torch
from torch import Tensor

from penspin_style.sim.sim import (
    ACCELERATION_FIELDS,
    DATA_FIELDS,
    INPUT_FIELDS,
    MATRIX_FIELDS,
    STATE_FIELDS,
    Fault,
    FieldView,
    check_inputs,
    check_mask,
    check_rows,
)

_NONE = int(mujoco.mjtStage.mjSTAGE_NONE)
_VEL = int(mujoco.mjtStage.mjSTAGE_VEL)
_ACC = int(mujoco.mjtStage.mjSTAGE_ACC)
_FULL = (int(mujoco.mjtWarning.mjWARN_CONTACTFULL), int(mujoco.mjtWarning.mjWARN_CNSTRFULL))


def _silence_warnings() -> None:
    """Stop MuJoCo from writing MUJOCO_LOG.TXT into the current folder and text onto the terminal.

    Warnings are counted per world and reported as faults instead. The handler must be a C function
    (worker threads call it without Python's lock); strlen takes a string and does nothing else.
    """
    folder = pathlib.Path(mujoco.__file__).parent
    library = ctypes.CDLL(str(next(folder.glob("libmujoco.so*"))))
    strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p)
    ctypes.c_void_p.in_dll(library, "mju_user_warning").value = strlen.value


class BatchSim:
    """`Sim` on `mujoco.batch.Batch`; bit-identical to a loop of `mj_step` at any thread count.

    State fields are float64 views of the engine's own rows. Derived fields are copied once per call
    into preallocated float32 tensors, and only those that somebody has touched. `eq_active` is
    stored as 0.0 and 1.0.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        *,
        per_env: Sequence[str] = (),
        nthread: int = 0,
    ) -> None:
        _silence_warnings()
        self.model = model
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.timestep = float(model.opt.timestep)
        self.batch = mujoco.batch.Batch(model, num_envs, nthread)
        self.faults = torch.zeros(num_envs, dtype=torch.int32)
        self._rows = torch.from_numpy(self.batch.state)
        is_mesh = model.geom_type == int(mujoco.mjtGeom.mjGEOM_MESH)
        self._meshes = torch.from_numpy(is_mesh.nonzero()[0])
        self._params = {name: torch.from_numpy(self.batch.expand(name)) for name in per_env}
        self._derived: list[tuple[np.ndarray, np.ndarray]] = []  # (the engine's, served)
        self._warnings = self.batch.warning[..., 1]  # (num_envs, mjNWARNING) counts, live
        self._seen = self._warnings.copy()
        self.data = FieldView(self._bind, DATA_FIELDS, "data")
        self.params = FieldView(self._params.__getitem__, per_env, "params")
        self._outputs: dict[str, np.ndarray] = {}
        for name in (*ACCELERATION_FIELDS, "sensordata"):
            self._output(name)  # now, since later nothing could tell what acted before
        self.batch.reset(stage=_ACC)

    def step(
        self,
        nstep: int = 1,
        inputs: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Advance the masked simulations nstep substeps; then recompute position, velocity stages.

        The others stand still, and cost nothing.
        """
        ids = self._ids(mask)
        if inputs:
            check_inputs(inputs, nstep, self.data)
            # one call for all substeps but the last: threads wait for the slowest world only twice
            if nstep > 1:
                control, spec = controls({name: v[:-1] for name, v in inputs.items()})
                control = control if ids is None else control[ids]
                with self._noting_errors():
                    self.batch.rollout(nstep - 1, control, spec, record=(), ids=ids)
            for name, values in inputs.items():
                self.data[name].copy_(values[-1])
        with self._noting_errors():
            self.batch.step(ids, 1 if inputs else nstep, _VEL)
        self._collect_faults()
        self._refresh()

    @contextlib.contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except mujoco.batch.SimulationError as error:
            self.faults[torch.from_numpy(error.ids)] |= int(Fault.ERROR)

    def reset(self, mask: Tensor | None = None, keyframe: int = -1) -> None:
        """Set the masked states to a keyframe or the defaults; `forward` makes the rest current."""
        self.batch.reset(self._ids(mask), keyframe, _NONE)
        self._seen = self._warnings.copy()  # a reset clears the counters

    def forward(self, mask: Tensor | None = None) -> None:
        """Run `mj_forward` on the masked simulations."""
        with self._noting_errors():
            self.batch.forward(self._ids(mask), _ACC)
        self._collect_faults()
        self._refresh()

    def set_const(self, mask: Tensor | None = None) -> None:
        """Run `mj_setConst` on the masked simulations.

        Bounding spheres of meshes stay what they are: MuJoCo would set them to those of the shared
        model's meshes, and what has another mesh would sink into what it should rest on.
        """
        if "geom_rbound" not in self._params:
            self.batch.set_const(self._ids(mask))
            return
        spheres = self._params["geom_rbound"]
        kept = spheres[:, self._meshes].clone()
        self.batch.set_const(self._ids(mask))
        spheres[:, self._meshes] = kept

    def overflow_hint(self) -> str:
        """Repeat MuJoCo's last error, if any, and say how to give it more memory."""
        errors = filter(None, map(self.batch.error, range(self.num_envs)))
        what = next(errors, "contacts or constraints were dropped").splitlines()[0]
        megabytes = max(1, 2 * self.model.narena // 2**20)
        return f'{what}; if memory ran out, set <size memory="{megabytes}M"/> in the MJCF'

    def get_state(self) -> Tensor:
        """Return a copy of the integration rows, (num_envs, nstate) float64."""
        return self._rows.clone()

    def set_state(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Write integration rows, (num_envs, nstate), where the mask says; then `forward` there."""
        check_rows(rows, self._rows)
        if mask is None:
            self._rows.copy_(rows)
        else:
            check_mask(mask, self.num_envs)
            self._rows.copy_(torch.where(mask[:, None], rows, self._rows))
        self.forward(mask)

    def _ids(self, mask: Tensor | None) -> np.ndarray | None:
        if mask is None:
            return None
        check_mask(mask, self.num_envs)
        return mask.numpy()

    def _bind(self, name: str) -> Tensor:
        if name in STATE_FIELDS:
            return torch.from_numpy(self.batch.bind(name))
        late = name not in self._outputs
        exact = self._output(name)
        if late:
            self._compute_only(exact)
        served = exact.astype(np.float32)
        self._derived.append((exact, served))
        return torch.from_numpy(served)

    def _output(self, name: str) -> np.ndarray:
        """Return the float64 array into which every call copies the field from now on."""
        if name not in self._outputs:
            exact = self.batch.bind(name)
            exact.flags.writeable = True  # for _compute_only
            if name in MATRIX_FIELDS:
                exact = exact.reshape(self.num_envs, -1, 3, 3)
            self._outputs[name] = exact
        return self._outputs[name]

    def _compute_only(self, output: np.ndarray) -> None:
        """Compute an output that missed the last call; the others keep that call's values."""
        others = [(other, other.copy()) for other in self._outputs.values() if other is not output]
        self.batch.forward(None, _ACC)  # leaves the states as they are
        for other, value in others:
            other[:] = value

    def _refresh(self) -> None:
        # numpy, not torch: torch's threads would spin on the cores that MuJoCo's threads need
        for exact, served in self._derived:
            served[:] = exact

    def _collect_faults(self) -> None:
        if not np.isfinite(self.batch.state.sum()):
            bad = ~torch.isfinite(self._rows).all(dim=1)
            self.faults[bad] |= int(Fault.NONFINITE)
        if not np.array_equal(self._warnings, self._seen):
            risen = torch.from_numpy(self._warnings > self._seen)
            full = risen[:, list(_FULL)].any(dim=1)
            risen[:, list(_FULL)] = False
            self.faults[risen.any(dim=1)] |= int(Fault.WARNING)
            self.faults[full] |= int(Fault.OVERFLOW)
            self._seen = self._warnings.copy()


def controls(inputs: Mapping[str, Tensor]) -> tuple[np.ndarray, int]:
    """Return inputs of `Sim.step` as `Batch.rollout` takes them.

    The array is (num_envs, nstep, size) float64, its columns in the order of the bits of the
    mjtState beside it.
    """
    names = [name for name in INPUT_FIELDS if name in inputs]
    rows = [inputs[name].flatten(2).numpy() for name in names]
    spec = sum(int(getattr(mujoco.mjtState, f"mjSTATE_{name.upper()}")) for name in names)
    return np.concatenate(rows, axis=2, dtype=np.float64).swapaxes(0, 1), spec
