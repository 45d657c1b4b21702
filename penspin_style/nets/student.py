"""The student: images and proprioception in, an action in [-1, 1] out.

The network of MuJoCo Playground's ALOHA students (PR #76), built from what the observation group
holds: per colour image a `NatureCNN`, frozen unless asked otherwise; per depth image its 8 x 8
nearest pixels; a dense head for each of these streams; beside them the normalised numbers; three
layers; a squash. A group without images gives a perceptron on its numbers.

`act` is the function that is exported: images as a camera gives them (uint8 RGB, metres), raw
numbers. Training goes through its three parts, `decode`, `encode` and `head`, and puts its
augmentation between the first two.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from penspin_style.features import Input, PolicyCard
from penspin_style.nets.encoder import NatureCNN, freeze
from penspin_style.nets.mlp import ACTIVATIONS, mlp
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.policy import Policy

NAME = "student"


class Observation(NamedTuple):
    """An observation as the network sees it before its encoders."""

    numbers: Tensor | None
    """(n, size), raw."""
    rgb: dict[str, Tensor]
    """Camera -> (n, 3, height, width) in [0, 1]."""
    depth: dict[str, Tensor]
    """Camera -> (n, height, width) m."""


class StudentPolicy(Policy):
    """See the module's docstring.

    inputs: what `act` is given, in this order: at most one vector, then images.
    layer_norm: bring each image's features to mean 0 and variance 1 before its dense head; the
        published network does not.
    pool: read the encoders' last map out as its average (64 numbers) or whole (1,024 for 32 x 32).
    latent: width of each stream's dense head.
    depth_pixels: height and width to which depth is sampled.
    max_depth: metres beyond which depth counts as nothing, per camera; 2 for cameras not named.

    Raises:
        ValueError: an input that is neither a vector nor an image, or of a camera that is unknown.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        naction: int,
        *,
        pool: bool,
        latent: int,
        depth_pixels: int,
        max_depth: Mapping[str, float],
        hidden: Sequence[int],
        activation: str,
        train_encoder: bool,
        layer_norm: bool = False,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.in_keys = tuple(i.name for i in inputs)
        self.naction = naction
        self.train_encoder = train_encoder
        self.layer_norm = layer_norm
        self._network = {
            "pool": pool,
            "latent": latent,
            "depth_pixels": depth_pixels,
            "max_depth": dict(max_depth),
            "hidden": list(hidden),
            "activation": activation,
            "train_encoder": train_encoder,
            "layer_norm": layer_norm,
        }
        vectors = [i for i in inputs if not i.is_image]
        if len(vectors) > 1:
            raise ValueError(f"a student reads one vector, got {[i.name for i in vectors]}")
        self.normalizer = Normalizer(vectors[0].size) if vectors else None
        self.encoders, self.heads = nn.ModuleDict(), nn.ModuleDict()
        self.depth = nn.ModuleDict()
        for image in inputs:
            if not image.is_image:
                continue
            camera, kind, height, width = _image(image)
            stacked = image.features[0].history
            if kind == "rgb":
                encoder = NatureCNN(height, width, pool=pool, rng=rng)
                self.encoders[camera] = encoder if train_encoder else freeze(encoder)
                size = stacked * encoder.out_features
            else:
                limit = max_depth.get(camera, 2.0)
                self.depth[camera] = _Depth(height, width, depth_pixels, limit)
                size = stacked * depth_pixels**2
            dense = mlp(size, (), latent, out_gain=2.0**0.5, rng=rng)
            self.heads[image.name] = nn.Sequential(dense, ACTIVATIONS[activation]())
        cameras = {*self.encoders, *self.depth}
        if unknown := sorted(set(max_depth) - cameras):
            raise ValueError(f"max_depth names {unknown}, the cameras are {sorted(cameras)}")
        size = latent * len(self.heads) + (vectors[0].size if vectors else 0)
        self.trunk = mlp(size, hidden, naction, activation=activation, out_gain=0.01, rng=rng)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Return the images whose features no training changes."""
        return tuple(
            i.name
            for i in self.inputs
            if i.is_image and not (self.train_encoder and _image(i)[1] == "rgb")
        )

    def load_encoder(self, state: Mapping[str, Tensor]) -> None:
        """Give every camera's encoder these weights."""
        for encoder in self.encoders.values():
            encoder.load_state_dict(dict(state))

    def act(self, *observations: Tensor) -> Tensor:
        """Return actions (n, naction) in [-1, 1] of raw observations, in the order of `in_keys`."""
        seen = self.decode(dict(zip(self.in_keys, observations, strict=True)))
        return self.head(seen.numbers, self.encode(seen.rgb, seen.depth))

    def decode(self, observations: Mapping[str, Tensor]) -> Observation:
        """Sort raw observations, colours as [0, 1]. Stacked images become more rows."""
        seen = Observation(None, {}, {})
        for given in self.inputs:
            value = observations[given.name]
            if not given.is_image:
                seen = seen._replace(numbers=value)
                continue
            camera, kind, height, width = _image(given)
            if kind == "rgb":
                rows = value.reshape(-1, height, width, 3).permute(0, 3, 1, 2)
                seen.rgb[camera] = rows.to(next(self.parameters()).dtype) / 255.0
            else:
                seen.depth[camera] = value.reshape(-1, height, width)
        return seen

    def encode(self, rgb: Mapping[str, Tensor], depth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return image -> features (n, size). Without gradients where nothing is trained."""
        features = {}
        for image in self.inputs:
            if not image.is_image:
                continue
            camera, kind, *_ = _image(image)
            if kind == "depth" and camera in depth:
                rows = self.depth[camera](depth[camera])
            elif kind == "rgb" and camera in rgb:
                rows = self.encoders[camera](rgb[camera])
                if self.layer_norm:
                    rows = functional.layer_norm(rows, rows.shape[1:])
            else:
                continue
            stacked = image.features[0].history
            features[image.name] = rows.reshape(-1, stacked * rows.shape[1])
        return features

    def head(self, numbers: Tensor | None, features: Mapping[str, Tensor]) -> Tensor:
        """Return actions (n, naction) in [-1, 1]."""
        parts = [head(features[name]) for name, head in self.heads.items()]
        if self.normalizer is not None:
            assert numbers is not None
            parts.append(self.normalizer(numbers))
        return torch.tanh(self.trunk(torch.cat(parts, dim=-1)))

    @classmethod
    def from_card(cls, card: PolicyCard, network: dict[str, Any]) -> "StudentPolicy":
        """Build the student that a card describes."""
        return cls(card.inputs, len(card.actions), rng=torch.Generator(), **network)

    def describe(self) -> dict[str, Any]:
        """Return what `load_policy` needs to build the module again, as JSON values."""
        return {"kind": NAME, **self._network}


class _Depth(nn.Module):
    """Nearest pixels of a depth image, in parts of the longest distance that counts."""

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, pixels: int, limit: float) -> None:
        super().__init__()
        self.limit = limit
        # the pixel in the middle of each cell; constants of the code, so no part of the weights
        middle = 2 * torch.arange(pixels) + 1
        self.register_buffer("rows", middle * height // (2 * pixels), persistent=False)
        self.register_buffer("columns", middle * width // (2 * pixels), persistent=False)

    def forward(self, depth: Tensor) -> Tensor:
        """Return (n, pixels * pixels) of depth (n, height, width) m; 0 where nothing is near."""
        few = depth.index_select(1, self.rows).index_select(2, self.columns).flatten(1)
        return torch.where(few > self.limit, 0.0, few) / self.limit


def _image(given: Input) -> tuple[str, str, int, int]:
    """Return camera, kind, height and width of an image.

    Raises:
        ValueError: it is none.
    """
    (feature,) = given.features
    camera, _, kind = given.name.rpartition("_")
    shape = feature.shape
    if kind == "rgb" and feature.dtype == "uint8" and len(shape) == 3 and shape[2] == 3:
        return camera, kind, shape[0], shape[1]
    if kind == "depth" and feature.dtype == "float32" and len(shape) == 2:
        return camera, kind, shape[0], shape[1]
    raise ValueError(
        f"input {given.name!r}, {feature.dtype} {shape}, is neither CAMERA_rgb, uint8 (height, "
        "width, 3), nor CAMERA_depth, float32 (height, width)"
    )


POLICY = StudentPolicy
