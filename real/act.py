"""ACT, the baseline: chunks of actions from a conditional variational auto-encoder.

    scripts/train_act.sh --real-dataset-folder=DIR --checkpoint-path=STUDENT [--name=NAME ...]

The network is `penspin_style/nets/act.py`, its sizes and settings are PenSpin's. It is trained from
nothing on the robot's episodes; of the student it takes what the robot measures and commands, and
the frozen encoder of images. It reads the newest value of every feature and answers the next
`num_queries` actions, in the policy's own units; `real.serving.action_chunking` makes one action of
them.

Where PenSpin's differs: labels are the actions that were sent, not targets less measured joints;
chunks begin at any step of a trajectory and not at each 30th; ends that were learned from are read
when it acts, too.
"""

import argparse
import contextlib
import copy
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penspin_style import storage
from penspin_style.algo.algorithm import DivergedError, GuardedOptimizer
from penspin_style.data.dataset import Windows, load
from penspin_style.deploy.torch_policy import TorchPolicy
from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.nets.act import ACT, build
from penspin_style.nets.policy import load_policy, read_policy
from penspin_style.nets.student import StudentPolicy
from penspin_style.system import interrupt
from penspin_style.system.terminal import one_line
from penspin_style.train.logging import CSVLog
from penspin_style.train.run import EXIT_DATA, EXIT_OK, EXIT_USAGE, resolve_device
from real.finetune import HAND, Parser, Result, policy_folder, publish, split


@dataclass(frozen=True)
class ACTConfig:
    """Sizes and settings; names and defaults are PenSpin's."""

    num_queries: int = 30
    """Actions of a chunk."""
    hidden_dim: int = 64
    dim_feedforward: int = 3200
    enc_layers: int = 4
    dec_layers: int = 7
    nheads: int = 8
    latent_dim: int = 32
    dropout: float = 0.1
    kl_weight: float = 20.0
    lr: float = 3e-4
    weight_decay: float = 1e-2
    num_epochs: int = 2000
    real_batch_size: int = 64
    val_ratio: float = 0.1
    eval_freq: int = 100
    """Epochs between two validations; an epoch sees a chunk for every `num_queries` rows."""
    eval_start_epoch: int = 400
    patience: int = 0
    """Validations without a better one after which training stops; 0: never."""
    seed: int = 20230915

    def __post_init__(self) -> None:
        """Refuse invalid values.

        Raises:
            ValueError: names the option and what is legal.
        """
        sizes = ("num_queries", "hidden_dim", "dim_feedforward", "enc_layers", "dec_layers")
        for key in (*sizes, "nheads", "latent_dim", "num_epochs", "real_batch_size", "eval_freq"):
            if getattr(self, key) < 1:
                raise ValueError(f"--{key}={getattr(self, key)}: must be at least 1")
        for key in ("kl_weight", "weight_decay", "eval_start_epoch", "patience", "seed"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ValueError(f"--{key}={getattr(self, key)}: must be at least 0")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"--lr={self.lr}: must be positive and finite")
        if not (0 <= self.dropout < 1 and 0 <= self.val_ratio < 1):
            raise ValueError("--dropout and --val-ratio must be in [0, 1)")
        if self.hidden_dim % self.nheads:
            raise ValueError(f"--hidden_dim={self.hidden_dim}: must be a multiple of {self.nheads}")
        if self.eval_start_epoch > self.num_epochs:
            raise ValueError(f"--eval-start-epoch={self.eval_start_epoch}: beyond --num-epochs")

    @property
    def network(self) -> dict[str, Any]:
        """Return what the network is built from."""
        keys = ("num_queries", "hidden_dim", "dim_feedforward", "enc_layers", "dec_layers")
        return {k: getattr(self, k) for k in (*keys, "nheads", "latent_dim", "dropout")}


# Training.


def act_inputs(card: PolicyCard, mode: str = "") -> tuple[Input, ...]:
    """Return what ACT reads: the newest value of a student's features, and its images.

    mode: the features, as `joint_pos-obj_ends`; empty for all.

    Raises:
        ValueError: the student reads no such feature.
    """
    vectors = [f for i in card.inputs if not i.is_image for f in i.features]
    known = {f.name: f for f in vectors}
    chosen = mode.split("-") if mode else list(known)
    for name in chosen:
        if name not in known:
            raise ValueError(f"--input-mode={mode}: no {name!r}, the student reads {list(known)}")
    now = tuple(_now(known[name]) for name in chosen)
    return (*([Input("numbers", now)] if now else []), *(i for i in card.inputs if i.is_image))


