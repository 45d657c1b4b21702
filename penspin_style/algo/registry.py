"""Algorithms by name: the modules of this folder and those of installed packages.

Such a module binds `ALGORITHM`, a class as `algorithm.Algorithm` says, and one of this folder binds
`NAME`, what `algo=NAME` calls it. An installed package registers one as an entry point of
`penspin_style.algorithms`: `sac = my_package.sac`.
"""

import difflib
import importlib
from typing import Any

import torch

from penspin_style.algo.algorithm import Algorithm, Interface
from penspin_style.config import TrainConfig
from penspin_style.system.plugins import entry_points, named_modules

ENTRY_POINTS = "penspin_style.algorithms"


def own_names() -> list[str]:
    """Return the names of the algorithms that come with this package, sorted."""
    return list(named_modules(__package__ or "", "ALGORITHM"))


def algorithm_names() -> list[str]:
    """Return the names of all algorithms, sorted; none is imported for it."""
    return sorted(_modules())


def find_algorithm(name: str) -> type[Algorithm]:
    """Return an algorithm's class.

    Raises:
        ValueError: there is none of this name, or its package cannot be imported.
    """
    modules = _modules()
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1, cutoff=0.5)
        more = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(modules))}"
        raise ValueError(f"algo={name}: there is no such algorithm; {more}")
    try:
        module = importlib.import_module(modules[name])
    except Exception as error:
        if modules[name].startswith(f"{__package__}."):
            raise  # a mistake of ours
        raise ValueError(
            f"algo={name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found: Any = getattr(module, "ALGORITHM", None)
    if getattr(getattr(found, "Config", None), "name", None) != name:
        raise ValueError(
            f"algo={name}: {modules[name]} must bind ALGORITHM, a class whose Config has "
            f'name = "{name}"'
        )
    return found


def make_algorithm(
    cfg: TrainConfig, env: Interface, *, device: torch.device, seed: int
) -> Algorithm:
    """Return the algorithm that `cfg.algo` describes.

    Raises:
        ValueError: the environment does not observe what the algorithm needs.
    """
    return find_algorithm(cfg.algo.name).make(cfg, env, device=device, seed=seed)


def _modules() -> dict[str, str]:
    installed = {entry.name: entry.module for entry in entry_points(ENTRY_POINTS)}
    return {**installed, **named_modules(__package__ or "", "ALGORITHM")}
