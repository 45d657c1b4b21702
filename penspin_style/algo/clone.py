"""Behaviour cloning: a trained student learns what the robot did, and what was done succeeded.

    penspin train task=TASK algo=clone algo.data=EPISODES algo.init_from=STUDENT

At every step of every trajectory the student learns the action that was sent then, as in its
pre-training (`imitation.py`): same inputs, same dropout, the normalisers of pre-training frozen.
What is shared with other algorithms that learn from recorded episodes stands in `recorded.py`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from penspin_style.algo.algorithm import Interface
from penspin_style.algo.augment import AugmentConfig
from penspin_style.algo.imitation import DistillConfig, Student, TemporalConfig, make_student
from penspin_style.algo.recorded import Recorded, RecordedConfig, opened
from penspin_style.config import TrainConfig, require
from penspin_style.data.dataset import Trajectories, Windows, join
from penspin_style.features import PolicyCard

_KINDS = {"student": "images", "temporal": "temporal"}
"""Network on the card -> that of a distillation."""
_ROWS = 512
"""Rows whose images are encoded at a time."""


@dataclass
class CloneConfig(RecordedConfig):
    """A student is fine-tuned on the robot's episodes; the names of its settings are PenSpin's."""

    name: str = "clone"
    loss: str = "l1"
    """Distance to the label, mean over all numbers: `l1` or `l2`."""
    views: int = 1
    """Times that every image is seen: as it is, and augmented as in pre-training."""
    from_scratch: bool = False
    """Draw the weights anew, but for frozen encoders; normalise by the trajectories."""
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "clone", "algo.name", self.name, "clone")
        super().__post_init__()
        require(self.views >= 1, "algo.views", self.views, "at least 1")
        norm = self.max_grad_norm
        require(0 < norm < float("inf"), "algo.max_grad_norm", norm, "positive and finite")
        require(self.loss in ("l1", "l2"), "algo.loss", self.loss, "l1 or l2")


class Clone(Recorded):
    """A student, its card, and the rows of each trajectory."""

    Config: ClassVar[Any] = CloneConfig
    origin_key: ClassVar[str] = "finetuned_from"

    def __init__(
        self,
        cfg: CloneConfig,
        policy: nn.Module,
        card: PolicyCard,
        data: Trajectories,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        """Split, encode what no training changes, and take the weights.

        Raises:
            ValueError: the policy is no student, or there are too few trajectories to split.
        """
        super().__init__(cfg, card, data, device=device, seed=seed)
        self.student = _student(policy, card, cfg, seed, self.rng)
        self.policy = self.student.policy.to(device)
        train = join([data.rows[i] for i in self.train_ids])
        if cfg.from_scratch and self.policy.normalizer is not None:
            (vector,) = (i.name for i in card.inputs if not i.is_image)
            self.policy.normalizer.update(torch.from_numpy(train.inputs[vector]).to(device))
        self.train = self._rows(train, cfg.views)
        val = [data.rows[i] for i in self.val_ids]
        self.val = self._rows(join(val), 1) if val else None
        self._start(len(self.train), cfg.max_grad_norm, keep=cfg.eval_start_epoch == 0)

    @classmethod
    def make(cls, cfg: TrainConfig, env: Interface, *, device: torch.device, seed: int) -> "Clone":
        """Return the cloning of a run."""
        policy, card, data, made_from = opened(cfg, env, _checked)
        made = cls(cfg.algo, policy, card, data, device=device, seed=seed)
        made.made_from = made_from
        return made

    @torch.no_grad()
    def validate(self) -> float | None:
        """Return the loss on the trajectories that only validate, as the policy acts."""
        if self.val is None:
            return None
        actions = [self.student.act(rows) for rows in self.val.split(_ROWS)]
        return self._distance(torch.cat(actions), self.val["label"]).item()

    def _learn(self) -> dict[str, float]:
        order = torch.randperm(len(self.train), generator=self.rng, device=self.device)
        losses, skipped = [], 0
        for ids in order.split(self.cfg.real_batch_size):
            rows: Any = self.train[ids]
            loss = self._distance(self.student.learn(rows), rows["label"])
            if self._guard.step(loss) is None:
                skipped += 1
            else:
                losses.append(loss.detach() * (len(ids) / len(order)))
        mean = torch.stack(losses).sum().item() if losses else float("nan")
        return {"train/loss": mean, "train/skipped_updates": float(skipped)}

    def _distance(self, action: Tensor, label: Tensor) -> Tensor:
        error = action - label
        return error.abs().mean() if self.cfg.loss == "l1" else error.square().mean()

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
                images.cfg = AugmentConfig.off() if view == 0 else AugmentConfig()
            for rows in raw.split(_ROWS):
                rows = rows.to(self.device)
                rows.update(self.student.see(rows))
                parts.append(rows.select(*self.student.keys, "label"))
        return torch.cat(parts)  # type: ignore[return-value]


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
            f"algo.input_mode={mode}: the policy does not read {missing[0]!r}, it reads "
            f"{', '.join(reads)}; what it reads is on its card, so leave algo.input_mode out"
        )


def _checked(cfg: CloneConfig, card: PolicyCard) -> PolicyCard:
    check_mode(cfg.input_mode, card)
    return card


def _student(
    policy: nn.Module, card: PolicyCard, cfg: CloneConfig, seed: int, rng: torch.Generator
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
    weights = torch.Generator().manual_seed(seed)
    student = make_student(settings, card.inputs, len(card.actions), weights=weights, rng=rng)
    state = policy.state_dict()
    if cfg.from_scratch:
        frozen = getattr(student.policy, "train_encoder", True) is False
        kept = {k: v for k, v in state.items() if frozen and k.startswith("encoders.")}
        state = {**student.policy.state_dict(), **kept}
    student.policy.load_state_dict(state)
    return student


NAME = "clone"
ALGORITHM = Clone
