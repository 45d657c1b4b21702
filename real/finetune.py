"""Fine-tune a student on what the robot did: behaviour cloning of its successful episodes.

    scripts/finetune_ppo.sh --real-dataset-folder=DIR --checkpoint-path=RUN [--name=NAME ...]

The name is PenSpin's; no PPO is in it. The student starts from its pre-trained weights and learns,
at every step of every trajectory, the action that was sent then, as the pre-training's own student
does (`penspin_style/algo/imitation.py`): same inputs, same dropout, the normalisers of pre-training
frozen. Trajectories are split whole between training and validation, and the weights that are best
on the latter are kept. Which these are depends on the seed alone.

The run folder has what a training's has, `policy/` last and whole or not at all; `penspin eval`,
`export` and `play` take it. A run takes minutes: one that a signal has stopped begins anew.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import io
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor, nn

from penspin_style import storage
from penspin_style.algo.algorithm import DivergedError, GuardedOptimizer
from penspin_style.algo.augment import AugmentConfig
from penspin_style.algo.imitation import DistillConfig, Student, TemporalConfig, make_student
from penspin_style.data.dataset import Trajectories, Windows, join, load
from penspin_style.data.formats import penspin
from penspin_style.features import PolicyCard
from penspin_style.nets.policy import load_policy, read_policy, save_policy
from penspin_style.system import interrupt
from penspin_style.system.arguments import Parser
from penspin_style.system.plain_yaml import parse_mapping
from penspin_style.system.terminal import one_line
from penspin_style.train.load_policy import config_of
from penspin_style.train.logging import CSVLog
from penspin_style.train.run import EXIT_DATA, EXIT_OK, EXIT_USAGE, resolve_device, versions
from tasks.robots.allegro import description

HAND = penspin.Hand.of(description)
"""Whose joints PenSpin's files hold."""
_KINDS = {"student": "images", "temporal": "temporal"}
"""Network on the card -> that of a distillation."""
_PLAIN = {
    "shift": 0,
    "brightness": [1.0, 1.0],
    "noise": 0.0,
    "depth_edge": 0.0,
    "depth_jitter": 0.0,
    "depth_disparity": 0.0,
    "depth_dropout": 0.0,
    "depth_lines": 0,
    "depth_blackout": 0.0,
}
_ROWS = 512
"""Rows whose images are encoded at a time."""


