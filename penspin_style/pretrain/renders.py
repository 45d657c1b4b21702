"""Pre-train the image encoder on a task's own renders: read off an image what only physics knows.

From each colour image of a recording (`penspin record`), `NatureCNN(pool=False)` and a linear
layer per camera regress the privileged vector that was recorded beside it, standardised. Every
twentieth shard is kept out of training, to validate on.
"""

import math
import pathlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penspin_style import __version__
from penspin_style.config import require
from penspin_style.data.rollouts import Rollouts
from penspin_style.nets.encoder import MEAN, STD, NatureCNN, save_encoder

HELD_OUT = 20
"""One shard in so many validates only."""


@dataclass(frozen=True)
class RendersConfig:
    """The recipe."""

    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = 1e-3
    privileged: str = "teacher"
    """The recorded vector that is to be guessed."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("epochs", "batch_size"):
            require(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        rate = self.learning_rate
        require(0 < rate < math.inf, "learning_rate", rate, "finite and > 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in 0 .. 2**63 - 1")


def pretrain_on_renders(
    recording: pathlib.Path,
    out: pathlib.Path,
    cfg: RendersConfig,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train an encoder and publish it with its card; return the card.

    on_epoch: gets epoch, epochs, loss, test/explained (share of the variance of the privileged
        numbers on images kept out of training) and seconds.

    Raises:
        FileExistsError: out is there already.
        ValueError: the recording lacks colour images of one size, the privileged vector, or rows
            to validate on.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; remove it or choose another folder")
    rollouts = Rollouts(recording)
    cameras, height, width = _cameras(rollouts, cfg)
    began = time.perf_counter()
    rng = torch.Generator().manual_seed(cfg.seed)
    tested = [i for i in range(rollouts.shards) if i % HELD_OUT == HELD_OUT - 1]
    taught = [i for i in range(rollouts.shards) if i not in tested]
    if not tested:
        raise ValueError(
            f"{recording} has {rollouts.shards} shards, {HELD_OUT} or more are needed to validate; "
            "record more episodes"
        )
    train, test = (_load(rollouts, ids, cameras, cfg.privileged) for ids in (taught, tested))
    if len(test[1]) < 2:
        raise ValueError(f"{recording} keeps one test row, which does not vary; record more")
    mean, std = train[1].mean(dim=0), train[1].std(dim=0).clamp(min=1e-6)
    encoder = NatureCNN(height, width, pool=False, rng=rng)
    size = train[1].shape[1]
    heads = nn.ModuleList(nn.Linear(encoder.out_features, size) for _ in cameras)
    for head in heads:
        nn.init.normal_(head.weight, std=0.01, generator=rng)  # type: ignore[arg-type]
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.learning_rate)
    steps = cfg.epochs * len(cameras) * -(-len(train[1]) // cfg.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 0.5 + 0.5 * math.cos(math.pi * min(1.0, i / steps))
    )
    explained = 0.0
    for epoch in range(1, cfg.epochs + 1):
        losses = []
        for ids in torch.randperm(len(train[1]), generator=rng).split(cfg.batch_size):
            goal = (train[1][ids] - mean) / std
            for images, head in zip(train[0], heads, strict=True):
                guess = head(encoder(images[ids].float() / 255.0))
                loss = (guess - goal).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
        explained = _explained(encoder, heads, test, mean, std)
        if on_epoch:
            row = {"epoch": epoch, "epochs": cfg.epochs, "loss": torch.stack(losses).mean().item()}
            seconds = time.perf_counter() - began
            on_epoch({**row, "test/explained": explained, "seconds": seconds})
    card = {
        "kind": "nature_cnn",
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "mean": list(MEAN),
        "std": list(STD),
        "data": rollouts.facts,
        "cameras": cameras,
        "explained_variance": explained,
        "train_rows": len(train[1]),
        "test_rows": len(test[1]),
        "seconds": round(time.perf_counter() - began, 1),
        "seed": cfg.seed,
        "recipe": asdict(cfg),
        "versions": {"penspin_style": __version__, "torch": torch.__version__},
    }
    save_encoder(encoder, card, out)
    return card


def _cameras(rollouts: Rollouts, cfg: RendersConfig) -> tuple[list[str], int, int]:
    """Return the names of the colour images, and their height and width."""
    found = {i.name: i.features[0].shape for i in rollouts.inputs if i.tensor[0] == "uint8"}
    names = [i.name for i in rollouts.inputs]
    if not found or len(set(found.values())) > 1:
        raise ValueError(
            f"{rollouts.folder} must hold colour images of one size, it holds "
            f"{found or ', '.join(names)}"
        )
    if cfg.privileged not in names or cfg.privileged in found:
        raise ValueError(f"{rollouts.folder} holds no vector {cfg.privileged!r}, only {names}")
    height, width, _ = next(iter(found.values()))
    return sorted(found), height, width


def _load(
    rollouts: Rollouts, shards: list[int], cameras: list[str], privileged: str
) -> tuple[list[Tensor], Tensor]:
    """Return each camera's images (n, 3, height, width) uint8, and the vectors (n, size)."""
    rows = [rollouts.shard(i) for i in shards]
    images = [torch.cat([r[name] for r in rows]).permute(0, 3, 1, 2) for name in cameras]
    return [p.contiguous() for p in images], torch.cat([r[privileged] for r in rows])


@torch.no_grad()
def _explained(
    encoder: NatureCNN,
    heads: nn.ModuleList,
    test: tuple[list[Tensor], Tensor],
    mean: Tensor,
    std: Tensor,
) -> float:
    """Return 1 - mean squared error / variance, over cameras and numbers."""
    goal = (test[1] - mean) / std
    errors = []
    for images, head in zip(test[0], heads, strict=True):
        guess = torch.cat([head(encoder(p.float() / 255.0)) for p in images.split(1000)])
        errors.append((guess - goal).square().mean())
    return 1.0 - (torch.stack(errors).mean() / goal.var(dim=0).mean()).item()
