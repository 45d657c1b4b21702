"""What algorithms on policy share: a Gaussian policy that explores, minibatches, a rate by KL.

A subclass turns a batch into rows with `action`, `log_prob`, `loc`, `scale` and `weight` in
`process`, and says what is descended in `_losses`. Faulty transitions carry no weight anywhere.

With `overlap` batches are of the policy as it was one update before. Then the loss is the decoupled
one (Hilton et al. 2021, arXiv 2110.00641): steps are bounded, and measured, by how far they lead
from the policy that the update begins with, as ever, and each row counts by how much likelier that
policy does what the older one did.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import KLAdaptiveLR

from penspin_style.algo.actor_critic import Actor, ExploringPolicy
from penspin_style.algo.algorithm import GuardedOptimizer, Reinforcement, masked_mean, own_steps
from penspin_style.config import ACTIVATIONS, require
from penspin_style.nets.gaussian import Gaussian
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.teacher import TeacherPolicy
from penspin_style.system import ranks

DISTRIBUTIONS = ("normal", "tanh_normal")
LIKELIEST = 2.0
"""Bound of a row's weight where the policy that collected was an older one."""


class OnPolicy(Reinforcement):
    """A policy of its own samples, which are learned from once.

    A subclass makes `policy` and ends its constructor with `_start`.
    """

    Config: ClassVar[Any]
    METRICS: ClassVar[tuple[str, ...]]
    """Names, under `train/`, of what `_losses` returns, with `actor/approx_kl`; `actor/grad_norm`
    is appended."""
    collects = True
    many_ranks = True
    rank_state = ("rng", "noise")
    acts_by = ("policy", "critic", "value")
    overlap = False
    """Whether batches are of an older policy."""
    takes_first = True
    """Whether `act` takes the first observations; not where another process learns."""
    cfg: Any
    policy: ExploringPolicy
    rng: torch.Generator

    def _start(self, nets: Sequence[nn.Module]) -> None:
        """Make the optimiser of these networks; the gradient of each is bounded by itself."""
        cfg = self.cfg
        self._actor = Actor(self.policy)
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
        self.iteration = 0
        self._batch: TensorDict | None = None
        self._rollout_metrics: dict[str, float] = {}
        self._noise: Tensor | None = None  # of the last step, where noise is correlated
        self._has_statistics = False  # whether the normalisers have seen anything

    def _losses(self, mb: TensorDict) -> tuple[Tensor, Tensor]:
        """Return what is descended in a minibatch [n], and `METRICS` without the last."""
        raise NotImplementedError

    def _normalizers(self) -> Iterator[tuple[str, Normalizer]]:
        """Yield observation groups and the statistics of them: the policy's."""
        if isinstance(self.policy, TeacherPolicy):
            for key, normalizer in self.policy.normalizers.items():
                assert isinstance(normalizer, Normalizer)
                yield key, normalizer
        else:
            yield self.policy.in_key, self.policy.normalizer

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The one of all networks that learn."""
        return (self.optimizer,)

    @property
    def can_lag(self) -> bool:
        """Whether the normalisers have begun: `act` has no part in them from then on."""
        return self._has_statistics

    # What it does.

    @torch.no_grad()
    def act(self, td: TensorDict) -> TensorDict:
        """Draw an action; write `action`, `drawn`, `log_prob`, `loc` and `scale`."""
        if self.takes_first and self.needs_first:
            self.take_first(td)
        dist = self._actor.get_dist(td)
        noise = torch.randn(dist.loc.shape, generator=self.rng, device=dist.loc.device)
        if rho := self.cfg.noise_correlation:
            if self._noise is not None:
                noise = rho * self._noise + (1.0 - rho**2) ** 0.5 * noise
            self._noise = noise
        drawn = dist.loc + dist.scale * noise
        td.set("action", dist.action(drawn))
        td.set("drawn", drawn)
        td.set("log_prob", dist.log_prob(drawn))
        td.set("loc", dist.loc)
        td.set("scale", dist.scale)
        return td

    def _renew(self, batch: TensorDict) -> Tensor:
        """Let `loc`, `scale` and `log_prob` of a batch be those of the policy as it is now.

        Return how much likelier it is to act so, [horizon, num_envs, 1], up to `LIKELIEST` times.
        """
        dist = self._actor.get_dist(batch)
        log_prob: Any = dist.log_prob(batch["drawn"])
        fault: Any = batch["next", "fault"].squeeze(-1)
        ratio = torch.where(fault, 1.0, (log_prob - batch["log_prob"]).exp())
        batch["loc"], batch["scale"], batch["log_prob"] = dist.loc, dist.scale.clone(), log_prob
        return ratio.clamp(max=LIKELIEST)[..., None]

    @property
    def needs_first(self) -> bool:
        """Whether the statistics have seen nothing yet."""
        return not self._has_statistics

    def take_first(self, td: TensorDict) -> None:
        """Take the first observations, of a root td [num_envs], into the statistics."""
        own = own_steps(td)
        if own is None or ranks.any_of(bool(own.any())):
            self._update_normalizers(td, own)
            self._has_statistics = True

    def _rows(self, batch: TensorDict, advantage: Tensor, keep: Tensor) -> TensorDict:
        """Return what a batch [horizon, num_envs] holds to learn from.

        advantage, keep: [horizon, num_envs, 1]; only rows of `keep` have weight.
        """
        fault: Any = batch["next", "fault"]
        keys = {key for key, _ in self._normalizers()}
        rows = batch.select(*keys, "log_prob", "loc", "scale")
        rows["advantage"] = advantage
        rows["weight"] = keep.float()
        # a weight of 0 does not undo infinity: whatever the action was, its row becomes harmless
        rows["action"] = torch.where(fault, batch["loc"], batch["drawn"])
        rows["log_prob"] = batch["log_prob"].masked_fill(fault.squeeze(-1), 0.0)
        return rows

    def update(self) -> dict[str, float]:
        """Run `epochs` passes of shuffled minibatches over the processed batch."""
        if self._batch is None:
            raise RuntimeError("update() needs a batch: call process() first")
        flat = self._batch if self._batch.ndim == 1 else self._batch.reshape(-1)
        n = len(flat)
        steps = -(-n // -(-n // self.cfg.num_minibatches)) if n else 0
        if ranks.size() > 1:  # each takes as many, whatever it has kept
            steps = ranks.largest(steps if flat["weight"].any() else 0)
        totals: list[Tensor] = []
        skipped = 0
        rate = 0.0
        for epoch in range(1, self.cfg.epochs + 1):
            rate = self.optimizer.param_groups[0]["lr"]
            for mb in self._minibatches(flat, steps):
                metrics = self._step(mb)
                if metrics is None:
                    skipped += 1
                else:
                    totals.append(metrics)
            if self.cfg.kl_every == "epoch" or epoch == self.cfg.epochs:
                self._adapt_rate(totals[-self.cfg.num_minibatches :])
        out = {"train/actor/lr": rate, **self._report(totals, flat)}
        out["train/skipped_updates"] = float(skipped)
        if steps:
            self._update_normalizers(flat, flat["weight"].view(-1) > 0)
        self._batch = None
        self.iteration += 1
        return {**self._rollout_metrics, **out}

    def _kept(self, rows: TensorDict, keep: Tensor) -> TensorDict:
        """Return the rows that are learned from, (n,); a rank that has none takes one idle row."""
        kept = rows[keep.squeeze(-1)]
        return kept if len(kept) or ranks.size() == 1 else rows.reshape(-1)[:1]

    def _minibatches(self, flat: TensorDict, steps: int) -> Iterator[TensorDict]:
        """Yield the shuffled rows of an epoch's steps; idle ones once they are used up."""
        n = len(flat)
        order = torch.randperm(n, generator=self.rng, device=self.rng.device)
        parts = order.split(-(-n // self.cfg.num_minibatches)) if n else ()
        yield from (flat[ids] for ids in parts[:steps])
        idle: Any = flat[:1].clone()
        idle["weight"].zero_()
        yield from (idle for _ in range(steps - len(parts)))

    def _step(self, mb: TensorDict) -> Tensor | None:
        """Take one gradient step; return its metrics, or None if it was not finite and skipped."""
        loss, metrics = self._losses(mb)
        norm = self._guard.step(loss, weight=mb["weight"].sum(), metrics=metrics)
        if norm is None:
            return None
        return torch.cat((metrics, norm[None]))

    def _report(self, totals: list[Tensor], flat: TensorDict) -> dict[str, float]:
        """Return figures of an update over these rows."""
        out: dict[str, float] = {}
        if not len(flat):
            return out
        if totals:
            means = torch.stack(totals).mean(dim=0).tolist()
            names = (*self.METRICS, "actor/grad_norm")
            out |= {f"train/{name}": value for name, value in zip(names, means, strict=True)}
        return {**out, "train/actor/std": flat["scale"].mean().item()}

    def _adapt_rate(self, totals: list[Tensor]) -> None:
        """Let the learning rate follow how far these steps are from the policy that collected."""
        if totals and self.schedule is not None:
            kl = self.METRICS.index("actor/approx_kl")
            self.schedule.step(torch.stack(totals)[:, kl].mean().item())

    def _update_normalizers(self, flat: TensorDictBase, keep: Tensor | None = None) -> None:
        """Move the running statistics; between iterations only, so that ratios stay exact."""
        for key, normalizer in self._normalizers():
            x: Any = flat[key]
            points = x.reshape(-1, len(normalizer.mean))  # the observation itself, or its points
            each = x.shape[1:].numel() // len(normalizer.mean)
            all_keep = keep if keep is None or each == 1 else keep.repeat_interleave(each)
            normalizer.update(points, all_keep)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return weights, statistics, optimiser, generator and counters."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "skipped_in_a_row": self._guard.skipped_in_a_row,
            "iteration": self.iteration,
            **({} if self._noise is None else {"noise": self._noise.clone()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self._guard.skipped_in_a_row = int(state["skipped_in_a_row"])
        self._noise = state.get("noise")
        self.iteration = int(state["iteration"])
        self._has_statistics = all(bool(n.count) for _, n in self._normalizers())


def objective_metrics(
    dist: Gaussian, mb: TensorDict, surrogate: Tensor, *, clip: tuple[float, float]
) -> list[Tensor]:
    """Return the means of `OBJECTIVE_METRICS` over a minibatch's rows of weight.

    dist: of the policy now. surrogate: the clipped loss of each row. clip: below and above 1.
    """
    weight, advantage = mb["weight"].view(-1), mb["advantage"].view(-1)
    ratio = (dist.log_prob(mb["action"]) - mb["log_prob"]).exp()
    low, high = 1.0 - clip[0], 1.0 + clip[1]
    # the clipped branch is active only on the side that the advantage pushes towards
    clipped = ((ratio > high) & (advantage > 0)) | ((ratio < low) & (advantage < 0))
    rows = (
        surrogate.abs(),
        ratio,
        (ratio - 1.0).abs(),
        ratio.clamp(low, high),
        Gaussian(mb["loc"], mb["scale"]).kl(dist),
        clipped.float(),
        dist.entropy(),
    )
    return [masked_mean(row, weight) for row in rows]


OBJECTIVE_METRICS = (
    "actor/policy_loss_abs",
    "actor/ratio",
    "actor/ratio_abs",
    "actor/clipped_ratio",
    "actor/approx_kl",
    "actor/clip_fraction",
    "actor/entropy",
)


def check_shared(cfg: Any) -> None:
    """Check the settings that all of them have; see `require`."""
    for key in ("epochs", "num_minibatches"):
        require(getattr(cfg, key) >= 1, f"algo.{key}", getattr(cfg, key), ">= 1")
    rho = cfg.noise_correlation
    require(0 <= rho < 1, "algo.noise_correlation", rho, "in [0, 1)")
    for key in (
        *("learning_rate", "min_learning_rate", "max_learning_rate"),
        *("max_grad_norm", "init_std"),
    ):
        value = getattr(cfg, key)
        require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")
    kl = cfg.target_kl
    require(kl is None or 0 < kl < float("inf"), "algo.target_kl", kl, "> 0 or null")
    require(all(n >= 1 for n in cfg.hidden), "algo.hidden", cfg.hidden, "a list of sizes >= 1")
    for group, sizes in cfg.encoders.items():
        legal = all(n >= 1 for n in sizes)
        require(legal, f"algo.encoders.{group}", sizes, "a list of sizes >= 1")
        require(group not in ("teacher", "critic"), "algo.encoders", group, "another group")
    top = cfg.max_learning_rate
    legal = f"at least algo.min_learning_rate, {cfg.min_learning_rate}"
    require(top >= cfg.min_learning_rate, "algo.max_learning_rate", top, legal)
    known = ("iteration", "epoch")
    require(cfg.kl_every in known, "algo.kl_every", cfg.kl_every, " or ".join(known))
    kind = cfg.distribution
    require(kind in DISTRIBUTIONS, "algo.distribution", kind, " or ".join(DISTRIBUTIONS))
    act = cfg.activation
    require(act in ACTIVATIONS, "algo.activation", act, ", ".join(ACTIVATIONS))
