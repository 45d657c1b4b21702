"""Multi-layer perceptrons."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    *,
    activation: str = "elu",
    out_gain: float = 1.0,
    rng: torch.Generator,
) -> nn.Sequential:
    """Return Linear-activation blocks and a last Linear, orthogonal weights, zero biases.

    out_gain: gain of the last layer; small values start a policy near its mean of zero.

    Raises:
        ValueError: unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    sizes = [in_features, *hidden]
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [_linear(n_in, n_out, 2.0**0.5, rng), ACTIVATIONS[activation]()]
    layers.append(_linear(sizes[-1], out_features, out_gain, rng))
    return nn.Sequential(*layers)


def _linear(n_in: int, n_out: int, gain: float, rng: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.orthogonal_(layer.weight, gain, generator=rng)
    nn.init.zeros_(layer.bias)
    return layer
