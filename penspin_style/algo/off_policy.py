"""What SAC and DDPG share: roll-outs, n-step returns, the replay buffer, and their state.

One iteration: `rollout` collects [horizon, num_envs] transitions; `process` turns them into n-step
ones (truncation bootstraps from the true last observation, termination does not) and adds them to
the replay buffer; `update` makes `updates` gradient steps on samples of it. Faulty transitions and
steps that another policy acts in (`learner_acts`) are never stored. The normalisers are updated
once an iteration, before the gradient steps: within these they stand still, for the networks and
their targets alike.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.objectives import LossModule, SoftUpdate

from penspin_style.algo.algorithm import (
    GuardedOptimizer,
    Reinforcement,
    observed_groups,
    own_steps,
)
from penspin_style.config import ACTIVATIONS, StallConfig, StartsConfig, require
from penspin_style.data.replay import Replay
from penspin_style.features import Input
from penspin_style.nets.mlp import mlp
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.squashed import SquashedPolicy

OBSERVED, JUDGED = "observed", "judged"
"""What policy and critic are given in a minibatch: observations, normalised."""


@dataclass
class OffPolicyConfig:
    """What SAC and DDPG have in common."""

    init_from: str = ""
    """Run folder, or policy folder, of a trained policy of the same shape to begin with; see
    `weights_folder`. Empty for random weights."""
    horizon: int = 8
    """Steps per environment and iteration."""
    updates: int = 16
    """Gradient steps of an iteration."""
    batch_size: int = 512
    """Samples of a gradient step."""
    replay_capacity: int = 500_000
    """Transitions that are kept; the oldest go."""
    save_replay: bool = True
    """Keep the replay buffer with the checkpoints: a resume is exact then. Without, a resumed run
    begins with an empty one and learns from `warmup` samples on."""
    warmup: int = 5_000
    """Transitions before the first gradient step; their actions are drawn uniformly."""
    expert_share: float = 0.0
    """Share of the environments in which the task's script acts, `Task.expert`, instead of the
    policy: its steps are learned from like all others, and a training's own success counts its
    episodes, which evaluations do not. For tasks whose reward is hardly found by noise."""
    n_step: int = 3
    """Rewards that are summed before the critic's value of what comes then."""
    gamma: float = 0.98
    tau: float = 0.005
    """Share of the critic that enters its target in each gradient step."""
    reward_scale: float = 1.0
    """Multiplies rewards before values are learned from them."""
    learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    max_grad_norm: float = 10.0
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    critic_hidden: list[int] = field(default_factory=lambda: [256, 256])
    layer_norm: bool = True
    """Normalise each hidden layer of the critics: what they extrapolate to stays bounded."""
    activation: str = "elu"
    starts: StartsConfig = field(default_factory=StartsConfig)
    stall: StallConfig = field(default_factory=StallConfig)

    def __post_init__(self) -> None:
        """Check the values."""
        share = self.expert_share
        require(0 <= share < 1, "algo.expert_share", share, "in [0, 1)")
        for key in ("horizon", "updates", "batch_size", "n_step", "replay_capacity"):
            require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), ">= 1")
        require(self.warmup >= 0, "algo.warmup", self.warmup, ">= 0")
        legal = f"at most algo.replay_capacity, {self.replay_capacity}"
        require(self.warmup <= self.replay_capacity, "algo.warmup", self.warmup, legal)
        require(0 <= self.gamma <= 1, "algo.gamma", self.gamma, "in [0, 1]")
        require(0 < self.tau <= 0.5, "algo.tau", self.tau, "in (0, 0.5]")
        for key in ("reward_scale", "learning_rate", "critic_learning_rate", "max_grad_norm"):
            value = getattr(self, key)
            require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")
        for key in ("hidden", "critic_hidden"):
            sizes = getattr(self, key)
            require(all(n >= 1 for n in sizes), f"algo.{key}", sizes, "a list of sizes >= 1")
        known = ", ".join(ACTIVATIONS)
        require(self.activation in ACTIVATIONS, "algo.activation", self.activation, known)


