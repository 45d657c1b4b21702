"""Group relative policy optimisation, for control (Shao et al. 2024, arXiv 2402.03300).

No critic: what an episode is worth is said by others that began in the same state of the same
world. `group_size` consecutive environments begin alike (`env/rounds.py`), each acts by itself
until its episode ends, and every step of one is learned from with the same advantage, how far its
undiscounted return is above the mean of its group, in standard deviations. An iteration is one
round of whole episodes. Steps after the first end of an episode carry no weight, nor does an
episode with a fault, nor a group whose returns hardly differ (`least_spread`). The clipped loss is
TorchRL's, with its own distance to either side; `kl_coef` keeps the policy near the one that it
began with.
"""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from penspin_style.algo.actor_critic import Actor, make_policy
from penspin_style.algo.algorithm import (
    Interface,
    begin_from,
    masked_mean,
    observed_groups,
    own_steps,
)
from penspin_style.algo.on_policy import (
    OBJECTIVE_METRICS,
    OnPolicy,
    check_shared,
    objective_metrics,
)
from penspin_style.config import TrainConfig, require
from penspin_style.features import Input
from penspin_style.system import ranks


@dataclass
class GRPOConfig:
    """Group relative policy optimisation (Shao et al. 2024)."""

    name: str = "grpo"
    init_from: str = ""
    """Run folder, or policy folder, of a trained policy of the same shape to begin with; see
    `weights_folder`. Empty for random weights."""
    group_size: int = 8
    """Consecutive environments whose episodes begin alike and are compared."""
    horizon: int = 0
    """Steps of a round, after which every episode is cut off; 0: `task.episode_length`."""
    least_spread: float = 1e-3
    """Standard deviation of a group's returns below which nothing is learned from it."""
    epochs: int = 4
    """Passes over the batch; minibatches are reshuffled in each."""
    num_minibatches: int = 8
    clip_low: float = 0.2
    """How far below 1 the ratio of probabilities still counts."""
    clip_high: float = 0.28
    """How far above 1."""
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    """Weight of the divergence from the policy that the training began with."""
    learning_rate: float = 3e-4
    target_kl: float | None = 0.01
    """Adapt the learning rate to this KL from the policy that collected; null for a fixed rate."""
    kl_every: str = "iteration"
    """When the rate is adapted: `iteration`, once after the last pass, or `epoch`, after each."""
    min_learning_rate: float = 1e-5
    max_learning_rate: float = 3e-3
    max_grad_norm: float = 1.0
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    encoders: dict[str, list[int]] = field(default_factory=dict)
    """Observation group -> widths of its encoder; see `PPOConfig`."""
    activation: str = "elu"
    distribution: str = "normal"
    """What actions are drawn from, `normal` or `tanh_normal`; see `PPOConfig`."""
    init_std: float = 0.8
    noise_correlation: float = 0.0
    """How much of an action's noise is that of the step before."""

    shared_critic: ClassVar[bool] = False
    """There is none."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "grpo", "algo.name", self.name, "grpo")
        check_shared(self)
        size = self.group_size
        require(size >= 2, "algo.group_size", size, "at least 2: an episode is compared to others")
        require(self.horizon >= 0, "algo.horizon", self.horizon, ">= 0")
        for key in ("least_spread", "entropy_coef", "kl_coef"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"algo.{key}", value, "finite and >= 0")
        require(0 < self.clip_low < 1, "algo.clip_low", self.clip_low, "in (0, 1)")
        high = self.clip_high
        require(0 < high < float("inf"), "algo.clip_high", high, "finite and > 0")


class GRPO(OnPolicy):
    """A teacher on the observation group `teacher`, and what `encoders` names of the others.

    cfg: `horizon` is that of the round, not 0.
    """

    Config: ClassVar[Any] = GRPOConfig
    METRICS = ("actor/policy_loss", "actor/total_loss", *OBJECTIVE_METRICS, "actor/reference_kl")

    def __init__(
        self,
        cfg: GRPOConfig,
        inputs: tuple[Input, ...],
        naction: int,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        observed = observed_groups(cfg.name, inputs)
        init = torch.Generator().manual_seed(seed)  # weights do not depend on the device
        self.cfg, self.horizon = cfg, cfg.horizon
        self.rng = torch.Generator(device=device).manual_seed(ranks.own_seed(seed))
        self.policy = make_policy(cfg, observed, naction, init).to(device)
        self.unread = tuple(name for name in observed if name not in self.policy.in_keys)
        self._start((self.policy,))
        self.loss = ClipPPOLoss(
            self._actor,  # type: ignore[arg-type]  (any module with get_dist is accepted)
            critic_network=None,
            critic_coeff=None,
            clip_epsilon=(cfg.clip_low, cfg.clip_high),
            entropy_bonus=True,
            entropy_coeff=cfg.entropy_coef,
            normalize_advantage=False,
            reduction="none",
            functional=False,
        )
        self.loss.set_keys(sample_log_prob="log_prob")
        self._reference: Actor | None = None
        self._keep_reference()

    @classmethod
    def make(cls, cfg: TrainConfig, env: Interface, *, device: torch.device, seed: int) -> "GRPO":
        """Return the algorithm of a run.

        Raises:
            ValueError: the groups do not divide the environments, or a stage of the curriculum has
                episodes of another length than the round.
        """
        size = cfg.algo.group_size
        if cfg.num_envs % size:
            raise ValueError(
                f"algo.group_size={size} does not divide num_envs={cfg.num_envs}; choose num_envs "
                f"as a multiple, e.g. {max(1, cfg.num_envs // size) * size}"
            )
        steps = cfg.algo.horizon or cfg.task.episode_length
        for stage in cfg.curriculum:
            if (other := stage.task.get("episode_length", steps)) != steps:
                raise ValueError(
                    f"curriculum: a stage has task.episode_length={other}, and a round of "
                    f"algo=grpo has {steps} steps; leave the length as it is"
                )
        own = dataclasses.replace(cfg.algo, horizon=steps)
        made = cls(own, env.inputs, len(env.actions), device=device, seed=seed)
        made.overlap = cfg.collects_ahead
        if cfg.algo.init_from and not cfg.resume:
            begin_from(made.policy, cfg.algo.init_from, env)
            made._keep_reference()
        return made

    @classmethod
    def env_settings(cls, cfg: GRPOConfig, *, training: bool) -> dict[str, Any]:
        """Return that groups begin alike in training."""
        return {"groups": (cfg.group_size, cfg.horizon), "stagger": False} if training else {}

    @torch.no_grad()
    def process(self, batch: TensorDict | None) -> None:
        """Give each step of a round [horizon, num_envs] its episode's advantage."""
        assert batch is not None
        nxt: Any = batch["next"]
        returns, alive, sound = episodes(nxt)
        advantage, counts, spread = group_advantages(
            returns, sound, size=self.cfg.group_size, least_spread=self.cfg.least_spread
        )
        keep = alive & counts[None, :, None]
        own = own_steps(batch)
        if own is not None:
            keep = keep & own[..., None]
        self._rollout_metrics = {
            "rollout/rewards": masked_mean(nxt["reward"], alive.float()).item(),
            "rollout/returns_mean": masked_mean(returns, sound.float()).item(),
            "rollout/spread": spread.item(),
            "rollout/groups_share": counts.float().mean().item(),
        }
        likelier = self._renew(batch) if self.overlap else 1.0
        rows = self._rows(batch, likelier * advantage[None, :, None].expand(alive.shape), keep)
        # most of a round may be over: minibatches are of what is learned from alone
        self._batch = self._kept(rows, keep)

    def _losses(self, mb: TensorDict) -> tuple[Tensor, Tensor]:
        out = self.loss(mb)
        weight = mb["weight"].view(-1)
        surrogate = out["loss_objective"].view(-1)
        objective = masked_mean(surrogate, weight)
        total = objective + masked_mean(out["loss_entropy"].view(-1), weight)
        kl = torch.zeros_like(objective)
        if self._reference is not None:
            kl = masked_mean(self._actor.dist.kl(self._reference.get_dist(mb)), weight)
            total = total + self.cfg.kl_coef * kl
        clip = (self.cfg.clip_low, self.cfg.clip_high)
        with torch.no_grad():
            means = objective_metrics(self._actor.dist, mb, surrogate, clip=clip)
        return total, torch.stack([objective.detach(), total.detach(), *means, kl.detach()])

    def _keep_reference(self) -> None:
        """Remember the policy as it is, if the loss asks for it."""
        if self.cfg.kl_coef:
            self._reference = Actor(copy.deepcopy(self.policy).requires_grad_(False))

    def state_dict(self) -> dict[str, Any]:
        """Return weights, statistics, optimiser, generator, counters and the reference."""
        kept = {} if self._reference is None else {"reference": self._reference.policy.state_dict()}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        if self._reference is not None:
            self._reference.policy.load_state_dict(state["reference"])


