"""Proximal policy optimisation on TorchRL's loss (Schulman et al. 2017, arXiv 1707.06347).

One iteration: `rollout` collects [horizon, num_envs] transitions with `act`; `process` adds
advantages and returns (generalised advantage estimation: truncation bootstraps from the true last
observation, termination does not); `update` makes several passes of shuffled minibatches. Faulty
transitions carry no weight anywhere: not in the losses, not in the advantage's scale, not in the
normaliser. Steps that another policy acts in (`learner_acts`) are left out altogether.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from penspin_style.algo.actor_critic import (
    Critic,
    explained_variance,
    make_critic,
    make_policy,
    summary,
)
from penspin_style.algo.advantages import advantages, normalized
from penspin_style.algo.algorithm import masked_mean, observed_groups, own_steps
from penspin_style.algo.on_policy import (
    OBJECTIVE_METRICS,
    OnPolicy,
    check_shared,
    objective_metrics,
)
from penspin_style.config import StallConfig, StartsConfig, require
from penspin_style.features import Input
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.teacher import TeacherPolicy
from penspin_style.system import ranks


@dataclass
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017)."""

    name: str = "ppo"
    init_from: str = ""
    """Run folder, or policy folder, of a trained policy of the same shape to begin with; see
    `weights_folder`. Empty for random weights. What else learns, as the critic, begins anew."""
    critic_iterations: int = 0
    """Iterations at first in which the critic alone learns: with `init_from`, advantages of a value
    function that knows nothing would undo what the policy can do."""
    horizon: int = 24
    """Steps per environment and iteration."""
    epochs: int = 4
    """Passes over the batch; minibatches are reshuffled in each."""
    num_minibatches: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    reward_scale: float = 1.0
    """Multiplies rewards before values are learned from them, so that returns are near 1 to 100."""
    clip_coef: float = 0.2
    value_coef: float = 1.0
    value_clip: float | None = None
    """Radius of the clipped value loss; null for none. In standard deviations with `value_norm`."""
    value_norm: bool = False
    """Learn returns as their running mean and deviation leave them, whatever their size."""
    advantage_norm: str = "batch"
    """Over what advantages have mean 0 and deviation 1: the `batch`, or each `minibatch`."""
    entropy_coef: float = 0.0
    learning_rate: float = 3e-4
    target_kl: float | None = 0.01
    """Adapt the learning rate to this KL from the policy that collected; null for a fixed rate.
    Above twice the target the rate falls by a factor of 1.5, below half of it it rises by 1.5."""
    kl_every: str = "iteration"
    """When the rate is adapted: `iteration`, once after the last pass, or `epoch`, after each."""
    min_learning_rate: float = 1e-5
    """Least rate that adaptation leads to."""
    max_learning_rate: float = 3e-3
    """Largest rate that adaptation leads to."""
    max_grad_norm: float = 1.0
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    critic_hidden: list[int] = field(default_factory=lambda: [128, 128])
    encoders: dict[str, list[int]] = field(default_factory=dict)
    """Observation group -> widths of its encoder, the code's last. The codes join the teacher's
    group before `hidden`. A group of one feature (n, 3) is a cloud: its points pass the encoder one
    by one and the largest of each number stays. A group that the task does not observe is passed
    over, for ablations, and so is one with []; the policy's card lists what is read."""
    shared_critic: bool = False
    """A value head on the policy's last hidden layer instead of a network of its own."""
    activation: str = "elu"
    distribution: str = "normal"
    """What actions are drawn from: `normal`, around the squashed mean, with deviations that are
    weights of their own; or `tanh_normal`, whose draws are squashed and whose deviations follow
    from the observation too."""
    init_std: float = 0.8
    noise_correlation: float = 0.0
    """How much of an action's noise is that of the step before: exploration that lasts. The losses
    take it for noise without memory."""
    starts: StartsConfig = field(default_factory=StartsConfig)
    stall: StallConfig = field(default_factory=StallConfig)
    compile: bool = False
    """torch.compile of the loss. TorchRL's loss recompiles under it: measure before using it."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "ppo", "algo.name", self.name, "ppo")
        check_shared(self)
        require(self.horizon >= 1, "algo.horizon", self.horizon, ">= 1")
        alone = self.critic_iterations
        require(alone >= 0, "algo.critic_iterations", alone, ">= 0")
        legal = not (alone and self.shared_critic)
        require(legal, "algo.critic_iterations", alone, "0 with algo.shared_critic=true")
        for key in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, key) <= 1, f"algo.{key}", getattr(self, key), "in [0, 1]")
        for key in ("clip_coef", "reward_scale"):
            value = getattr(self, key)
            require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")
        for key in ("value_coef", "entropy_coef"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"algo.{key}", value, "finite and >= 0")
        over = self.advantage_norm
        legal = over in ("batch", "minibatch")
        require(legal, "algo.advantage_norm", over, "batch or minibatch")
        clip = self.value_clip
        require(clip is None or 0 < clip < float("inf"), "algo.value_clip", clip, "> 0 or null")
        sizes = self.critic_hidden
        require(all(n >= 1 for n in sizes), "algo.critic_hidden", sizes, "a list of sizes >= 1")


class PPO(OnPolicy):
    """A teacher on the observation group `teacher`, and what `encoders` names of the others.

    Its critic reads `critic`, `teacher` if there is none, or is a head of the policy.
    """

    Config: ClassVar[Any] = PPOConfig
    METRICS = (
        "actor/policy_loss",
        "critic/value_loss",
        "actor/total_loss",
        *OBJECTIVE_METRICS,
        "critic/value_clip_ratio",
    )

    def __init__(
        self,
        cfg: PPOConfig,
        inputs: tuple[Input, ...],
        naction: int,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        observed = observed_groups(cfg.name, inputs)
        init = torch.Generator().manual_seed(seed)  # weights do not depend on the device
        self.cfg = cfg
        self.horizon = cfg.horizon
        self.rng = torch.Generator(device=device).manual_seed(ranks.own_seed(seed))
        self.policy = make_policy(cfg, observed, naction, init).to(device)
        critic = make_critic(cfg, observed, init)
        self.critic = None if critic is None else critic.to(device)
        keys = {*self.policy.in_keys, *([] if critic is None else [critic.in_key])}
        # what other groups hold, as a student's history, is not worth its memory
        self.unread = tuple(name for name in observed if name not in keys)
        self.value_normalizer = Normalizer(1).to(device) if cfg.value_norm else None
        # a large value error must not shrink the policy's step
        self._start((self.policy,) if self.critic is None else (self.policy, self.critic))
        self._value = Critic(self._actor if self.critic is None else self.critic)
        self.loss = ClipPPOLoss(
            self._actor,  # type: ignore[arg-type]  (any module with get_dist is accepted)
            self._value,  # type: ignore[arg-type]
            clip_epsilon=cfg.clip_coef,
            entropy_bonus=True,
            entropy_coeff=cfg.entropy_coef,
            critic_coeff=cfg.value_coef,
            loss_critic_type="l2",
            clip_value=cfg.value_clip,
            normalize_advantage=False,
            reduction="none",
            functional=False,
        )
        self.loss.set_keys(sample_log_prob="log_prob")
        if cfg.compile:
            self._losses = torch.compile(self._losses)

    # The four verbs.

    @torch.no_grad()
    def act(self, td: TensorDict) -> TensorDict:
        """Draw an action; write `action`, `log_prob`, `loc` and `scale`.

        Also `state_value` where the policy has a value head: it is not computed twice.
        """
        super().act(td)
        if self.critic is None:
            td.set("state_value", self._returns(self._actor.value))
        return td

    @torch.no_grad()
    def process(self, batch: TensorDict | None) -> None:
        """Add `state_value`, `advantage` and `value_target` to a batch [horizon, num_envs]."""
        assert batch is not None
        likelier = self._renew(batch) if self.overlap else 1.0
        nxt: Any = batch["next"]
        value, next_value = self._values(batch)
        advantage, keep = advantages(self.cfg, batch, value, next_value)
        target = advantage + value
        self._rollout_metrics = summary(nxt["reward"], advantage, target, keep)
        if (own := own_steps(batch)) is not None:
            known = self._rollout_metrics if keep.any() else {}
            self._rollout_metrics = {**known, "rollout/learner_share": own.float().mean().item()}
        if self.value_normalizer is not None:
            self.value_normalizer.update(target.reshape(-1, 1), keep.reshape(-1))
            value, target = self.value_normalizer(value), self.value_normalizer(target)
        if self.cfg.advantage_norm == "batch":
            advantage = likelier * normalized(advantage, keep.float())
        self._batch = self._rows(batch, advantage, keep)
        if self.cfg.advantage_norm == "minibatch" and self.overlap:
            self._batch["likelier"] = likelier
        self._batch["state_value"] = value
        self._batch["value_target"] = target
        if own is not None:  # minibatches are of what is learned from alone
            self._batch = self._kept(self._batch, keep)

    def _renew(self, batch: TensorDict) -> Tensor:
        likelier = super()._renew(batch)
        if self.critic is None:
            batch["state_value"] = self._returns(self._actor.value)
        return likelier

    @property
    def _policy_learns(self) -> bool:
        return self.iteration >= self.cfg.critic_iterations

    def _adapt_rate(self, totals: list[Tensor]) -> None:
        if self._policy_learns:
            super()._adapt_rate(totals)

    # Values.

    def _values(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Return the values of a batch's observations and of those under `next`, as returns.

        With a value head, the first are those from `act`, and the next ones are the first, one step
        later, except where an episode was cut off and at the batch's end: only there is the network
        evaluated. Where an episode terminated the next value is 0. To find those rows costs a
        GPU one host synchronisation.
        """
        nxt: Any = batch["next"]
        if self.critic is not None:
            key = self.critic.in_key
            return self._returns(self.critic(batch[key])), self._returns(self.critic(nxt[key]))
        assert isinstance(self.policy, TeacherPolicy)
        value: Any = batch["state_value"]
        known = torch.zeros_like(nxt["done"])
        known[:-1] = ~nxt["done"][:-1]
        next_value = torch.where(known, value.roll(-1, dims=0), 0.0)
        rows = ~(known | nxt["terminated"] | nxt["fault"]).squeeze(-1)
        observations = [nxt[key][rows] for key in self.policy.in_keys]
        last: Any = self.policy.evaluate(*observations)[1]
        next_value[rows] = self._returns(last)
        return value, next_value

    def _returns(self, value: Tensor) -> Tensor:
        """Return the critic's output in the unit of returns."""
        return value if self.value_normalizer is None else self.value_normalizer.undo(value)

    # One step of the optimiser.

    def _losses(self, mb: TensorDict) -> tuple[Tensor, Tensor]:
        """Return (total loss, `METRICS` without the last) of a minibatch [n]."""
        weight = mb["weight"].view(-1)
        if self.cfg.advantage_norm == "minibatch":
            mb["advantage"] = normalized(mb["advantage"], mb["weight"])
            if self.overlap:
                mb["advantage"] = mb["advantage"] * mb["likelier"]
        out = self.loss(mb)
        objective = masked_mean(out["loss_objective"].view(-1), weight)
        critic = masked_mean(out["loss_critic"].view(-1), weight)
        entropy_loss = masked_mean(out["loss_entropy"].view(-1), weight)
        # without its own loss the policy has no gradient, and Adam passes it over
        total = objective + critic + entropy_loss if self._policy_learns else critic
        with torch.no_grad():
            clip = (self.cfg.clip_coef, self.cfg.clip_coef)
            surrogate = out["loss_objective"].view(-1)
            means = objective_metrics(self._actor.dist, mb, surrogate, clip=clip)
            moved = (self._value.value - mb["state_value"]).abs().view(-1)
            radius = self.cfg.value_clip or float("inf")
            means.append(masked_mean((moved > radius).float(), weight))
        return total, torch.stack([objective.detach(), critic.detach(), total.detach(), *means])

    def _report(self, totals: list[Tensor], flat: TensorDict) -> dict[str, float]:
        out = super()._report(totals, flat)
        if len(flat):
            weight = flat["weight"].view(-1)
            target, value = flat["value_target"].view(-1), flat["state_value"].view(-1)
            explained = explained_variance(target, value, weight)
            out["train/critic/explained_variance"] = explained.item()
        return out

    def _normalizers(self) -> Iterator[tuple[str, Normalizer]]:
        yield from super()._normalizers()
        if self.critic is not None:
            yield self.critic.in_key, self.critic.normalizer

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return weights, normalisers, optimiser, generator and counters."""
        nets = {"critic": self.critic, "value": self.value_normalizer}
        own = {name: net.state_dict() for name, net in nets.items() if net is not None}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        if self.value_normalizer is not None:
            self.value_normalizer.load_state_dict(state["value"])
        # before iterations were counted, no critic learned alone
        super().load_state_dict({"iteration": self.cfg.critic_iterations, **state})


NAME = "ppo"
ALGORITHM = PPO