class OffPolicy(Reinforcement):
    """A teacher on the observation group `teacher`; its critics read `critic` where there is one.

    Subclasses say how actions are drawn and what is descended.
    """

    Config: ClassVar[Any]
    stochastic: ClassVar[bool]
    """Whether the policy has a deviation."""
    collects = True

    def __init__(
        self,
        cfg: Any,
        inputs: tuple[Input, ...],
        naction: int,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        observed = observed_groups(cfg.name, inputs)
        self.cfg, self.naction, self.horizon = cfg, naction, cfg.horizon
        self.rng = torch.Generator(device=device).manual_seed(seed)
        weights = torch.Generator().manual_seed(seed)  # they do not depend on the device
        self.policy = SquashedPolicy(
            "teacher",
            observed["teacher"].size,
            naction,
            hidden=cfg.hidden,
            activation=cfg.activation,
            stochastic=self.stochastic,
            rng=weights,
        ).to(device)
        self.critic_key = "critic" if "critic" in observed else "teacher"
        self.unread = tuple(n for n in observed if n not in ("teacher", self.critic_key))
        size = observed[self.critic_key].size
        self.critic_normalizer = Normalizer(size).to(device)
        critics = [make_critic(cfg, size, naction, weights).to(device) for _ in range(2)]
        # the loss puts its parameters into the modules that it is given, and target ones as well:
        # it gets modules of its own around the policy's parameters
        self.loss = self._make_loss(_sharing(self.policy.net), critics).to(device)
        self.loss.make_value_estimator(gamma=cfg.gamma)
        self._targets = SoftUpdate(self.loss, tau=cfg.tau)
        critic = self._critic_parameters()
        groups: list[dict[str, Any]] = [
            {"params": [*self.policy.net.parameters()], "lr": cfg.learning_rate},
            {"params": [*critic.parameters()], "lr": cfg.critic_learning_rate},
            *self._further_groups(),
        ]
        self.optimizer = torch.optim.Adam(groups)
        self._guard = GuardedOptimizer(self.optimizer, (self.policy.net, critic), cfg.max_grad_norm)
        self.replay = Replay(cfg.replay_capacity)
        self.steps = 0
        """Gradient steps so far."""
        self._fresh: dict[str, float] = {}

    # What a subclass says.

    def _make_loss(self, actor: nn.Module, critics: list["Critic"]) -> LossModule:
        """Return TorchRL's loss."""
        raise NotImplementedError

    def _critic_parameters(self) -> nn.Module:
        """Return the loss's parameters of the critics."""
        raise NotImplementedError

    def _further_groups(self) -> list[dict[str, Any]]:
        """Return what else descends, as groups of the optimiser."""
        return []

    def _draw(self, head: Tensor) -> Tensor:
        """Return exploring actions of the network's output."""
        raise NotImplementedError

    def _losses(self, mb: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is descended in a minibatch, and metrics without their prefix."""
        raise NotImplementedError

    @classmethod
    def env_settings(cls, cfg: Any, *, training: bool) -> dict[str, Any]:
        """Return what `Reinforcement` does, and whether the task's script is asked."""
        settings = super().env_settings(cfg, training=training)
        return {**settings, **({"expert": True} if training and cfg.expert_share else {})}

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The one of policy, critics and temperature."""
        return (self.optimizer,)

    # The four verbs.

    @torch.no_grad()
    def act(self, td: TensorDict) -> TensorDict:
        """Draw an action; write `action`."""
        observation: Any = td["teacher"]
        if self.is_warm:
            action = self._draw(self.policy.net(self.policy.normalizer(observation)))
        else:
            shape = (*observation.shape[:-1], self.naction)
            action = 2.0 * torch.rand(shape, generator=self.rng, device=self.rng.device) - 1.0
        if self.cfg.expert_share:
            by_script = round(self.cfg.expert_share * len(action))
            by_script = max(1, min(by_script, len(action) - 1))  # both act
            action[:by_script] = td["expert_action"][:by_script]
        return td.set("action", action)  # type: ignore[return-value]

    @property
    def is_warm(self) -> bool:
        """Whether there are enough samples to learn from."""
        return self.replay.count >= max(1, self.cfg.warmup)

    @torch.no_grad()
    def process(self, batch: TensorDict | None) -> None:
        """Add a batch [horizon, num_envs] to the replay buffer, as n-step transitions."""
        assert batch is not None
        nxt: Any = batch["next"]
        rows = n_step(batch, self.cfg.n_step, self.cfg.gamma, keys={"teacher", self.critic_key})
        rows["next", "reward"] *= self.cfg.reward_scale
        self.replay.add(rows)
        for key, normalizer in self._normalizers():
            normalizer.update(rows[key])
        keep = (~nxt["fault"]).float()
        mean = torch.where(nxt["fault"], 0.0, nxt["reward"]).sum() / keep.sum().clamp(min=1.0)
        self._fresh = {"rollout/rewards": mean.item(), "rollout/stored": float(len(rows))}

    def update(self) -> dict[str, float]:
        """Make `updates` gradient steps on samples of the replay buffer."""
        skipped, totals = 0, []
        for _ in range(self.cfg.updates if self.is_warm else 0):
            loss, metrics = self._losses(self._minibatch())
            norm = self._guard.step(loss)
            self.steps += 1
            if norm is None:
                skipped += 1
                continue
            self._targets.step()
            totals.append({**metrics, "grad_norm": norm})
        out = {
            f"train/{name}": torch.stack([row[name] for row in totals if name in row]).mean().item()
            for name in sorted({name for row in totals for name in row})
        }
        out |= {"train/replay": float(len(self.replay)), "train/skipped_updates": float(skipped)}
        return {**self._fresh, **out}

    def _minibatch(self) -> TensorDict:
        """Return samples with what policy and critics are given: `OBSERVED` and `JUDGED`."""
        mb: Any = self.replay.sample(self.cfg.batch_size, self.rng)
        for where in (mb, mb["next"]):
            where[OBSERVED] = self.policy.normalizer(where["teacher"])
            where[JUDGED] = self.critic_normalizer(where[self.critic_key])
        return mb

    def _normalizers(self) -> Iterator[tuple[str, Normalizer]]:
        yield "teacher", self.policy.normalizer
        yield self.critic_key, self.critic_normalizer

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.rng, device=like.device)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return weights, targets, normalisers, optimiser, generator, counters and samples."""
        return {
            "policy": self.policy.state_dict(),
            "loss": {k: v for k, v in self.loss.state_dict().items() if isinstance(v, Tensor)},
            "critic_normalizer": self.critic_normalizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "steps": self.steps,
            "skipped_in_a_row": self._guard.skipped_in_a_row,
            **({"replay": self.replay} if self.cfg.save_replay else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; without its samples, from an empty replay buffer."""
        own = self.loss.state_dict()
        self.loss.load_state_dict({**own, **state["loss"]})
        self.policy.load_state_dict(state["policy"])
        self.critic_normalizer.load_state_dict(state["critic_normalizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self.steps = int(state["steps"])
        self._guard.skipped_in_a_row = int(state["skipped_in_a_row"])
        self.replay.take(state.get("replay", Replay(self.cfg.replay_capacity)), self.rng.device)


class Critic(TensorDictModuleBase):
    """The value of acting so where one is, as TorchRL's losses want it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.in_keys = ["action", JUDGED]
        self.out_keys = ["state_action_value"]

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write `state_action_value`, (..., 1)."""
        return td.set("state_action_value", self.net(torch.cat((td[JUDGED], td["action"]), dim=-1)))


def make_critic(cfg: Any, size: int, naction: int, rng: torch.Generator) -> Critic:
    """Return a critic of `size` observed numbers."""
    net = mlp(size + naction, cfg.critic_hidden, 1, activation=cfg.activation, rng=rng)
    if cfg.layer_norm:
        layers: list[nn.Module] = []
        for layer in list(net)[:-1]:
            layers.append(layer)
            if isinstance(layer, nn.Linear):
                layers.append(nn.LayerNorm(layer.out_features))
        net = nn.Sequential(*layers, net[len(net) - 1])
    return Critic(net)


def n_step(batch: TensorDict, n: int, gamma: float, *, keys: set[str]) -> TensorDict:
    """Return the transitions of a batch [horizon, num_envs] over up to n steps each, [rows].

    Fewer where the episode ends, before a faulty step, and at the batch's end. `next` holds the sum
    of discounted rewards, the observation after the last of the steps and whether that terminated;
    `steps_to_next_obs` says how many they are. Left out are faulty transitions, those that begin in
    a step of another policy, and those that end in one: what is to come there nobody has learned.

    keys: observation groups that are kept.
    """
    nxt: Any = batch["next"]
    horizon, num_envs = batch.shape
    device = nxt["fault"].device
    fault, done = nxt["fault"].squeeze(-1), nxt["done"].squeeze(-1)
    earned = nxt["reward"].squeeze(-1)
    t = torch.arange(horizon, device=device)[:, None].expand(horizon, num_envs)
    going, reward, last = ~fault, torch.zeros_like(earned), t
    for k in range(min(n, horizon)):
        if k:
            going = going & ~_ahead(done, k - 1) & ~_ahead(fault, k) & (t + k < horizon)
        reward = reward + torch.where(going, gamma**k * _ahead(earned, k), 0.0)
        last = torch.where(going, t + k, last)
    keep = ~fault
    env = torch.arange(num_envs, device=device).expand(horizon, num_envs)
    if (own := own_steps(batch)) is not None:
        after = nxt["terminated"] | nxt["learner_acts"]
        keep = keep & own & after.squeeze(-1)[last, env]
    begin, end, env = t[keep], last[keep], env[keep]
    names = sorted(keys)
    rows = TensorDict(
        {
            **{name: batch[name][begin, env] for name in names},
            "action": batch["action"][begin, env].clamp(-1.0, 1.0),
            "steps_to_next_obs": (end - begin + 1)[:, None],
            "next": {
                **{name: nxt[name][end, env] for name in names},
                "reward": reward[keep][:, None],
                "terminated": nxt["terminated"][end, env],
                "done": nxt["terminated"][end, env],
            },
        },
        batch_size=[len(begin)],
        device=device,
    )
    return rows


def _ahead(x: Tensor, k: int) -> Tensor:
    """Return x (horizon, num_envs) k steps later, zeros beyond its end."""
    return torch.cat((x[k:], torch.zeros_like(x[:k])))


def _sharing(net: nn.Module) -> nn.Module:
    """Return another module around the same parameters."""
    copied = copy.deepcopy(net)
    for name, parameter in net.named_parameters():
        where, _, last = name.rpartition(".")
        setattr(copied.get_submodule(where), last, parameter)
    return copied
