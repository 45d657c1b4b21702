"""Deep deterministic policy gradient (Lillicrap et al. 2015, arXiv 1509.02971) on TorchRL's losses.

With `twin` it is TD3 (Fujimoto et al. 2018, arXiv 1802.09477): two critics of which the lesser
counts, a target action with noise, and a policy that is updated less often. What it shares with
SAC, `off_policy.py` says.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.objectives import DDPGLoss, LossModule, TD3Loss

from penspin_style.algo.off_policy import JUDGED, OBSERVED, Critic, OffPolicy, OffPolicyConfig
from penspin_style.config import require


@dataclass
class DDPGConfig(OffPolicyConfig):
    """Deep deterministic policy gradient, or TD3, which is the default."""

    name: str = "ddpg"
    noise: list[float] = field(default_factory=lambda: [0.05, 0.5])
    """Least and largest standard deviation of the exploring actions' noise: each environment has
    its own, evenly between. What leaves [-1, 1] is clipped."""
    twin: bool = True
    """Two critics, of which the lesser counts; the next three keys are for these alone."""
    policy_every: int = 2
    """Gradient steps of the critics to one of the policy."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target's action,"""
    target_noise_clip: float = 0.5
    """and where it is clipped."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "ddpg", "algo.name", self.name, "ddpg")
        super().__post_init__()
        legal = len(self.noise) == 2 and 0 <= self.noise[0] <= self.noise[1] < float("inf")
        require(legal, "algo.noise", self.noise, "[least, largest] >= 0")
        require(self.policy_every >= 1, "algo.policy_every", self.policy_every, ">= 1")
        for key in ("target_noise", "target_noise_clip"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"algo.{key}", value, "finite and >= 0")


class DDPG(OffPolicy):
    """See the module's docstring."""

    Config: ClassVar[Any] = DDPGConfig
    stochastic = False

    def _make_loss(self, actor: nn.Module, critics: list[Critic]) -> LossModule:
        cfg, policy = self.cfg, _Actor(actor)
        if not cfg.twin:
            return DDPGLoss(policy, critics[0], delay_actor=True, delay_value=True)  # type: ignore
        return TD3Loss(
            policy,  # type: ignore[arg-type]
            critics,  # type: ignore[arg-type]
            bounds=(-1.0, 1.0),  # type: ignore[arg-type]
            num_qvalue_nets=len(critics),
            policy_noise=cfg.target_noise,
            noise_clip=cfg.target_noise_clip,
            loss_function="l2",
            delay_actor=True,
            delay_qvalue=True,
        )

    def _critic_parameters(self) -> nn.Module:
        loss: Any = self.loss
        return loss.qvalue_network_params if self.cfg.twin else loss.value_network_params

    def _draw(self, head: Tensor) -> Tensor:
        low, high = self.cfg.noise
        rows = torch.linspace(low, high, len(head), device=head.device)[:, None]
        return (torch.tanh(head) + rows * self._noise(head)).clamp(-1.0, 1.0)

    def _losses(self, mb: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        loss: Any = self.loss
        if self.cfg.twin:
            # its noise comes from torch's own generator
            seed = torch.randint(2**31, (), generator=self.rng, device=self.rng.device)
            devices = [self.rng.device] if self.rng.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(int(seed))
                value, found = loss.value_loss(mb)
        else:
            value, found = loss.loss_value(mb)
        metrics = {"critic/value_loss": value, "critic/td_error": found["td_error"].mean()}
        if not self.cfg.twin:
            actor = loss.loss_actor(mb)[0]
        elif self.steps % self.cfg.policy_every == 0:
            actor = loss.actor_loss(mb)[0]
        else:
            return value, {name: part.detach() for name, part in metrics.items()}
        metrics["actor/policy_loss"] = actor
        return value + actor, {name: part.detach() for name, part in metrics.items()}


class _Actor(TensorDictModuleBase):
    """The policy's network as TorchRL's losses want it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        # TD3's loss hands on to the critics what the policy reads alone
        self.in_keys = [OBSERVED, JUDGED]
        self.out_keys = ["action"]

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        return td.set("action", torch.tanh(self.net(td[OBSERVED])))


NAME = "ddpg"
ALGORITHM = DDPG