class Trainer:
    """One training: the network, and chunks of every trajectory."""

    def __init__(
        self,
        inputs: Sequence[Input],
        eyes: StudentPolicy | None,
        trajectories: list[Windows],
        cfg: ACTConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        """Split, and encode every image once.

        Raises:
            ValueError: too few trajectories to split.
        """
        self.cfg, self.device = cfg, torch.device(device)
        self.rng = torch.Generator(self.device).manual_seed(cfg.seed)
        self.train_ids, self.val_ids = split(len(trajectories), cfg.val_ratio, cfg.seed)
        naction = trajectories[0].labels.shape[1]
        weights = torch.Generator().manual_seed(cfg.seed)
        self.policy = ACT(inputs, naction, eyes=eyes, rng=weights, **cfg.network).to(self.device)
        self.train = self._chunks([trajectories[i] for i in self.train_ids])
        self.val = self._chunks([trajectories[i] for i in self.val_ids]) if self.val_ids else None
        numbers = self.train.numbers
        if self.policy.normalizer is not None and numbers is not None:
            self.policy.normalizer.update(numbers)
        learned = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=cfg.lr, weight_decay=cfg.weight_decay)
        self._guard = GuardedOptimizer(self.optimizer, (self.policy,), 10.0)

    def fit(self, log: Callable[[dict[str, float]], None] | None = None) -> Result:
        """Train; return the network with the weights that act best on the validation trajectories.

        Raises:
            DivergedError: losses or gradients are not finite.
        """
        cfg, kept, best, epoch, since = self.cfg, None, None, 0, 0
        before = self.validate()
        for done in range(1, cfg.num_epochs + 1):
            row = self._epoch()
            if done % cfg.eval_freq and done < cfg.num_epochs:
                continue
            value = self.validate()
            if log:
                log({"epoch": float(done), **row, **({} if value is None else {"val/loss": value})})
            if done < cfg.eval_start_epoch:
                continue
            since += 1
            if value is None or best is None or value < best:
                kept, best, epoch, since = copy.deepcopy(self.policy.state_dict()), value, done, 0
            if cfg.patience and since >= cfg.patience:
                break
        assert kept is not None
        self.policy.load_state_dict(kept)
        return Result(self.policy.eval(), before, best, epoch, self.train_ids, self.val_ids)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Return the mean distance of what it would do from what was done; None of nothing."""
        if self.val is None:
            return None
        total = torch.zeros(2, device=self.device)
        for ids in torch.arange(len(self.val.label), device=self.device).split(256):
            rows = self.val.rows(ids)
            chunk = self.policy(rows.numbers, rows.seen)[0].clamp(-1.0, 1.0)
            there = (~rows.padded)[..., None].expand_as(chunk)
            total += torch.stack(((chunk - rows.label).abs()[there].sum(), there.sum()))
        return (total[0] / total[1]).item()

    def _epoch(self) -> dict[str, float]:
        """Learn from as many chunks as the trajectories hold without overlap, begun anywhere."""
        count, size = len(self.train.label), self.cfg.real_batch_size
        order = torch.randperm(count, generator=self.rng, device=self.device)
        losses = []
        for ids in order[: max(1, count // self.cfg.num_queries)].split(size):
            rows = self.train.rows(ids)
            chunk, kl = self.policy(rows.numbers, rows.seen, rows.label, rows.padded, self.rng)
            there = (~rows.padded)[..., None].expand_as(chunk)
            distance, kl = (chunk - rows.label).abs()[there].mean(), kl.mean()
            if self._guard.step(distance + self.cfg.kl_weight * kl) is not None:
                losses.append(torch.stack((distance, kl)).detach())
        mean = torch.stack(losses).mean(dim=0).tolist() if losses else [float("nan")] * 2
        return {"train/l1": mean[0], "train/kl": mean[1]}

    @torch.no_grad()
    def _chunks(self, trajectories: list[Windows]) -> "_Chunks":
        parts = []
        for rows in trajectories:
            n, horizon = len(rows), self.cfg.num_queries
            at = np.arange(n)[:, None] + np.arange(horizon)
            label = torch.from_numpy(rows.labels[at.clip(max=n - 1)]).to(self.device)
            padded = torch.from_numpy(at >= n).to(self.device)
            given = {k: torch.from_numpy(v).to(self.device) for k, v in rows.inputs.items()}
            numbers, seen = self.policy.look(given)
            parts.append(_Chunks(numbers, seen, label.masked_fill(padded[..., None], 0.0), padded))
        return _Chunks.join(parts)


@dataclass(frozen=True)
class _Chunks:
    """What is seen at each step, and the actions from there on."""

    numbers: Tensor | None
    seen: dict[str, Tensor]
    label: Tensor
    """(n, horizon, naction), 0 where padded."""
    padded: Tensor
    """(n, horizon) bool."""

    def rows(self, ids: Tensor) -> "_Chunks":
        numbers = None if self.numbers is None else self.numbers[ids]
        seen = {name: value[ids] for name, value in self.seen.items()}
        return _Chunks(numbers, seen, self.label[ids], self.padded[ids])

    @staticmethod
    def join(parts: Sequence["_Chunks"]) -> "_Chunks":
        numbers = [p.numbers for p in parts if p.numbers is not None]
        return _Chunks(
            torch.cat(numbers) if numbers else None,
            {name: torch.cat([p.seen[name] for p in parts]) for name in parts[0].seen},
            torch.cat([p.label for p in parts]),
            torch.cat([p.padded for p in parts]),
        )


def _now(feature: Feature) -> Feature:
    return dataclasses.replace(feature, history=1, delay=0)


# Acting.


def load_act(path: pathlib.Path) -> TorchPolicy:
    """Return the ACT of a run folder or policy folder, on the CPU.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = path / "policy" if (path / "policy").is_dir() else path
    card, weights, _ = read_policy(folder)
    if card.network.get("kind") != "act":
        raise ValueError(f"{path} is a policy of the kind {card.network.get('kind')!r}, no ACT")
    try:
        network = build(card)
        network.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: card and weights do not fit: {error!r}") from error
    return TorchPolicy(network, card)


