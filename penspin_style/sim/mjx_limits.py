"""What of a model MJX's JAX physics cannot do, by name, before anything is compiled.

MJX raises for some of it and is silent about the rest: it steps a model with delayed actuators,
surface velocities, sleeping or noslip iterations as if these were not there.
"""

import difflib
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import mujoco
import numpy as np

from penspin_style.bridge.start import import_extra

_REMEDY = "use engine=mujoco, or engine=warp on a GPU"
_MATCHED = {
    int(mujoco.mjtObj.mjOBJ_SITE): "within a site",
    int(mujoco.mjtObj.mjOBJ_BODY): "of a body",
    int(mujoco.mjtObj.mjOBJ_XBODY): "of a subtree",
}
_NETFORCE = 3  # of sensor_intprm[:, 1]
_SHOWN = 3


def check_model(model: mujoco.MjModel) -> None:
    """Refuse a model with anything that MJX would leave out, or do otherwise.

    Raises:
        ValueError: all of it, by its name in the model, and what to do.
    """
    found = [f"{what} ({_listed(names)})" for what, names in _reasons(model)]
    if found:
        raise ValueError(f"engine=mjx cannot simulate this model: {'; '.join(found)}. {_REMEDY}")


def varying_fields() -> tuple[list[str], list[str]]:
    """Return the fields of the model, and of its options, that may differ between worlds."""
    types: Any = import_extra("mujoco.mjx._src.types", "engine=mjx")
    jax: Any = import_extra("jax", "engine=mjx")
    return tuple(  # type: ignore[return-value]
        [
            name
            for name, kind in typing.get_type_hints(owner).items()
            if kind is jax.Array and hasattr(native, name)
        ]
        for owner, native in (
            (types.Model, mujoco.MjModel),
            (types.Option, mujoco.MjOption),
        )
    )


def check_per_env(per_env: Sequence[str]) -> None:
    """Refuse fields that MJX compiles into its program: those have one value for all worlds.

    Raises:
        ValueError: which one, and which can.
    """
    model, options = varying_fields()
    legal = sorted([*model, *(f"opt.{name}" for name in options)])
    for name in per_env:
        if name not in legal:
            close = ", ".join(difflib.get_close_matches(name, legal, n=3))
            hint = f" (did you mean {close}?)" if close else ""
            raise ValueError(
                f"{name!r} cannot differ between environments in MJX{hint}; {_REMEDY}; these can: "
                f"{', '.join(legal)}"
            )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _name(model: mujoco.MjModel, kind: mujoco.mjtObj, index: int) -> str:
    return mujoco.mj_id2name(model, int(kind), index) or f"number {index}"


def _reasons(model: mujoco.MjModel) -> Iterator[tuple[str, list[str]]]:
    """Yield what cannot be done, and the names of what asks for it."""
    yield from _options(model)
    if model.nflex:
        yield "flexes", [_name(model, mujoco.mjtObj.mjOBJ_FLEX, i) for i in range(model.nflex)]
    if model.nplugin:
        yield "plugins", [str(model.nplugin)]
    for prefix, kind in (
        ("actuator", mujoco.mjtObj.mjOBJ_ACTUATOR),
        ("sensor", mujoco.mjtObj.mjOBJ_SENSOR),
    ):
        late = np.flatnonzero(getattr(model, f"{prefix}_history")[:, 0])
        if len(late):
            yield f"{prefix}_delay and history", [_name(model, kind, int(i)) for i in late]
    yield from _contact_sensors(model)
    yield from _enumerated(model)
    yield from _collisions(model)


