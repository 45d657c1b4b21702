"""From named terms to observation groups: noise, then delay, then history."""

import torch
from torch import Tensor

from penspin_style.env.task import ObsTerm
from penspin_style.features import Feature, Input


class TermBuffer:
    """The past of one term in one group: a ring of the last values of every environment.

    Length is the longest delay plus the history. At a reset the whole ring is filled with the
    initial value, so that nothing of the last episode shows through.
    """

    def __init__(self, term: ObsTerm, like: Tensor) -> None:
        self.term = term
        num_envs, size = like.shape
        self.length = term.delay[1] + term.history
        self.ring = torch.zeros(num_envs, self.length, size, device=like.device)
        self.delay = torch.full((num_envs,), term.delay[0], dtype=torch.long, device=like.device)

    def push(self, value: Tensor) -> None:
        """Append the newest value, (num_envs, size)."""
        self.ring = torch.cat((self.ring[:, 1:], value.unsqueeze(1)), dim=1)

    def fill(self, value: Tensor, mask: Tensor, rng: torch.Generator) -> None:
        """Start the masked environments with this value everywhere, and draw their delay."""
        self.ring = torch.where(mask.view(-1, 1, 1), value.unsqueeze(1), self.ring)
        low, high = self.term.delay
        if high > low:
            draw = torch.randint(low, high + 1, mask.shape, generator=rng, device=rng.device)
            self.delay = torch.where(mask, draw, self.delay)

    def read(self) -> Tensor:
        """Return the delayed history, oldest first, (num_envs, history * size)."""
        newest = self.length - 1 - self.delay
        steps = torch.arange(1 - self.term.history, 1, device=newest.device)
        index = newest[:, None] + steps  # (num_envs, history)
        rows = torch.arange(len(newest), device=newest.device)[:, None]
        return self.ring[rows, index].flatten(1)


class Groups:
    """Join the terms of every group into one float32 vector per environment."""

    def __init__(
        self,
        groups: dict[str, dict[str, ObsTerm]],
        terms: dict[str, Tensor],
        units: dict[str, str],
        rng: torch.Generator,
    ) -> None:
        self.groups = groups
        self.rng = rng
        self.buffers: dict[str, TermBuffer] = {}
        _check(groups, terms, units)
        self.inputs = tuple(
            Input(
                group,
                tuple(
                    Feature(name, tuple(terms[name].shape[1:]), units[name], history=term.history)
                    for name, term in members.items()
                ),
            )
            for group, members in groups.items()
        )
        for group, members in groups.items():
            for name, term in members.items():
                if term.delay[1] > 0 or term.history > 1:
                    self.buffers[f"{group}/{name}"] = TermBuffer(term, _flat(terms[name]))

    def observe(self, terms: dict[str, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return group -> (num_envs, size) float32, fresh tensors.

        mask: environments that have just been reset; their past is replaced by the present, and
            only their rows of the result are meaningful. None after a step: the past moves on.
        """
        flat = {name: _flat(value) for name, value in terms.items()}
        return {
            group: torch.cat(
                [
                    self._enter(f"{group}/{name}", term, flat[name], mask)
                    for name, term in members.items()
                ],
                dim=1,
            )
            for group, members in self.groups.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the rings and delays."""
        state = {}
        for key, buffer in self.buffers.items():
            state[f"{key}/ring"], state[f"{key}/delay"] = buffer.ring, buffer.delay
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for key, buffer in self.buffers.items():
            buffer.ring, buffer.delay = state[f"{key}/ring"].clone(), state[f"{key}/delay"].clone()

    def _enter(self, key: str, term: ObsTerm, value: Tensor, mask: Tensor | None) -> Tensor:
        if term.noise > 0:
            draw = torch.rand(value.shape, generator=self.rng, device=value.device)
            value = value + term.noise * (2.0 * draw - 1.0)
        buffer = self.buffers.get(key)
        if buffer is None:
            return value
        if mask is None:
            buffer.push(value)
        else:
            buffer.fill(value, mask, self.rng)
        return buffer.read()


def _flat(value: Tensor) -> Tensor:
    """Return (num_envs, size) float32; most terms are already."""
    if value.dim() != 2:
        value = value.reshape(value.shape[0], -1)
    return value if value.dtype == torch.float32 else value.float()


def _check(
    groups: dict[str, dict[str, ObsTerm]], terms: dict[str, Tensor], units: dict[str, str]
) -> None:
    wanted = {name for members in groups.values() for name in members}
    for group, members in groups.items():
        if unknown := sorted(set(members) - set(terms)):
            raise ValueError(
                f"task.observation.{group} asks for {unknown}, the task observes {sorted(terms)}"
            )
    if unread := sorted(set(terms) - wanted):
        raise ValueError(f"the task computes {unread}, but no observation group reads them")
    if unlabelled := sorted(set(terms) - set(units)):
        raise ValueError(f"the task gives no unit for {unlabelled}")
