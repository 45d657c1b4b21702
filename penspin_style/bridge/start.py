"""Import JAX, which only those need who ask for it: `pip install 'penspin_style[jax]'`."""

import importlib
import os
from types import ModuleType

_MEMORY = (
    *("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR"),
)


def import_jax(what: str = "this") -> ModuleType:
    """Return `jax`; on a GPU it takes memory as it needs it, and leaves the rest to torch.

    Where an environment variable says already how JAX takes memory, that is left alone. A program
    that has used JAX before has its memory already.

    what: what needs JAX, for the message.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    return import_extra("jax", what)


def import_extra(name: str, what: str, remedy: str = "penspin_style[jax]") -> ModuleType:
    """Return a module that needs JAX, as `import_jax` does; remedy: what pip is to install."""
    if not any(key in os.environ for key in _MEMORY):
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{what} needs {name}, which cannot be imported here ({error}): pip install '{remedy}'"
        ) from error


def compiler_options(platform: str) -> dict[str, bool]:
    """Return the options by which JAX compiles kinematics for a platform, as `cpu`.

    XLA's newer fusion on the CPU computes the quaternions of a chain again for each link beyond it:
    kinematics of the Panda took 7 s instead of 2 ms.
    """
    return {"xla_cpu_use_fusion_emitters": False} if platform == "cpu" else {}
