"""The randomisation table: which model or state value differs between environments, how, and when.

    Randomize("body_mass", names="cube", operation="scale", low=0.5, high=2.0)
    Randomize("geom_friction", names=".*_pad", column=0, low=0.6, high=1.2, operation="abs")
    Randomize("opt.gravity", column=2, operation="add", low=-0.1, high=0.1)
    Randomize("xfrc_applied", names="cube", column=slice(0, 3), low=-0.2, high=0.2, when="interval",
              interval=0.5)

`turn` rotates a direction (`light_dir`) or an orientation (`cam_quat`, `geom_quat`) by an angle, in
rad, about an axis of any direction.

A row names a MuJoCo field, which of its objects (a regular expression over their names), an
operation on the model's own value, a distribution, and when to draw. Draws never accumulate:
`scale` and `add` start from the model's value every time, or from what the task gave the
environment at this reset (`Task.reset_model`).

| when | drawn |
| --- | --- |
| `startup` | once, when the environment is built |
| `reset` | at every reset of an environment, for that environment |
| `interval` | every `interval` seconds, for all environments at once |

Field kinds: model fields (`body_mass`, `dof_damping`, `actuator_gainprm`, `opt.gravity`, ...) go to
`sim.params`; state fields (`qpos`, `qvel`, `ctrl`, `xfrc_applied`, ...) go to `sim.data` and are
added to the state that the task's reset has set; interval rows that add to the state do accumulate.

Two fields take another along, so that a draw stays physical: `body_mass` scales `body_inertia`, and
the gain of a position servo (`actuator_gainprm`, column 0) scales its return term in
`actuator_biasprm`, so that the servo still rests at its target.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mujoco
import torch
from torch import Tensor

from penspin_style import rotation
from penspin_style.sim.sim import STATE_FIELDS, Sim

if TYPE_CHECKING:  # which reads rows of this table itself
    from penspin_style.sim.perturb import Perturbation, Perturber

OPERATIONS = ("abs", "scale", "add", "turn")
DISTRIBUTIONS = ("uniform", "log_uniform", "gaussian")
WHENS = ("startup", "reset", "interval")
FOLLOWERS = {"body_mass": "body_inertia", "actuator_gainprm": "actuator_biasprm"}
"""Field -> the field that it takes along."""

_OBJECT_OF_PREFIX = {
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "cam": mujoco.mjtObj.mjOBJ_CAMERA,
    "light": mujoco.mjtObj.mjOBJ_LIGHT,
    "jnt": mujoco.mjtObj.mjOBJ_JOINT,
    "actuator": mujoco.mjtObj.mjOBJ_ACTUATOR,
    "sensor": mujoco.mjtObj.mjOBJ_SENSOR,
    "tendon": mujoco.mjtObj.mjOBJ_TENDON,
    "mat": mujoco.mjtObj.mjOBJ_MATERIAL,
    "eq": mujoco.mjtObj.mjOBJ_EQUALITY,
}


@dataclass(frozen=True)
class Randomize:
    """One row of the table. See the module's docstring."""

    field: str
    names: str = ".*"
    """Regular expression for whole names of objects; of joints for dof and qpos fields."""
    low: float = 0.0
    """Lower end, or the mean of a gaussian."""
    high: float = 0.0
    """Upper end, or the standard deviation of a gaussian."""
    operation: str = "abs"
    distribution: str = "uniform"
    when: str = "reset"
    column: int | slice | None = None
    """Which numbers of an object's row; None for all."""
    interval: float = 0.0
    """Seconds between draws when `when` is `interval`."""
    shared: bool = False
    """Draw one number for all matched values of an environment instead of one each."""

    def __post_init__(self) -> None:
        """Refuse a row that cannot mean anything."""
        for name, value, legal in (
            ("operation", self.operation, OPERATIONS),
            ("distribution", self.distribution, DISTRIBUTIONS),
            ("when", self.when, WHENS),
        ):
            if value not in legal:
                raise ValueError(
                    f"Randomize({self.field}): {name} must be one of {legal}, got {value!r}"
                )
        if self.distribution != "gaussian" and self.high < self.low:
            raise ValueError(f"Randomize({self.field}): high {self.high} is below low {self.low}")
        if self.distribution == "gaussian" and self.high < 0:
            raise ValueError(
                f"Randomize({self.field}): high is a standard deviation, got {self.high}"
            )
        if self.distribution == "log_uniform" and self.low <= 0:
            raise ValueError(f"Randomize({self.field}): log_uniform needs low > 0, got {self.low}")
        if self.when == "interval" and self.interval <= 0:
            raise ValueError(f"Randomize({self.field}): an interval row needs interval > 0 s")
        if self.when == "startup" and self.is_state:
            raise ValueError(
                f"Randomize({self.field}): the first reset overwrites a state drawn at startup; "
                "draw it at reset"
            )

    @property
    def is_state(self) -> bool:
        """Whether the field belongs to the state rather than to the model."""
        return self.field in STATE_FIELDS


