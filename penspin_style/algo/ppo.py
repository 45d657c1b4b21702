"""Proximal policy optimisation on TorchRL's loss (Schulman et al. 2017, arXiv 1707.06347).

One iteration: `rollout` collects [horizon, num_envs] transitions with `act`; `process` adds
advantages and returns (generalised advantage estimation: truncation bootstraps from the true last
observation, termination does not); `update` makes several passes of shuffled minibatches. Faulty
transitions carry no weight anywhere: not in the losses, not in the advantage's scale, not in the
normaliser. Steps that another policy acts in (`learner_acts`) are left out altogether.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import ClipPPOLoss, KLAdaptiveLR

from penspin_style.algo.actor_critic import (
    Actor,
    Critic,
    explained_variance,
    make_critic,
    make_policy,
    summary,
)
from penspin_style.algo.advantages import advantages
from penspin_style.algo.algorithm import (
    GuardedOptimizer,
    Reinforcement,
    masked_mean,
    own_steps,
)
from penspin_style.config import ACTIVATIONS, StallConfig, StartsConfig, require
from penspin_style.features import Input
from penspin_style.nets.gaussian import Gaussian
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.teacher import TeacherPolicy


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
    entropy_coef: float = 0.0
    learning_rate: float = 3e-4
    target_kl: float | None = None
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
        for key in ("horizon", "epochs", "num_minibatches"):
            require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), ">= 1")
        alone = self.critic_iterations
        require(alone >= 0, "algo.critic_iterations", alone, ">= 0")
        legal = not (alone and self.shared_critic)
        require(legal, "algo.critic_iterations", alone, "0 with algo.shared_critic=true")
        rho = self.noise_correlation
        require(0 <= rho < 1, "algo.noise_correlation", rho, "in [0, 1)")
        for key in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, key) <= 1, f"algo.{key}", getattr(self, key), "in [0, 1]")
        for key in (
            "clip_coef",
            "learning_rate",
            "min_learning_rate",
            "max_learning_rate",
            "max_grad_norm",
            "init_std",
            "reward_scale",
        ):
            value = getattr(self, key)
            require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")
        for key in ("value_coef", "entropy_coef"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"algo.{key}", value, "finite and >= 0")
        for key in ("value_clip", "target_kl"):
            value = getattr(self, key)
            require(value is None or 0 < value < float("inf"), f"algo.{key}", value, "> 0 or null")
        for key in ("hidden", "critic_hidden"):
            sizes = getattr(self, key)
            require(all(n >= 1 for n in sizes), f"algo.{key}", sizes, "a list of sizes >= 1")
        for group, sizes in self.encoders.items():
            legal = all(n >= 1 for n in sizes)
            require(legal, f"algo.encoders.{group}", sizes, "a list of sizes >= 1")
            require(group not in ("teacher", "critic"), "algo.encoders", group, "another group")
        top = self.max_learning_rate
        legal = f"at least algo.min_learning_rate, {self.min_learning_rate}"
        require(top >= self.min_learning_rate, "algo.max_learning_rate", top, legal)
        known = ("iteration", "epoch")
        require(self.kl_every in known, "algo.kl_every", self.kl_every, " or ".join(known))
        require(
            self.activation in ACTIVATIONS,
            "algo.activation",
            self.activation,
            ", ".join(ACTIVATIONS),
        )


class PPO(Reinforcement):
    """A teacher on the observation group `teacher`, and what `encoders` names of the others.

    Its critic reads `critic`, `teacher` if there is none, or is a head of the policy.
    """

    Config: ClassVar[Any] = PPOConfig
    collects = True

    def __init__(
        self,
        cfg: PPOConfig,
        inputs: tuple[Input, ...],
        naction: int,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        observed = {i.name: i for i in inputs}
        if "teacher" not in observed:
            raise ValueError(
                f"PPO reads the observation group 'teacher'; the task has {sorted(observed)}"
            )
        init = torch.Generator().manual_seed(seed)  # weights do not depend on the device
        self.cfg = cfg
        self.horizon = cfg.horizon
        self.rng = torch.Generator(device=device).manual_seed(seed)
        self.policy = make_policy(cfg, observed, naction, init).to(device)
        critic = make_critic(cfg, observed, init)
        self.critic = None if critic is None else critic.to(device)
        keys = {*self.policy.in_keys, *([] if critic is None else [critic.in_key])}
        # what other groups hold, as a student's history, is not worth its memory
        self.unread = tuple(name for name in observed if name not in keys)
        self.value_normalizer = Normalizer(1).to(device) if cfg.value_norm else None
        self._actor = Actor(self.policy)
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
        # a large value error must not shrink the policy's step
        nets = (self.policy,) if self.critic is None else (self.policy, self.critic)
        parameters = [p for net in nets for p in net.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=cfg.learning_rate, eps=1e-5)
        self._guard = GuardedOptimizer(self.optimizer, nets, cfg.max_grad_norm)
        self.schedule = None
        if cfg.target_kl is not None:
            self.schedule = KLAdaptiveLR(
                self.optimizer,
                cfg.target_kl,
                min_lr=cfg.min_learning_rate,
                max_lr=cfg.max_learning_rate,
            )
        self._losses = torch.compile(self._losses_eager) if cfg.compile else self._losses_eager
        self._batch: TensorDict | None = None
        self.iteration = 0
        self._noise: Tensor | None = None  # of the last step, where noise is correlated
        self._has_statistics = False  # whether the normalisers have seen anything

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The one of policy and critic."""
        return (self.optimizer,)

    # The four verbs.

    @torch.no_grad()
    def act(self, td: TensorDict) -> TensorDict:
        """Draw an action; write `action`, `log_prob`, `loc` and `scale`.

        Also `state_value` where the policy has a value head: it is not computed twice.
        """
        if not self._has_statistics:
            own = own_steps(td)
            if own is None or own.any():
                self._update_normalizers(td, own)
                self._has_statistics = True
        dist = self._actor.get_dist(td)
        noise = torch.randn(dist.loc.shape, generator=self.rng, device=dist.loc.device)
        if rho := self.cfg.noise_correlation:
            if self._noise is not None:
                noise = rho * self._noise + (1.0 - rho**2) ** 0.5 * noise
            self._noise = noise
        action = dist.loc + dist.scale * noise
        td.set("action", action)
        td.set("log_prob", dist.log_prob(action))
        td.set("loc", dist.loc)
        td.set("scale", dist.scale)
        if self.critic is None:
            td.set("state_value", self._returns(self._actor.value))
        return td

    @torch.no_grad()
    def process(self, batch: TensorDict | None) -> None:
        """Add `state_value`, `advantage` and `value_target` to a batch [horizon, num_envs]."""
        assert batch is not None
        nxt: Any = batch["next"]
        fault = nxt["fault"]
        value, next_value = self._values(batch)
        advantage, keep = advantages(self.cfg, batch, value, next_value)
        target = advantage + value
        weight = keep.float()
        mean = masked_mean(advantage, weight)
        std = masked_mean((advantage - mean) ** 2, weight).sqrt()
        self._rollout_metrics = summary(nxt["reward"], advantage, target, keep)
        if (own := own_steps(batch)) is not None:
            known = self._rollout_metrics if keep.any() else {}
            self._rollout_metrics = {**known, "rollout/learner_share": own.float().mean().item()}
        if self.value_normalizer is not None:
            self.value_normalizer.update(target.reshape(-1, 1), keep.reshape(-1))
            value, target = self.value_normalizer(value), self.value_normalizer(target)
        keys = {key for key, _ in self._normalizers()}
        self._batch = batch.select(*keys, "action", "log_prob", "loc", "scale")
        self._batch["state_value"] = value
        self._batch["advantage"] = (advantage - mean) / (std + 1e-8)
        self._batch["value_target"] = target
        self._batch["weight"] = weight
        # a weight of 0 does not undo infinity: whatever the action was, its row becomes harmless
        self._batch["action"] = torch.where(fault, batch["loc"], batch["action"])
        self._batch["log_prob"] = batch["log_prob"].masked_fill(fault.squeeze(-1), 0.0)
        if own is not None:  # minibatches are of what is learned from alone
            self._batch = self._batch[keep.squeeze(-1)]

    def update(self) -> dict[str, float]:
        """Run `epochs` passes of shuffled minibatches over the processed batch."""
        if self._batch is None:
            raise RuntimeError("update() needs a batch: call process() first")
        flat = self._batch if self._batch.ndim == 1 else self._batch.reshape(-1)
        n = len(flat)
        size = -(-n // self.cfg.num_minibatches)
        totals: list[Tensor] = []
        skipped = 0
        rate = 0.0
        for epoch in range(1, self.cfg.epochs + 1):
            rate = self.optimizer.param_groups[0]["lr"]
            order = torch.randperm(n, generator=self.rng, device=self.rng.device)
            for ids in order.split(size) if n else ():
                metrics = self._step(flat[ids])
                if metrics is None:
                    skipped += 1
                else:
                    totals.append(metrics)
            if self._policy_learns and (self.cfg.kl_every == "epoch" or epoch == self.cfg.epochs):
                self._adapt_rate(totals[-self.cfg.num_minibatches :])
        out = {"train/actor/lr": rate, **self._report(totals, flat)}
        out["train/skipped_updates"] = float(skipped)
        if n:
            self._update_normalizers(flat, flat["weight"].view(-1) > 0)
        self._batch = None
        self.iteration += 1
        return {**self._rollout_metrics, **out}

    @property
    def _policy_learns(self) -> bool:
        return self.iteration >= self.cfg.critic_iterations

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

    def _step(self, mb: TensorDict) -> Tensor | None:
        """Take one gradient step; return its metrics, or None if it was not finite and skipped."""
        loss, metrics = self._losses(mb)
        norm = self._guard.step(loss)
        if norm is None:
            return None
        return torch.cat((metrics, norm[None]))

    def _losses_eager(self, mb: TensorDict) -> tuple[Tensor, Tensor]:
        """Return (total loss, the metrics of `_NAMES`) of a minibatch [n]."""
        out = self.loss(mb)
        weight = mb["weight"].view(-1)
        objective = masked_mean(out["loss_objective"].view(-1), weight)
        critic = masked_mean(out["loss_critic"].view(-1), weight)
        entropy_loss = masked_mean(out["loss_entropy"].view(-1), weight)
        # without its own loss the policy has no gradient, and Adam passes it over
        total = objective + critic + entropy_loss if self._policy_learns else critic
        with torch.no_grad():
            dist = self._actor.dist
            old = Gaussian(mb["loc"], mb["scale"])
            log_ratio = dist.log_prob(mb["action"]) - mb["log_prob"]
            ratio, advantage = log_ratio.exp(), mb["advantage"].view(-1)
            low, high = 1.0 - self.cfg.clip_coef, 1.0 + self.cfg.clip_coef
            # the clipped branch is active only on the side that the advantage pushes towards
            clipped = ((ratio > high) & (advantage > 0)) | ((ratio < low) & (advantage < 0))
            moved = (self._value.value - mb["state_value"]).abs().view(-1)
            radius = self.cfg.value_clip or float("inf")
            rows = (
                out["loss_objective"].view(-1).abs(),
                ratio,
                (ratio - 1.0).abs(),
                ratio.clamp(low, high),
                old.kl(dist),
                clipped.float(),
                dist.entropy(),
                (moved > radius).float(),
            )
            means = [masked_mean(row, weight) for row in rows]
        return total, torch.stack([objective.detach(), critic.detach(), total.detach(), *means])

    def _report(self, totals: list[Tensor], flat: TensorDict) -> dict[str, float]:
        out: dict[str, float] = {}
        if not len(flat):
            return out
        if totals:
            means = torch.stack(totals).mean(dim=0).tolist()
            out |= {f"train/{name}": value for name, value in zip(_NAMES, means, strict=True)}
        weight = flat["weight"].view(-1)
        target, value = flat["value_target"].view(-1), flat["state_value"].view(-1)
        out["train/critic/explained_variance"] = explained_variance(target, value, weight).item()
        out["train/actor/std"] = flat["scale"].mean().item()
        return out

    def _adapt_rate(self, totals: list[Tensor]) -> None:
        """Let the learning rate follow how far these steps are from the policy that collected."""
        if totals and self.schedule is not None:
            self.schedule.step(torch.stack(totals)[:, _KL].mean().item())

    def _normalizers(self) -> Iterator[tuple[str, Normalizer]]:
        """Yield observation groups and the statistics of them."""
        if isinstance(self.policy, TeacherPolicy):
            for key, normalizer in self.policy.normalizers.items():
                assert isinstance(normalizer, Normalizer)
                yield key, normalizer
        else:
            yield self.policy.in_key, self.policy.normalizer
        if self.critic is not None:
            yield self.critic.in_key, self.critic.normalizer

    def _update_normalizers(self, flat: TensorDictBase, keep: Tensor | None = None) -> None:
        """Move the running statistics; between iterations only, so that ratios stay exact."""
        for key, normalizer in self._normalizers():
            x: Any = flat[key]
            points = x.reshape(-1, len(normalizer.mean))  # the observation itself, or its points
            each = len(points) // len(x)
            all_keep = keep if keep is None or each == 1 else keep.repeat_interleave(each)
            normalizer.update(points, all_keep)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return weights, normalisers, optimiser, generator and counters."""
        nets = {"policy": self.policy, "critic": self.critic, "value": self.value_normalizer}
        return {
            **{name: net.state_dict() for name, net in nets.items() if net is not None},
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "skipped_in_a_row": self._guard.skipped_in_a_row,
            "iteration": self.iteration,
            **({} if self._noise is None else {"noise": self._noise.clone()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        if self.value_normalizer is not None:
            self.value_normalizer.load_state_dict(state["value"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self._guard.skipped_in_a_row = int(state["skipped_in_a_row"])
        self._noise = state.get("noise")
        # before iterations were counted, no critic learned alone
        self.iteration = int(state.get("iteration", self.cfg.critic_iterations))
        self._has_statistics = all(bool(n.count) for _, n in self._normalizers())


_NAMES = (
    "actor/policy_loss",
    "critic/value_loss",
    "actor/total_loss",
    "actor/policy_loss_abs",
    "actor/ratio",
    "actor/ratio_abs",
    "actor/clipped_ratio",
    "actor/approx_kl",
    "actor/clip_fraction",
    "actor/entropy",
    "critic/value_clip_ratio",
    "actor/grad_norm",
)
_KL = _NAMES.index("actor/approx_kl")


NAME = "ppo"
ALGORITHM = PPO
