"""Soft actor-critic on TorchRL's loss (Haarnoja et al. 2018, arXiv 1812.05905).

Twin critics with delayed targets, and a temperature that keeps the policy's entropy near a target.
What it shares with DDPG, `off_policy.py` says.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.objectives import SACLoss

from penspin_style.algo.off_policy import OBSERVED, Critic, OffPolicy, OffPolicyConfig
from penspin_style.config import require
from penspin_style.nets.squashed import Noise, Squashed, distribution


@dataclass
class SACConfig(OffPolicyConfig):
    """Soft actor-critic (Haarnoja et al. 2018)."""

    name: str = "sac"
    init_temperature: float = 0.02
    """Weight of the entropy to begin with, in units of scaled rewards."""
    learn_temperature: bool = True
    temperature_learning_rate: float = 1e-3
    target_entropy: float | None = None
    """Nats that the temperature steers the entropy to; null for one less than zero of each number
    of the action."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "sac", "algo.name", self.name, "sac")
        super().__post_init__()
        for key in ("init_temperature", "temperature_learning_rate"):
            value = getattr(self, key)
            require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")


class SAC(OffPolicy):
    """See the module's docstring."""

    Config: ClassVar[Any] = SACConfig
    stochastic = True
    loss: SACLoss

    def _make_loss(self, actor: nn.Module, critics: list[Critic]) -> SACLoss:
        cfg, target = self.cfg, self.cfg.target_entropy
        return SACLoss(
            _Actor(actor, self._noise),  # type: ignore[arg-type]  (any module with get_dist)
            critics,  # type: ignore[arg-type]
            num_qvalue_nets=len(critics),
            loss_function="l2",
            alpha_init=cfg.init_temperature,
            fixed_alpha=not cfg.learn_temperature,
            target_entropy=float(-self.naction if target is None else target),
        )

    def _critic_parameters(self) -> nn.Module:
        return self.loss.qvalue_network_params

    def _further_groups(self) -> list[dict[str, Any]]:
        if not self.cfg.learn_temperature:
            return []
        return [{"params": [self.loss.log_alpha], "lr": self.cfg.temperature_learning_rate}]

    def _draw(self, head: Tensor) -> Tensor:
        return distribution(head, self._noise).rsample_and_log_prob()[0]

    def _losses(self, mb: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.loss(mb)
        names = ("loss_actor", "loss_qvalue", "loss_alpha")
        total = torch.stack([out[name] for name in names]).sum()
        metrics = {
            "actor/policy_loss": out["loss_actor"],
            "critic/value_loss": out["loss_qvalue"],
            "critic/td_error": mb["td_error"].mean(),
            "actor/entropy": out["entropy"],
            "actor/temperature": out["alpha"],
        }
        return total, {name: value.detach() for name, value in metrics.items()}


class _Actor(TensorDictModuleBase):
    """The policy's network as TorchRL's loss wants it."""

    log_prob_keys: ClassVar[list[str]] = ["log_prob"]
    dist_sample_keys: ClassVar[list[str]] = ["action"]

    def __init__(self, net: nn.Module, noise: Noise) -> None:
        super().__init__()
        self.net = net
        self.noise = noise
        self.in_keys = [OBSERVED]
        self.out_keys = ["action"]

    def get_dist(self, td: TensorDictBase) -> Squashed:
        return distribution(self.net(td[OBSERVED]), self.noise)


NAME = "sac"
ALGORITHM = SAC