# The command.


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say; publish the run folder.

    Raises:
        ValueError, OSError: the arguments, the student or the episodes cannot be used.
        DivergedError: losses or gradients are not finite.
    """
    cfg = ACTConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ACTConfig)})
    device = resolve_device(args.device)
    source = pathlib.Path(args.checkpoint_path)
    student, card = load_policy(policy_folder(source))
    out = pathlib.Path(args.out) / card.task / args.name
    if (out / "policy").exists():
        raise ValueError(f"{out} holds a run already; --name=OTHER starts another")
    own = dataclasses.replace(card, inputs=act_inputs(card, args.input_mode))
    data = load(pathlib.Path(args.real_dataset_folder), own, failures=args.all, hand=HAND)
    trainer = Trainer(own.inputs, eyes_of(student), data.rows, cfg, device)
    storage.make_folder(out)
    (out / "metrics.csv").unlink(missing_ok=True)
    log = CSVLog(out / "metrics.csv")

    def note(row: dict[str, float]) -> None:
        log.write(row)
        if not args.quiet:
            text = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
            print(text, file=sys.stderr, flush=True)

    result = trainer.fit(note)
    own = dataclasses.replace(own, network=trainer.policy.describe())
    paths = {k: str(getattr(args, k)) for k in ("real_dataset_folder", "checkpoint_path")}
    described = paths | {"all": args.all, **dataclasses.asdict(cfg)}
    publish(out, result, own, source=source, data=data, described=described, kind="act")
    if not args.quiet:
        print(f"{len(data.rows)} trajectories; policy in {out / 'policy'}", file=sys.stderr)
    return EXIT_OK


def eyes_of(student: Any) -> StudentPolicy | None:
    """Return the student if it sees images, to encode them; else None."""
    return student if getattr(student, "frozen", ()) else None


def parser() -> Parser:
    """Return the parser of the command."""
    own = Parser("train_act.sh", description=(__doc__ or "").splitlines()[0])
    own.option("real-dataset-folder", "folder of episodes", required=True, metavar="DIR")
    own.option("checkpoint-path", "run folder of a student", required=True, metavar="PATH")
    for field in dataclasses.fields(ACTConfig):
        name = field.name.replace("_", "-")
        own.option(
            name, f"ACT's {name.replace('-', ' ')}", type=type(field.default), default=field.default
        )
    own.option("input-mode", "features to read, as joint_pos-obj_ends", default="")
    own.option("all", "learn from failures too", action="store_true")
    own.option("name", "the run lands in OUT/TASK/NAME", default="act")
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
            print("train_act.sh: interrupted; there is no policy, start again", file=sys.stderr)
        return 128 + error.number
    except DivergedError as error:
        print(f"train_act.sh: {error}; a smaller --lr helps", file=sys.stderr)
        return EXIT_DATA
    except storage.DamagedError as error:
        print(f"train_act.sh: {one_line(error)}", file=sys.stderr)
        return EXIT_DATA
    except (ValueError, OSError) as error:
        print(f"train_act.sh: {one_line(error)}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
