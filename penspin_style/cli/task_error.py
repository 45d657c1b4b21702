"""Where in a task of the user's an error happened: one line instead of a traceback."""

import pathlib
import sys
import traceback

LIBRARY = pathlib.Path(__file__).parents[1]
TRACEBACK = "--traceback"
"""Option of every verb: whole tracebacks are shown, too."""


def describe(error: BaseException) -> str | None:
    """Return what a task raised, in which of its methods and where, and what that is asked for.

    None if no task raised it.
    """
    module = sys.modules.get("penspin_style.env.task")
    if module is None:  # no task can have been called, and a robot's computer need not load torch
        return None
    from penspin_style.env import contract

    kinds = (module.Task, module.TaskConfig)
    method, hook, place, source = "", "", "", None
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        file = pathlib.Path(frame.f_code.co_filename)
        if not hook and isinstance(owner, kinds) and not file.is_relative_to(LIBRARY):
            method = frame.f_code.co_name
            hook = f"{type(owner).__name__}.{method}"
            source = file
        if hook and file == source:
            place = f"{file}:{line}"  # the innermost line of the task's own file
    if not hook:
        return None
    text = " ".join(str(error).split())
    wanted = contract.asked(kinds[0], method)
    return (
        f"{text + ' ' if text else ''}({type(error).__name__} in {hook}, {place}"
        f"{f'; the contract: {wanted}' if wanted else ';'} {TRACEBACK} shows how it came to this)"
    )
