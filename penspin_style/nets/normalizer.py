"""Running mean and variance of observations, inside the policy and so inside the export."""

import torch
from torch import Tensor, nn

from penspin_style.system import ranks


class Normalizer(nn.Module):
    """Map x to (x - mean) / std, clipped; statistics move only in `update`.

    Counts are float64 so that a long run neither saturates nor loses bits at a resume.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    clip = 10.0
    largest = 1e18
    """A row with a number beyond it does not count: its square would not be finite."""
    epsilon = 1e-5

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., size)."""
        scaled = (x - self.mean) * torch.rsqrt(self.var + self.epsilon)
        return scaled.clamp(-self.clip, self.clip)

    def undo(self, x: Tensor) -> Tensor:
        """Return what `forward` maps to x (..., size), where it does not clip."""
        return x * torch.sqrt(self.var + self.epsilon) + self.mean

    @torch.no_grad()
    def update(self, x: Tensor, keep: Tensor | None = None) -> None:
        """Merge a batch x (n, size), of all ranks, into the statistics (Chan et al. 1979).

        keep: (n,) bool, rows that count; the others may hold anything.
        """
        usable = (x.abs() <= self.largest).all(dim=1)
        keep = usable if keep is None else keep & usable
        weight = keep.to(x.dtype)
        x = torch.where(keep[:, None], x, 0.0)  # a weight of 0 does not undo infinity
        n = ranks.total(weight.sum(dtype=torch.float64))
        share = (weight / n.clamp(min=1.0).to(x.dtype))[:, None]
        mean = ranks.total((share * x).sum(dim=0))
        var = ranks.total((share * (x - mean) ** 2).sum(dim=0))
        total = self.count + n
        part = (n / total.clamp(min=1.0)).to(x.dtype)
        delta = mean - self.mean
        self.mean += part * delta
        self.var += part * (var - self.var) + part * (1.0 - part) * delta**2
        self.count.copy_(total)
