"""Functions of the user's own that a configuration names: `module:function`.

A key of `Task.functions` holds one. Importing runs code, so a file (a policy's configuration, a
card) cannot name one by itself: `train.compose` asks the user to say it on the command line.
"""

from collections.abc import Callable
from typing import Any

from penspin_style.system.named_function import import_function


def load_function(key: str, name: str) -> Callable[..., Any]:
    """Return the function `module:function` that a key of the configuration names.

    Raises:
        ValueError: names the key, and what is wrong with the name, the module or what it holds.
    """
    return import_function(name, key, f"{key}={name}")