@dataclass(frozen=True)
class FinetuneConfig:
    """What fine-tuning can be told; the names are PenSpin's."""

    real_batch_size: int = 512
    """Rows of a gradient step; all there are if there are fewer."""
    val_ratio: float = 0.1
    """Share of the trajectories to validate on; one at least, unless 0."""
    lr: float = 1e-4
    num_epochs: int = 1000
    weight_decay: float = 0.0
    eval_freq: int = 10
    """Epochs between two validations."""
    eval_start_epoch: int = 0
    """The first epoch after which weights may be kept."""
    patience: int = 20
    """Validations without a better one after which training stops; 0: never."""
    loss: str = "l1"
    """Distance to the label, mean over all numbers: `l1` or `l2`."""
    views: int = 1
    """Times that every image is seen: as it is, and augmented as in pre-training."""
    from_scratch: bool = False
    """Draw the weights anew, but for frozen encoders; normalise by the trajectories."""
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse invalid values.

        Raises:
            ValueError: names the option and what is legal.
        """
        for key in ("real_batch_size", "num_epochs", "eval_freq", "views"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("eval_start_epoch", "patience", "weight_decay", "seed"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        for key in ("lr", "max_grad_norm"):
            value = getattr(self, key)
            _require(0 < value < float("inf"), key, value, "positive and finite")
        _require(0 <= self.val_ratio < 1, "val_ratio", self.val_ratio, "in [0, 1)")
        _require(self.loss in ("l1", "l2"), "loss", self.loss, "l1 or l2")
        _require(
            self.eval_start_epoch <= self.num_epochs,
            *("eval_start_epoch", self.eval_start_epoch, f"at most {self.num_epochs} epochs"),
        )


@dataclass
class Result:
    """What a fine-tuning led to."""

    policy: nn.Module
    before: float | None
    """Validation loss of the weights it began with; None without validation."""
    best: float | None
    epoch: int
    """After which the weights were taken; 0 are those it began with."""
    train: list[int] = field(default_factory=list)
    """Trajectories learned from; `validation` is left out."""
    validation: list[int] = field(default_factory=list)


class Finetuner:
    """One fine-tuning: a policy, its card, and the rows of each trajectory."""

    def __init__(
        self,
        policy: nn.Module,
        card: PolicyCard,
        trajectories: list[Windows],
        cfg: FinetuneConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        """Split, encode what no training changes, and take the weights.

        Raises:
            ValueError: the policy is no student, or there are too few trajectories to split.
        """
        self.cfg, self.device = cfg, torch.device(device)
        self.rng = torch.Generator(self.device).manual_seed(cfg.seed)
        self.student = _student(policy, card, cfg, self.rng)
        self.policy = self.student.policy.to(self.device)
        self.train_ids, self.val_ids = split(len(trajectories), cfg.val_ratio, cfg.seed)
        train = join([trajectories[i] for i in self.train_ids])
        if cfg.from_scratch and self.policy.normalizer is not None:
            (vector,) = (i.name for i in card.inputs if not i.is_image)
            self.policy.normalizer.update(torch.from_numpy(train.inputs[vector]).to(self.device))
        self.train = self._rows(train, cfg.views)
        val = [trajectories[i] for i in self.val_ids]
        self.val = self._rows(join(val), 1) if val else None
        learned = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=cfg.lr, weight_decay=cfg.weight_decay)
        self._guard = GuardedOptimizer(self.optimizer, (self.policy,), cfg.max_grad_norm)

    def fit(self, log: Callable[[dict[str, float]], None] | None = None) -> Result:
        """Train; return the policy with the best weights.

        log: is given a row after each validation, or as often without.

        Raises:
            DivergedError: losses or gradients are not finite.
        """
        cfg = self.cfg
        before = best = self.validate()
        kept, epoch, since = (self._weights() if cfg.eval_start_epoch == 0 else None), 0, 0
        if log:
            log({"epoch": 0.0, **({} if before is None else {"val/loss": before})})
        for done in range(1, cfg.num_epochs + 1):
            loss = self._epoch()
            if done % cfg.eval_freq and done < cfg.num_epochs:
                continue
            value = self.validate()
            if log:
                row = {"epoch": float(done), "train/loss": loss}
                log(row | ({} if value is None else {"val/loss": value}))
            if done < cfg.eval_start_epoch:
                continue
            if value is None or kept is None or best is None or value < best:
                kept, best, epoch, since = self._weights(), value, done, 0
            else:
                since += 1
            if cfg.patience and since >= cfg.patience:
                break
        assert kept is not None
        self.policy.load_state_dict(kept)
        return Result(self.policy.eval(), before, best, epoch, self.train_ids, self.val_ids)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Return the loss on the trajectories to validate on, as the policy acts; None of none."""
        if self.val is None:
            return None
        actions = [self.student.act(rows) for rows in self.val.split(_ROWS)]
        return self._distance(torch.cat(actions), self.val["label"]).item()

    def _epoch(self) -> float:
        """Pass once over the shuffled rows; return the mean loss."""
        order = torch.randperm(len(self.train), generator=self.rng, device=self.device)
        losses = []
        for ids in order.split(self.cfg.real_batch_size):
            rows: Any = self.train[ids]
            loss = self._distance(self.student.learn(rows), rows["label"])
            if self._guard.step(loss) is not None:
                losses.append(loss.detach() * (len(ids) / len(order)))
        return torch.stack(losses).sum().item() if losses else float("nan")

    def _distance(self, action: Tensor, label: Tensor) -> Tensor:
        error = action - label
        return error.abs().mean() if self.cfg.loss == "l1" else error.square().mean()

    def _weights(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.policy.state_dict())

    @torch.no_grad()
    def _rows(self, windows: Windows, views: int) -> TensorDict:
        """Return what the student learns from: the first view as it is, the others augmented."""
        n = len(windows)
        raw = TensorDict(
            {name: torch.from_numpy(value) for name, value in windows.inputs.items()}, [n]
        )
        raw["label"] = torch.from_numpy(windows.labels)
        images = getattr(self.student, "augment", None)
        parts = []
        for view in range(views if images is not None else 1):
            if images is not None:
                images.cfg = AugmentConfig(**(_PLAIN if view == 0 else {}))
            for rows in raw.split(_ROWS):
                rows = rows.to(self.device)
                rows.update(self.student.see(rows))
                parts.append(rows.select(*self.student.keys, "label"))
        return torch.cat(parts)  # type: ignore[return-value]


