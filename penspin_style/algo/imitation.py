"""Distillation's configuration, and what it asks of a student: see, act on that, learn from it.

One class for each network of `algo.network`; nothing else in distillation depends on which it is.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from penspin_style.algo.augment import Augment, AugmentConfig
from penspin_style.config import ACTIVATIONS, require, weights_folder
from penspin_style.features import Input
from penspin_style.nets.encoder import load_encoder
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.student import StudentPolicy
from penspin_style.nets.temporal import TemporalPolicy

EXPERT = "expert"
"""The teacher that is the task's own script."""


@dataclass
class TemporalConfig:
    """The network of students without images (PenSpin, arXiv 2407.18902)."""

    recent: int = 3
    """Newest frames of the joints that pass by the transformer."""
    normalize_history: bool = True
    """Normalise the joints' history. Published: raw radians, whose changes of a tenth are small
    beside positions that are sines."""
    width: int = 32
    """Of the transformer's tokens."""
    heads: int = 2
    layers: int = 2
    feedforward: int = 2048
    """Width of the hidden layer of the transformer's perceptrons."""
    dropout: float = 0.1
    latent: int = 40
    """Numbers that the transformer makes of the history."""
    fingertips: list[int] = field(default_factory=lambda: [256, 128, 8])
    fingertip_noise: float = 0.01
    """Half width of uniform noise on normalised fingertips."""
    ends: list[int] = field(default_factory=lambda: [6, 6, 6])
    """Widths of the perceptron that looks at each end of the pen."""
    points: list[int] = field(default_factory=lambda: [32, 32, 32])
    """Widths of the perceptron that looks at each point of a cloud."""
    trunk: list[int] = field(default_factory=lambda: [512, 256, 128])

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("recent", "width", "heads", "layers", "feedforward", "latent"):
            require(getattr(self, key) >= 1, f"algo.temporal.{key}", getattr(self, key), ">= 1")
        require(self.width % 2 == 0, "algo.temporal.width", self.width, "even: sines and cosines")
        legal = self.width % self.heads == 0
        require(legal, "algo.temporal.heads", self.heads, f"a divisor of the width, {self.width}")
        require(0 <= self.dropout < 1, "algo.temporal.dropout", self.dropout, "in [0, 1)")
        noise = self.fingertip_noise
        legal = 0 <= noise < float("inf")
        require(legal, "algo.temporal.fingertip_noise", noise, "finite and >= 0")
        for key in ("fingertips", "ends", "points", "trunk"):
            sizes = getattr(self, key)
            legal = (bool(sizes) or key == "trunk") and all(n >= 1 for n in sizes)
            require(legal, f"algo.temporal.{key}", sizes, "a list of sizes >= 1")


@dataclass
class DistillConfig:
    """A student learns its teacher's actions: DAgger (Ross et al. 2011) or behaviour cloning."""

    name: str = "distill"
    init_from: str = ""
    """Run folder, or policy folder, of a trained student of the same shape to begin with; empty for
    random weights."""
    teacher: str = "pretrained:panda_lift_cube"
    """Policy folder, or the run folder, of the teacher; see `weights_folder`. `expert`: the task's
    script, `Task.expert`, which is asked in every state that the student gets into."""
    group: str = "student"
    """The observation group that the student reads, its images included."""
    ignored_inputs: list[str] = field(default_factory=list)
    """Inputs of the group that the student is not given, such as one camera's depth."""
    network: str = "images"
    """`images`: numbers and images of cameras. `temporal`: the history of a hand's joints.
    `gaussian`: one vector, the network that reinforcement learning trains, which can go on from it
    (`algo=ppo algo.init_from=RUN`)."""
    init_std: float = 0.2
    """With `gaussian`, the deviation of the exploration that reinforcement learning begins with."""
    driver: str = "student"
    """Who acts once `beta_iterations` are over. `student`: DAgger. `teacher`: it alone, always."""
    loss: str = "l2"
    """Distance to the label, summed over the action: `l2`, squared, or `l1`."""
    rollouts: str = ""
    """Folder of recorded roll-outs to clone; empty for DAgger."""
    horizon: int = 48
    """Steps per environment and iteration."""
    epochs: int = 4
    """Passes over the samples of an iteration; as many updates, of what is kept, with
    `replay_capacity`."""
    minibatch_size: int = 256
    replay_capacity: int = 0
    """Samples of earlier iterations that are kept and learned from again; 0: each is used once."""
    beta_iterations: int = 1
    """Iterations over which the share of steps that the teacher drives falls from 1 to 0."""
    action_noise: float = 0.0
    """Deviation of normal noise on what the student does in training, not on labels: it is to learn
    its way back (DART, Laskey et al. 2017, arXiv 1703.09327)."""
    absent_object: float = 0.07
    """Share of training episodes without an object; there the label is to do nothing."""
    learning_rate: float = 4e-4
    final_learning_rate: float = 4e-4
    """Reached linearly at the end of `total_samples`."""
    max_grad_norm: float = 1.0
    encoder: str = "pretrained:nature_cnn_cifar10"
    """Folder of the encoders' weights, see `weights_folder`; empty for random ones."""
    train_encoder: bool = False
    """Let the encoders learn too."""
    pool: bool = False
    """Average the encoders' last map (64 numbers) instead of reading it whole (1,024)."""
    layer_norm: bool = True
    """Normalise each colour image's features. They are sparse and large (root mean square 12, up
    to 380), and without it the student learns several times slower."""
    latent: int = 64
    """Width of each image's dense head."""
    depth_pixels: int = 8
    """Height and width to which depth images are sampled."""
    max_depth: dict[str, float] = field(default_factory=dict)
    """Camera -> metres beyond which depth counts as nothing; 2 where not given."""
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    activation: str = "relu"
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "distill", "algo.name", self.name, "distill")
        for key, known in (
            ("network", ("images", "temporal", "gaussian")),
            ("driver", ("student", "teacher")),
            ("loss", ("l2", "l1")),
        ):
            value = getattr(self, key)
            require(value in known, f"algo.{key}", value, " or ".join(known))
        for key in ("horizon", "epochs", "minibatch_size", "latent", "depth_pixels"):
            require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), ">= 1")
        for key in ("replay_capacity", "beta_iterations"):
            require(getattr(self, key) >= 0, f"algo.{key}", getattr(self, key), ">= 0")
        legal = not (self.rollouts and self.replay_capacity)
        require(
            legal, "algo.replay_capacity", self.replay_capacity, "0 where algo.rollouts is given"
        )
        noise = self.action_noise
        require(0 <= noise < float("inf"), "algo.action_noise", noise, "finite and >= 0")
        require(0 <= self.absent_object < 1, "algo.absent_object", self.absent_object, "in [0, 1)")
        for key in ("learning_rate", "final_learning_rate", "max_grad_norm", "init_std"):
            value = getattr(self, key)
            require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")
        for camera, value in self.max_depth.items():
            require(value > 0, f"algo.max_depth.{camera}", value, "> 0")
        require(all(n >= 1 for n in self.hidden), "algo.hidden", self.hidden, "sizes >= 1")
        require(
            self.activation in ACTIVATIONS,
            "algo.activation",
            self.activation,
            ", ".join(ACTIVATIONS),
        )


