"""Proximal policy optimisation on TorchRL's loss (Schulman et al. 2017, arXiv 1707.06347).

One iteration: `rollout` collects [horizon, num_envs] transitions with `act`; `process` adds
advantages and returns (generalised advantage estimation: truncation bootstraps from the true last
observation, termination does not); `update` makes several passes of shuffled minibatches. Faulty
transitions carry no weight anywhere: not in the losses, not in the advantage's scale, not in the
normaliser.
"""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import ClipPPOLoss, KLAdaptiveLR
from torchrl.objectives.value.functional import generalized_advantage_estimate

from penspin_style.algo.algorithm import GuardedOptimizer, masked_mean
from penspin_style.config import PPOConfig
from penspin_style.features import Input
from penspin_style.nets.policy import Gaussian, GaussianPolicy, ValueFunction


class PPO:
    """A teacher on the observation group `teacher`, a critic on `critic` if there is one."""

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
        sizes = {i.name: i.size for i in inputs}
        if "teacher" not in sizes:
            raise ValueError(
                f"PPO reads the observation group 'teacher'; the task has {sorted(sizes)}"
            )
        critic_key = "critic" if "critic" in sizes else "teacher"
        init = torch.Generator().manual_seed(seed)  # weights do not depend on the device
        self.cfg = cfg
        self.horizon = cfg.horizon
        self.rng = torch.Generator(device=device).manual_seed(seed)
        self.policy = GaussianPolicy(
            "teacher",
            sizes["teacher"],
            naction,
            hidden=cfg.hidden,
            activation=cfg.activation,
            init_std=cfg.init_std,
            rng=init,
        ).to(device)
        self.critic = ValueFunction(
            critic_key,
            sizes[critic_key],
            hidden=cfg.critic_hidden,
            activation=cfg.activation,
            rng=init,
        ).to(device)
        self._actor, self._value = _Actor(self.policy), _Critic(self.critic)
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
        parameters = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=cfg.learning_rate, eps=1e-5)
        # a large value error must not shrink the policy's step
        nets = (self.policy, self.critic)
        self._guard = GuardedOptimizer(self.optimizer, nets, cfg.max_grad_norm)
        self.schedule = None
        if cfg.target_kl is not None:
            self.schedule = KLAdaptiveLR(self.optimizer, cfg.target_kl, min_lr=1e-5, max_lr=3e-3)
        self._losses = torch.compile(self._losses_eager) if cfg.compile else self._losses_eager
        self._batch: TensorDict | None = None
        self._has_statistics = False  # whether the normalisers have seen anything

    # The four verbs.

    @torch.no_grad()
    def act(self, td: TensorDict) -> TensorDict:
        """Draw an action; write `action`, `log_prob`, `loc` and `scale`."""
        if not self._has_statistics:
            self._update_normalizers(td)
            self._has_statistics = True
        dist = self.policy(td[self.policy.in_key])
        noise = torch.randn(dist.loc.shape, generator=self.rng, device=dist.loc.device)
        action = dist.loc + dist.scale * noise
        td.set("action", action)
        td.set("log_prob", dist.log_prob(action))
        td.set("loc", dist.loc)
        td.set("scale", dist.scale)
        return td

    @torch.no_grad()
    def process(self, batch: TensorDict | None) -> None:
        """Add `state_value`, `advantage` and `value_target` to a batch [horizon, num_envs]."""
        assert batch is not None
        nxt: Any = batch["next"]
        fault = nxt["fault"]
        value = self.critic(batch[self.critic.in_key])
        # a faulty transition gets advantage zero, so that the steps before it bootstrap where it
        # began and nothing that it computed reaches them
        next_value = torch.where(fault, 0.0, self.critic(nxt[self.critic.in_key]))
        reward = torch.where(fault, value, self.cfg.reward_scale * nxt["reward"])
        advantage, target = generalized_advantage_estimate(
            self.cfg.gamma,
            self.cfg.gae_lambda,
            value,
            next_value,
            reward,
            nxt["done"],
            nxt["terminated"],
            time_dim=0,
        )
        weight = (~fault).float()
        mean = masked_mean(advantage, weight)
        std = masked_mean((advantage - mean) ** 2, weight).sqrt()
        keys = {self.policy.in_key, self.critic.in_key, "action", "log_prob", "loc", "scale"}
        self._batch = batch.select(*keys)
        self._batch["state_value"] = value
        self._batch["advantage"] = (advantage - mean) / (std + 1e-8)
        self._batch["value_target"] = target
        self._batch["weight"] = weight
        # a weight of 0 does not undo infinity: whatever the action was, its row becomes harmless
        self._batch["action"] = torch.where(fault, batch["loc"], batch["action"])
        self._batch["log_prob"] = batch["log_prob"].masked_fill(fault.squeeze(-1), 0.0)
        self._rollout_metrics = _summary(nxt["reward"], advantage, target, ~fault)

    def update(self) -> dict[str, float]:
        """Run `epochs` passes of shuffled minibatches over the processed batch."""
        if self._batch is None:
            raise RuntimeError("update() needs a batch: call process() first")
        flat = self._batch.reshape(-1)
        n = len(flat)
        size = -(-n // self.cfg.num_minibatches)
        totals: list[Tensor] = []
        skipped = 0
        for _ in range(self.cfg.epochs):
            order = torch.randperm(n, generator=self.rng, device=self.rng.device)
            for ids in order.split(size):
                metrics = self._step(flat[ids])
                if metrics is None:
                    skipped += 1
                else:
                    totals.append(metrics)
        out = self._report(totals, flat)
        out["train/skipped_updates"] = float(skipped)
        self._update_normalizers(flat, flat["weight"].view(-1) > 0)
        self._batch = None
        return {**self._rollout_metrics, **out}

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
        total = objective + critic + entropy_loss
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
        out: dict[str, float] = {"train/actor/lr": self.optimizer.param_groups[0]["lr"]}
        if totals:
            means = torch.stack(totals).mean(dim=0).tolist()
            out |= {f"train/{name}": value for name, value in zip(_NAMES, means, strict=True)}
            if self.schedule is not None:
                self.schedule.step(
                    torch.stack(totals)[-self.cfg.num_minibatches :, _KL].mean().item()
                )
        weight = flat["weight"].view(-1)
        target, value = flat["value_target"].view(-1), flat["state_value"].view(-1)
        out["train/critic/explained_variance"] = explained_variance(target, value, weight).item()
        out["train/actor/std"] = flat["scale"].mean().item()
        return out

    def _update_normalizers(self, flat: TensorDictBase, keep: Tensor | None = None) -> None:
        """Move the running statistics; between iterations only, so that ratios stay exact."""
        for net in (self.policy, self.critic):
            net.normalizer.update(flat[net.in_key], keep)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return weights, normalisers, optimiser, generator and counters."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "skipped_in_a_row": self._guard.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self._guard.skipped_in_a_row = int(state["skipped_in_a_row"])
        self._has_statistics = bool(self.policy.normalizer.count)


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


class _Actor(TensorDictModuleBase):
    """The policy as TorchRL's loss wants it, without the cost of a TensorDictModule."""

    def __init__(self, policy: GaussianPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys = [policy.in_key]
        self.out_keys = ["action"]

    def get_dist(self, td: TensorDictBase) -> Gaussian:
        self.dist = self.policy(td[self.policy.in_key])
        return self.dist


class _Critic(TensorDictModuleBase):
    """The value function as TorchRL's loss wants it."""

    def __init__(self, critic: ValueFunction) -> None:
        super().__init__()
        self.critic = critic
        self.in_keys = [critic.in_key]
        self.out_keys = ["state_value"]

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        self.value = self.critic(td[self.critic.in_key])
        td.set("state_value", self.value)
        return td


def explained_variance(target: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Return 1 - Var(target - value) / Var(target) over the rows of weight 1."""

    def var(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, weight)) ** 2, weight)

    return 1.0 - var(target - value) / var(target).clamp(min=1e-12)


def _summary(reward: Tensor, advantage: Tensor, target: Tensor, keep: Tensor) -> dict[str, float]:
    names = ("rewards", "advantages_mean", "advantages_max", "advantages_min",
             "returns_mean", "returns_max", "returns_min")  # fmt: skip
    weight, inf = keep.float(), float("inf")
    values = torch.stack(
        (
            masked_mean(reward, weight),
            masked_mean(advantage, weight),
            torch.where(keep, advantage, -inf).max(),
            torch.where(keep, advantage, inf).min(),
            masked_mean(target, weight),
            torch.where(keep, target, -inf).max(),
            torch.where(keep, target, inf).min(),
        )
    )
    return {f"rollout/{name}": v for name, v in zip(names, values.tolist(), strict=True)}
