"""`penspin watch`: a live page of a training, in a browser."""

import argparse
import pathlib

from penspin_style.system.terminal import print_json
from penspin_style.viewer.watch import make_server


def run(args: argparse.Namespace) -> int:
    """Serve the page until a signal comes.

    Raises:
        ValueError: no run, or a port that cannot be had.
    """
    folder = pathlib.Path(args.run_folder)
    try:
        server, address = make_server(folder, args.host, args.port)
    except OSError as error:
        raise ValueError(f"--host {args.host} --port {args.port}: {error}") from error
    if args.json:
        print_json({"address": address, "run": str(folder)})
    else:
        print(f"{folder} on {address}; Ctrl-C ends", flush=True)
    with server:
        server.serve_forever()
    return 0
