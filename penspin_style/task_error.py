"""Where in a task of the user's an error happened: one line instead of a traceback."""

import os
import pathlib
import sys
import traceback

LIBRARY = pathlib.Path(__file__).parent
TRACEBACK = "PENSPIN_TRACEBACK"
"""Environment variable: 1 shows whole tracebacks."""


def describe(error: BaseException) -> str | None:
    """Return what a task raised, in which of its methods and where; None if no task raised it.

    With the environment variable set the traceback is printed, too.
    """
    module = sys.modules.get("penspin_style.env.task")
    if module is None:  # no task can have been called, and a robot's computer need not load torch
        return None
    kinds = (module.Task, module.TaskConfig)
    hook, place, source = "", "", None
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        file = pathlib.Path(frame.f_code.co_filename)
        if not hook and isinstance(owner, kinds) and not file.is_relative_to(LIBRARY):
            hook = f"{type(owner).__name__}.{frame.f_code.co_name}"
            source = file
        if hook and file == source:
            place = f"{file}:{line}"  # the innermost line of the task's own file
    if not hook:
        return None
    if os.environ.get(TRACEBACK, "0") != "0":
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    return (
        f"{text + ' ' if text else ''}({type(error).__name__} in {hook}, {place}; "
        f"{TRACEBACK}=1 shows the whole traceback)"
    )
