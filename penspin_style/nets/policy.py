"""What every policy answers, which families there are, and a policy's folder.

A policy is normaliser, network and squash in one module, with one card. `Policy.act` is what is
exported: raw observation in, action in [-1, 1] out.

A family is a module of this folder that binds `NAME`, what a card calls it (`network["kind"]`), and
`POLICY`. It is imported when a card asks for it.
"""

import abc
import hashlib
import importlib
import pathlib
import re
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from penspin_style import storage
from penspin_style.config import weights_folder
from penspin_style.features import PolicyCard
from penspin_style.system.plugins import named_modules
from penspin_style.system.tensors import check_finite, read_tensors


class Policy(nn.Module, abc.ABC):
    """A network that acts; its statistics of observations are part of its weights."""

    in_keys: tuple[str, ...]
    """The inputs that `act` takes, in this order."""

    @abc.abstractmethod
    def act(self, *observations: Tensor) -> Tensor:
        """Return actions (..., naction) in [-1, 1] of raw observations, deterministic.

        One with an attribute `horizon` above 1 answers chunks, (..., horizon, naction).
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `from_card` needs to build the module again, and its `kind`, as JSON."""

    @classmethod
    @abc.abstractmethod
    def from_card(cls, card: PolicyCard, network: dict[str, Any]) -> "Policy":
        """Build the module that a card describes; its weights follow. network: without `kind`.

        Raises:
            KeyError, TypeError, ValueError: the card does not describe one.
        """


WEIGHTS, _CARD = "policy.safetensors", "card.json"
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
        (stage / WEIGHTS).write_bytes(weights)
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
    if missing := {WEIGHTS, _CARD} - {*files}:
        raise storage.DamagedError(f"{folder / min(missing)} is missing")
    try:
        card = PolicyCard.from_json(files[_CARD].decode())
        config = files.get(CONFIG, b"").decode()
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    # a registered name or a module's; before a colon, what finds it, as playground:NAME
    if not all(part.isidentifier() for part in re.split("[.:]", str(card.task))):
        raise ValueError(f"{folder}: the card's task {card.task!r} is not the name of a task")
    weights = read_tensors(files[WEIGHTS], folder / WEIGHTS)
    check_finite(weights, folder / WEIGHTS)
    return card, weights, config


def load_policy(folder: pathlib.Path) -> tuple[Any, PolicyCard]:
    """Return the policy of a published folder, on the CPU and in evaluation mode, and its card.

    Its `act` takes the tensors of `card.inputs`, in that order.

    Raises:
        ValueError: a file is missing or damaged, a weight is not finite, the card names a network
            that is unknown here, or one that does not fit the weights.
    """
    policy, card, _ = load_policy_and_config(folder)
    return policy, card


def load_policy_and_config(folder: pathlib.Path) -> tuple[Any, PolicyCard, str]:
    """Return what `load_policy` does, and the configuration in the folder, empty for none.

    Raises:
        ValueError: as `load_policy`.
    """
    card, weights, config = read_policy(folder)
    network = dict(card.network)
    kind = network.pop("kind", None)
    known = named_modules(__package__ or "", "POLICY")
    if kind not in known:
        raise ValueError(f"{folder}: network kind {kind!r} is unknown; known: {', '.join(known)}")
    family: type[Policy] = importlib.import_module(known[kind]).POLICY
    try:
        policy = family.from_card(card, network)
        policy.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder}: the card's network {card.network} does not fit its weights: {error!r}"
        ) from error
    return policy.eval(), card, config


def open_policy(key: str, path: str) -> tuple[Any, PolicyCard]:
    """Return the policy, and its card, of the folder that a key of the configuration names.

    Raises:
        ValueError: it holds none, or one that is damaged.
    """
    return load_policy(policy_folder(key, path))


def policy_folder(key: str, path: str) -> pathlib.Path:
    """Return the policy folder, or that of the run folder, that a key of the configuration names.

    Raises:
        ValueError: it is neither.
    """
    folder = weights_folder(path)
    folder = folder / "policy" if (folder / "policy").is_dir() else folder
    if not (folder / "card.json").exists():
        raise ValueError(
            f"{key}={path} holds no policy: train a policy to the end, or give its folder (an "
            ".onnx or .pth file cannot be trained further)"
        )
    return folder


def policy_content(folder: pathlib.Path) -> str:
    """Return the SHA-256 of what a published policy is: of its weights and its card.

    Raises:
        storage.DamagedError: the folder has no manifest that names both.
    """
    sums = storage.read_manifest(folder)["sha256"]
    if missing := {WEIGHTS, _CARD} - {*sums}:
        raise storage.DamagedError(f"{folder / min(missing)} is missing")
    return hashlib.sha256(f"{sums[WEIGHTS]}{sums[_CARD]}".encode()).hexdigest()
