"""Sets of points to features that do not depend on their order (Qi et al. 2017, PointNet)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from penspin_style.nets.mlp import ACTIVATIONS, mlp


class PointEncoder(nn.Module):
    """One perceptron for every point, and the maximum over the points.

    in_features: coordinates of a point. widths: of the layers, each followed by the activation.
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int],
        *,
        activation: str = "elu",
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        *hidden, self.out_features = widths
        net = mlp(
            in_features, hidden, self.out_features, activation=activation, out_gain=2**0.5, rng=rng
        )
        self.net = nn.Sequential(*net, ACTIVATIONS[activation]())

    def forward(self, points: Tensor) -> Tensor:
        """Return (..., out_features) of points (..., count, in_features)."""
        return self.net(points).amax(dim=-2)
