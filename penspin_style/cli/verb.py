"""Run a verb of the library: torch's threads, what ended it, and the files that it may write."""

import argparse
import importlib
import os
import pathlib
import sys

import torch

from penspin_style.storage import DamagedError
from penspin_style.system.arguments import show_traceback
from penspin_style.system.ranks import PeerLostError
from penspin_style.system.terminal import one_line
from penspin_style.train.checkpoint import NoCheckpointError
from penspin_style.train.compose import UsageError
from penspin_style.train.run import EXIT_DATA, EXIT_USAGE, FaultyRunError


def run(args: argparse.Namespace) -> int:
    """Run the verb that the command line names, a module of this room; return its exit code.

    Data that cannot be trusted and too little memory are said in one line; what else users can
    mend is the caller's business.
    """
    torch.set_num_threads(_threads())
    verb = importlib.import_module(f"penspin_style.cli.{args.verb}")
    try:
        return verb.run(args)
    except (FaultyRunError, NoCheckpointError, DamagedError, PeerLostError) as error:
        show_traceback(args)
        code, message = EXIT_DATA, one_line(error)
    except Exception as error:
        if not _ran_out(error):
            raise
        show_traceback(args)
        code = EXIT_USAGE
        message = "not enough memory; a smaller num_envs or algo.hidden needs less"
    print(f"penspin: {message}", file=sys.stderr)
    return code


def output_file(flag: str, text: str | None, suffix: str) -> pathlib.Path | None:
    """Return the file that a video or plot goes to, before the minutes that making it takes.

    Raises:
        UsageError: another kind of file, or a folder that is not there.
    """
    if text is None:
        return None
    path = pathlib.Path(text)
    if path.suffix != suffix:
        raise UsageError(f"{flag} {path}: the file must end in {suffix}")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: the folder {path.parent} does not exist")
    return path


def _ran_out(error: Exception) -> bool:
    """Tell whether memory ran out: each library has its own way to say it."""
    ways = ("bad_alloc", "allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(way in str(error).lower() for way in ways)


def _threads() -> int:
    """Return torch's thread count: one, unless asked otherwise.

    Policies are small: a second thread gains less in them than its busy waiting takes from the
    physics threads (measured on two cores: roll-outs 2.7 times slower with two).
    """
    text = os.environ.get("OMP_NUM_THREADS", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"OMP_NUM_THREADS={text}: must be a whole number of at least 1")
    return int(text)