def per_env_fields(rows: "Sequence[Randomize | Perturbation]") -> tuple[str, ...]:
    """Return the model fields that the rows need per environment, for `make_sim(per_env=...)`."""
    fields = {row.field: None for row in rows if not row.is_state}
    fields |= {follower: None for field, follower in FOLLOWERS.items() if field in fields}
    return tuple(fields)


class Randomizer:
    """Apply a table to a simulation."""

    def __init__(
        self,
        sim: Sim,
        rows: Sequence[Randomize],
        control_dt: float,
        perturber: "Perturber | None" = None,
        *,
        rewritten: Sequence[str] = (),
    ) -> None:
        """Bind the rows.

        perturber: changes what the rows of a reset leave; interval rows draw anew without it.
        rewritten: model fields of which `reset_model` is given new values to start from.

        Raises:
            ValueError: a row that is not for this model, or a startup row of a field that resets
                write anew.
        """
        self.sim = sim
        self.perturber = perturber
        self.rows = tuple(rows)
        self._entries = [_Entry(sim, row, control_dt, rewritten) for row in rows]
        needs = mujoco.MjModel._setconst_inputs
        self._sets_const = {
            when: any(e.row.when == when and e.row.field in needs for e in self._entries)
            for when in WHENS
        }
        self._sets_const["reset"] |= any(name in needs for name in rewritten)

    def startup(self, rng: torch.Generator) -> None:
        """Draw the startup rows for every environment."""
        if self.perturber:
            self.perturber.restore()
        self._draw("startup", None, rng)

    def reset_model(
        self,
        mask: Tensor,
        rng: torch.Generator,
        write: Callable[[Tensor, torch.Generator], None] | None = None,
    ) -> None:
        """Draw the model rows of a reset for the masked environments, before their state is set.

        write: called first, to give the masked environments the `rewritten` fields.
        """
        if self.perturber:
            self.perturber.restore(mask)
        if write is not None:
            write(mask, rng)
            for entry in self._entries:
                entry.start_from_now(mask)
        self._draw("reset", mask, rng, state=False)
        if self.perturber:
            self.perturber.apply(mask)

    def reset_state(self, mask: Tensor, rng: torch.Generator) -> None:
        """Draw the state rows of a reset for the masked environments, after their state is set."""
        self._draw("reset", mask, rng, state=True)

    def interval(self, step: int, rng: torch.Generator) -> None:
        """Draw the interval rows that are due at this control step."""
        for entry in self._entries:
            if entry.row.when == "interval" and step % entry.every == 0:
                entry.apply(None, rng)
                if entry.row.field in mujoco.MjModel._setconst_inputs:
                    self.sim.set_const()

    def restore_constants(self) -> None:
        """Recompute the model constants after `params` were restored from a checkpoint."""
        if any(self._sets_const.values()):
            self.sim.set_const()

    def _draw(
        self, when: str, mask: Tensor | None, rng: torch.Generator, *, state: bool | None = None
    ) -> None:
        for entry in self._entries:
            if entry.row.when == when and state in (None, entry.row.is_state):
                entry.apply(mask, rng)
        if self._sets_const[when] and not state:
            self.sim.set_const(mask)


