"""The command line: python -m penspin_style VERB, installed as `penspin`.

Exit codes: 0 done, 2 the command line is invalid, 3 the data or physics cannot be trusted, 4
interrupted and saved.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence

from penspin_style.cli import arguments, task_error
from penspin_style.system import interrupt
from penspin_style.system.arguments import show_traceback
from penspin_style.system.terminal import one_line

_INTERRUPTED = 4  # exit code of `penspin_style.train.run`, which needs torch


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    try:
        args = arguments.parse(argv)
        with interrupt.raising():
            code = _run(args)
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):
            print("penspin: interrupted", file=sys.stderr)
        code = 128 + getattr(error, "number", signal.SIGINT)
    finally:
        interrupt.flush()
    if argv is None and code in (_INTERRUPTED, *(128 + s for s in interrupt.SIGNALS)):
        interrupt.leave_soon(code)
    return code


def _run(args: argparse.Namespace) -> int:
    """Run a verb; turn what users can mend into one line and an exit code."""
    try:
        return args.run(args)
    except Exception as error:
        # of another pipe than that of the output it is an error
        if isinstance(error, BrokenPipeError) and interrupt.silence_lost():
            return 128 + signal.SIGPIPE
        text = task_error.describe(error)
        if text is None and not isinstance(error, ValueError | OSError):
            raise
        show_traceback(args)
        print(f"penspin: {text or one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
