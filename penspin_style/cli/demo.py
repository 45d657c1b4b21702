"""`penspin demo`: watch every policy that comes with the package, on one page."""

import argparse
import contextlib
import pathlib
import sys
from typing import Any

from penspin_style.config import PRETRAINED
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import UsageError, nearest
from penspin_style.train.load_policy import open_policy
from penspin_style.train.run import EXIT_OK
from penspin_style.viewer.browser import BrowserViewer, check_installed


def shipped() -> dict[str, pathlib.Path]:
    """Return the policies that come with the package, by name: folders."""
    cards = sorted(PRETRAINED.rglob("policy/card.json"))
    return {c.parents[1].relative_to(PRETRAINED).as_posix(): c.parents[1] for c in cards}


def run(args: argparse.Namespace) -> int:
    """Serve a page with a choice of policies until a signal comes; or list them.

    Raises:
        UsageError: there is no such policy, or no viewer.
    """
    there = shipped()
    if args.list:
        if args.json:
            print_json({name: str(path) for name, path in there.items()})
        else:
            print("\n".join(there))
        return EXIT_OK
    if not there:
        raise UsageError(f"{PRETRAINED} holds no policy; install from a checkout")
    first = next(iter(there)) if args.name is None else args.name
    if first not in there:
        raise UsageError(f"there is no shipped policy {first!r}{nearest(first, there)}")
    try:
        check_installed()
    except ValueError as error:
        raise UsageError(str(error)) from error
    import viser  # pyright: ignore[reportMissingImports]

    with contextlib.redirect_stdout(sys.stderr):  # it greets, and --json is one object
        server: Any = viser.ViserServer(host=args.host, port=args.port, verbose=False)
    address = f"http://{args.host}:{server.get_port()}/"
    if args.json:
        print_json({"address": address, "policies": [*there]})
    else:
        print(f"{len(there)} policies on {address}; Ctrl-C ends", flush=True)
    try:
        _serve(server, there, first, args.seed)
    finally:
        server.stop()
    return EXIT_OK


def _serve(server: Any, there: dict[str, pathlib.Path], name: str, seed: int) -> None:
    """Show one policy after the other, as the page asks for."""
    while True:
        server.scene.reset()
        server.gui.reset()
        which = server.gui.add_dropdown("policy", [*there], initial_value=name)
        source = open_policy(there[name], [])
        viewer = BrowserViewer(source.env(1, seed), source.act, server=server)
        viewer.run(until=lambda which=which, name=name: which.value != name)
        name = str(which.value)
