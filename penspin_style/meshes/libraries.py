"""The libraries of geometry, which only who converts scans needs: imported when they are used."""

import importlib
import importlib.util
from typing import Any

_EXTRA = "penspin-style[real2sim]"
_MODULES = ("scipy", "skimage", "manifold3d", "fast_simplification", "coacd")


def require() -> None:
    """Refuse to begin what cannot end.

    Raises:
        ValueError: one of the libraries is not installed; names the command that installs it.
    """
    lost = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if lost:
        raise ValueError(f"scanned objects need {', '.join(lost)}: pip install '{_EXTRA}'")


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
