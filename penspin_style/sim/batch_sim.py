"""The CPU engine: MuJoCo C, many worlds on a native thread pool (`mujoco.batch`)."""

import ctypes
import pathlib
from collections.abc import Sequence

import mujoco
import mujoco.batch
import numpy as np
import torch
from torch import Tensor

from penspin_style.sim.sim import (
    DATA_FIELDS,
    MATRIX_FIELDS,
    STATE_FIELDS,
    Fault,
    FieldView,
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
    into preallocated float32 tensors, and only those that somebody has touched.
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
        self._params = {name: torch.from_numpy(self.batch.expand(name)) for name in per_env}
        self._derived: list[tuple[Tensor, Tensor]] = []  # (float64 view of the engine's, float32)
        self._warnings = self.batch.warning[..., 1]  # (num_envs, mjNWARNING) counts, live
        self._seen = self._warnings.copy()
        self.data = FieldView(self._bind, DATA_FIELDS, "data")
        self.params = FieldView(self._params.__getitem__, per_env, "params")
        self.batch.reset(stage=_ACC)

    def step(self, nstep: int = 1) -> None:
        """Advance all simulations nstep substeps; then recompute position and velocity stages."""
        try:
            self.batch.step(None, nstep, _VEL)
        except mujoco.batch.SimulationError as error:
            self.faults[torch.from_numpy(error.ids)] |= int(Fault.ERROR)
        self._collect_faults()
        self._refresh()

    def reset(self, mask: Tensor | None = None, keyframe: int = -1) -> None:
        """Set the masked states to a keyframe or the defaults; `forward` makes the rest current."""
        self.batch.reset(_ids(mask), keyframe, _NONE)
        self._seen = self._warnings.copy()  # a reset clears the counters

    def forward(self, mask: Tensor | None = None) -> None:
        """Run `mj_forward` on the masked simulations."""
        try:
            self.batch.forward(_ids(mask), _ACC)
        except mujoco.batch.SimulationError as error:
            self.faults[torch.from_numpy(error.ids)] |= int(Fault.ERROR)
        self._collect_faults()
        self._refresh()

    def set_const(self, mask: Tensor | None = None) -> None:
        """Run `mj_setConst` on the masked simulations."""
        self.batch.set_const(_ids(mask))

    def overflow_hint(self) -> str:
        """Say how to give MuJoCo more memory for contacts and constraints."""
        megabytes = -(-2 * self.model.narena // 2**20)
        return f'the arena is full; set <size memory="{megabytes}M"/> in the MJCF'

    def get_state(self) -> Tensor:
        """Return a copy of the integration rows, (num_envs, nstate) float64."""
        return self._rows.clone()

    def set_state(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Write integration rows, (num_envs, nstate), where the mask says; then `forward` there."""
        check_rows(rows, self._rows)
        if mask is None:
            self._rows.copy_(rows)
        else:
            self._rows.copy_(torch.where(mask[:, None], rows, self._rows))
        self.forward(mask)

    def _bind(self, name: str) -> Tensor:
        source = self.batch.bind(name)
        if name in STATE_FIELDS:
            return torch.from_numpy(source)
        source.flags.writeable = True  # torch has no read-only tensors; this one stays private
        exact = torch.from_numpy(source)
        source.flags.writeable = False
        if name in MATRIX_FIELDS:
            exact = exact.view(self.num_envs, -1, 3, 3)
        served = torch.zeros(exact.shape, dtype=torch.float32)
        # a field bound between calls is zero until the next one; forward leaves the state alone,
        # but it would replace what acted in the last substep in the fields bound before
        before = [earlier.clone() for earlier, _ in self._derived]
        self.batch.forward(None, _ACC)
        for (earlier, _), values in zip(self._derived, before, strict=True):
            earlier.copy_(values)
        self._derived.append((exact, served))
        served.copy_(exact)
        return served

    def _refresh(self) -> None:
        for exact, served in self._derived:
            served.copy_(exact)

    def _collect_faults(self) -> None:
        if not torch.isfinite(self._rows.sum()):
            bad = ~torch.isfinite(self._rows).all(dim=1)
            self.faults[bad] |= int(Fault.NONFINITE)
        if not np.array_equal(self._warnings, self._seen):
            risen = torch.from_numpy(self._warnings > self._seen)
            full = risen[:, list(_FULL)].any(dim=1)
            risen[:, list(_FULL)] = False
            self.faults[risen.any(dim=1)] |= int(Fault.WARNING)
            self.faults[full] |= int(Fault.OVERFLOW)
            self._seen = self._warnings.copy()


def _ids(mask: Tensor | None) -> np.ndarray | None:
    return None if mask is None else mask.numpy()
