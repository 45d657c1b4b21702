"""Judge a policy: one episode in each of many environments, from fixed seeds.

`run.py` evaluates while it trains, the command line evaluates run folders and ONNX files; both
through this one function, so the numbers mean the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from penspin_style.env.env import Env

Act = Callable[[Any], Tensor]
"""From a root TensorDict [num_envs] to actions (num_envs, naction)."""


def acting(policy: Any) -> Act:
    """Return a policy's `act` as a function of a root TensorDict."""
    return lambda td: policy.act(*(td[key] for key in policy.in_keys))


def blinded(act: Act, pictures: Sequence[str]) -> Act:
    """Return an `act` that is given black, or empty, pictures instead of these."""

    def blind(td: Any) -> Tensor:
        return act(td.clone(recurse=False).update({n: torch.zeros_like(td[n]) for n in pictures}))

    return blind


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
    """Episodes that a fault ended; they count as failures."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, with `return_` as `return`."""
        out = asdict(self)
        out["return"] = out.pop("return_")
        return out


@torch.no_grad()
def evaluate(
    env: Env, act: Act, *, seed: int, on_step: Callable[[], None] | None = None
) -> Evaluation:
    """Run the first episode of every environment to its end.

    env: built with this seed and without staggering; its `num_envs` is the number of episodes.
    on_step: called after the reset and after every step, to film.
    """
    n, device = env.num_envs, env.device
    alive = torch.ones(n, dtype=torch.bool, device=device)
    once, at_end, faulty = (torch.zeros(n, dtype=torch.bool, device=device) for _ in range(3))
    total, length, first = (torch.zeros(n, device=device) for _ in range(3))
    terms: dict[str, Tensor] = {}
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
        faulty |= after["fault"].view(-1) & alive
        total += after["reward"].view(-1) * alive
        length += alive
        first += (alive & ~once).float()
        for name, value in env.reward_terms.items():
            terms[name] = terms.get(name, torch.zeros_like(total)) + value * alive
        alive = alive & ~done
        if on_step:
            on_step()
    rate = (once & ~faulty).float().mean().item()
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
    )


def wilson(rate: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); z for 95 % by default."""
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
