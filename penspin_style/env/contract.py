"""What a task must give, checked where it gives it: each error names the method, file and line.

A task is called by the environment long after it was written, and a wrong shape surfaces deep in
the learning. These checks look at types and shapes alone: no number is read, no GPU waits.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ContractError(ValueError):
    """A task breaks its contract."""


def place(owner: type, name: str = "") -> str:
    """Return `Class.method (file:line)`, of the class itself without a name."""
    found: Any = inspect.getattr_static(owner, name, owner) if name else owner
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__func__", found)
    title = f"{owner.__name__}.{name}" if name else owner.__name__
    try:
        file, line = inspect.getsourcefile(found), inspect.getsourcelines(found)[1]
    except (OSError, TypeError):  # defined where there is no file
        return title
    return f"{title} ({file}:{line})"


def asked(base: type, name: str) -> str:
    """Return what the contract asks of a method: the first paragraph of its docstring there."""
    found = inspect.getattr_static(base, name, None)
    text = "" if found is None else inspect.getdoc(found) or ""
    return " ".join(text.split("\n\n")[0].split())


def check_class(found: type, base: type, config: type) -> None:
    """Check that a task's class is whole before anything is built of it.

    base, config: `Task` and `TaskConfig`.

    Raises:
        ContractError: a method, the `Config` or the `units` are missing.
    """
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        wanted = "; ".join(f"{name}: {asked(base, name)}" for name in missing)
        raise ContractError(f"{place(found)} must define {', '.join(missing)}. {wanted}")
    own = getattr(found, "Config", None)
    if not (isinstance(own, type) and issubclass(own, config)):
        raise ContractError(
            f"{place(found)} must name its configuration, Config = YourConfig, a @dataclass that "
            f"inherits from TaskConfig; got {own!r}"
        )
    named = sorted(inspect.get_annotations(own))
    if named and "__dataclass_fields__" not in vars(own):
        raise ContractError(f"{place(own)} must be a @dataclass, or {named[0]} is no key of it")
    units = getattr(found, "units", None)
    if not isinstance(units, dict):
        raise ContractError(
            f"{place(found)} must name the unit of each observation term, as "
            f'units = {{"height": "m"}}; got {units!r}'
        )


def check_kind(task: object, method: str, value: Any, kind: type) -> None:
    """Check the type of what a method returned.

    Raises:
        ContractError: it is another.
    """
    if not isinstance(value, kind):
        module = kind.__module__.partition(".")[0]
        wanted = kind.__name__ if module == "builtins" else f"{module}.{kind.__name__}"
        raise ContractError(f"{place(type(task), method)} must return a {wanted}, got {value!r}")


def check_terms(task: object, num_envs: int, **returned: Any) -> None:
    """Check named terms: numbers with leading `num_envs`, of a reward (num_envs,).

    returned: method -> what it returned.

    Raises:
        ContractError: what the first wrong one is.
    """
    for method, terms in returned.items():
        _check_terms(task, num_envs, method, terms)


def _check_terms(task: object, num_envs: int, method: str, terms: Any) -> None:
    shape = "(num_envs,)" if method == "reward" else "(num_envs, ...)"
    wanted = f"{place(type(task), method)} must return {{name: tensor {shape}}}"
    if not isinstance(terms, Mapping):
        raise ContractError(f"{wanted}, got {_said(terms)}")
    for name, value in terms.items():
        is_tensor = isinstance(value, Tensor)
        good = is_tensor and value.shape[:1] == (num_envs,)
        if not good or (method == "reward" and value.dim() != 1):
            got = f"got {name!r}: {_said(value)}"
            raise ContractError(f"{wanted} with num_envs = {num_envs}, {got}")


def check_memory(task: Any, num_envs: int) -> None:
    """Check what a task keeps from step to step: tensors with a row for each environment.

    Raises:
        ContractError: what the first wrong one is.
    """
    for name, value in task.memory.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (num_envs,):
            raise ContractError(
                f"{place(type(task), 'start')} must keep tensors (num_envs, ...) in memory, with "
                f"num_envs = {num_envs}, got {name!r}: {_said(value)}"
            )


def check_flags(task: object, method: str, value: Any, num_envs: int) -> None:
    """Check one truth for each environment, (num_envs,) bool.

    Raises:
        ContractError: it is something else.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.bool or value.shape != (num_envs,):
        raise ContractError(
            f"{place(type(task), method)} must return a tensor (num_envs,) bool with num_envs = "
            f"{num_envs}, got {_said(value)}"
        )


def _said(value: Any) -> str:
    """Return what a value is, for people."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return text if len(text) < 60 else type(value).__name__
