"""Functions of the user's own that a command line or a configuration names: `module:function`."""

import importlib
from collections.abc import Callable
from typing import Any


def import_function(name: str, key: str, said: str) -> Callable[..., Any]:
    """Return the function `module:function`. Importing runs code: only the user may name one.

    key: what names it, for messages, as `--light` or `task.reward_fn`. said: the same with the
        name, as `--light lamp:switch` or `task.reward_fn=rewards:far`.

    Raises:
        ValueError: says what is wrong with the name, the module or what it holds.
    """
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{key} must be module:function, got {name!r}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{said}: there is no module {module}, neither installed nor in the current folder"
            ) from error
        raise ValueError(f"{said} cannot be imported: {error}") from error
    except Exception as error:  # of a stranger's module
        raise ValueError(f"{said} cannot be imported: {type(error).__name__}: {error}") from error
    value = getattr(found, function, None)
    if not callable(value):
        raise ValueError(f"{said}: {module} has no function {function!r}")
    return value
