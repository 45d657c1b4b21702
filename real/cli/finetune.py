"""PenSpin's options of learning from the robot's episodes, as overrides of `penspin train`.

    scripts/finetune_ppo.sh --real-dataset-folder=DIR --checkpoint-path=RUN [--name=NAME ...]

The name is PenSpin's; no PPO is in it: this is `penspin train algo=clone algo.init_from=RUN
algo.data=DIR ...`. The same command again continues a run that was stopped.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from penspin_style import storage
from penspin_style.algo.registry import find_algorithm
from penspin_style.env.task import task_name
from penspin_style.system import interrupt
from penspin_style.system.arguments import Parser
from penspin_style.system.terminal import one_line
from penspin_style.train.checkpoint import Checkpoints
from penspin_style.train.compose import assignment
from penspin_style.train.faults import FaultyRunError
from penspin_style.train.load_policy import compose_training
from penspin_style.train.run import EXIT_DATA, EXIT_USAGE, Run

_SPELLED = {"data": "real-dataset-folder", "init_from": "checkpoint-path", "failures": "all"}
"""Keys of an algorithm that PenSpin calls otherwise."""
_OWN = ("name", "hand", *_SPELLED)
"""Keys that do not become an option of their name."""
_SUMMARIES = {
    "input_mode": "features to read, as proprio-ends; a student must read them all",
    "real_batch_size": "rows of a gradient step",
    "val_ratio": "share of the trajectories that only validate",
    "lr": "learning rate",
    "num_epochs": "passes over the rows at most",
    "weight_decay": "AdamW's",
    "eval_freq": "epochs between two validations",
    "eval_start_epoch": "first epoch whose weights may be kept",
    "patience": "validations without a better one that end it; 0: none do",
    "views": "times that every image is seen, augmented but for the first",
    "loss": "distance to the label: l1 or l2",
    "from_scratch": "draw the weights anew, frozen encoders aside",
    "max_grad_norm": "longest gradient",
}


@dataclass(frozen=True)
class Script:
    """One of PenSpin's scripts."""

    name: str
    algo: str
    summary: str
    run: str
    """Name of a run that is given none."""
    seed: int = 0

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command; return its exit code."""
        try:
            with interrupt.raising():
                return self._train(self.parser().parse_intermixed_args(argv))
        except interrupt.Interrupted as error:
            code, text = 128 + error.number, "interrupted; the same command goes on"
        except (FaultyRunError, storage.DamagedError) as error:
            code, text = EXIT_DATA, one_line(error)
        except (ValueError, OSError) as error:
            code, text = EXIT_USAGE, one_line(error)
        with contextlib.suppress(OSError):
            print(f"{self.name}: {spelled(text)}", file=sys.stderr)
        return code

    def parser(self) -> Parser:
        """Return the parser of the command."""
        own = Parser(self.name, description=self.summary)
        own.option("real-dataset-folder", "folder of episodes", required=True, metavar="DIR")
        own.option("checkpoint-path", "run folder of a student", required=True, metavar="PATH")
        for field in dataclasses.fields(find_algorithm(self.algo).Config):
            if field.name in _OWN:
                continue
            name, default = field.name.replace("_", "-"), field.default
            summary = _SUMMARIES.get(field.name, f"{self.algo}'s {name.replace('-', ' ')}")
            if isinstance(default, bool):
                own.option(name, summary, action="store_true")
            else:
                own.option(name, summary, type=type(default), default=default)
        own.option("seed", "of the split, the order and all draws", type=int, default=self.seed)
        own.option("all", "learn from failures too", action="store_true")
        own.option("name", "the run lands in OUT/TASK/NAME", default=self.run)
        own.option("out", "folder of all runs", default="outputs")
        own.option("device", "cpu, cuda:N or auto", default="auto")
        own.option("quiet", "print nothing", action="store_true")
        own.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of `penspin train`")
        return own

    def overrides(self, args: argparse.Namespace) -> list[str]:
        """Return what `penspin train` is told.

        Raises:
            ValueError: an option is out of range.
        """
        config = find_algorithm(self.algo).Config
        own = {
            field.name: getattr(args, _SPELLED.get(field.name, field.name).replace("-", "_"))
            for field in dataclasses.fields(config)
            if field.name not in ("name", "hand")
        }
        config(**own)  # refuses before any file is opened
        given = {key: getattr(args, key) for key in ("seed", "name", "out", "device")}
        given |= {f"algo.{key}": value for key, value in own.items()}
        words = [assignment(key, value) for key, value in given.items()]
        return [f"algo={self.algo}", *words, "loggers=[csv]", *args.overrides]

    def _train(self, args: argparse.Namespace) -> int:
        cfg, task, resolved = compose_training(self.overrides(args))
        folder = pathlib.Path(cfg.out) / task_name(task) / cfg.name
        if (folder / "policy").exists():
            raise ValueError(f"{folder} holds a run already; --name=OTHER starts another")
        cfg.resume = cfg.resume or bool(Checkpoints(folder / "checkpoints").published())
        return Run(cfg, task, resolved).fit(quiet=args.quiet)


def spelled(text: str) -> str:
    """Return a message with PenSpin's options in the place of the keys of `penspin train`."""

    def option(found: re.Match[str]) -> str:
        return f"--{_SPELLED.get(found[1], found[1].replace('_', '-'))}"

    return re.sub(r"\balgo\.(\w+)(?:=true)?", option, text)


FINETUNE = Script(
    "finetune_ppo.sh",
    "clone",
    "Fine-tune a student on what the robot did: behaviour cloning of its successful episodes.",
    "finetuned",
)

if __name__ == "__main__":
    sys.exit(FINETUNE.main())
