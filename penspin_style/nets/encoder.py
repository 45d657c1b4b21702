"""Image encoders: pixels in, a vector of features out.

`NatureCNN` is the encoder of Mnih et al. 2015 in the variant of MuJoCo Playground's pixel tasks:
three convolutions without biases, padded the way TensorFlow and JAX pad, then either the average
over the image or the whole feature map. The weights know neither the image size nor how the map is
read out, so one published folder serves every camera.
"""

import json
import pathlib
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from penspin_style import storage
from penspin_style.tensors import check_finite, read_tensors

MEAN = (0.4914, 0.4822, 0.4465)
"""Of red, green and blue over CIFAR-10's training images; subtracted from pixels in [0, 1]."""
STD = (0.2470, 0.2435, 0.2616)
"""Of the same; what is left is divided by it. Padding comes after: it is the mean colour."""

_Module = TypeVar("_Module", bound=nn.Module)


class Conv(NamedTuple):
    """One bias-free convolution with a square kernel."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of its weight."""
        return (self.out_channels, self.in_channels, self.kernel, self.kernel)


LAYERS = (Conv(3, 32, 8, 4), Conv(32, 64, 4, 2), Conv(64, 64, 3, 1))


class NatureCNN(nn.Module):
    """Three convolutions with rectifiers on RGB images of one size.

    pool: True averages the last map over the image, 64 features; False flattens it in the order
        (channel, row, column), 64 features for each 8 x 8 block of pixels or part of one.
    rng: draws the weights, orthogonal with the gain of a rectifier.

    Raises:
        ValueError: height or width is below 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, height: int = 32, width: int = 32, *, pool: bool, rng: torch.Generator
    ) -> None:
        super().__init__()
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be at least 1 pixel, got {height} x {width}")
        self.height, self.width, self.pool = height, width, pool
        self.convs = nn.ModuleList()
        self._uneven: list[tuple[int, int, int, int]] = []
        for conv in LAYERS:
            left, right = same_padding(width, conv.kernel, conv.stride)
            top, bottom = same_padding(height, conv.kernel, conv.stride)
            layer = nn.Conv2d(*conv, padding=(top, left), bias=False)
            nn.init.orthogonal_(layer.weight, 2.0**0.5, generator=rng)
            self.convs.append(layer)
            self._uneven.append((0, right - left, 0, bottom - top))
            height, width = -(-height // conv.stride), -(-width // conv.stride)
        self._map = (LAYERS[-1].out_channels, height, width)
        # constants of the code, so no part of the weights
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    @property
    def out_features(self) -> int:
        """Numbers per image."""
        channels, height, width = self._map
        return channels if self.pool else channels * height * width

    def forward(self, image: Tensor) -> Tensor:
        """Return features (n, out_features) of RGB images (n, 3, height, width) in [0, 1].

        Raises:
            ValueError: integers, or images of another size.
        """
        if not image.is_floating_point():
            raise ValueError(
                f"images must be floats in [0, 1], got {image.dtype}; divide uint8 by 255"
            )
        if image.ndim != 4 or image.shape[1:] != (3, self.height, self.width):
            raise ValueError(
                f"images must be (n, 3, {self.height}, {self.width}), got {tuple(image.shape)}"
            )
        x = (image - self.mean) / self.std
        for conv, uneven in zip(self.convs, self._uneven, strict=True):
            x = F.relu(conv(F.pad(x, uneven) if any(uneven) else x))
        return x.mean(dim=(2, 3)) if self.pool else x.flatten(1)

    def describe(self) -> dict[str, Any]:
        """Return what builds the module again, weights aside, as JSON values."""
        return {"kind": "nature_cnn", "height": self.height, "width": self.width, "pool": self.pool}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return zeros (before, after) an axis so that its output has ceil(size / stride) numbers.

    An odd zero goes after, as TensorFlow's and JAX's SAME has it.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def freeze(module: _Module) -> _Module:
    """Exempt a module from training: no gradients, evaluation mode. Return it."""
    return module.requires_grad_(False).eval()


_WEIGHTS, _HEAD, _CARD = "encoder.safetensors", "head.safetensors", "card.json"


def save_encoder(
    encoder: NatureCNN, card: dict[str, Any], folder: pathlib.Path, *, head: nn.Linear | None = None
) -> None:
    """Publish weights and card as one folder, complete or absent.

    card: JSON values that say where the weights are from and what they can do.
    head: the layer that the encoder was trained with, kept so that the card can be checked.

    Raises:
        FileExistsError: the folder is there already.
    """
    text = json.dumps(card, indent=1, sort_keys=True)
    with storage.publish(folder, {}) as stage:
        (stage / _WEIGHTS).write_bytes(_to_bytes(encoder))
        (stage / _CARD).write_text(text)
        if head is not None:
            (stage / _HEAD).write_bytes(_to_bytes(head))


def _to_bytes(module: nn.Module) -> bytes:
    return save_tensors({k: v.cpu().contiguous() for k, v in module.state_dict().items()})


def load_encoder(folder: pathlib.Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a published folder, for any `NatureCNN`'s `load_state_dict`, and card.

    Raises:
        ValueError: a file is missing or damaged, or the weights are not of a `NatureCNN`.
    """
    _, contents = storage.read_verified(folder, limit=storage.MAX_WEIGHTS)
    try:
        state = read_tensors(contents[_WEIGHTS], folder / _WEIGHTS)
        card = storage.parse_json(contents[_CARD])
    except (KeyError, ValueError) as error:
        raise storage.DamagedError(f"{folder} holds no encoder: {error}") from error
    wanted = {f"convs.{i}.weight": conv.shape for i, conv in enumerate(LAYERS)}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != wanted:
        raise ValueError(f"{folder}: the weights are {found}, those of a NatureCNN are {wanted}")
    check_finite(state, folder / _WEIGHTS)
    return state, card


def load_head(folder: pathlib.Path) -> nn.Linear:
    """Return the layer that a published encoder was trained with, on its pooled features.

    Raises:
        ValueError: the folder is damaged, or the encoder was published without such a layer.
    """
    _, contents = storage.read_verified(folder, limit=storage.MAX_WEIGHTS)
    if _HEAD not in contents:
        raise ValueError(f"{folder} was published without {_HEAD}")
    try:
        state = read_tensors(contents[_HEAD], folder / _HEAD)
        outputs, inputs = state["weight"].shape
        head = nn.Linear(inputs, outputs)
        head.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / _HEAD} is no linear layer: {error}") from error
    check_finite(state, folder / _HEAD)
    return freeze(head)
