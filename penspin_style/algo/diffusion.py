"""Diffusion policy: chunks of actions by denoising, learned from recorded episodes.

    penspin train task=TASK algo=diffusion algo.data=EPISODES algo.init_from=STUDENT

The network is `nets/diffusion.py`. As with ACT it is trained from nothing; of the student it takes
what the robot measures and commands, and the frozen encoder of images. Published are the weights'
moving averages, those that act best on what only validates. Unlike ACT's, its policy is one that
`penspin eval`, `play` and `export` take.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from penspin_style.algo.algorithm import Interface
from penspin_style.algo.chunks import Chunks, chunk_card, distance, eyes_of
from penspin_style.algo.recorded import Recorded, RecordedConfig, opened
from penspin_style.config import TrainConfig, require
from penspin_style.data.dataset import Trajectories
from penspin_style.features import PolicyCard
from penspin_style.nets.diffusion import PREDICTS, DiffusionPolicy
from penspin_style.nets.student import StudentPolicy

_SIZES = ("num_queries", "hidden_dim", "blocks", "levels", "steps")


@dataclass
class DiffusionConfig(RecordedConfig):
    """A diffusion policy learns from the robot's episodes."""

    name: str = "diffusion"
    num_queries: int = 8
    """Actions of a chunk."""
    hidden_dim: int = 256
    blocks: int = 3
    levels: int = 100
    """Levels of noise in training."""
    steps: int = 10
    """Of denoising, when it acts."""
    predicts: str = "sample"
    """What the network answers: the chunk itself, `sample`, or the `noise` in it."""
    average: float = 0.995
    """Share of the averaged weights that an update leaves as they are, at most."""
    lr: float = 3e-4
    weight_decay: float = 1e-6
    num_epochs: int = 300
    real_batch_size: int = 256
    eval_freq: int = 20
    patience: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "diffusion", "algo.name", self.name, "diffusion")
        super().__post_init__()
        for key in _SIZES:
            require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), "at least 1")
        require(self.steps <= self.levels, "algo.steps", self.steps, f"at most {self.levels}")
        require(self.predicts in PREDICTS, "algo.predicts", self.predicts, " or ".join(PREDICTS))
        require(0 <= self.average < 1, "algo.average", self.average, "in [0, 1)")


class Diffusion(Recorded):
    """The network that learns, its moving average that acts, and chunks of every trajectory."""

    Config: ClassVar[Any] = DiffusionConfig
    origin_key: ClassVar[str] = "diffusion_from"

    def __init__(
        self,
        cfg: DiffusionConfig,
        eyes: StudentPolicy | None,
        card: PolicyCard,
        data: Trajectories,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        """Split, and encode every image once.

        eyes: encodes the images; None where there are none. card: of what `chunk_card` returned.

        Raises:
            ValueError: too few trajectories to split, or images that nothing encodes.
        """
        super().__init__(cfg, card, data, device=device, seed=seed)
        weights = torch.Generator().manual_seed(seed)
        sizes = {key: getattr(cfg, key) for key in (*_SIZES, "predicts")}
        made = DiffusionPolicy(card.inputs, len(card.actions), eyes=eyes, rng=weights, **sizes)
        self.policy = made.to(device)
        self.train = self._chunks(self.train_ids)
        self.val = self._chunks(self.val_ids) if self.val_ids else None
        if made.normalizer is not None and self.train.numbers is not None:
            made.normalizer.update(self.train.numbers)
        self.averaged = copy.deepcopy(self.policy)
        self.updates = 0
        self._start(len(self.train), 1.0, keep=False)

    @classmethod
    def make(
        cls, cfg: TrainConfig, env: Interface, *, device: torch.device, seed: int
    ) -> "Diffusion":
        """Return the training of a run."""
        student, card, data, made_from = opened(
            cfg, env, lambda algo, card: chunk_card(card, algo.input_mode)
        )
        made = cls(cfg.algo, eyes_of(student), card, data, device=device, seed=seed)
        made.made_from = made_from
        return made

    def validate(self) -> float | None:
        """Return the mean distance of what the averaged weights would do from what was done."""
        if self.val is None:
            return None
        return distance(self.val, lambda rows: self.averaged.denoise(rows.numbers, rows.seen))

    def _learn(self) -> dict[str, float]:
        order = torch.randperm(len(self.train), generator=self.rng, device=self.device)
        losses, skipped = [], 0
        for ids in order.split(self.cfg.real_batch_size):
            rows = self.train.rows(ids)
            loss = self.policy(rows.numbers, rows.seen, rows.label, self.rng).mean()
            if self._guard.step(loss) is None:
                skipped += 1
                continue
            losses.append(loss.detach() * (len(ids) / len(order)))
            self._average()
        mean = torch.stack(losses).sum().item() if losses else float("nan")
        return {"train/loss": mean, "train/skipped_updates": float(skipped)}

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the present ones; early on, by more."""
        self.updates += 1
        keep = min(self.cfg.average, self.updates / (self.updates + 10.0))
        for mean, now in zip(self.averaged.parameters(), self.policy.parameters(), strict=True):
            if now.requires_grad:
                mean.lerp_(now, 1.0 - keep)

    def _keep(self, value: float | None) -> None:
        super()._keep(value)
        self._kept = copy.deepcopy(self.averaged.state_dict())

    def _chunks(self, ids: list[int]) -> Chunks:
        trajectories = [self.data.rows[i] for i in ids]
        return Chunks.of(trajectories, self.cfg.num_queries, self.policy.look, self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return what `Recorded` does, and the averaged weights."""
        averaged: dict[str, Tensor] = self.averaged.state_dict()
        return {**super().state_dict(), "averaged": averaged, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: episodes or policy are not those that it began with.
        """
        super().load_state_dict(state)
        self.averaged.load_state_dict(state["averaged"])
        self.updates = int(state["updates"])


NAME = "diffusion"
ALGORITHM = Diffusion
