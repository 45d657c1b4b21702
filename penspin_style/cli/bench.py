"""`penspin bench`: measure speed against the bare engine. What each kind needs is loaded for it."""

import argparse
import pathlib
from typing import Any

from penspin_style.system.terminal import aligned, print_json
from penspin_style.train.compose import compose_train
from penspin_style.train.keys import leaves
from penspin_style.train.run import EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Measure one kind of speed."""
    result = _onnx(args) if args.kind == "onnx" else _ratios(args)
    if args.json:
        print_json(result)
    else:
        print("\n".join(table(result)))
    return EXIT_OK


def table(result: dict[str, Any]) -> list[str]:
    """Return a line for each number of a result, its groups' dotted."""
    return aligned(
        [(key, f"{v:.4g}" if isinstance(v, float) else str(v)) for key, v in leaves(result)]
    )


def _onnx(args: argparse.Namespace) -> dict[str, Any]:
    from penspin_style.bench.onnx import onnx

    return onnx(pathlib.Path(args.policy), calls=args.calls)


def _ratios(args: argparse.Namespace) -> dict[str, Any]:
    cfg, task, _ = compose_train(args.overrides)
    if args.kind == "scale":
        from penspin_style.bench.scale import scale

        return scale(cfg, task, args.overrides, rounds=args.rounds, steps=args.steps)
    if args.kind == "render":
        from penspin_style.bench.render import render as measure
    elif args.kind == "overlap":
        from penspin_style.bench.overlap import overlap as measure
    elif args.kind == "train":
        from penspin_style.bench.sim_train import train as measure
    else:
        from penspin_style.bench.sim_train import sim as measure
    return measure(cfg, task, rounds=args.rounds, steps=args.steps)
