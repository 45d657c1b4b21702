"""The student that feels: a history of joints, and what else the robot knows, to an action.

The network of PenSpin's students (Wang et al. 2024, arXiv 2407.18902), built from the terms of one
observation vector:

| term | shape, history | stream |
|---|---|---|
| proprio | (c,), h | tokens of a transformer, read from a learnt token; newest frames as they are |
| tactile | (t,), the same h | joined to the frames of `proprio` before the transformer |
| fingertips | any | a perceptron |
| pen_ends | (k, 3), any | one perceptron for every end, the maximum over the ends of a frame |
| pen_points | (k, 3), any | one perceptron for every point, the maximum over those of a frame |

Streams are joined, three layers follow, and a squash. Where PenSpin's release differs: tactile
modes crash there and are ours; its fingertips are noisy also when tested; its squash clips.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.nets.attention import TemporalEncoder
from penspin_style.nets.mlp import mlp
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.points import PointEncoder
from penspin_style.nets.policy import Policy

NAME = "temporal"

TERMS = ("proprio", "fingertips", "pen_ends", "tactile", "pen_points")
_SETS = ("pen_ends", "pen_points")  # of exchangeable points


class TemporalPolicy(Policy):
    """See the module's docstring.

    inputs: one vector, of `TERMS` in any order; all but `proprio` may be missing.
    recent: newest frames of `proprio` that pass by the transformer; normalised.
    normalize_history: normalise the joints before the transformer; published: as they are (rad).
    width, heads, layers, feedforward: of the transformer. Frames of another width are projected.
    dropout: of the transformer's attention and layers, where training draws it.
    latent: what the transformer makes of the history.
    fingertips, ends, points, trunk: widths of the perceptrons.
    fingertip_noise: half width of uniform noise on normalised fingertips, where training draws it.

    Raises:
        ValueError: an input that is not one vector, or a term that is missing, unknown or of
            another shape than the table says.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        naction: int,
        *,
        recent: int,
        normalize_history: bool,
        width: int,
        heads: int,
        layers: int,
        feedforward: int,
        dropout: float,
        latent: int,
        fingertips: Sequence[int],
        fingertip_noise: float,
        ends: Sequence[int],
        points: Sequence[int],
        trunk: Sequence[int],
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self._network = {
            "recent": recent,
            "normalize_history": normalize_history,
            "width": width,
            "heads": heads,
            "layers": layers,
            "feedforward": feedforward,
            "dropout": dropout,
            "latent": latent,
            "fingertips": list(fingertips),
            "fingertip_noise": fingertip_noise,
            "ends": list(ends),
            "points": list(points),
            "trunk": list(trunk),
        }
        self.inputs = tuple(inputs)
        self.in_keys = tuple(i.name for i in inputs)
        self.naction = naction
        self.recent, self.normalize_history = recent, normalize_history
        self.fingertip_noise = fingertip_noise
        self.terms = _terms(self.inputs, recent)
        self.normalizer = _SharedNormalizer(tuple(self.terms.values()))
        (frame,) = self.terms["proprio"].shape
        size = recent * frame + latent
        self.fingertips = self.ends = self.points = None
        if tips := self.terms.get("fingertips"):
            *hidden, out = fingertips
            self.fingertips = mlp(tips.size, hidden, out, rng=rng)
            size += out
        if found := self.terms.get("pen_ends"):
            self.ends = PointEncoder(found.shape[-1], ends, rng=rng)
            size += found.history * ends[-1]
        if found := self.terms.get("pen_points"):
            self.points = PointEncoder(found.shape[-1], points, rng=rng)
            size += found.history * points[-1]
        self.history = TemporalEncoder(
            self.terms["proprio"].history,
            frame + (self.terms["tactile"].shape[0] if "tactile" in self.terms else 0),
            latent,
            width=width,
            heads=heads,
            layers=layers,
            feedforward=feedforward,
            dropout=dropout,
            rng=rng,
        )
        self.trunk = mlp(size, trunk, naction, out_gain=0.01, rng=rng)

    def act(self, *observations: Tensor) -> Tensor:
        """Return actions (n, naction) in [-1, 1] of the raw vector (n, size)."""
        (observation,) = observations
        return self(observation)

    def forward(self, observation: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Return what `act` does.

        rng: draws the dropout and the noise of training; None for none of either.
        """
        # a sensor that fails high must not saturate the attention
        raw = self._split(observation.clamp(-Normalizer.clip, Normalizer.clip))
        scaled = self._split(self.normalizer(observation))
        frames = (scaled if self.normalize_history else raw)["proprio"]
        if "tactile" in raw:  # 0 or 1: a spread of 1 at most, and rarely touched ones stay small
            frames = torch.cat((frames, raw["tactile"]), dim=-1)
        parts = [scaled["proprio"][:, -self.recent :].flatten(1), self.history(frames, rng)]
        if self.fingertips is not None:
            tips = scaled["fingertips"].flatten(1)
            if rng is not None:
                draw = torch.rand(tips.shape, generator=rng, device=tips.device)
                tips = tips + self.fingertip_noise * (2.0 * draw - 1.0)
            parts.append(self.fingertips(tips))
        if self.ends is not None:
            parts.append(self.ends(scaled["pen_ends"]).flatten(1))
        if self.points is not None:
            parts.append(self.points(scaled["pen_points"]).flatten(1))
        return torch.tanh(self.trunk(torch.cat(parts, dim=-1)))

    @classmethod
    def from_card(cls, card: PolicyCard, network: dict[str, Any]) -> "TemporalPolicy":
        """Build the student that a card describes."""
        return cls(card.inputs, len(card.actions), rng=torch.Generator(), **network)

    def describe(self) -> dict[str, Any]:
        """Return what `load_policy` needs to build the module again, as JSON values."""
        return {"kind": NAME, **self._network}

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return term -> (n, history, *shape)."""
        parts = vector.split([f.size for f in self.terms.values()], dim=-1)
        return {
            name: part.unflatten(-1, (f.history, *f.shape))
            for (name, f), part in zip(self.terms.items(), parts, strict=True)
        }


class _SharedNormalizer(Normalizer):
    """Statistics that the frames of a term share, and the points of a set.

    So a joint that rests looks the same in all its frames, and points stay exchangeable.
    """

    def __init__(self, terms: tuple[Feature, ...]) -> None:
        super().__init__(sum(f.size for f in terms))
        self.sizes = [f.size for f in terms]
        self.channels = [f.shape[-1] if f.name in _SETS else f.size // f.history for f in terms]

    @torch.no_grad()
    def update(self, x: Tensor, keep: Tensor | None = None) -> None:
        """Merge a batch x (n, size), see `Normalizer`. Every number of a channel counts alike."""
        super().update(x, keep)
        mean = self._share(self.mean)
        self.var.copy_(self._share(self.var + (self.mean - mean) ** 2))
        self.mean.copy_(mean)

    def _share(self, x: Tensor) -> Tensor:
        """Return x (size,) with each channel's average in all its places."""
        rows = [p.view(-1, c) for p, c in zip(x.split(self.sizes), self.channels, strict=True)]
        return torch.cat([row.mean(dim=0, keepdim=True).expand_as(row).flatten() for row in rows])


def _terms(inputs: Sequence[Input], recent: int) -> dict[str, Feature]:
    """Return the terms of the one vector, in its order.

    Raises:
        ValueError: they do not fit the network.
    """
    if len(inputs) != 1 or inputs[0].is_image:
        raise ValueError(
            f"the temporal network reads one vector, got {', '.join(i.name for i in inputs)}; "
            "leave images out of the group, or use the network of images"
        )
    (given,) = inputs
    terms = {f.name: f for f in given.features}
    where = f"the temporal network reads {given.name!r}"
    for name in terms:
        if name not in TERMS:
            near = difflib.get_close_matches(name, TERMS, n=1)
            hint = f"did you mean {near[0]}" if near else "rename it, or leave it out"
            raise ValueError(f"{where}: unknown term {name!r}, known {', '.join(TERMS)}; {hint}")
    if "proprio" not in terms:
        raise ValueError(f"{where}: it needs the term 'proprio', found {', '.join(terms)}")
    proprio = terms["proprio"]
    wanted = {"proprio": 1, "tactile": 1, **dict.fromkeys(_SETS, 2)}
    for name, naxes in wanted.items():
        if name in terms and len(terms[name].shape) != naxes:
            raise ValueError(f"{where}: {name!r} has shape {terms[name].shape}, not {naxes} axes")
    if proprio.history < recent:
        raise ValueError(
            f"{where}: 'proprio' has a history of {proprio.history}, recent={recent} are needed"
        )
    if "tactile" in terms and terms["tactile"].history != proprio.history:
        raise ValueError(
            f"{where}: 'tactile' has a history of {terms['tactile'].history}, it must be that of "
            f"'proprio', {proprio.history}: both are frames of one time base"
        )
    return terms


POLICY = TemporalPolicy