def _options(model: mujoco.MjModel) -> Iterator[tuple[str, list[str]]]:
    types: Any = import_extra("mujoco.mjx._src.types", "engine=mjx")
    opt = model.opt
    integrator = mujoco.mjtIntegrator(opt.integrator)
    known = ("mjINT_EULER", "mjINT_RK4", "mjINT_IMPLICITFAST")
    if integrator.name not in known:
        yield "opt.integrator", [integrator.name]
    if opt.solver not in {*map(int, types.SolverType)}:
        yield "opt.solver", [mujoco.mjtSolver(opt.solver).name]
    fluid = opt.density > 0 or opt.viscosity > 0 or opt.wind.any()
    if integrator.name == "mjINT_IMPLICITFAST" and fluid:
        yield "opt.integrator in a fluid", ["opt.density, opt.viscosity or opt.wind"]
    if opt.noslip_iterations:
        yield "opt.noslip_iterations", [str(opt.noslip_iterations)]
    if opt.disableactuator:
        yield "opt.disableactuator", [hex(opt.disableactuator)]
    if model.flg_surfacevel:
        yield "surface velocities of geoms", ["flg_surfacevel"]
    inverse = int(mujoco.mjtEnableBit.mjENBL_INVDISCRETE)
    if flags := opt.enableflags & ~inverse:
        bits = [1 << i for i in range(int(mujoco.mjtEnableBit.mjNENABLE)) if flags >> i & 1]
        yield "opt.enableflags", [mujoco.mjtEnableBit(bit).name for bit in bits]
    used = np.concatenate((model.geom_condim, model.pair_dim))
    if opt.cone == int(mujoco.mjtCone.mjCONE_ELLIPTIC) and (used == 1).any():
        yield "condim 1 with elliptic cones", ["opt.cone"]
    names = {_name(model, mujoco.mjtObj.mjOBJ_NUMERIC, i) for i in range(model.nnumeric)}
    if dropped := sorted(names & {"max_geom_pairs", "max_contact_points"}):
        yield "numerics by which MJX drops contacts unseen", dropped


def _contact_sensors(model: mujoco.MjModel) -> Iterator[tuple[str, list[str]]]:
    kinds: dict[str, list[str]] = {}
    contact = int(mujoco.mjtSensor.mjSENS_CONTACT)
    for i in np.flatnonzero(model.sensor_type == contact):
        name = _name(model, mujoco.mjtObj.mjOBJ_SENSOR, int(i))
        for owner in {int(model.sensor_objtype[i]), int(model.sensor_reftype[i])} & {*_MATCHED}:
            kinds.setdefault(f"contact sensors {_MATCHED[owner]}", []).append(name)
        if model.sensor_intprm[i, 1] == _NETFORCE:
            kinds.setdefault("contact sensors with reduce=netforce", []).append(name)
    yield from kinds.items()


def _enumerated(model: mujoco.MjModel) -> Iterator[tuple[str, list[str]]]:
    """Yield types of actuators, constraints, sensors and tendons that MJX does not know."""
    types: Any = import_extra("mujoco.mjx._src.types", "engine=mjx")
    for field, known, native, kind in (
        ("actuator_biastype", types.BiasType, mujoco.mjtBias, mujoco.mjtObj.mjOBJ_ACTUATOR),
        ("actuator_dyntype", types.DynType, mujoco.mjtDyn, mujoco.mjtObj.mjOBJ_ACTUATOR),
        ("actuator_gaintype", types.GainType, mujoco.mjtGain, mujoco.mjtObj.mjOBJ_ACTUATOR),
        ("actuator_trntype", types.TrnType, mujoco.mjtTrn, mujoco.mjtObj.mjOBJ_ACTUATOR),
        ("eq_type", types.EqType, mujoco.mjtEq, mujoco.mjtObj.mjOBJ_EQUALITY),
        ("sensor_type", types.SensorType, mujoco.mjtSensor, mujoco.mjtObj.mjOBJ_SENSOR),
    ):
        values = getattr(model, field)
        for value in sorted({*map(int, values)} - {*map(int, known)}):
            names = [_name(model, kind, int(i)) for i in np.flatnonzero(values == value)]
            yield f"{field} {native(value).name}", names


def _collisions(model: mujoco.MjModel) -> Iterator[tuple[str, list[str]]]:
    driver: Any = import_extra("mujoco.mjx._src.collision_driver", "engine=mjx")
    wide = {int(mujoco.mjtGeom.mjGEOM_MESH), int(mujoco.mjtGeom.mjGEOM_HFIELD)}
    kinds: dict[str, list[str]] = {}
    for one, other, pair in driver.geom_pairs(model):
        types = [mujoco.mjtGeom(int(model.geom_type[i])) for i in (one, other)]
        both = "-".join(t.name.removeprefix("mjGEOM_").lower() for t in types)
        names = " with ".join(_name(model, mujoco.mjtObj.mjOBJ_GEOM, int(i)) for i in (one, other))
        margin = model.geom_margin[[one, other]].any() if pair < 0 else model.pair_margin[pair]
        if not driver.has_collision_fn(*types):
            kinds.setdefault(f"collisions {both}", []).append(names)
        elif margin and wide & {int(t) for t in types}:
            kinds.setdefault(f"margins in collisions {both}", []).append(names)
    yield from kinds.items()
