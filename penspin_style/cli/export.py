"""`penspin export`: write a policy as one ONNX file."""

import argparse
import pathlib

from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.export import export
from penspin_style.nets.policy import load_policy
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import UsageError
from penspin_style.train.run import EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Export a policy, checked against torch, and say what a robot finds in it."""
    path = pathlib.Path(args.policy)
    folder = path / "policy" if (path / "policy").is_dir() else path
    if not (folder / "card.json").exists():
        raise UsageError(f"{path} holds no policy: train to the end, or give a policy folder")
    policy, card = load_policy(folder)
    out = pathlib.Path(args.out) if args.out else path / "policy.onnx"
    if out.suffix != ".onnx":
        raise UsageError(f"--out {out}: the file must end in .onnx")
    report = export(
        policy,
        card,
        out,
        samples=args.samples,
        tolerance=args.tolerance,
        float64=args.float64,
    )
    if args.json:
        print_json({"onnx": str(out), **report.as_dict()})
    else:
        in_float32 = f" ({report.float32_diff:.1e} from torch in float32)" * args.float64
        print(
            f"{out}: {report.bytes} bytes; torch and onnxruntime differ by at most "
            f"{report.max_abs_diff:.1e}{in_float32} over {report.samples} observations"
        )
        print(Bundle.load(out).describe())
    return EXIT_OK
