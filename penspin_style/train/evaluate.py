"""Evaluate a policy: one episode in each of many environments, from fixed seeds.

`run.py` evaluates while it trains, the command line evaluates run folders and ONNX files; both
through this one function, so the numbers mean the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.system.interval import Z, wilson

Act = Callable[[Any], Tensor]
"""From a root TensorDict [num_envs] to actions (num_envs, naction)."""


def acting(policy: Any) -> Act:
    """Return a policy's `act` as a function of a root TensorDict; of a chunk the first action."""

    def act(td: Any) -> Tensor:
        action: Tensor = policy.act(*(td[key] for key in policy.in_keys))
        return action[:, 0] if getattr(policy, "horizon", 1) > 1 else action

    return act


def blinded(act: Act, images: Sequence[str]) -> Act:
    """Return an `act` that is given black, or empty, images instead of these."""

    def blind(td: Any) -> Tensor:
        return act(td.clone(recurse=False).update({n: torch.zeros_like(td[n]) for n in images}))

    return blind


@dataclass(frozen=True)
class Measure:
    """One of the task's own figures, over the episodes that no fault ended."""

    mean: float | None
    """None if there is no such episode."""
    interval: tuple[float, float] | None
    """95 %: Wilson's for a share, else by the standard error, which takes two episodes."""
    is_share: bool
    episodes: int
    kinds: dict[str, "Measure"] = field(default_factory=dict)
    """The same over the episodes of each kind."""

    @property
    def text(self) -> str:
        """Return the mean for people: a percentage of episodes, or a number."""
        return self.write(self.mean) if self.mean is not None else "none"

    def write(self, value: float) -> str:
        """Return a value in the measure's manner."""
        return f"{value:.1%}" if self.is_share else f"{value:.2f}"


@dataclass(frozen=True)
class Episodes:
    """What happened in each episode; tensors (n,), on the CPU."""

    steps: Tensor
    """Length in control steps, float."""
    terminated: Tensor
    """Whether the task terminated it, bool."""
    faulty: Tensor
    kind: Tensor
    """Long, into `kind_names`."""
    kind_names: tuple[str, ...]
    values: dict[str, Tensor]
    """`Task.episode_metrics`: bool or float."""

    def masks(self) -> dict[str, Tensor]:
        """Return which episodes are of each kind that occurs, the faulty ones aside."""
        found = {name: (self.kind == i) & ~self.faulty for i, name in enumerate(self.kind_names)}
        return {name: mask for name, mask in found.items() if mask.any()}

    def measures(self) -> dict[str, Measure]:
        """Return the figures, with their intervals."""
        masks = self.masks()
        return {
            name: _measure(
                value[~self.faulty], {kind: _measure(value[m]) for kind, m in masks.items()}
            )
            for name, value in self.values.items()
        }


def _measure(value: Tensor, kinds: dict[str, Measure] | None = None) -> Measure:
    n, is_share = len(value), value.dtype == torch.bool
    mean = value.double().mean().item() if n else None
    interval = None
    if mean is not None and (is_share or n > 1):
        interval = wilson(mean, n) if is_share else normal(value)
    return Measure(mean, interval, is_share, n, kinds or {})


@dataclass(frozen=True)
class Evaluation:
    """What a set of episodes says about a policy."""

    success_rate: float
    """Share of episodes in which the task's success held at some step."""
    interval: tuple[float, float]
    """95 % Wilson interval of the success rate."""
    success_at_end: float
    """Share of episodes whose last step was a success."""
    return_: float
    episode_len: float
    first_success: float | None
    """Mean step of the first success, over the episodes that have one."""
    reward: dict[str, float]
    """Mean episode sum of every weighted reward term."""
    episodes: int
    seed: int
    faults: int
    """Episodes that a fault ended; they count as failures, and enter no measure."""
    measures: dict[str, Measure]
    """The task's own figures."""
    record: Episodes = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, with `return_` as `return` and every measure's mean by its name."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "record"}
        out["return"] = out.pop("return_")
        out["measures"] = {name: asdict(measure) for name, measure in self.measures.items()}
        return out | {name: measure.mean for name, measure in self.measures.items()}

    def row(self) -> dict[str, float]:
        """Return what the log of a training is told."""
        row = {
            "eval/success_once": self.success_rate,
            "eval/success_at_end": self.success_at_end,
            "eval/return": self.return_,
            "eval/episode_len": self.episode_len,
        }
        return row | {f"eval/{k}": m.mean for k, m in self.measures.items() if m.mean is not None}

    def score(self, name: str) -> float | None:
        """Return the figure that `Task.score` names; None if every episode was faulty."""
        return self.as_dict()[name]

    def success(self, score: str) -> float:
        """Return the success that a task with this `Task.score` asks for.

        At the end where it scores by the end, at some step otherwise.
        """
        return self.success_at_end if score == "success_at_end" else self.success_rate

    def success_text(self, score: str) -> str:
        """Return that success with its interval, then the other one, by their names in logs.

        Of a task that scores by its return, the return.
        """
        if score == "return":
            return f"return {self.return_:.2f} ({self.episodes} episodes)"
        rate = self.success(score)
        low, high = wilson(rate, self.episodes)
        names = [("success_once", self.success_rate), ("success_at_end", self.success_at_end)]
        (name, _), (other, value) = names[::-1] if score == "success_at_end" else names
        return (
            f"success {rate:.1%} ({name}; 95% interval {low:.1%} to {high:.1%}, {self.episodes} "
            f"episodes), {other} {value:.1%}"
        )


