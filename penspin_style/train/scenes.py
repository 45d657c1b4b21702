"""The scenes of the `tasks` package, found by name: the library imports no task."""

import importlib
from typing import Any


def find_scenes() -> Any:
    """Return the module `tasks/real2sim/scene.py`, which writes scenes of a robot and objects."""
    return importlib.import_module("tasks.real2sim.scene")


def find_poses() -> Any:
    """Return the module `tasks/real2sim/poses.py`, which reads where objects stand."""
    return importlib.import_module("tasks.real2sim.poses")
