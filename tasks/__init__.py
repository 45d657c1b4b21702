"""The tasks, one file each; the command line and the contract tests find them below this folder.

Importing this package registers them with Gymnasium; neither torch nor MuJoCo is imported for it.
Gymnasium imports it by itself for `gymnasium.make("tasks:penspin_style/PandaLiftCube-v0")`, also in
the processes that it and others start.
"""

from collections.abc import Mapping

import gymnasium

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)
from penspin_style.system.plugins import named_modules

_PLAYGROUND = ("panda_pick_cube",)
"""Tasks of MuJoCo Playground whose name is one of RLinf's ids, which mean its lifting tasks."""


def task_modules() -> Mapping[str, str]:
    """Return the tasks by name, sorted, each with its module; none of them is imported.

    A module below this folder is a task if it binds `NAME`, a literal, and `TASK`.
    """
    return named_modules(__name__, "TASK")


def task_names() -> list[str]:
    """Return the names of the tasks, sorted."""
    return list(task_modules())


def gymnasium_id(name: str) -> str:
    """Return the id of a task in Gymnasium's registry: `penspin_style/PandaLiftCube-v0`."""
    words = ("playground", *name.split("_")) if name in _PLAYGROUND else name.split("_")
    return f"penspin_style/{''.join(part.capitalize() for part in words)}-v0"


def register_gymnasium() -> None:
    """Register every task and RLinf's ids, once; importing this package has done so."""
    for name in task_names():
        if gymnasium_id(name) not in gymnasium.registry:
            gymnasium.register(
                id=gymnasium_id(name),
                entry_point="penspin_style.env.gym_env:GymEnv",
                vector_entry_point="penspin_style.env.gym_env:GymVectorEnv",
                kwargs={"task": name},
            )
    for name, vision in (("PandaPickCube", False), ("PandaPickCubeVision", True)):
        if f"penspin_style/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                id=f"penspin_style/{name}-v0",
                entry_point="tasks.panda.rlinf:RLinfEnv",
                vector_entry_point="tasks.panda.rlinf:RLinfVectorEnv",
                kwargs={"vision": vision},
            )


register_gymnasium()
