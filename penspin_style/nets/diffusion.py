"""Diffusion policy: a chunk of actions is what remains of noise, after a few steps of denoising.

Chi et al. 2023 (arXiv 2303.04137). A perceptron with residual blocks, told what is observed and
how noisy the chunk is by scales and shifts (FiLM), predicts the chunk without noise, or the noise
in it. Either follows from the other; the chunk itself is learned in fewer updates (as in Ze et al.
2024, arXiv 2403.03954), the noise is what Chi et al. publish. It acts by DDIM
(Song et al. 2020, arXiv 2010.02502) without further noise, from a beginning that was drawn once:
so it is a function of what it observes, its steps are unrolled in the exported graph, and where
there are several ways to do something it keeps to one from step to step.

The schedule is that of `diffusers`' DDIMScheduler with `squaredcos_cap_v2` (Nichol and Dhariwal
2021) and `clip_sample`: two tables of numbers and three lines of arithmetic, for which a policy's
user need not install that package; `tests/nets/test_diffusion.py` has its numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from penspin_style.features import Input, PolicyCard
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.policy import Policy
from penspin_style.nets.reading import build_eyes, describe_eyes, look, seen_sizes
from penspin_style.nets.student import StudentPolicy

_LEAST_LEFT = 0.001
"""Share of the signal that each step of the schedule leaves at least."""
PREDICTS = ("sample", "noise")
"""What the network may answer: the chunk, or the noise in it."""
_WAVES = 32
"""Pairs of sines and cosines that say how noisy a chunk is."""


class DiffusionPolicy(Policy):
    """See the module's docstring.

    inputs: at most one vector, of features without history, then images.
    eyes: encodes the images, frozen; None where there are none.

    predicts: one of `PREDICTS`; a card that does not name it is of `noise`.

    Raises:
        ValueError: images without a student that sees them, more steps than levels of noise, or
            nothing known is predicted.
    """

    alphas: Tensor
    """(levels,): share of the signal's variance at each level of noise."""
    begin: Tensor
    """(num_queries * naction,): the noise that it begins from when it acts."""
    waves: Tensor
    """(levels, 2 * _WAVES): each level of noise, as it is told."""

    def __init__(
        self,
        inputs: Sequence[Input],
        naction: int,
        *,
        eyes: StudentPolicy | None,
        rng: torch.Generator,
        num_queries: int,
        hidden_dim: int,
        blocks: int,
        levels: int,
        steps: int,
        predicts: str = "noise",
    ) -> None:
        super().__init__()
        if not 1 <= steps <= levels:
            raise ValueError(f"algo.steps={steps}: it must be from 1 to algo.levels={levels}")
        if predicts not in PREDICTS:
            raise ValueError(f"algo.predicts={predicts!r}: it must be {' or '.join(PREDICTS)}")
        self.inputs, self.in_keys = tuple(inputs), tuple(i.name for i in inputs)
        self.naction, self.horizon, self.steps = naction, num_queries, steps
        self.eyes = None if eyes is None else eyes.requires_grad_(False)
        size = sum(i.size for i in inputs if not i.is_image)
        self.normalizer = Normalizer(size) if size else None
        self._network = {
            **{"num_queries": num_queries, "hidden_dim": hidden_dim, "blocks": blocks},
            **{"levels": levels, "steps": steps, "predicts": predicts},
        }
        self.predicts = predicts
        seen, chunk = seen_sizes(self.inputs, self.eyes), num_queries * naction
        width = size + hidden_dim * len(seen)
        self.see = nn.ModuleDict({n: _linear(s, hidden_dim, rng) for n, s in seen.items()})
        self.told = nn.Sequential(
            *(_linear(width, hidden_dim, rng), nn.SiLU(), _linear(hidden_dim, hidden_dim, rng))
        )
        self.level = _linear(2 * _WAVES, hidden_dim, rng)
        self.chunk_in = _linear(chunk, hidden_dim, rng)
        self.blocks = nn.ModuleList(_Block(hidden_dim, rng) for _ in range(blocks))
        self.noise_out = _linear(hidden_dim, chunk, rng)
        self.register_buffer("alphas", schedule(levels), persistent=False)
        self.register_buffer("begin", torch.randn(chunk, generator=rng))
        self.register_buffer("waves", _waves(levels), persistent=False)

    def act(self, *observations: Tensor) -> Tensor:
        """Return chunks (n, num_queries, naction) in [-1, 1]; of one action, (n, naction)."""
        numbers, seen = self.look(dict(zip(self.in_keys, observations, strict=True)))
        chunk = self.denoise(numbers, seen)
        return chunk if self.horizon > 1 else chunk[:, 0]

    def look(self, observations: Mapping[str, Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the raw numbers (n, size), and the features of every image (n, size)."""
        return look(self.inputs, self.eyes, observations)

    def denoise(self, numbers: Tensor | None, seen: Mapping[str, Tensor]) -> Tensor:
        """Return chunks (n, num_queries, naction) in [-1, 1] of what `look` returned."""
        told = self._read(numbers, seen)
        x = self.begin.expand(told.shape[0], -1)
        stride = len(self.alphas) // self.steps
        for level in range((self.steps - 1) * stride, -1, -stride):
            share, found = self.alphas[level], self._denoised(x, told, self.waves[level])
            after = self.alphas[level - stride] if level >= stride else torch.ones(())
            if self.predicts == "sample":
                found = noise_in(x, found.clamp(-1.0, 1.0), share)
            x = ddim(x, found, share, after)
        return x.unflatten(-1, (self.horizon, self.naction)).clamp(-1.0, 1.0)

    def forward(
        self,
        numbers: Tensor | None,
        seen: Mapping[str, Tensor],
        label: Tensor,
        rng: torch.Generator,
    ) -> Tensor:
        """Return the mean square by which the noise that is added to chunks is missed, (n,).

        label: (n, num_queries, naction). rng: draws noise and its level.
        """
        n, device = len(label), label.device
        level = torch.randint(len(self.alphas), (n,), generator=rng, device=device)
        noise = torch.randn(n, self.begin.numel(), generator=rng, device=device)
        share = self.alphas[level][:, None]
        x = share.sqrt() * label.flatten(1) + (1.0 - share).sqrt() * noise
        found = self._denoised(x, self._read(numbers, seen), self.waves[level])
        wanted = noise if self.predicts == "noise" else label.flatten(1)
        return (found - wanted).square().mean(dim=1)

    def describe(self) -> dict[str, Any]:
        """Return what builds the module again, as JSON values."""
        return {"kind": NAME, **self._network, "eyes": describe_eyes(self.eyes)}

    @classmethod
    def from_card(cls, card: PolicyCard, network: dict[str, Any]) -> "DiffusionPolicy":
        """Build the module that a card describes."""
        network, rng = dict(network), torch.Generator()
        eyes = build_eyes(network.pop("eyes"), rng)
        return cls(card.inputs, len(card.actions), eyes=eyes, rng=rng, **network)

    def _read(self, numbers: Tensor | None, seen: Mapping[str, Tensor]) -> Tensor:
        """Return what is observed, (n, hidden_dim)."""
        parts = [layer(seen[name]) for name, layer in self.see.items()]
        if numbers is not None and self.normalizer is not None:
            parts.insert(0, self.normalizer(numbers))
        return self.told(torch.cat(parts, dim=-1))

    def _denoised(self, x: Tensor, told: Tensor, waves: Tensor) -> Tensor:
        """Return what it `predicts` of chunks x, (n, num_queries * naction) like them."""
        told = functional.silu(told + self.level(waves))
        x = self.chunk_in(x)
        for block in self.blocks:
            x = block(x, told)
        return self.noise_out(functional.silu(x))


class _Block(nn.Module):
    """A perceptron with one hidden layer, to which what goes in is added."""

    def __init__(self, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = _linear(width, 2 * width, rng)
        self.rise, self.fall = _linear(width, 2 * width, rng), _linear(2 * width, width, rng)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told).chunk(2, dim=-1)
        y = self.norm(x) * (1.0 + scale) + shift
        return x + self.fall(functional.silu(self.rise(y)))


def schedule(levels: int) -> Tensor:
    """Return the share of the signal's variance that is left at each level of noise, (levels,)."""

    def left(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    shares = [left((i + 1) / levels) / left(i / levels) for i in range(levels)]
    kept = torch.tensor(shares, dtype=torch.float64).clamp(min=_LEAST_LEFT)
    return kept.cumprod(dim=0).float()


def ddim(x: Tensor, noise: Tensor, share: Tensor, after: Tensor) -> Tensor:
    """Return x with less noise: of a share `after` of the signal's variance instead of `share`."""
    signal = (x - (1.0 - share).sqrt() * noise) / share.sqrt()
    return after.sqrt() * signal.clamp(-1.0, 1.0) + (1.0 - after).sqrt() * noise


def noise_in(x: Tensor, signal: Tensor, share: Tensor) -> Tensor:
    """Return the noise of x, of whose variance `signal` is a share."""
    return (x - share.sqrt() * signal) / (1.0 - share).sqrt()


def _waves(levels: int) -> Tensor:
    """Return sines and cosines (levels, 2 * _WAVES) of the levels."""
    rate = torch.exp(-math.log(10_000.0) * torch.arange(_WAVES) / (_WAVES - 1))
    angle = torch.arange(levels)[:, None] * rate
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def _linear(n_in: int, n_out: int, rng: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight, generator=rng)
    nn.init.zeros_(layer.bias)
    return layer


NAME = "diffusion"
POLICY = DiffusionPolicy
