"""Policies: normaliser, network and squash in one module, with one card.

`GaussianPolicy.act` is the function that is exported: raw observation in, action in [-1, 1] out. In
training the same module gives a normal distribution around that action; the environment clips what
is drawn outside [-1, 1], and the log-probability is that of what was drawn.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from penspin_style import storage
from penspin_style.features import PolicyCard
from penspin_style.nets.gaussian import MIN_STD, Gaussian, deviation, raw_deviation
from penspin_style.nets.mlp import mlp
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.oracle import OraclePolicy
from penspin_style.nets.student import StudentPolicy
from penspin_style.nets.temporal import TemporalPolicy
from penspin_style.tensors import check_finite, read_tensors


class GaussianPolicy(nn.Module):
    """A perceptron on one observation group.

    in_key: the group. Its vector is normalised here, so callers pass it raw.
    """

    min_std = MIN_STD

    def __init__(
        self,
        in_key: str,
        size: int,
        naction: int,
        *,
        hidden: Sequence[int],
        activation: str,
        init_std: float,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.in_key = in_key
        self.in_keys = (in_key,)
        self.naction = naction
        self.normalizer = Normalizer(size)
        self.net = mlp(size, hidden, naction, activation=activation, out_gain=0.01, rng=rng)
        self._network = {"hidden": list(hidden), "activation": activation}
        self.raw_std = nn.Parameter(torch.full((naction,), raw_deviation(init_std)))

    def act(self, observation: Tensor) -> Tensor:
        """Return the mean action (..., naction) in [-1, 1] of raw observations (..., size)."""
        return torch.tanh(self.net(self.normalizer(observation)))

    def forward(self, observation: Tensor) -> Gaussian:
        """Return the distribution that training draws from."""
        loc = self.act(observation)
        return Gaussian(loc, deviation(self.raw_std).expand_as(loc))

    def describe(self) -> dict[str, Any]:
        """Return what `load_policy` needs to build the module again, as JSON values."""
        return {"kind": "gaussian", "in_key": self.in_key, **self._network}


class ValueFunction(nn.Module):
    """A perceptron from one observation group to the expected return."""

    def __init__(
        self,
        in_key: str,
        size: int,
        *,
        hidden: Sequence[int],
        activation: str,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.in_key = in_key
        self.normalizer = Normalizer(size)
        self.net = mlp(size, hidden, 1, activation=activation, rng=rng)

    def forward(self, observation: Tensor) -> Tensor:
        """Return values (..., 1)."""
        return self.net(self.normalizer(observation))


_WEIGHTS, _CARD = "policy.safetensors", "card.json"
CONFIG = "config.yaml"
"""The configuration that a policy was trained with, in its folder."""


def save_policy(
    policy: nn.Module, card: PolicyCard, folder: pathlib.Path, config: str = ""
) -> None:
    """Publish weights and card as one folder, complete or absent.

    config: the resolved YAML of the run, from which the policy's environment is built again; it is
        published too, so that the manifest covers it. Empty for none.

    Raises:
        FileExistsError: the folder is there already.
    """
    weights = save_tensors({k: v.cpu().contiguous() for k, v in policy.state_dict().items()})
    with storage.publish(folder, {}) as stage:
        (stage / _WEIGHTS).write_bytes(weights)
        (stage / _CARD).write_text(card.to_json())
        if config:
            (stage / CONFIG).write_text(config)


def read_policy(folder: pathlib.Path) -> tuple[PolicyCard, dict[str, Tensor], str]:
    """Return card, weights and configuration (empty for none) of a published folder, verified.

    Raises:
        storage.DamagedError: a file is missing or altered, or a weight is not finite.
        ValueError: the card is none.
    """
    _, files = storage.read_verified(folder, limit=storage.MAX_WEIGHTS)
    if missing := {_WEIGHTS, _CARD} - {*files}:
        raise storage.DamagedError(f"{folder / min(missing)} is missing")
    try:
        card = PolicyCard.from_json(files[_CARD].decode())
        config = files.get(CONFIG, b"").decode()
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if not all(part.isidentifier() for part in str(card.task).split(".")):
        raise ValueError(f"{folder}: the card's task {card.task!r} is not the name of a task")
    weights = read_tensors(files[_WEIGHTS], folder / _WEIGHTS)
    check_finite(weights, folder / _WEIGHTS)
    return card, weights, config


def load_policy(
    folder: pathlib.Path,
) -> tuple[GaussianPolicy | OraclePolicy | StudentPolicy | TemporalPolicy, PolicyCard]:
    """Return the policy of a published folder, on the CPU and in evaluation mode, and its card.

    Its `act` takes the tensors of `card.inputs`, in that order.

    Raises:
        ValueError: a file is missing or damaged, a weight is not finite, the card names a network
            that is unknown here, or one that does not fit the weights.
    """
    policy, card, _ = load_policy_and_config(folder)
    return policy, card


def load_policy_and_config(
    folder: pathlib.Path,
) -> tuple[GaussianPolicy | OraclePolicy | StudentPolicy | TemporalPolicy, PolicyCard, str]:
    """Return what `load_policy` does, and the configuration in the folder, empty for none.

    Raises:
        ValueError: as `load_policy`.
    """
    card, weights, config = read_policy(folder)
    network = dict(card.network)
    kind = network.pop("kind", None)
    if kind not in _BUILDERS:
        raise ValueError(
            f"{folder}: network kind {kind!r} is unknown; known: {', '.join(_BUILDERS)}"
        )
    try:
        policy = _BUILDERS[kind](card, network)
        policy.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder}: the card's network {card.network} does not fit its weights: {error!r}"
        ) from error
    return policy.eval(), card, config


def _gaussian(card: PolicyCard, network: dict[str, Any]) -> GaussianPolicy:
    return GaussianPolicy(
        network["in_key"],
        {i.name: i.size for i in card.inputs}[network["in_key"]],
        len(card.actions),
        hidden=network["hidden"],
        activation=network["activation"],
        init_std=1.0,
        rng=torch.Generator(),
    )


def _oracle(card: PolicyCard, network: dict[str, Any]) -> OraclePolicy:
    return OraclePolicy(
        card.inputs, len(card.actions), init_std=1.0, rng=torch.Generator(), **network
    )


def _student(card: PolicyCard, network: dict[str, Any]) -> StudentPolicy:
    return StudentPolicy(card.inputs, len(card.actions), rng=torch.Generator(), **network)


def _temporal(card: PolicyCard, network: dict[str, Any]) -> TemporalPolicy:
    return TemporalPolicy(card.inputs, len(card.actions), rng=torch.Generator(), **network)


_BUILDERS = {
    "gaussian": _gaussian,
    "oracle": _oracle,
    "student": _student,
    "temporal": _temporal,
}