def split(count: int, ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the trajectories to learn from and those to validate on, whole ones, both sorted.

    Raises:
        ValueError: none would be left to learn from.
    """
    validating = max(1, round(ratio * count)) if ratio else 0
    if count - validating < 1:
        raise ValueError(
            f"{count} trajectories cannot be split: with --val-ratio={ratio:g} {validating} would "
            "only validate; collect more, or use --val-ratio=0"
        )
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[validating:]), sorted(order[:validating])


# The command.


def run(args: argparse.Namespace) -> int:
    """Fine-tune as the arguments say; publish the run folder.

    Raises:
        ValueError, OSError: the arguments, the policy or the episodes cannot be used.
        DivergedError: losses or gradients are not finite.
    """
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(FinetuneConfig)}
    cfg = FinetuneConfig(**given)
    device = resolve_device(args.device)
    source = pathlib.Path(args.checkpoint_path)
    folder = policy_folder(source)
    policy, card = load_policy(folder)
    check_mode(args.input_mode, card)
    out = pathlib.Path(args.out) / card.task / args.name
    if (out / "policy").exists():
        raise ValueError(f"{out} holds a run already; --name=OTHER starts another")
    data = load(pathlib.Path(args.real_dataset_folder), card, failures=args.all, hand=HAND)
    tuner = Finetuner(policy, card, data.rows, cfg, device)
    say = functools.partial(print, file=sys.stderr if not args.quiet else io.StringIO(), flush=True)
    say(
        f"{len(data.rows)} trajectories, {data.left_out} failures left out: "
        f"{len(tuner.train_ids)} to learn from ({len(tuner.train)} rows), {len(tuner.val_ids)} to "
        f"validate on; {data.beyond} numbers clipped"
    )
    storage.make_folder(out)
    (out / "metrics.csv").unlink(missing_ok=True)
    log = CSVLog(out / "metrics.csv")

    def note(row: dict[str, float]) -> None:
        log.write(row)
        say("  ".join(f"{name} {value:.4g}" for name, value in row.items()))

    result = tuner.fit(note)
    paths = {k: str(getattr(args, k)) for k in ("real_dataset_folder", "checkpoint_path")}
    described = paths | {"all": args.all, **dataclasses.asdict(cfg)}
    publish(out, result, card, source=source, data=data, described=described)
    if result.before is None:
        say(f"no validation: the last weights, in {out / 'policy'}")
    else:
        say(
            f"validation loss {result.before:.4f} before, {result.best:.4f} after epoch "
            f"{result.epoch}; policy in {out / 'policy'}"
        )
    return EXIT_OK


def policy_folder(path: pathlib.Path) -> pathlib.Path:
    """Return the policy folder of a run folder, or the folder itself.

    Raises:
        ValueError: it is neither.
    """
    folder = path / "policy" if (path / "policy").is_dir() else path
    if not (folder / "card.json").exists():
        raise ValueError(
            f"--checkpoint-path={path} is no policy; give the run folder, or the policy folder, of "
            "a student (an .onnx or .pth file cannot be trained further)"
        )
    return folder


def check_mode(mode: str, card: PolicyCard) -> None:
    """Check what the user believes that the policy reads, as `proprio-ends-fingertips`.

    Raises:
        ValueError: it reads something else.
    """
    if not mode:
        return
    reads = [f.name for i in card.inputs for f in i.features]
    wanted = [{"ends": "pen_ends", "fingertip": "fingertips"}.get(m, m) for m in mode.split("-")]
    if missing := [name for name in wanted if name not in reads]:
        raise ValueError(
            f"--input-mode={mode}: the policy does not read {missing[0]!r}, it reads "
            f"{', '.join(reads)}; what it reads is on its card, so leave --input-mode out"
        )


def publish(
    out: pathlib.Path,
    result: Result,
    card: PolicyCard,
    *,
    source: pathlib.Path,
    data: Trajectories,
    described: dict[str, Any],
    kind: str = "finetuned",
) -> PolicyCard:
    """Write the run folder of a policy that learned from the robot; return its card.

    source: run folder or policy folder that it was made from.
    data: what it learned from; described: how, for `config.yaml`; kind: what it is, in a word.

    Raises:
        OSError: it cannot be written; there is no policy then.
    """
    folder = policy_folder(source)
    where, text = config_of(folder, read_policy(folder)[2])
    try:
        settings = parse_mapping(text) if text else {"task_name": card.task}
    except ValueError as error:
        raise ValueError(f"{where} is not a run's configuration: {error}") from error
    config = OmegaConf.to_yaml(OmegaConf.create({**settings, kind: described}))
    files = list(data.sha256.items())
    sums = storage.read_manifest(folder)["sha256"]
    score = {
        f"{kind}_from": {
            "policy.safetensors": sums["policy.safetensors"],
            "run": card.run,
            "score": card.score,
        },
        "episodes": {name: digest for name, digest in (files[i] for i in result.train)},
        "validation_episodes": {
            name: digest for name, digest in (files[i] for i in result.validation)
        },
        "validation_loss_before": result.before,
        "validation_loss": result.best,
        "epoch": result.epoch,
    }
    own = dataclasses.replace(
        card,
        run=f"{card.task}/{out.name}/seed{described['seed']}/{kind}",
        score=score,
        versions=versions(),
        weights_sha256="",
    )
    storage.make_folder(out)
    storage.write_file(out / "config.yaml", config.encode())
    storage.write_file(out / "versions.json", json.dumps(versions(), indent=1).encode())
    save_policy(result.policy, own, out / "policy", config)
    return own


def parser() -> Parser:
    """Return the parser of the command."""
    own = Parser("finetune_ppo.sh", description=(__doc__ or "").splitlines()[0])
    base = FinetuneConfig()
    own.option("real-dataset-folder", "folder of episodes", required=True, metavar="DIR")
    own.option("checkpoint-path", "run folder of a student", required=True, metavar="PATH")
    for name, summary in (
        ("real-batch-size", "rows of a gradient step"),
        ("val-ratio", "share of the trajectories to validate on"),
        ("lr", "learning rate"),
        ("num-epochs", "passes over the rows at most"),
        ("weight-decay", "AdamW's"),
        ("eval-freq", "epochs between two validations"),
        ("eval-start-epoch", "first epoch whose weights may be kept"),
        ("patience", "validations without a better one that end it; 0: none do"),
        ("views", "times that every image is seen, augmented but for the first"),
        ("seed", "of the split, the order, dropout and augmentation"),
        ("max-grad-norm", "longest gradient"),
    ):
        default = getattr(base, name.replace("-", "_"))
        own.option(name, summary, type=type(default), default=default)
    own.option("loss", "distance to the label", choices=("l1", "l2"), default=base.loss)
    own.option(
        "input-mode", "refuse a policy that reads anything less, as proprio-ends", default=""
    )
    own.option("from-scratch", "draw the weights anew, frozen encoders aside", action="store_true")
    own.option("all", "learn from failures too", action="store_true")
    own.option("name", "the run lands in OUT/TASK/NAME", default="finetuned")
    own.option("out", "folder of all runs", default="outputs")
    own.option("device", "cpu, cuda:N or auto", default="auto")
    own.option("quiet", "print nothing", action="store_true")
    return own


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        with interrupt.raising():
            return run(parser().parse_args(argv))
    except interrupt.Interrupted as error:
        with contextlib.suppress(OSError):
            print("finetune_ppo.sh: interrupted; there is no policy, start again", file=sys.stderr)
        return 128 + error.number
    except DivergedError as error:
        print(f"finetune_ppo.sh: {error}; a smaller --lr helps", file=sys.stderr)
        return EXIT_DATA
    except storage.DamagedError as error:
        print(f"finetune_ppo.sh: {one_line(error)}", file=sys.stderr)
        return EXIT_DATA
    except (ValueError, OSError) as error:
        print(f"finetune_ppo.sh: {one_line(error)}", file=sys.stderr)
        return EXIT_USAGE


# Parts.


def _student(
    policy: nn.Module, card: PolicyCard, cfg: FinetuneConfig, rng: torch.Generator
) -> Student:
    """Return the student of a distillation with this policy's network and weights."""
    network = dict(card.network)
    kind = network.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(
            f"the policy of {card.task} has a network of the kind {kind!r}: only students can be "
            f"fine-tuned, {' or '.join(map(repr, _KINDS))}; distil one first"
        )
    own: dict[str, Any] = {"temporal": TemporalConfig(**network)} if kind == "temporal" else network
    settings = DistillConfig(network=_KINDS[kind], encoder="", **own)
    weights = torch.Generator().manual_seed(cfg.seed)
    student = make_student(settings, card.inputs, len(card.actions), weights=weights, rng=rng)
    state = policy.state_dict()
    if cfg.from_scratch:
        frozen = getattr(student.policy, "train_encoder", True) is False
        kept = {k: v for k, v in state.items() if frozen and k.startswith("encoders.")}
        state = {**student.policy.state_dict(), **kept}
    student.policy.load_state_dict(state)
    return student


def _require(legal: bool, key: str, value: Any, wanted: str) -> None:
    if not legal:
        raise ValueError(f"--{key.replace('_', '-')}={value}: must be {wanted}")


if __name__ == "__main__":
    sys.exit(main())