class Student(Protocol):
    """A policy in training. A td holds samples (n,)."""

    policy: StudentPolicy | TemporalPolicy | GaussianPolicy
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


def make_student(
    cfg: DistillConfig,
    inputs: Sequence[Input],
    naction: int,
    *,
    weights: torch.Generator,
    rng: torch.Generator,
) -> Student:
    """Return the student that `cfg.network` names.

    inputs: what it reads. weights: draws its weights. rng: draws whatever training draws.

    Raises:
        ValueError: the inputs are not what the network reads.
    """
    return _STUDENTS[cfg.network](cfg, inputs, naction, weights, rng)


class ImageStudent:
    """A student of images and numbers; the images that are seen are augmented ones."""

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
        self.vector = next((i.name for i in inputs if not i.is_image), None)
        self.seen = tuple(f"seen/{i.name}" for i in inputs if i.is_image)
        self.keys = (*self.seen, *([self.vector] if self.vector else []))

    def see(self, td: TensorDictBase) -> dict[str, Tensor]:
        """Return one augmented view, as features where no training changes them."""
        raw = self.policy.decode({name: td[name] for name in self.policy.in_keys})
        n = len(td)
        # the images of a stack are views of one sample, as those of several cameras are
        rgb, depth = self.augment(_frames(raw.rgb, n), _frames(raw.depth, n))
        rgb, depth = _stacks(rgb), _stacks(depth)
        kept = {f"{camera}_rgb" for camera in rgb} - set(self.policy.frozen)
        seen = {f"seen/{name}": _to_bytes(rgb[name.removesuffix("_rgb")], n) for name in kept}
        rgb = {camera: image for camera, image in rgb.items() if f"{camera}_rgb" not in kept}
        features = self.policy.encode(rgb, depth)
        return seen | {f"seen/{name}": value for name, value in features.items()}

    def act(self, td: TensorDictBase) -> Tensor:
        """Return actions (n, naction); encode the images that were kept as such."""
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


class TemporalStudent:
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


class GaussianStudent:
    """A student of one vector with the network of reinforcement learning; its mean acts."""

    def __init__(
        self,
        cfg: DistillConfig,
        inputs: Sequence[Input],
        naction: int,
        weights: torch.Generator,
        rng: torch.Generator,
    ) -> None:
        names = [i.name for i in inputs]
        if len(inputs) != 1 or inputs[0].is_image:
            raise ValueError(
                f"algo.network=gaussian reads one vector, and algo.group={cfg.group} is of "
                f"{', '.join(names)}"
            )
        self.policy = GaussianPolicy(
            names[0],
            inputs[0].size,
            naction,
            hidden=cfg.hidden,
            activation=cfg.activation,
            init_std=cfg.init_std,
            rng=weights,
        )
        # a regression's gradient says nothing of how far to explore
        self.policy.raw_std.requires_grad_(False)
        self.keys = self.policy.in_keys

    def see(self, td: TensorDictBase) -> dict[str, Tensor]:
        """Return nothing: the vector is seen as it is."""
        return {}

    def act(self, td: TensorDictBase) -> Tensor:
        """Return actions (n, naction)."""
        return self.policy.act(td[self.keys[0]])

    def learn(self, td: TensorDictBase) -> Tensor:
        """Return what `act` does."""
        return self.act(td)


_STUDENTS = {"images": ImageStudent, "temporal": TemporalStudent, "gaussian": GaussianStudent}


def _frames(images: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Return `camera/k` -> the k-th images (n, ...) of stacks (n * history, ...)."""
    return {
        f"{camera}/{k}": frame
        for camera, rows in images.items()
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
    """Return images in [0, 1] as uint8 (n, history, ...): kept to train an encoder on."""
    return (rows * 255.0).round().to(torch.uint8).unflatten(0, (n, -1))