@torch.no_grad()
def evaluate(
    env: Env, act: Act, *, seed: int, on_step: Callable[[], None] | None = None
) -> Evaluation:
    """Run the first episode of every environment to its end; return its figures and the task's.

    env: built with this seed and without staggering; its `num_envs` is the number of episodes.
    on_step: called after the reset and after every step, to draw, or to give up by raising.
    """
    n, device = env.num_envs, env.device
    alive = torch.ones(n, dtype=torch.bool, device=device)
    once, at_end, terminated, faulty = (torch.zeros_like(alive) for _ in range(4))
    total, length, first = (torch.zeros(n, device=device) for _ in range(3))
    terms: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    kind = env.task.kinds(env.sim).clone()
    root = env.current()
    if on_step:
        on_step()
    for _ in range(env.cfg.episode_length):
        root.set("action", act(root))
        transition, root = env.step_and_maybe_reset(root)
        after: Any = transition["next"]
        success, done = after["success"].view(-1), after["done"].view(-1)
        once |= success & alive
        at_end = torch.where(alive, success, at_end)
        terminated |= after["terminated"].view(-1) & alive
        faulty |= after["fault"].view(-1) & alive
        total += after["reward"].view(-1) * alive
        length += alive
        first += (alive & ~once).float()
        for name, value in env.reward_terms.items():
            terms[name] = terms.get(name, torch.zeros_like(total)) + value * alive
        for name, value in env.measures.items():
            sums[name] = sums.get(name, torch.zeros_like(total)) + torch.where(alive, value, 0.0)
        alive = alive & ~done
        if on_step:
            on_step()
    rate = (once & ~faulty).float().mean().item()
    record = _record(env.task, sums, length, terminated, faulty, kind)
    return Evaluation(
        success_rate=rate,
        interval=wilson(rate, n),
        success_at_end=(at_end & ~faulty).float().mean().item(),
        return_=total.mean().item(),
        episode_len=length.mean().item(),
        first_success=first[once].mean().item() if once.any() else None,
        reward={name: value.mean().item() for name, value in terms.items()},
        episodes=n,
        seed=seed,
        faults=int(faulty.sum()),
        measures=record.measures(),
        record=record,
    )


def _record(
    task: Task[Any],
    sums: dict[str, Tensor],
    steps: Tensor,
    terminated: Tensor,
    faulty: Tensor,
    kind: Tensor,
) -> Episodes:
    """Return what the task says of every episode.

    Raises:
        ValueError: the task says what is not finite, or names a kind that it does not have.
    """
    values = task.episode_metrics(sums, steps, terminated)
    who = type(task).__name__
    for name, value in values.items():
        if not torch.isfinite(value[~faulty]).all():
            raise ValueError(f"{who}.episode_metrics gives a {name!r} that is not finite")
    names = task.kind_names
    if names and not 0 <= int(kind.min()) <= int(kind.max()) < len(names):
        raise ValueError(
            f"{who}.kinds must be below {len(names)}, the number of its kind_names, got "
            f"{int(kind.min())} to {int(kind.max())}"
        )
    return Episodes(
        steps=steps.cpu(),
        terminated=terminated.cpu(),
        faulty=faulty.cpu(),
        kind=kind.cpu(),
        kind_names=names,
        values={name: value.cpu() for name, value in values.items()},
    )


def normal(values: Tensor, z: float = Z) -> tuple[float, float]:
    """Return the interval of a mean by its standard error, from (n,), n > 1; 95 % by default."""
    half = z * values.double().std().item() / math.sqrt(len(values))
    mean = values.double().mean().item()
    return mean - half, mean + half
