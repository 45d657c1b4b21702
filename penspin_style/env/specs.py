"""What an environment takes and gives, as TorchRL's specs."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded


def make_specs(
    observation: Mapping[str, Tensor], flags: Iterable[str], actions: Iterable[str], naction: int
) -> tuple[Composite, Bounded, Unbounded, Composite]:
    """Return the specs of observations, actions, rewards and ends.

    observation: one of each group, (num_envs, ...), at least one. flags: names of (num_envs, 1)
    bool beside them. actions: names of (num_envs, naction) float32 beside them.
    """
    some = next(iter(observation.values()))
    n, device = torch.Size([len(some)]), some.device

    def flag() -> Binary:
        return Binary(n=1, shape=torch.Size([*n, 1]), dtype=torch.bool, device=device)

    spec: dict[str, Any] = {
        name: Unbounded(value.shape, device=device, dtype=value.dtype)
        for name, value in observation.items()
    }
    spec |= {name: flag() for name in flags}
    each = torch.Size([*n, naction])
    spec |= {name: Unbounded(each, device=device) for name in actions}
    return (
        Composite(spec, shape=n, device=device),
        Bounded(-1.0, 1.0, each, device=device),
        Unbounded(torch.Size([*n, 1]), device=device),
        Composite({k: flag() for k in ("done", "terminated", "truncated")}, shape=n, device=device),
    )
