"""What algorithms share that learn from recorded episodes alone: epochs, a split, the best weights.

An iteration of the run is an epoch, its samples are the rows that were learned from. Nothing is
simulated: what the policy reads and commands stands on the card of the policy that `algo.init_from`
names, and the loss on trajectories that are never learned from tells which weights are best.
"""

import abc
import copy
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from penspin_style import storage
from penspin_style.algo.algorithm import GuardedOptimizer, Interface
from penspin_style.config import TrainConfig, require
from penspin_style.data.dataset import Trajectories, load
from penspin_style.data.formats.penspin import Hand
from penspin_style.features import PolicyCard
from penspin_style.nets.policy import load_policy, policy_folder


@dataclasses.dataclass
class RecordedConfig:
    """What such an algorithm can be told; the names of its settings are PenSpin's."""

    name: str = ""
    init_from: str = ""
    """Run folder, or policy folder, of the student to begin with, or whose inputs are read."""
    data: str = ""
    """Folder of episodes, or PenSpin's `real_data.h5`."""
    hand: str = "allegro"
    """Whose joints PenSpin's file holds, a folder of `tasks/robots`."""
    failures: bool = False
    """Learn from unsuccessful episodes too."""
    input_mode: str = ""
    """What the student must read, or what is read of it, as `proprio-ends`; empty for any."""
    real_batch_size: int = 512
    """Rows of a gradient step; all there are if there are fewer."""
    val_ratio: float = 0.1
    """Share of the trajectories that only validate; one at least, unless 0."""
    lr: float = 1e-4
    weight_decay: float = 0.0
    num_epochs: int = 1000
    eval_freq: int = 10
    """Epochs between two validations."""
    eval_start_epoch: int = 0
    """The first epoch after which weights may be kept."""
    patience: int = 20
    """Validations without a better one after which training stops; 0: never."""

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("real_batch_size", "num_epochs", "eval_freq"):
            require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), "at least 1")
        for key in ("patience", "eval_start_epoch"):
            require(getattr(self, key) >= 0, f"algo.{key}", getattr(self, key), "at least 0")
        legal = 0 <= self.weight_decay < float("inf")
        require(legal, "algo.weight_decay", self.weight_decay, "at least 0 and finite")
        require(0 < self.lr < float("inf"), "algo.lr", self.lr, "positive and finite")
        require(0 <= self.val_ratio < 1, "algo.val_ratio", self.val_ratio, "in [0, 1)")
        legal = self.eval_start_epoch <= self.num_epochs
        most = f"at most {self.num_epochs}, algo.num_epochs"
        require(legal, "algo.eval_start_epoch", self.eval_start_epoch, most)


