"""A teacher that reads more than a robot has, through encoders, and its value head.

The network of PenSpin's teacher (penspin/algo/models/models.py). Each further observation group has
an encoder, their outputs pass a tanh and join the teacher's own group, and one trunk serves two
heads, the mean action and the value. A cloud of points is encoded point by point with shared
weights, and the largest of each number stays (Qi et al. 2017, arXiv 1612.00593).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penspin_style.features import Input, PolicyCard
from penspin_style.nets.gaussian import Gaussian, deviation, raw_deviation
from penspin_style.nets.mlp import ACTIVATIONS, mlp
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.points import PointEncoder
from penspin_style.nets.policy import Policy

NAME = "oracle"

_CHUNK = 256
"""Clouds of which a CPU encodes all points at a time, so that they stay in its cache."""


class TeacherPolicy(Policy):
    """See the module's docstring.

    inputs: what `act` is given, in this order: first the group that is read as it is, then those of
        `encoders`. Each is normalised here, so callers pass it raw; the points of a cloud share
        their statistics.
    encoders: group -> widths of its layers, the last one that of its code.
    value: whether there is a value head.

    Raises:
        ValueError: the inputs after the first are not the encoded groups, or one is an image.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        naction: int,
        *,
        encoders: Mapping[str, Sequence[int]],
        hidden: Sequence[int],
        activation: str,
        value: bool,
        init_std: float,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        first, *others = inputs
        if sorted(i.name for i in others) != sorted(encoders):
            raise ValueError(
                f"encoders are of {sorted(encoders)}, the inputs after {first.name!r} are "
                f"{sorted(i.name for i in others)}"
            )
        self.in_keys = tuple(i.name for i in inputs)
        self.naction = naction
        self._network = {
            "encoders": {i.name: list(encoders[i.name]) for i in others},
            "hidden": list(hidden),
            "activation": activation,
            "value": value,
        }
        self.normalizers, self.encoders = nn.ModuleDict(), nn.ModuleDict()
        size = first.size
        for given in inputs:
            if given.is_image and not is_cloud(given):
                raise ValueError(f"a teacher reads vectors and points; {given.name!r} is neither")
            self.normalizers[given.name] = Normalizer(3 if is_cloud(given) else given.size)
        for given in others:
            *before, code = encoders[given.name]
            if is_cloud(given):
                encoder = PointEncoder(3, (*before, code), activation=activation, rng=rng)
            else:
                encoder = mlp(given.size, before, code, activation=activation, rng=rng)
            self.encoders[given.name] = encoder
            size += code
        self.trunk = nn.Sequential()
        if hidden:
            *before, last = hidden
            top = mlp(size, before, last, activation=activation, out_gain=2.0**0.5, rng=rng)
            self.trunk = nn.Sequential(*top, ACTIVATIONS[activation]())
            size = last
        for layer in self.modules():
            if isinstance(layer, nn.ELU | nn.ReLU):  # whose gradient needs their output alone
                layer.inplace = True
        self.mean = mlp(size, (), naction, out_gain=0.01, rng=rng)
        self.value = mlp(size, (), 1, rng=rng) if value else None
        self.raw_std = nn.Parameter(torch.full((naction,), raw_deviation(init_std)))

    def act(self, *observations: Tensor) -> Tensor:
        """Return the mean action (..., naction) in [-1, 1] of raw observations (..., size)."""
        return torch.tanh(self.mean(self._features(observations)))

    def forward(self, *observations: Tensor) -> Gaussian:
        """Return the distribution that training draws from."""
        return self.evaluate(*observations)[0]

    def evaluate(self, *observations: Tensor) -> tuple[Gaussian, Tensor | None]:
        """Return the distribution, and the values (..., 1) if there is a head for them."""
        features = self._features(observations, fast=True)
        loc = torch.tanh(self.mean(features))
        value = None if self.value is None else self.value(features)
        return Gaussian(loc, deviation(self.raw_std).expand_as(loc)), value

    def _features(self, observations: Sequence[Tensor], *, fast: bool = False) -> Tensor:
        """Return the trunk's output.

        fast: as training wants it; the other way is the one that can be exported.
        """
        own, codes = observations[0], []
        for (name, encoder), x in zip(self.encoders.items(), observations[1:], strict=True):
            normalizer = self.normalizers[name]
            if isinstance(encoder, PointEncoder):
                x = normalizer(x.unflatten(-1, (-1, 3)))
                codes.append(encode_points(encoder, x) if fast else encoder(x))
            else:
                codes.append(encoder(normalizer(x)))
        seen = self.normalizers[self.in_keys[0]](own)
        if codes:
            seen = torch.cat((seen, torch.tanh(torch.cat(codes, dim=-1))), dim=-1)
        return self.trunk(seen)

    @classmethod
    def from_card(cls, card: PolicyCard, network: dict[str, Any]) -> "TeacherPolicy":
        """Build the teacher that a card describes."""
        return cls(card.inputs, len(card.actions), init_std=1.0, rng=torch.Generator(), **network)

    def describe(self) -> dict[str, Any]:
        """Return what `load_policy` needs to build the module again, as JSON values."""
        return {"kind": NAME, **self._network}


def is_cloud(given: Input) -> bool:
    """Return whether an input is one feature (n, 3): points, that may come in any order."""
    first, *more = given.features
    return not more and first.history == 1 and len(first.shape) == 2 and first.shape[1] == 3


def encode_points(encoder: PointEncoder, points: Tensor) -> Tensor:
    """Return what `encoder(points)` is, and its gradient by the weights, in a quarter of the time.

    Only points that are the largest in some number have a gradient, and of a hundred these are
    about fifteen: all pass the network without a gradient, to find them, and they pass it again
    with one. points: (..., count, 3); they get no gradient themselves.
    """
    *batch, count, width = points.shape
    points = points.reshape(-1, count, width)
    parts = points.split(_CHUNK) if points.device.type == "cpu" else (points,)
    with torch.no_grad():
        found = [_each(encoder.net, part).max(dim=1) for part in parts]
    if not torch.is_grad_enabled():
        return torch.cat([f.values for f in found]).view(*batch, encoder.out_features)
    winners = torch.cat([f.indices for f in found])  # (clouds, width)
    rows = winners + count * torch.arange(len(winners), device=points.device)[:, None]
    wins = torch.zeros(len(points) * count, dtype=torch.bool, device=points.device)
    wins[rows.view(-1)] = True
    few = encoder.net(points.view(-1, width)[wins])
    place = wins.cumsum(dim=0) - 1  # of a point among the few
    return few.gather(0, place[rows]).view(*batch, encoder.out_features)


def _each(net: nn.Sequential, x: Tensor) -> Tensor:
    """Return net(x), without a gradient.

    Half of the time would go into expm1, which torch has no fast version of; exp(x) - 1 differs by
    a rounding of 1.
    """
    for layer in net:
        if isinstance(layer, nn.ELU):
            x = torch.maximum(x, x.clamp(max=0.0).exp_().sub_(1.0))
        else:
            x = layer(x)
    return x


POLICY = TeacherPolicy
