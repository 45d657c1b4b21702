"""Train or evaluate a pick-and-place policy as YAML files say.

    python scripts/train_real2sim_pickup.py --algorithm ppo --config my_settings.yaml --preset fast
    python scripts/train_real2sim_pickup.py --eval-only --model-path outputs/real2sim_pick_place/ppo

A thin front of `penspin train task=real2sim_pick_place` and `penspin eval`; exit codes are theirs.
"""

import contextlib
import sys
from collections.abc import Sequence

from penspin_style.storage import DamagedError
from penspin_style.system import interrupt
from penspin_style.system.arguments import Parser, positive
from penspin_style.system.terminal import one_line
from penspin_style.train.checkpoint import NoCheckpointError
from penspin_style.train.run import EXIT_DATA, EXIT_OK, EXIT_USAGE, FaultyRunError
from tasks.real2sim.training.pickup import Real2SimTrainer
from tasks.real2sim.training.settings import ALGORITHMS, DEFAULT

NAME = "train_real2sim_pickup.py"


def parser() -> Parser:
    """Return the parser of the command line."""
    own = Parser(NAME, description="Train or evaluate a pick-and-place policy as YAML files say.")
    own.option("algorithm", "ppo, sac or ddpg", choices=ALGORITHMS, default="ppo")
    own.option("config", "YAML file of settings", default=DEFAULT, metavar="FILE")
    own.option(
        "preset",
        "fast, stable, gpu_8gb, gpu_16gb or gpu_24gb, over the file; may be given several times",
        action="append",
        default=[],
    )
    own.option("eval-only", "only evaluate", action="store_true")
    own.option("model-path", "what to evaluate: run folder, policy folder or .onnx", metavar="PATH")
    own.option("episodes", "of the evaluation", type=positive, default=100)
    own.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of `penspin train`")
    return own


def run(words: Sequence[str] | None) -> int:
    """Do what the command line says; return the exit code."""
    own = parser()
    args = own.parse_intermixed_args(words)
    if args.eval_only != bool(args.model_path):
        own.error("--eval-only and --model-path PATH go together")
    trainer = Real2SimTrainer(args.config, *args.preset, overrides=args.overrides)
    path = args.model_path
    if not args.eval_only:
        result = trainer.train(args.algorithm)
        if result["exit_code"] != EXIT_OK:
            return int(result["exit_code"])
        path = result["model_path"]
        print(f"{path}: trained in {result['training_time'] / 60:.1f} minutes")
    found = trainer.evaluate_model(path, args.episodes)
    low, high = found["interval"]
    print(
        f"Success rate: {found['success_rate']:.1%} (95 %: {low:.1%} to {high:.1%}; "
        f"{found['num_episodes']} episodes)"
    )
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        with interrupt.raising():
            return run(argv)
    except interrupt.Interrupted as error:
        code, text = 128 + error.number, "interrupted"
    except (FaultyRunError, DamagedError, NoCheckpointError) as error:
        code, text = EXIT_DATA, one_line(error)
    except (ValueError, OSError) as error:
        code, text = EXIT_USAGE, one_line(error)
    with contextlib.suppress(OSError):
        print(f"{NAME}: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
