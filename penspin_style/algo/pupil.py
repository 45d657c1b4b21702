"""What distillation asks of a student: to see, to act on what it saw, to learn from it.

One class for each network of `algo.network`; nothing else in distillation depends on which it is.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from penspin_style.algo.augment import Augment
from penspin_style.config import DistillConfig, weights_folder
from penspin_style.features import Input
from penspin_style.nets.encoder import load_encoder
from penspin_style.nets.student import StudentPolicy
from penspin_style.nets.temporal import TemporalPolicy


class Pupil(Protocol):
    """A policy in training. A td holds samples (n,)."""

    policy: StudentPolicy | TemporalPolicy
    keys: tuple[str, ...]
    """What of a sample is kept to learn from: what was seen, and the raw vector."""

    def see(self, td: TensorDictBase) -> dict[str, Tensor]:
        """Return one augmented view of raw observations, under those of `keys` that are new."""
        ...

    def act(self, td: TensorDictBase) -> Tensor:
        """Return actions (n, naction) on what was seen, as the exported function acts."""
        ...

    def learn(self, td: TensorDictBase) -> Tensor:
        """Return the actions again, as they are learned: with the network's own noise if any."""
        ...


def make_pupil(
    cfg: DistillConfig,
    inputs: Sequence[Input],
    naction: int,
    *,
    weights: torch.Generator,
    rng: torch.Generator,
) -> Pupil:
    """Return the student that `cfg.network` names.

    inputs: what it reads. weights: draws its weights. rng: draws whatever training draws.

    Raises:
        ValueError: the inputs are not what the network reads.
    """
    return _PUPILS[cfg.network](cfg, inputs, naction, weights, rng)


class PicturePupil:
    """A student of pictures and numbers; the pictures that are seen are augmented ones."""

    def __init__(
        self,
        cfg: DistillConfig,
        inputs: Sequence[Input],
        naction: int,
        weights: torch.Generator,
        rng: torch.Generator,
    ) -> None:
        self.policy = StudentPolicy(
            inputs,
            naction,
            pool=cfg.pool,
            latent=cfg.latent,
            depth_pixels=cfg.depth_pixels,
            max_depth=cfg.max_depth,
            hidden=cfg.hidden,
            activation=cfg.activation,
            train_encoder=cfg.train_encoder,
            layer_norm=cfg.layer_norm,
            rng=weights,
        )
        if cfg.encoder and self.policy.encoders:
            self.policy.load_encoder(load_encoder(weights_folder(cfg.encoder))[0])
        self.augment = Augment(cfg.augment, rng)
        self.vector = next((i.name for i in inputs if not i.is_picture), None)
        self.seen = tuple(f"seen/{i.name}" for i in inputs if i.is_picture)
        self.keys = (*self.seen, *([self.vector] if self.vector else []))

    def see(self, td: TensorDictBase) -> dict[str, Tensor]:
        """Return one augmented view, as features where no training changes them."""
        raw = self.policy.decode({name: td[name] for name in self.policy.in_keys})
        n = len(td)
        # the pictures of a stack are views of one sample, as those of several cameras are
        rgb, depth = self.augment(_frames(raw.rgb, n), _frames(raw.depth, n))
        rgb, depth = _stacks(rgb), _stacks(depth)
        kept = {f"{camera}_rgb" for camera in rgb} - set(self.policy.frozen)
        seen = {f"seen/{name}": _to_bytes(rgb[name.removesuffix("_rgb")], n) for name in kept}
        rgb = {camera: picture for camera, picture in rgb.items() if f"{camera}_rgb" not in kept}
        features = self.policy.encode(rgb, depth)
        return seen | {f"seen/{name}": value for name, value in features.items()}

    def act(self, td: TensorDictBase) -> Tensor:
        """Return actions (n, naction); encode the pictures that were kept as such."""
        seen: Any = td
        features = {}
        for key in self.seen:
            name, value = key.removeprefix("seen/"), seen[key]
            if value.dtype == torch.uint8:
                camera = name.removesuffix("_rgb")
                rows = value.flatten(0, 1).float() / 255.0
                value = self.policy.encode({camera: rows}, {})[name]
            features[name] = value
        return self.policy.head(td[self.vector] if self.vector else None, features)

    def learn(self, td: TensorDictBase) -> Tensor:
        """Return what `act` does."""
        return self.act(td)


class TemporalPupil:
    """A student of one vector; learning draws the dropout and the noise of its network."""

    def __init__(
        self,
        cfg: DistillConfig,
        inputs: Sequence[Input],
        naction: int,
        weights: torch.Generator,
        rng: torch.Generator,
    ) -> None:
        settings: dict[str, Any] = dataclasses.asdict(cfg.temporal)
        try:
            self.policy = TemporalPolicy(inputs, naction, rng=weights, **settings)
        except ValueError as error:
            where = f"algo.network={cfg.network}, algo.group={cfg.group}"
            raise ValueError(f"{where}: {error}") from error
        self.keys = self.policy.in_keys
        self.rng = rng

    def see(self, td: TensorDictBase) -> dict[str, Tensor]:
        """Return nothing: the vector is seen as it is."""
        return {}

    def act(self, td: TensorDictBase) -> Tensor:
        """Return actions (n, naction)."""
        return self.policy(td[self.keys[0]])

    def learn(self, td: TensorDictBase) -> Tensor:
        """Return actions (n, naction) with dropout and noise."""
        return self.policy(td[self.keys[0]], self.rng)


_PUPILS = {"pictures": PicturePupil, "temporal": TemporalPupil}


def _frames(pictures: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Return `camera/k` -> the k-th pictures (n, ...) of stacks (n * history, ...)."""
    return {
        f"{camera}/{k}": frame
        for camera, rows in pictures.items()
        for k, frame in enumerate(rows.unflatten(0, (n, -1)).unbind(1))
    }


def _stacks(frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `_frames` was given."""
    stacks: dict[str, list[Tensor]] = {}
    for name, frame in frames.items():
        stacks.setdefault(name.rpartition("/")[0], []).append(frame)
    return {
        camera: stack[0] if len(stack) == 1 else torch.stack(stack, dim=1).flatten(0, 1)
        for camera, stack in stacks.items()
    }


def _to_bytes(rows: Tensor, n: int) -> Tensor:
    """Return pictures in [0, 1] as uint8 (n, history, ...): kept to train an encoder on."""
    return (rows * 255.0).round().to(torch.uint8).unflatten(0, (n, -1))