def episodes(nxt: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """Return what became of the first episode of each environment of a round.

    nxt: `reward`, `done`, `fault` under `next`, [horizon, num_envs, 1] each.
    returns: undiscounted returns (num_envs,), steps that belong to them [horizon, num_envs, 1], and
        whether they are without a fault (num_envs,).
    """
    done, fault = nxt["done"], nxt["fault"]
    ended = done.cumsum(dim=0) - done.long()  # ends before this step
    alive = ended == 0
    returns = torch.where(alive & ~fault, nxt["reward"], 0.0).sum(dim=0).squeeze(-1)
    sound = ~(alive & fault).any(dim=0).squeeze(-1)
    return returns, alive, sound


def group_advantages(
    returns: Tensor, sound: Tensor, *, size: int, least_spread: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each episode's advantage, whether it counts, and the mean spread of the groups.

    (returns - mean) / (deviation + 1e-6) over those of its group that are sound. Those that are
    not, and all of a group whose deviation is below `least_spread`, do not count and have 0.

    returns, sound: (num_envs,), groups of `size` consecutive ones.
    """
    value, weight = returns.view(-1, size), sound.view(-1, size).float()
    count = weight.sum(dim=1, keepdim=True).clamp(min=1.0)
    value = torch.where(weight > 0, value, 0.0)
    mean = value.sum(dim=1, keepdim=True) / count
    off = (value - mean) * weight
    deviation = (off.square().sum(dim=1, keepdim=True) / (count - 1.0).clamp(min=1.0)).sqrt()
    counts = (weight > 0) & (deviation >= least_spread)
    advantage = torch.where(counts, off / (deviation + 1e-6), 0.0)
    return advantage.flatten(), counts.flatten(), deviation.mean()


NAME = "grpo"
ALGORITHM = GRPO
