"""A trained policy that acts within a task, as one that brings the robot to where learning begins.

    class Config(TaskConfig):
        pick_policy: str = "pretrained:mine"

    class Insert(Task[Config]):
        policies = ("pick_policy",)

        def start(self, sim):
            feeds = (Feature("box_pos", (3,), "m"), ...)
            self.pick = FrozenPolicy(
                "task.pick_policy", self.cfg.pick_policy, feeds, PICK_ACTIONS,
                control_dt=self.cfg.control_dt, device=sim.device,
            )

        def apply_action(self, sim, action):
            picked = self.pick.act({"box_pos": ..., ...})

A configuration that `train.compose` has made says PATH@CONTENT for each key of `Task.policies`. So
no run is resumed, and no policy evaluated, with another one that lies in the same place.
"""

import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from penspin_style import storage
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard, command_differences
from penspin_style.nets.policy import load_policy, policy_content, policy_folder

_PINNED = re.compile(r"(.+)@([0-9a-f]{16})")


class FrozenPolicy:
    """A policy folder, run folder or .onnx; deterministic, for any number of rows."""

    def __init__(
        self,
        key: str,
        path: str,
        feeds: Sequence[Feature],
        actions: Sequence[ActionChannel],
        *,
        control_dt: float,
        device: torch.device,
    ) -> None:
        """Open what a key of the configuration names, and compare its card with the task.

        key: as `task.pick_policy`. path: see `weights_folder`, with `@CONTENT` or without.
        feeds: the terms that `act` will be given; histories are the task's to keep.
        actions: what the task makes of the answer. control_dt: s, how often it asks.

        Raises:
            ValueError: it is not there, damaged, of another content, or does not fit the task.
        """
        path, pin = _parts(path)
        self._act, self.card, content = _open(key, path, device)
        if pin and content != pin:
            raise ValueError(
                f"{key}={path} has changed: its content is {content}, it was {pin}; put the former "
                f"one back, or say {key}={path} to take this one"
            )
        if faults := _differences(self.card, feeds, actions, control_dt):
            raise ValueError(f"{key}={path}: {'; '.join(faults[:2])}")
        self.device = device

    @torch.no_grad()
    def act(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return actions (n, naction) float32 in [-1, 1] on terms, (n, ...) each, by name."""
        return self._act([_joined(given, terms) for given in self.card.inputs])


def pinned(key: str, path: str) -> str:
    """Return PATH@CONTENT of a policy; the path as it is if it says so already, or leads nowhere.

    Raises:
        ValueError: what it leads to is damaged.
    """
    path, pin = _parts(path)
    try:
        content = pin or _content(key, path)
    except ValueError as error:
        if isinstance(error, storage.DamagedError):
            raise ValueError(f"{key}={path}: {error}") from error
        return path  # the task says so, if it asks for it
    return f"{path}@{content}"


def _parts(path: str) -> tuple[str, str]:
    """Return path and content, empty if it does not say."""
    found = _PINNED.fullmatch(path)
    return (found[1], found[2]) if found else (path, "")


def _content(key: str, path: str) -> str:
    if path.endswith(".onnx"):
        return hashlib.sha256(_onnx(key, path).read_bytes()).hexdigest()[:16]
    return policy_content(policy_folder(key, path))[:16]


def _onnx(key: str, path: str) -> pathlib.Path:
    if not (file := pathlib.Path(path)).is_file():
        raise ValueError(f"{key}={path} is no file")
    return file


def _open(key: str, path: str, device: torch.device) -> tuple[Any, PolicyCard, str]:
    """Return (what maps inputs to actions, card, content)."""
    if path.endswith(".onnx"):
        from penspin_style.deploy.bundle import Bundle

        bundle = Bundle.load(_onnx(key, path))
        _check_single(key, path, bundle)
        names = [i.name for i in bundle.card.inputs]

        def run(inputs: list[Tensor]) -> Tensor:
            given = {name: x.cpu().numpy() for name, x in zip(names, inputs, strict=True)}
            return torch.from_numpy(bundle.act(given)).to(device)

        return run, bundle.card, bundle.sha256[:16]
    folder = policy_folder(key, path)
    policy, card = load_policy(folder)
    _check_single(key, path, policy)
    policy.requires_grad_(False).to(device)
    return lambda inputs: policy.act(*inputs), card, policy_content(folder)[:16]


def _check_single(key: str, path: str, policy: Any) -> None:
    if getattr(policy, "horizon", 1) != 1:
        raise ValueError(f"{key}={path} answers chunks of actions, not one; it cannot act here")


def _differences(
    card: PolicyCard, feeds: Sequence[Feature], actions: Sequence[ActionChannel], control_dt: float
) -> list[str]:
    """Return how the task differs from what the policy needs, one text for each."""
    fed = {feature.name: feature for feature in feeds}
    wanted = [feature for given in card.inputs for feature in given.features]
    faults = [
        f"it reads {_text(f)}, the task feeds {_text(fed[f.name])}"
        if f.name in fed
        else f"it reads {_text(f)}, the task feeds {', '.join(fed) or 'nothing'}"
        for f in wanted
        if fed.get(f.name) != f
    ]
    if unread := sorted(set(fed) - {f.name for f in wanted}):
        faults.append(f"the task feeds {unread[0]}, which it does not read")
    return faults + command_differences(card, actions, control_dt, "task")


def _text(f: Feature) -> str:
    past = f" x {f.history}" if f.history > 1 else ""
    return f"{f.name} {f.shape} in {f.unit}{past}"


def _joined(given: Input, terms: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor of an input: its features joined in the card's order, or the image."""
    if given.is_image:
        return terms[given.name]
    rows = [terms[f.name].flatten(1) if f.size > 1 else terms[f.name].reshape(-1, 1)
            for f in given.features]  # fmt: skip
    return torch.cat([row.float() for row in rows], dim=1)
