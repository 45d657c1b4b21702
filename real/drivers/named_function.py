"""Functions of a user's own that the command line names, and values beside a robot from them."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from penspin_style.system.named_function import import_function
from real.drivers.external import External


def named_function(name: str, option: str) -> Callable[..., Any]:
    """Return a function `module:function`, also of the current folder.

    option: that names it, for messages.

    Raises:
        ValueError: there is none.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return import_function(name, option, f"{option} {name}")


def named_sensors(names: Sequence[str]) -> tuple[External, ...]:
    """Return the values beside a robot that functions give, `module:function` each.

    A function takes nothing and returns an `External`, or several.

    Raises:
        ValueError: there is no such function, or it returns something else.
    """
    found: list[External] = []
    for name in names:
        try:
            made = named_function(name, "--also")()
        except ValueError:
            raise
        except Exception as error:  # of a stranger's function
            raise ValueError(f"--also {name}: {type(error).__name__}: {error}") from error
        several = list(made) if isinstance(made, Iterable) else [made]
        if not several or not all(isinstance(one, External) for one in several):
            raise ValueError(
                f"--also {name} must return real.drivers.external.External, or a list of them; it "
                f"returned {made!r:.80}"
            )
        found += several
    return tuple(found)
