"""The libraries of geometry, which only who converts scans needs: imported when they are used."""

import importlib
from typing import Any

_EXTRA = "penspin-style[real2sim]"


def need(module: str) -> Any:
    """Return a module of the extra `real2sim`.

    Raises:
        ValueError: it is not installed; names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"scanned objects need {module.split('.')[0]} ({error}): pip install '{_EXTRA}'"
        ) from error
