"""`penspin tasks`: list the tasks."""

import argparse
import sys

from penspin_style.system.terminal import print_json
from penspin_style.train.compose import find_task, task_names
from penspin_style.train.run import EXIT_OK


def run(args: argparse.Namespace) -> int:
    """List the tasks, each with the first line of its module."""
    rows = {}
    for name in task_names():
        summary = (sys.modules[find_task(name).__module__].__doc__ or "").strip().splitlines()[0]
        rows[name] = summary
    if args.json:
        print_json({"tasks": rows})
    else:
        width = max(map(len, rows))
        for name, summary in rows.items():
            print(f"{name:{width}}  {summary}")
    return EXIT_OK
