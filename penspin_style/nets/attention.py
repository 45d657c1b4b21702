"""A transformer over the last frames of something, read from a token of its own.

The encoder of Vaswani et al. 2017 (arXiv 1706.03762): sums are normalised after each half of a
block, positions are sinusoids. Plain arithmetic: torch's own encoder has fast paths that do not
export, and the dropout of that and of `scaled_dot_product_attention` draws from the global
generator alone, so that a run could not be resumed exactly. On a CPU, of 31 tokens of 2 x 16
numbers, the latter is also slower: 54 ms for 1,024 rows against 31 ms.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from penspin_style.nets.mlp import mlp

_ROWS = 512
"""Tokens whose hidden numbers a CPU holds at a time, so that they stay in its cache."""
_STEPS = 2**16
"""Dropout's probabilities are multiples of one part in so many: four draws for each 64 bits."""


class TemporalEncoder(nn.Module):
    """From frames (n, history, channels) to numbers (n, latent).

    Frames of another width than the transformer's are projected. Of the last block only the token
    that is read is computed.
    """

    positions: Tensor

    def __init__(
        self,
        history: int,
        channels: int,
        latent: int,
        *,
        width: int,
        heads: int,
        layers: int,
        feedforward: int,
        dropout: float,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.project = None if channels == width else _linear(channels, width, rng)
        self.token = nn.Parameter(0.02 * torch.randn(width, generator=rng))
        self.register_buffer("positions", _sinusoids(history + 1, width), persistent=False)
        self.blocks = nn.ModuleList(
            _Block(width, heads, feedforward, dropout, rng) for _ in range(layers)
        )
        self.out = mlp(width, (width,), latent, rng=rng)

    def forward(self, frames: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Return (n, latent). rng: draws dropout; None for none."""
        if self.project is not None:
            frames = self.project(frames)
        # len() would freeze the batch's size into the exported graph
        token = self.token.expand(frames.shape[0], 1, -1)
        x = torch.cat((token, frames), dim=1) + self.positions
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, x, rng)
        return self.out(last(x[:, :1], x, rng)[:, 0])


class _Block(nn.Module):
    """Attention and a wide perceptron, each with what went in added and normalised."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = _linear(width, width, rng)
        self.key_value = _linear(width, 2 * width, rng)
        self.join = _linear(width, width, rng)
        self.rise = _linear(width, hidden, rng)
        self.fall = _linear(hidden, width, rng)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, tokens: Tensor, rng: torch.Generator | None) -> Tensor:
        """Return x (n, k, width) after a look at tokens (n, m, width)."""
        split = (self.heads, x.shape[-1] // self.heads)
        q = self.query(x).unflatten(-1, split).transpose(1, 2)  # (n, heads, k, size)
        k, v = self.key_value(tokens).unflatten(-1, (2, *split)).permute(2, 0, 3, 1, 4)
        score = (q * split[1] ** -0.5) @ k.transpose(-1, -2)
        share = self._drop(score.softmax(dim=-1), rng)
        seen = (share @ v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self._drop(self.join(seen), rng))
        return self.norm2(x + self._drop(self._think(x, rng), rng))

    def _think(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        if torch.compiler.is_exporting():
            return self.fall(torch.relu(self.rise(x)))
        weights = (self.rise.weight, self.rise.bias, self.fall.weight, self.fall.bias)
        rows: Any = _Wide.apply(x.flatten(0, 1), *weights, self.dropout, rng)
        return rows.view_as(x)

    def _drop(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        if rng is None or not self.dropout:
            return x
        return x * keep(x.shape, self.dropout, rng) / _share(self.dropout)


def keep(shape: torch.Size, dropout: float, rng: torch.Generator) -> Tensor:
    """Draw what dropout leaves, bool of that shape, six times as fast as `bernoulli_`."""
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=rng.device)
    draws = bits.random_(-(2**63), None, generator=rng).view(torch.int16)[:count]
    return (draws >= round(dropout * _STEPS) - _STEPS // 2).view(shape)


def _share(dropout: float) -> float:
    """Return the share that `keep` leaves."""
    return 1.0 - round(dropout * _STEPS) / _STEPS


class _Wide(torch.autograd.Function):
    """A perceptron with one hidden layer, relu and dropout, that keeps no hidden number.

    They are computed again for the gradient, a few rows at a time. Kept, those of a minibatch would
    fill gigabytes, and a CPU would spend three quarters of its time on moving them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rise: Tensor,
        rise_bias: Tensor,
        fall: Tensor,
        fall_bias: Tensor,
        dropout: float,
        rng: torch.Generator | None,
    ) -> Tensor:
        """Return (n, width) of rows x (n, width)."""
        ctx.dropout = dropout if rng is not None else 0.0
        ctx.seed = 0
        if rng is not None and dropout:
            draw = torch.randint(2**62, (), generator=rng, device=rng.device)
            ctx.seed = int(draw)
        ctx.save_for_backward(x, rise, rise_bias, fall)
        scaled = (fall / _share(ctx.dropout)).T
        out = torch.empty_like(x)
        for rows, hidden in _Wide.parts(ctx, x, rise, rise_bias):
            torch.addmm(fall_bias, hidden, scaled, out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients by what `forward` was given."""
        x, rise, rise_bias, fall = ctx.saved_tensors
        scaled = fall / _share(ctx.dropout)
        by_x = torch.empty_like(x)
        by_rise, by_bias = torch.zeros_like(rise), torch.zeros_like(rise_bias)
        by_fall = torch.zeros_like(fall)
        for rows, hidden in _Wide.parts(ctx, x, rise, rise_bias):
            by_fall.addmm_(grad[rows].T, hidden)
            # zero where relu or dropout made it zero
            by_hidden = (grad[rows] @ scaled).mul_(hidden > 0)
            by_rise.addmm_(by_hidden.T, x[rows])
            by_bias += by_hidden.sum(dim=0)
            torch.mm(by_hidden, rise, out=by_x[rows])
        by_fall /= _share(ctx.dropout)
        return by_x, by_rise, by_bias, by_fall, grad.sum(dim=0), None, None

    @staticmethod
    def parts(ctx: Any, x: Tensor, rise: Tensor, bias: Tensor) -> Any:
        """Yield slices of rows and their hidden numbers, the same at every call."""
        rng = torch.Generator(x.device).manual_seed(ctx.seed)
        step = _ROWS if x.device.type == "cpu" else max(1, len(x))
        for first in range(0, len(x), step):
            rows = slice(first, first + step)
            hidden = torch.addmm(bias, x[rows], rise.T).relu_()
            if ctx.dropout:
                hidden.mul_(keep(hidden.shape, ctx.dropout, rng))
            yield rows, hidden


def _linear(n_in: int, n_out: int, rng: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight, generator=rng)
    nn.init.zeros_(layer.bias)
    return layer


def _sinusoids(length: int, width: int) -> Tensor:
    """Return positions (length, width): sines in even columns, cosines in odd ones."""
    pairs = torch.arange(0, width, 2)
    rate = torch.exp(-math.log(10_000.0) / width * pairs)
    angle = torch.arange(length)[:, None] * rate
    return torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1).flatten(1)
