"""Policy and value function as TorchRL's losses want them, and figures of how they learn."""

import difflib
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from penspin_style.algo.algorithm import masked_mean
from penspin_style.features import Input
from penspin_style.nets.critic import ValueFunction
from penspin_style.nets.gaussian import Gaussian
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.squashed import SquashedPolicy
from penspin_style.nets.teacher import TeacherPolicy

ExploringPolicy = GaussianPolicy | SquashedPolicy | TeacherPolicy


class Actor(TensorDictModuleBase):
    """The policy as TorchRL's loss wants it, without the cost of a TensorDictModule.

    What it computes stays here: the distribution for the metrics, the value for `Critic`.
    """

    value: Any = None

    def __init__(self, policy: ExploringPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys = list(policy.in_keys)
        self.out_keys = ["action"]

    def get_dist(self, td: TensorDictBase) -> Gaussian:
        """Return the distribution of actions on observations."""
        observations = (td[key] for key in self.in_keys)
        if isinstance(self.policy, TeacherPolicy):
            self.dist, self.value = self.policy.evaluate(*observations)
        elif isinstance(self.policy, SquashedPolicy):
            self.dist = self.policy.normal(*observations)
        else:
            self.dist = self.policy(*observations)
        return self.dist


class Critic(TensorDictModuleBase):
    """The value function as TorchRL's loss wants it.

    It may be the actor's value head; the loss asks the actor first, about the same observations.
    """

    def __init__(self, critic: ValueFunction | Actor) -> None:
        super().__init__()
        self.critic = critic
        keys: Any = critic.in_keys if isinstance(critic, Actor) else [critic.in_key]
        self.in_keys = list(keys)
        self.out_keys = ["state_value"]

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write `state_value`."""
        if isinstance(self.critic, Actor):
            self.value = self.critic.value
        else:
            self.value = self.critic(td[self.critic.in_key])
        td.set("state_value", self.value)
        return td


def explained_variance(target: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Return 1 - Var(target - value) / Var(target) over the rows of weight 1."""

    def var(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, weight)) ** 2, weight)

    return 1.0 - var(target - value) / var(target).clamp(min=1e-12)


def summary(reward: Tensor, advantage: Tensor, target: Tensor, keep: Tensor) -> dict[str, float]:
    """Return what a batch was like, as metrics under `rollout/`; rows of `keep` count."""
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


def make_policy(
    cfg: Any, observed: dict[str, Input], naction: int, rng: torch.Generator
) -> ExploringPolicy:
    """Return the policy that an algorithm's configuration asks for, of what is observed.

    Raises:
        ValueError: an encoder is of a group whose name looks like a mistake, or the action's
            distribution is one that this network does not have.
    """
    encoders = {name: list(w) for name, w in sorted(cfg.encoders.items()) if w and name in observed}
    rest = set(observed) - set(cfg.encoders) - {"teacher", "critic"}
    for name in set(cfg.encoders) - set(observed):
        if meant := difflib.get_close_matches(name, rest, n=1):
            raise ValueError(
                f"algo.encoders.{name}: the task observes no such group; did you mean {meant[0]}?"
            )
    common: Any = {
        "hidden": cfg.hidden,
        "activation": cfg.activation,
        "init_std": cfg.init_std,
        "rng": rng,
    }
    if cfg.distribution == "tanh_normal":
        if encoders or cfg.shared_critic:
            raise ValueError(
                "algo.distribution=tanh_normal is of a network that reads the group 'teacher' "
                "alone, without value head: set algo.shared_critic=false and algo.encoders."
                f"{next(iter(encoders), 'GROUP')}=[], or leave the distribution normal"
            )
        return SquashedPolicy(
            "teacher", observed["teacher"].size, naction, stochastic=True, **common
        )
    if not encoders and not cfg.shared_critic:
        return GaussianPolicy("teacher", observed["teacher"].size, naction, **common)
    reads = [observed[name] for name in ("teacher", *encoders)]
    return TeacherPolicy(reads, naction, encoders=encoders, value=cfg.shared_critic, **common)


def make_critic(cfg: Any, observed: dict[str, Input], rng: torch.Generator) -> ValueFunction | None:
    """Return the critic, None if it is a head of the policy.

    Raises:
        ValueError: there is a group for the critic, which that head would not read.
    """
    if cfg.shared_critic and "critic" in observed:
        raise ValueError(
            "algo.shared_critic=true: the value head reads what the policy does, but the task "
            "observes a group 'critic'; use algo.shared_critic=false or drop the group"
        )
    if cfg.shared_critic:
        return None
    key = "critic" if "critic" in observed else "teacher"
    return ValueFunction(
        key, observed[key].size, hidden=cfg.critic_hidden, activation=cfg.activation, rng=rng
    )
