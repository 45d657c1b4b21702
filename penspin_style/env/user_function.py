"""Functions of the user's own that a configuration names: `module:function`.

A key of `Task.functions` holds one. Importing runs code, so a file (a policy's configuration, a
card) cannot name one by itself: `train.compose` asks the user to say it on the command line.
"""

import importlib
from collections.abc import Callable
from typing import Any


def load_function(key: str, name: str) -> Callable[..., Any]:
    """Return the function `module:function` that a key of the configuration names.

    Raises:
        ValueError: names the key, and what is wrong with the name, the module or what it holds.
    """
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{key} must be module:function, got {name!r}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{key}={name}: there is no module {module}, neither installed nor in the current "
                "folder"
            ) from error
        raise ValueError(f"{key}={name} cannot be imported: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{key}={name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    value = getattr(found, function, None)
    if not callable(value):
        raise ValueError(f"{key}={name}: {module} has no function {function!r}")
    return value
