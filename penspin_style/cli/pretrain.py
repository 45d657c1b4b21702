"""`penspin pretrain`: train the image encoder."""

import argparse
import os
import pathlib
import sys

from penspin_style.algo.algorithm import torch_threads
from penspin_style.pretrain.cifar import PretrainConfig, pretrain
from penspin_style.pretrain.renders import RendersConfig, pretrain_on_renders
from penspin_style.system.terminal import print_json
from penspin_style.train.run import EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Train the encoder on CIFAR-10, or on renders where the folder is a recording."""
    out, data = pathlib.Path(args.out), pathlib.Path(args.data)
    given = {k: v for k in ("epochs", "seed") if (v := getattr(args, k)) is not None}
    with torch_threads(os.cpu_count() or 1):
        if (data / "card.json").exists():
            card = pretrain_on_renders(data, out, RendersConfig(**given), _show)
            result = f"explains {card['explained_variance']:.1%} of the privileged numbers"
        else:
            card = pretrain(data, out, PretrainConfig(**given), _show)
            result = f"{card['test_accuracy']:.2%} of {card['test_images']} test images"
    if args.json:
        print_json({"encoder": str(out), **card})
    else:
        print(f"{result}; encoder in {out}")
    return EXIT_OK


def _show(row: dict[str, float]) -> None:
    ((name, value),) = ((k, v) for k, v in row.items() if k.startswith("test/"))
    print(
        f"epoch {row['epoch']:.0f}/{row['epochs']:.0f}  loss {row['loss']:.3f}  "
        f"{name} {value:.2%}  {row['seconds']:.0f} s",
        file=sys.stderr,
    )