class _Entry:
    """One row bound to the tensors of one simulation."""

    def __init__(
        self, sim: Sim, row: Randomize, control_dt: float, rewritten: Sequence[str]
    ) -> None:
        self.row = row
        if row.when == "startup" and row.field in rewritten:
            raise ValueError(
                f"Randomize({row.field}): resets overwrite startup draws; draw it at reset"
            )
        self._is_rewritten = row.field in rewritten or FOLLOWERS.get(row.field) in rewritten
        self.every = max(1, round(row.interval / control_dt))
        self.target = sim.data[row.field] if row.is_state else sim.params[row.field]
        self.index = tuple(  # on the target's device: an index from elsewhere is copied each time
            i.to(self.target.device) if isinstance(i, Tensor) else i
            for i in table_index(sim.model, row, self.target.shape[1:])
        )
        # the model's own, (1, rows, columns), or with a leading num_envs if resets rewrite it
        worlds = slice(None) if self._is_rewritten else slice(1)
        self.nominal = self.target[worlds][self.index].clone()
        # a field of one number per object has no axis for an object's own numbers
        whole = len(self.index) == 3 or row.field.startswith("opt.")
        width = self.nominal.shape[-1] if whole else 1
        if row.operation == "turn" and width not in (3, 4):
            raise ValueError(
                f"Randomize({row.field}): turn is for whole directions and quaternions, not for "
                f"{width} numbers; leave column out"
            )
        if row.field in ("actuator_delay", "sensor_delay"):
            _check_history(sim.model, row, self.nominal.cpu())
        self.follower: Tensor | None = None
        if row.field in FOLLOWERS:
            self.follower = sim.params[FOLLOWERS[row.field]]
            self.followed = self.follower[worlds, self.index[1]].clone()  # as nominal

    def start_from_now(self, mask: Tensor) -> None:
        """Take what the masked environments have now as what draws start from."""
        if not self._is_rewritten:
            return
        self.nominal = _where(mask, self.target[self.index], self.nominal)
        if self.follower is not None:
            self.followed = _where(mask, self.follower[:, self.index[1]], self.followed)

    def apply(self, mask: Tensor | None, rng: torch.Generator) -> None:
        current = self.target[self.index]
        base = current if self.row.is_state else self.nominal
        if self.row.operation == "turn":
            value = self._turned(base, current, rng)
        else:
            value = _operate(self.row, base, self._draw(current, rng)).expand_as(current)
        self._write(self.target, self.index, value, mask)
        if self.follower is not None:
            # a body without mass has no inertia either
            ratio = torch.where(self.nominal > 0, value / self.nominal, 1.0)
            if self.row.field == "body_mass":
                followed = self.followed * ratio.unsqueeze(-1)
            else:
                followed = self._return_term(ratio[..., :1])
            self._write(self.follower, (slice(None), self.index[1]), followed, mask)

    def _turned(self, base: Tensor, like: Tensor, rng: torch.Generator) -> Tensor:
        """Return directions or quaternions (num_envs, rows, 3 or 4), each turned by its draw."""
        shape = like.shape[:-1]
        angle = self._draw(like[..., 0], rng)
        axis = rotation.random_unit_vector(tuple(shape), rng).to(like.dtype)
        turn = rotation.from_axis_angle(axis, angle.expand(shape))
        base = base.expand_as(like)
        return rotation.rotate(turn, base) if like.shape[-1] == 3 else rotation.multiply(turn, base)

    def _return_term(self, ratio: Tensor) -> Tensor:
        """Return bias parameters with the return term of position servos scaled by ratio."""
        servo = self.followed[..., 1:2] == -self.nominal[..., :1]
        term = torch.where(servo, self.followed[..., 1:2] * ratio, self.followed[..., 1:2])
        rest = self.followed[..., 2:].expand(len(ratio), -1, -1)
        return torch.cat((self.followed[..., :1].expand_as(term), term, rest), dim=-1)

    def _draw(self, like: Tensor, rng: torch.Generator) -> Tensor:
        row = self.row
        shape = (like.shape[0], *(1 for _ in like.shape[1:])) if row.shared else like.shape
        if row.distribution == "gaussian":
            draw = torch.randn(shape, generator=rng, device=rng.device, dtype=like.dtype)
            return row.low + row.high * draw
        draw = torch.rand(shape, generator=rng, device=rng.device, dtype=like.dtype)
        if row.distribution == "log_uniform":
            return row.low * (row.high / row.low) ** draw
        return row.low + (row.high - row.low) * draw

    @staticmethod
    def _write(target: Tensor, index: Any, value: Tensor, mask: Tensor | None) -> None:
        target[index] = value if mask is None else _where(mask, value, target[index])


def _where(mask: Tensor, value: Tensor, other: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *(1 for _ in value.shape[1:])), value, other)


def _operate(row: Randomize, base: Tensor, draw: Tensor) -> Tensor:
    if row.operation == "scale":
        return base * draw
    if row.operation == "add":
        return base + draw
    return draw


