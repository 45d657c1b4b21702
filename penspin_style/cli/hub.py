"""`penspin hub`: send policies and episodes to the Hugging Face Hub, and fetch them."""

import argparse
import dataclasses
import pathlib

from penspin_style.hub import Moved, pull, push
from penspin_style.system.terminal import print_json
from penspin_style.train.run import EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Send or fetch; say what.

    Raises:
        HubError: see `penspin_style.hub`.
    """
    if args.kind == "push":
        options = {"private": args.private, "message": args.message, "licence": args.licence}
        moved = push(pathlib.Path(args.what), args.repo, **options)
    else:
        out = args.out or pathlib.Path("outputs/hub") / pathlib.Path(args.repo).resolve().name
        kind = "dataset" if args.dataset else "model"
        moved = pull(args.repo, pathlib.Path(out), kind=kind, revision=args.revision)
    if args.json:
        print_json(dataclasses.asdict(moved))
    else:
        _say(moved)
    return EXIT_OK


def _say(moved: Moved) -> None:
    names = ", ".join(moved.files[:6]) + ", ..." * (len(moved.files) > 6)
    print(f"{moved.kind} in {moved.where}: {len(moved.files)} files ({names})")
