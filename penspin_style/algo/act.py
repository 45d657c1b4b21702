"""ACT, a baseline: chunks of actions from a conditional variational auto-encoder.

    penspin train task=TASK algo=act algo.data=EPISODES algo.init_from=STUDENT

The network is `nets/act.py`, its sizes and settings are PenSpin's. It is trained from nothing on
the robot's episodes; of the student it takes what the robot measures and commands, and the frozen
encoder of images. It reads the newest value of every feature and answers the next `num_queries`
actions, in the policy's own units; `real.serving.action_chunking` makes one action of them.

Where PenSpin's differs: labels are the actions that were sent, not targets less measured joints;
chunks begin at any step of a trajectory and not at each 30th; ends that were learned from are read
when it acts, too. Best are the weights that act best on what only validates.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from penspin_style.algo.algorithm import Interface
from penspin_style.algo.chunks import Chunks, chunk_card, distance, eyes_of
from penspin_style.algo.recorded import Recorded, RecordedConfig, opened
from penspin_style.config import TrainConfig, require
from penspin_style.data.dataset import Trajectories
from penspin_style.features import PolicyCard
from penspin_style.nets import act as network
from penspin_style.nets.student import StudentPolicy

_SIZES = ("num_queries", "hidden_dim", "dim_feedforward", "enc_layers", "dec_layers")


@dataclass
class ACTConfig(RecordedConfig):
    """ACT learns from the robot's episodes; names and defaults are PenSpin's."""

    name: str = "act"
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
    eval_freq: int = 100
    """Epochs between two validations; an epoch sees a chunk for every `num_queries` rows."""
    eval_start_epoch: int = 400
    patience: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "act", "algo.name", self.name, "act")
        super().__post_init__()
        for key in (*_SIZES, "nheads", "latent_dim"):
            require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), "at least 1")
        legal = 0 <= self.kl_weight < float("inf")
        require(legal, "algo.kl_weight", self.kl_weight, "at least 0 and finite")
        require(0 <= self.dropout < 1, "algo.dropout", self.dropout, "in [0, 1)")
        legal = self.hidden_dim % self.nheads == 0
        require(legal, "algo.hidden_dim", self.hidden_dim, f"a multiple of {self.nheads}")

    @property
    def network(self) -> dict[str, Any]:
        """Return what the network is built from."""
        return {k: getattr(self, k) for k in (*_SIZES, "nheads", "latent_dim", "dropout")}


class ACT(Recorded):
    """The network, and chunks of every trajectory."""

    Config: ClassVar[Any] = ACTConfig
    origin_key: ClassVar[str] = "act_from"

    def __init__(
        self,
        cfg: ACTConfig,
        eyes: StudentPolicy | None,
        card: PolicyCard,
        data: Trajectories,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        """Split, and encode every image once.

        eyes: encodes the images; None where there are none. card: of what `act_card` returned.

        Raises:
            ValueError: too few trajectories to split, or images that nothing encodes.
        """
        super().__init__(cfg, card, data, device=device, seed=seed)
        weights = torch.Generator().manual_seed(seed)
        naction = data.rows[0].labels.shape[1]
        made = network.ACT(card.inputs, naction, eyes=eyes, rng=weights, **cfg.network)
        self.policy = made.to(device)
        self.train = self._chunks(self.train_ids)
        self.val = self._chunks(self.val_ids) if self.val_ids else None
        numbers = self.train.numbers
        if self.policy.normalizer is not None and numbers is not None:
            self.policy.normalizer.update(numbers)
        self._start(max(1, len(self.train.label) // cfg.num_queries), 10.0, keep=False)

    @classmethod
    def make(cls, cfg: TrainConfig, env: Interface, *, device: torch.device, seed: int) -> "ACT":
        """Return the ACT of a run."""
        student, card, data, made_from = opened(cfg, env, act_card)
        made = cls(cfg.algo, eyes_of(student), card, data, device=device, seed=seed)
        made.made_from = made_from
        return made

    def validate(self) -> float | None:
        """Return the mean distance of what it would do from what was done."""
        if self.val is None:
            return None
        return distance(self.val, lambda rows: self.policy(rows.numbers, rows.seen)[0].clamp(-1, 1))

    def _learn(self) -> dict[str, float]:
        """Learn from as many chunks as the trajectories hold without overlap, begun anywhere."""
        count = len(self.train.label)
        order = torch.randperm(count, generator=self.rng, device=self.device)
        losses, skipped = [], 0
        for ids in order[: self.horizon].split(self.cfg.real_batch_size):
            rows = self.train.rows(ids)
            chunk, kl = self.policy(rows.numbers, rows.seen, rows.label, rows.padded, self.rng)
            there = (~rows.padded)[..., None].expand_as(chunk)
            off, kl = (chunk - rows.label).abs()[there].mean(), kl.mean()
            if self._guard.step(off + self.cfg.kl_weight * kl) is None:
                skipped += 1
            else:
                losses.append(torch.stack((off, kl)).detach())
        mean = torch.stack(losses).mean(dim=0).tolist() if losses else [float("nan")] * 2
        return {"train/l1": mean[0], "train/kl": mean[1], "train/skipped_updates": float(skipped)}

    def _chunks(self, ids: Sequence[int]) -> Chunks:
        trajectories = [self.data.rows[i] for i in ids]
        found = Chunks.of(trajectories, self.cfg.num_queries, self.policy.look, self.device)
        label = found.label.masked_fill(found.padded[..., None], 0.0)
        return dataclasses.replace(found, label=label)


def act_card(cfg: ACTConfig, card: PolicyCard) -> PolicyCard:
    """Return a student's card with what ACT reads instead: see `chunk_inputs`."""
    return chunk_card(card, cfg.input_mode)


NAME = "act"
ALGORITHM = ACT