def _check_history(model: mujoco.MjModel, row: Randomize, nominal: Tensor) -> None:
    """Refuse delays for which the model has no memory: MuJoCo would shorten them silently."""
    high = row.low + 3.0 * row.high if row.distribution == "gaussian" else row.high
    longest = _operate(row, nominal, torch.full_like(nominal, high)).max().item()
    history = getattr(model, row.field.replace("delay", "history"))
    samples = history[_objects(model, row, len(history)), 0].min()
    if longest > samples * model.opt.timestep + 1e-9:
        need = math.ceil(longest / model.opt.timestep - 1e-6)
        raise ValueError(
            f"Randomize({row.field}): delays of up to {longest:g} s need nsample >= {need} in the "
            f"MJCF of what {row.names!r} matches, there is {samples}"
        )


def table_index(model: mujoco.MjModel, row: Randomize, shape: torch.Size) -> tuple[Any, ...]:
    """Return the index (environments, object rows, columns) that the row means."""
    if row.field.startswith("opt."):
        return (slice(None), _selection(_columns(row, shape[0]))) if shape else (slice(None),)
    objects = _objects(model, row, shape[0] if shape else 0)
    if len(shape) == 1:
        if row.column is not None:
            raise ValueError(
                f"Randomize({row.field}): column {row.column} means nothing, "
                "there is one number per object"
            )
        return (slice(None), _selection(torch.as_tensor(objects)))
    rows, columns = (_selection(i) for i in (torch.as_tensor(objects), _columns(row, shape[1])))
    if isinstance(rows, Tensor) and isinstance(columns, Tensor):
        rows = rows[:, None]
    return (slice(None), rows, columns)


def _selection(ids: Tensor) -> Tensor | slice:
    """Return ids as a slice where they are consecutive: views cost a tenth of gathers."""
    first, count = int(ids[0]), len(ids)
    if torch.equal(ids, torch.arange(first, first + count)):
        return slice(first, first + count)
    return ids


def _columns(row: Randomize, width: int) -> Tensor:
    columns = torch.arange(width)
    if row.column is None:
        return columns
    which = row.column
    columns = columns[which] if isinstance(which, slice) else columns[columns == which]
    if not len(columns):
        raise ValueError(f"Randomize({row.field}): column {row.column} is not in 0..{width - 1}")
    return columns


def _objects(model: mujoco.MjModel, row: Randomize, count: int) -> list[int]:
    prefix = row.field.split("_")[0]
    if row.field in ("qpos", "qvel", "qfrc_applied") or prefix == "dof":
        return _joint_rows(model, row)
    kind = {
        "ctrl": mujoco.mjtObj.mjOBJ_ACTUATOR,
        "xfrc_applied": mujoco.mjtObj.mjOBJ_BODY,
    }.get(row.field, _OBJECT_OF_PREFIX.get(prefix))
    if kind is None:
        legal = ", ".join(f"{p}_*" for p in _OBJECT_OF_PREFIX)
        raise ValueError(
            f"Randomize({row.field}): names select objects of {legal}, dof_*, qpos, qvel"
        )
    names = [mujoco.mj_id2name(model, int(kind), i) or "" for i in range(count)]
    return _matching(row, names)


def _joint_rows(model: mujoco.MjModel, row: Randomize) -> list[int]:
    """Return the addresses in qpos or in the degrees of freedom that belong to the named joints."""
    names = [
        mujoco.mj_id2name(model, int(mujoco.mjtObj.mjOBJ_JOINT), i) or "" for i in range(model.njnt)
    ]
    widths = {0: (7, 6), 1: (4, 3), 2: (1, 1), 3: (1, 1)}
    addresses: list[int] = []
    for joint in _matching(row, names):
        nq, nv = widths[int(model.jnt_type[joint])]
        start = model.jnt_qposadr[joint] if row.field == "qpos" else model.jnt_dofadr[joint]
        addresses.extend(range(start, start + (nq if row.field == "qpos" else nv)))
    return addresses


def _matching(row: Randomize, names: list[str]) -> list[int]:
    found = [i for i, name in enumerate(names) if re.fullmatch(row.names, name)]
    if not found:
        raise ValueError(
            f"Randomize({row.field}): no name matches {row.names!r}; "
            f"there are {[n for n in names if n]}"
        )
    return found
