"""A world that is not the one of the training: fixed changes of model fields, on top of all draws.

A `Randomize` row says from what a value is drawn, a `Perturbation` what is then done to it, so that
a simulated stand-in for a robot can leave the range that a policy has seen:

    Perturbation("geom_friction", "pen", 0.5, column=0)  # half the friction that was drawn
    Perturbation("opt.gravity", operation="add", value=(0.5, 0, 0))  # a tilted table
    Perturbation("cam_quat", "front", (0, 0.03, 0), operation="turn")

| operation | the value becomes |
| --- | --- |
| `scale` | what was drawn, times `value` |
| `add` | what was drawn, plus `value` |
| `abs` | `value`, whatever was drawn |
| `turn` | the quaternion or direction that was drawn, turned by a rotation vector (rad) |

Rows act in their order. As in the randomisation table, `body_mass` takes `body_inertia` along, and
the gain of a position servo its return term.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import torch
from torch import Tensor

from penspin_style import rotation
from penspin_style.sim.randomize import FOLLOWERS, Randomize, per_env_fields, table_index
from penspin_style.sim.sim import STATE_FIELDS, Sim

OPERATIONS = ("scale", "add", "abs", "turn")


@dataclass(frozen=True)
class Perturbation:
    """One row. See the module's docstring."""

    field: str
    """Model field, as `body_mass` or `opt.gravity`."""
    names: str = ".*"
    """Regular expression for whole names of objects; of joints for dof fields."""
    value: float | tuple[float, ...] = 1.0
    """One number for all that is meant, or one for each column."""
    operation: str = "scale"
    column: int | None = None
    """Which number of an object's row; None for all."""

    def __post_init__(self) -> None:
        """Refuse a row that cannot mean anything."""
        if self.operation not in OPERATIONS:
            raise ValueError(
                f"Perturbation({self.field}): operation must be one of {OPERATIONS}, got "
                f"{self.operation!r}"
            )
        if self.field in STATE_FIELDS:
            raise ValueError(
                f"Perturbation({self.field}): the state changes by itself; perturb a field of the "
                "model"
            )
        if not torch.isfinite(torch.tensor(self.value)).all():
            raise ValueError(f"Perturbation({self.field}): value must be finite, got {self.value}")
        if self.operation == "turn" and torch.tensor(self.value).shape != (3,):
            raise ValueError(
                f"Perturbation({self.field}): turn takes a rotation vector of three numbers, got "
                f"{self.value}"
            )

    @property
    def is_state(self) -> bool:
        """Whether the field belongs to the state: none does."""
        return False

    @property
    def row(self) -> Randomize:
        """Return what is meant, as a row of the randomisation table."""
        return Randomize(self.field, self.names, column=self.column)


class Perturber:
    """Apply rows to a simulation, and take them back before its values are drawn anew."""

    def __init__(self, sim: Sim, rows: Sequence[Perturbation]) -> None:
        """Bind the rows.

        Raises:
            ValueError: a row names nothing, or its value has another number of columns.
        """
        self.sim = sim
        self._fields = {name: sim.params[name] for name in per_env_fields(rows)}
        self._drawn = {name: field.clone() for name, field in self._fields.items()}
        self._entries = [_Entry(sim, change) for change in rows]
        self._shifted = torch.zeros(sim.num_envs, dtype=torch.bool, device=sim.device)
        needs = mujoco.MjModel._setconst_inputs
        self._sets_const = any(n in needs or n.startswith("opt.") for n in self._fields)

    def restore(self, mask: Tensor | None = None) -> None:
        """Put back what was drawn, where the mask says and it is shifted now."""
        where = self._shifted if mask is None else self._shifted & mask
        for name, field in self._fields.items():
            field.copy_(_where(where, self._drawn[name], field))
        self._shifted = self._shifted & ~where

    def apply(self, mask: Tensor | None = None) -> None:
        """Perturb what is drawn now, where the mask says."""
        if not self._entries:
            return
        self._shifted = torch.ones_like(self._shifted) if mask is None else self._shifted | mask
        for name, field in self._fields.items():
            self._drawn[name].copy_(_where(mask, field, self._drawn[name]))
        for entry in self._entries:
            entry.apply(mask)
        if self._sets_const:
            self.sim.set_const(mask)


class _Entry:
    """One row bound to the tensors of one simulation."""

    def __init__(self, sim: Sim, change: Perturbation) -> None:
        self.change = change
        self.target = sim.params[change.field]
        self.index = table_index(sim.model, change.row, self.target.shape[1:])
        self.value = torch.tensor(change.value, dtype=self.target.dtype, device=sim.device)
        shape = self.target[self.index].shape[1:]
        width = shape[-1] if shape else 1
        if change.operation == "turn":
            fits = self.target.dim() > 2 and width in (3, 4)
        else:
            fits = self.value.dim() == 0 or len(self.value) == width
        if not fits:
            raise ValueError(
                f"Perturbation({change.field}): {change.operation} by {change.value} does not fit "
                f"rows of {width} numbers"
            )
        follower = FOLLOWERS.get(change.field) if change.column in (None, 0) else None
        self.follower = None if follower is None else sim.params[follower]

    def apply(self, mask: Tensor | None) -> None:
        before = self.target[self.index].clone()
        after = self._operate(before)
        self.target[self.index] = _where(mask, after, before)
        if self.follower is None:
            return
        rows: Any = (slice(None), self.index[1])
        followed = self.follower[rows].clone()
        ratio = torch.where(before > 0, after / before, 1.0)
        new = followed.clone()
        if self.change.field == "body_mass":
            new = followed * ratio.unsqueeze(-1)
        else:
            gain = before[..., 0]
            servo = (followed[..., 1] + gain).abs() <= 1e-6 * gain  # scaled, it is off by roundings
            new[..., 1] = torch.where(servo, -after[..., 0], followed[..., 1])
        self.follower[rows] = _where(mask, new, followed)

    def _operate(self, drawn: Tensor) -> Tensor:
        if self.change.operation == "scale":
            return drawn * self.value
        if self.change.operation == "add":
            return drawn + self.value
        if self.change.operation == "abs":
            return self.value.expand_as(drawn).clone()
        angle = self.value.norm().expand(drawn.shape[:-1])
        axis = (self.value / self.value.norm().clamp(min=1e-12)).expand(*drawn.shape[:-1], 3)
        turn = rotation.from_axis_angle(axis, angle)
        if drawn.shape[-1] == 3:
            return rotation.rotate(turn, drawn)
        return rotation.multiply(turn, drawn)


def _where(mask: Tensor | None, value: Tensor, other: Tensor) -> Tensor:
    if mask is None:
        return value
    return torch.where(mask.view(-1, *(1 for _ in value.shape[1:])), value, other)