class Recorded(abc.ABC):
    """An `Algorithm` that collects nothing and needs no environment.

    A subclass makes `policy`, draws all that it draws from `rng`, and ends its constructor with
    `_start`. Its `Config` is a `RecordedConfig`.
    """

    Config: ClassVar[Any]
    origin_key: ClassVar[str]
    """What the card calls the policy that this one was made from."""
    collects = False
    policy: Any

    def __init__(
        self, cfg: Any, card: PolicyCard, data: Trajectories, *, device: torch.device, seed: int
    ) -> None:
        """Split the trajectories.

        card: of the policy to come; its network is described when it is published.

        Raises:
            ValueError: there are too few to split.
        """
        self.cfg, self.card, self.data, self.device = cfg, card, data, device
        self.made_from: dict[str, Any] = {}
        """Weights, run and score of the policy of `init_from`, for the card."""
        self.rng = torch.Generator(device).manual_seed(seed)
        self.train_ids, self.val_ids = split(len(data.rows), cfg.val_ratio, seed)
        self.epoch = self.best_epoch = self._since = 0
        self.before: float | None = None
        """Validation loss of the weights it began with; None without validation."""
        self.best: float | None = None
        self._kept: dict[str, Tensor] = {}

    def _start(self, horizon: int, max_grad_norm: float, *, keep: bool) -> None:
        """Begin to learn what of `policy` can be.

        horizon: rows of an epoch. keep: whether the weights it begins with may turn out best.
        """
        self.horizon = horizon
        learned = [p for p in self.policy.parameters() if p.requires_grad]
        cfg = self.cfg
        self.optimizer = torch.optim.AdamW(learned, lr=cfg.lr, weight_decay=cfg.weight_decay)
        self._guard = GuardedOptimizer(self.optimizer, (self.policy,), max_grad_norm)
        self.before = self.validate()
        if keep:
            self._keep(self.before)

    @abc.abstractmethod
    def validate(self) -> float | None:
        """Return the loss on the trajectories that only validate; None if there are none."""

    @abc.abstractmethod
    def _learn(self) -> dict[str, float]:
        """Pass once over the rows; return metrics under `train/`, NaN if all steps were skipped."""

    # What a run asks for.

    @classmethod
    def untrained(cls, cfg: Any, env: Interface) -> nn.Module:
        """Refuse: what the network is stands on a card that the configuration alone does not hold.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"a run of algo={cfg.name} has no policy before it is finished; resume=true goes on"
        )

    @classmethod
    def env_settings(cls, cfg: Any, *, training: bool) -> None:
        """Return None: no environment is needed."""
        return None

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The policy's."""
        return (self.optimizer,)

    @property
    def total_samples(self) -> int:
        """Rows of all epochs."""
        return self.horizon * self.cfg.num_epochs

    @property
    def finished(self) -> bool:
        """Whether all epochs are over, or too many validations were without a better one."""
        patience = self.cfg.patience
        return self.epoch >= self.cfg.num_epochs or bool(patience and self._since >= patience)

    def about(self) -> str:
        """Return for people what there is to learn from."""
        data = self.data
        return (
            f"{len(data.rows)} trajectories, {data.left_out} failures left out: "
            f"{len(self.train_ids)} to learn from ({self.horizon} rows an epoch), "
            f"{len(self.val_ids)} to validate on; {data.beyond} numbers clipped"
        )

    def act(self, td: TensorDict) -> TensorDict:
        """Refuse: nothing is collected."""
        raise NotImplementedError(f"{type(self).__name__} learns from recorded episodes")

    def process(self, batch: TensorDict | None) -> None:
        """Do nothing: what there is to learn from has been read."""
        del batch

    def update(self) -> dict[str, float]:
        """Learn for an epoch; validate after every `eval_freq` and the last, keep what is best.

        Raises:
            DivergedError: losses or gradients are not finite.
        """
        cfg = self.cfg
        row = {**self._learn(), "train/lr": self.optimizer.param_groups[0]["lr"]}
        self.epoch += 1
        if self.epoch % cfg.eval_freq and self.epoch < cfg.num_epochs:
            return row
        value = self.validate()
        if self.epoch >= cfg.eval_start_epoch:
            self._since += 1
            if not self._kept or value is None or self.best is None or value < self.best:
                self._keep(value)
        return row if value is None else {**row, "val/loss": value}

    def result(self, run: str, versions: dict[str, str]) -> tuple[PolicyCard, str]:
        """Give the policy the best weights; return its card, and for people how good they are.

        run: what the card calls the run.
        """
        self.policy.load_state_dict(self._kept)
        self.policy.eval()
        card = dataclasses.replace(
            self.card,
            run=run,
            network=self.policy.describe(),
            score={
                self.origin_key: self.made_from,
                **self._episodes(),
                "validation_loss_before": self.before,
                "validation_loss": self.best,
                "epoch": self.best_epoch,
            },
            versions=versions,
            weights_sha256="",
        )
        if self.before is None:
            return card, "no validation: the last weights"
        after = f"{self.best:.4f} after epoch {self.best_epoch}"
        return card, f"validation loss {self.before:.4f} before, {after}"

    def _keep(self, value: float | None) -> None:
        self._kept = copy.deepcopy(self.policy.state_dict())
        self.best, self.best_epoch, self._since = value, self.epoch, 0

    def _episodes(self) -> dict[str, dict[str, str]]:
        """Return the files that were learned from and that only validate, with their checksums."""
        files = list(self.data.sha256.items())
        return {
            "episodes": dict(files[i] for i in self.train_ids),
            "validation_episodes": dict(files[i] for i in self.val_ids),
        }

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return weights, the best ones, optimiser, generator, counters, and what was read."""
        return {
            "policy": self.policy.state_dict(),
            "kept": self._kept,
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "skipped_in_a_row": self._guard.skipped_in_a_row,
            "progress": [self.epoch, self.best_epoch, self._since, self.before, self.best],
            "read": self._read(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: episodes or policy are not those that it began with.
        """
        if state["read"] != self._read():
            raise ValueError(f"other episodes in {self.cfg.data}, or another policy to begin from")
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self._guard.skipped_in_a_row = int(state["skipped_in_a_row"])
        self._kept = {name: value.to(self.device) for name, value in state["kept"].items()}
        self.epoch, self.best_epoch, self._since, self.before, self.best = state["progress"]

    def _read(self) -> dict[str, Any]:
        return {**self._episodes(), "weights": self.made_from.get("policy.safetensors", "")}


def split(count: int, ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the trajectories to learn from and those to validate on, whole ones, both sorted.

    Raises:
        ValueError: none would be left to learn from.
    """
    validating = max(1, round(ratio * count)) if ratio else 0
    if count - validating < 1:
        raise ValueError(
            f"{count} trajectories cannot be split: with algo.val_ratio={ratio:g} {validating} "
            "would only validate; collect more, or use algo.val_ratio=0"
        )
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[validating:]), sorted(order[:validating])


def origin(folder: pathlib.Path, card: PolicyCard) -> dict[str, Any]:
    """Return `Recorded.made_from` of a policy folder and its card."""
    weights = "policy.safetensors"
    digest = storage.read_manifest(folder)["sha256"][weights]
    return {weights: digest, "run": card.run, "score": card.score}


def opened(
    cfg: TrainConfig, env: Interface, own: Callable[[Any, PolicyCard], PolicyCard]
) -> tuple[Any, PolicyCard, Trajectories, dict[str, Any]]:
    """Open the policy of `algo.init_from` and the episodes of `algo.data`.

    own: from the algorithm's config and that policy's card to the card that the episodes are read
    for.

    Returns:
        The policy, the card that `own` returned, the episodes, and `Recorded.made_from`.

    Raises:
        ValueError, EpisodeError: either is missing, damaged, or does not fit the other.
    """
    algo = cfg.algo
    for key, what in (("init_from", "the folder of a student"), ("data", "a folder of episodes")):
        require(bool(getattr(algo, key)), f"algo.{key}", "nothing", what)
    folder = policy_folder("algo.init_from", algo.init_from)
    policy, card = load_policy(folder)
    made_from, card = origin(folder, card), own(algo, card)
    hand = Hand.of(env.find_robot(algo.hand)) if env.find_robot else None
    data = load(pathlib.Path(algo.data), card, failures=algo.failures, hand=hand)
    return policy, card, data, made_from
