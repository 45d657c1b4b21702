"""The tasks, one file each; the command line and the contract tests find them in this folder.

Importing this package registers them with Gymnasium; neither torch nor MuJoCo is imported for it.
Gymnasium imports it by itself for `gymnasium.make("tasks:penspin_style/PandaLiftCube-v0")`, also in
the processes that it and others start.
"""

import pathlib
import pkgutil
import re

import gymnasium

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)


def task_names() -> list[str]:
    """Return the modules of this folder that bind `TASK`, sorted; none of them is imported."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg and _binds_task(module.name)
    )


def gymnasium_id(name: str) -> str:
    """Return the id of a task in Gymnasium's registry: `penspin_style/PandaLiftCube-v0`."""
    return f"penspin_style/{''.join(part.capitalize() for part in name.split('_'))}-v0"


def register_gymnasium() -> None:
    """Register every task with Gymnasium, once; importing this package has done so."""
    for name in task_names():
        if gymnasium_id(name) not in gymnasium.registry:
            gymnasium.register(
                id=gymnasium_id(name),
                entry_point="penspin_style.env.gym_env:GymEnv",
                vector_entry_point="penspin_style.env.gym_env:GymVectorEnv",
                kwargs={"task": name},
            )


def _binds_task(name: str) -> bool:
    for folder in __path__:
        file = pathlib.Path(folder, f"{name}.py")
        if file.exists():
            return re.search(r"^TASK\b", file.read_text(), re.MULTILINE) is not None
    return False


register_gymnasium()
