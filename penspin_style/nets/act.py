"""ACT: chunks of actions from a conditional variational auto-encoder.

Zhao et al. 2023 (arXiv 2304.13705). Every feature is a token, and so are the features that a
frozen encoder makes of every image; a transformer reads them together with a latent, another
answers `horizon` queries, one for each of the next control steps. In training the latent is drawn
from what a third makes of the actions to come; when it acts it is 0.

The pen's two ends are a set: their token is the mean over both orders. (PenSpin's exchanges halves
of the batch instead, and is told no ends at all when it acts.) Positions are learned, not
sinusoids, and are added once instead of in every block.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from penspin_style.features import Input, PolicyCard
from penspin_style.nets.attention import keep
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.reading import build_eyes, describe_eyes, look, seen_sizes
from penspin_style.nets.student import StudentPolicy

ENDS = ("pen_ends", "obj_ends")
"""Features (2, 3) whose two rows mean the same in either order."""


class ACT(nn.Module):
    """See the module's docstring.

    inputs: at most one vector, of features without history, then images.
    eyes: encodes the images, frozen; None where there are none.

    Raises:
        ValueError: images without a student that sees them.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        naction: int,
        *,
        eyes: StudentPolicy | None,
        rng: torch.Generator,
        num_queries: int,
        hidden_dim: int,
        dim_feedforward: int,
        enc_layers: int,
        dec_layers: int,
        nheads: int,
        latent_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.inputs, self.in_keys = tuple(inputs), tuple(i.name for i in inputs)
        self.naction, self.horizon, self.latent_dim = naction, num_queries, latent_dim
        self.eyes = None if eyes is None else eyes.requires_grad_(False)
        self.features = tuple(f for i in inputs if not i.is_image for f in i.features)
        size = sum(f.size for f in self.features)
        self.normalizer = Normalizer(size) if size else None
        self._network = {
            "num_queries": num_queries,
            "hidden_dim": hidden_dim,
            "dim_feedforward": dim_feedforward,
            "enc_layers": enc_layers,
            "dec_layers": dec_layers,
            "nheads": nheads,
            "latent_dim": latent_dim,
            "dropout": dropout,
        }
        width = hidden_dim

        def linear(n_in: int, n_out: int) -> nn.Linear:
            layer = nn.Linear(n_in, n_out)
            nn.init.xavier_uniform_(layer.weight, generator=rng)
            nn.init.zeros_(layer.bias)
            return layer

        def table(rows: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(rows, width, generator=rng))

        def blocks(count: int, *, cross: bool = False) -> nn.ModuleList:
            sizes = (width, nheads, dim_feedforward, dropout)
            return nn.ModuleList(_Block(*sizes, linear, cross=cross) for _ in range(count))

        self.read = nn.ModuleDict({f.name: linear(f.size, width) for f in self.features})
        self.see = nn.ModuleDict(
            {n: linear(s, width) for n, s in seen_sizes(self.inputs, self.eyes).items()}
        )
        tokens = len(self.read) + len(self.see)
        # of the CVAE's encoder: a token to read from, what is measured, the actions
        self.act_in, self.posterior = linear(naction, width), linear(width, 2 * latent_dim)
        self.style_places, self.style = table(1 + len(self.read) + num_queries), blocks(enc_layers)
        self.latent_in = linear(latent_dim, width)
        self.places, self.encoder = table(1 + tokens), blocks(enc_layers)
        self.queries, self.decoder = table(num_queries), blocks(dec_layers, cross=True)
        self.out = linear(width, naction)

    def act(self, *observations: Tensor) -> Tensor:
        """Return chunks (n, horizon, naction) in [-1, 1], with the latent at its mean, 0."""
        numbers, seen = self.look(dict(zip(self.in_keys, observations, strict=True)))
        return self(numbers, seen)[0].clamp(-1.0, 1.0)

    @torch.no_grad()
    def look(self, observations: Mapping[str, Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the raw numbers (n, size), and the features of every image (n, size)."""
        return look(self.inputs, self.eyes, observations)

    def forward(
        self,
        numbers: Tensor | None,
        seen: Mapping[str, Tensor],
        actions: Tensor | None = None,
        padded: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return chunks (n, horizon, naction) and the latent's KL divergence from N(0, 1), (n,).

        numbers, seen: what `look` returned. actions: (n, horizon, naction) to reconstruct; without
        them the latent is 0. padded: (n, horizon) bool, actions after the end.
        rng: draws the latent and dropout; None for neither.
        """
        told = self._tokens(numbers)
        seen_tokens = [layer(seen[name]) for name, layer in self.see.items()]
        n = len(next(iter((*told, *seen_tokens))))
        device = self.queries.device
        latent, kl = torch.zeros(n, self.latent_dim, device=device), torch.zeros(n, device=device)
        if actions is not None:
            mean, log_var = self._posterior(told, actions, padded, rng).chunk(2, dim=-1)
            kl = 0.5 * (mean**2 + log_var.exp() - 1.0 - log_var).sum(dim=-1)
            latent = mean
            if rng is not None:
                draw = torch.randn(mean.shape, generator=rng, device=device)
                latent = mean + (0.5 * log_var).exp() * draw
        memory = torch.stack([self.latent_in(latent), *told, *seen_tokens], dim=1) + self.places
        for block in self.encoder:
            memory = block(memory, rng=rng)
        x = self.queries.expand(n, -1, -1)
        for block in self.decoder:
            x = block(x, memory, rng=rng)
        return self.out(x), kl

    def describe(self) -> dict[str, Any]:
        """Return what builds the module again, as JSON values."""
        eyes = describe_eyes(self.eyes)
        return {"kind": "act", **self._network, "eyes": eyes}

    def _posterior(
        self,
        told: list[Tensor],
        actions: Tensor,
        padded: Tensor | None,
        rng: torch.Generator | None,
    ) -> Tensor:
        first = torch.zeros_like(self.queries[:1]).expand(len(actions), 1, -1)
        parts = [first, *(t[:, None] for t in told), self.act_in(actions)]
        x = torch.cat(parts, dim=1) + self.style_places
        hidden = None
        if padded is not None:
            shown = torch.zeros(len(x), 1 + len(told), dtype=torch.bool, device=x.device)
            hidden = torch.cat((shown, padded), dim=1)
        for block in self.style:
            x = block(x, hidden=hidden, rng=rng)
        return self.posterior(x[:, 0])

    def _tokens(self, numbers: Tensor | None) -> list[Tensor]:
        """Return a token (n, width) of each feature."""
        if numbers is None or self.normalizer is None:
            return []
        sizes = [f.size for f in self.features]
        raw = list(numbers.split(sizes, dim=-1))
        plain = self.normalizer(numbers).split(sizes, dim=-1)
        tokens = [self.read[f.name](part) for f, part in zip(self.features, plain, strict=True)]
        for i, feature in enumerate(self.features):
            if feature.name in ENDS:  # which end is which, the robot cannot tell
                other = [
                    *raw[:i],
                    raw[i].unflatten(-1, (2, -1)).flip(-2).flatten(-2),
                    *raw[i + 1 :],
                ]
                swapped = self.normalizer(torch.cat(other, dim=-1)).split(sizes, dim=-1)[i]
                tokens[i] = 0.5 * (tokens[i] + self.read[feature.name](swapped))
        return tokens


class _Block(nn.Module):
    """Attention to itself, to a memory if `cross`, and a perceptron; normalised after each."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        linear: Callable[[int, int], nn.Linear],
        *,
        cross: bool,
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        looks = 2 if cross else 1
        self.query = nn.ModuleList(linear(width, width) for _ in range(looks))
        self.key_value = nn.ModuleList(linear(width, 2 * width) for _ in range(looks))
        self.join = nn.ModuleList(linear(width, width) for _ in range(looks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(looks + 1))
        self.rise, self.fall = linear(width, hidden), linear(hidden, width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        hidden: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Return x (n, k, width). hidden: (n, k) bool, tokens that none looks at."""
        for i, other in enumerate((None, memory)[: len(self.query)]):
            looked = self._look(i, x, x if other is None else other, hidden)
            x = self.norms[i](x + self._drop(looked, rng))
        thought = self.fall(self._drop(torch.relu(self.rise(x)), rng))
        return self.norms[-1](x + self._drop(thought, rng))

    def _look(self, i: int, x: Tensor, other: Tensor, hidden: Tensor | None) -> Tensor:
        shape = (self.heads, x.shape[-1] // self.heads)
        q = self.query[i](x).unflatten(-1, shape).transpose(1, 2)
        k, v = self.key_value[i](other).unflatten(-1, (2, *shape)).permute(2, 0, 3, 1, 4)
        mask = None if hidden is None else ~hidden[:, None, None]
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.join[i](seen.transpose(1, 2).flatten(2))

    def _drop(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        if rng is None or not self.dropout:
            return x
        return x * keep(x.shape, self.dropout, rng) / (1.0 - self.dropout)


def build(card: PolicyCard) -> ACT:
    """Return the network that a card describes, with weights of no meaning.

    Raises:
        KeyError, TypeError, ValueError: the card describes none.
    """
    network = dict(card.network)
    network.pop("kind")
    rng = torch.Generator()
    eyes = build_eyes(network.pop("eyes"), rng)
    return ACT(card.inputs, len(card.actions), eyes=eyes, rng=rng, **network)
