"""From named terms to observation groups: noise, then delay, then history.

Numbers of a group are joined into one vector under the group's name. Images stay what they are,
each under its own name.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from penspin_style.env.task import Latency, ObsTerm
from penspin_style.features import Feature, Input


class TermBuffer:
    """The past of one term in one group: a ring of the last values of every environment.

    Length is the longest delay plus the history. At a reset the whole ring is filled with the
    initial value, so that nothing of the last episode shows through.
    """

    def __init__(self, term: ObsTerm, like: Tensor, most_late: int = 0) -> None:
        """Allocate for values like `like`, (num_envs, ...).

        most_late: the longest `late` that `read` will be asked for.
        """
        self.term = term
        num_envs = like.shape[0]
        self.length = term.delay[1] + most_late + term.history
        shape = (num_envs, self.length, *like.shape[1:])
        self.ring = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.delay = torch.full((num_envs,), term.delay[0], dtype=torch.long, device=like.device)
        self._rows = torch.arange(num_envs, device=like.device)[:, None]
        self._steps = torch.arange(1 - term.history, 1, device=like.device)

    def push(self, value: Tensor) -> None:
        """Append the newest value, (num_envs, ...)."""
        self.ring = torch.cat((self.ring[:, 1:], value.unsqueeze(1)), dim=1)

    def fill(self, value: Tensor, mask: Tensor, rng: torch.Generator) -> None:
        """Start the masked environments with this value everywhere, and draw their delay."""
        rows = mask.view(-1, *(1 for _ in self.ring.shape[1:]))
        self.ring = torch.where(rows, value.unsqueeze(1), self.ring)
        low, high = self.term.delay
        if high > low:
            draw = torch.randint(low, high + 1, mask.shape, generator=rng, device=rng.device)
            self.delay = torch.where(mask, draw, self.delay)

    def read(self, late: Tensor | None = None) -> Tensor:
        """Return the delayed history, oldest first, (num_envs, history, ...).

        late: (num_envs,) steps on top of the term's own delay.
        """
        newest = self.length - 1 - self.delay
        if late is not None:
            newest = newest - late
        index = newest[:, None]
        if self.term.history > 1:
            index = index + self._steps  # (num_envs, history)
        return self.ring[self._rows, index]


class Groups:
    """Join the numbers of every group into one float32 vector per environment; pass images on."""

    def __init__(
        self,
        groups: dict[str, dict[str, ObsTerm]],
        terms: dict[str, Tensor],
        units: dict[str, str],
        rng: torch.Generator,
        *,
        images: Collection[str] = (),
        latency: Mapping[str, Latency] | None = None,
    ) -> None:
        """Lay out the groups.

        terms: one value of every term, for shapes and types.
        images: the terms that are images.
        """
        self.groups = groups
        self.rng = rng
        self.latency = dict(latency or {})
        self._odds = {
            group: torch.tensor(late.weights, device=rng.device)
            for group, late in self.latency.items()
        }
        _check(groups, terms, units, images)
        self.vectors = {
            group: [name for name in members if name not in images]
            for group, members in groups.items()
        }
        self.images = {  # an image is in one group
            name: group for group in groups for name in groups[group] if name in images
        }
        self.inputs = self._inputs(terms, units)
        self.buffers: dict[str, TermBuffer] = {}
        self.late: dict[str, Tensor] = {}
        for group, members in groups.items():
            most = len(self.latency[group].weights) - 1 if group in self.latency else 0
            for name, term in members.items():
                if term.delay[1] + most > 0 or term.history > 1:
                    value = terms[name] if name in images else _flat(terms[name])
                    self.buffers[f"{group}/{name}"] = TermBuffer(term, value, most)
                if group in self.latency:
                    zero = torch.zeros(len(terms[name]), dtype=torch.long, device=rng.device)
                    self.late[self._late_key(group, name)] = zero

    def reads(self, group: str) -> tuple[str, ...]:
        """Return the names of the inputs that belong to a group: its vector, then its images."""
        vector = (group,) if self.vectors.get(group) else ()
        return (*vector, *(name for name, owner in self.images.items() if owner == group))

    def draw_latency(self, mask: Tensor | None = None) -> None:
        """Draw how late the next values arrive: all that change every step, or at these resets."""
        for key, late in self.late.items():
            group = key.split("/")[0]
            if self.latency[group].every_step != (mask is None):
                continue
            draw = torch.multinomial(
                self._odds[group], len(late), replacement=True, generator=self.rng
            )
            late.copy_(draw if mask is None else torch.where(mask, draw, late))

    def observe(self, terms: dict[str, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return input -> tensor: (num_envs, size) float32 for vectors, images as they are.

        terms: the numbers, the images, or both.
        mask: environments that have just been reset; their past is replaced by the present, and
            only their rows of the result are meaningful. None after a step: the past moves on.
        """
        flat = {n: _flat(value) for n, value in terms.items() if n not in self.images}
        out = {}
        for group, names in self.vectors.items():
            if names and names[0] in flat:
                values = [self._enter(group, name, flat[name], mask) for name in names]
                out[group] = torch.cat([value.flatten(1) for value in values], dim=1)
        for name, group in self.images.items():
            if name in terms:
                value = self._enter(group, name, terms[name], mask)
                ring = self.buffers.get(f"{group}/{name}")
                is_single = ring is not None and ring.term.history == 1
                out[name] = value.squeeze(1) if is_single else value  # a ring adds a history axis
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """Return the rings and delays."""
        state = {}
        for key, buffer in self.buffers.items():
            state[f"{key}/ring"], state[f"{key}/delay"] = buffer.ring, buffer.delay
        return state | {f"late/{key}": late for key, late in self.late.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for key, buffer in self.buffers.items():
            buffer.ring, buffer.delay = state[f"{key}/ring"].clone(), state[f"{key}/delay"].clone()
        for key, late in self.late.items():
            late.copy_(state[f"late/{key}"])

    def _inputs(self, terms: dict[str, Tensor], units: dict[str, str]) -> tuple[Input, ...]:
        def feature(group: str, name: str) -> Feature:
            value, term = terms[name], self.groups[group][name]
            dtype = "uint8" if value.dtype == torch.uint8 else "float32"
            low, high = term.delay
            delay = low if low == high else 0  # what is drawn has no one value
            return Feature(name, tuple(value.shape[1:]), units[name], dtype, term.history, delay)

        vectors = [
            Input(group, tuple(feature(group, name) for name in names))
            for group, names in self.vectors.items()
            if names
        ]
        images = [Input(n, (feature(group, n),)) for n, group in self.images.items()]
        return (*vectors, *images)

    def _enter(self, group: str, name: str, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return the value as the group sees it, (num_envs, ...) or (num_envs, history, ...)."""
        key, term = f"{group}/{name}", self.groups[group][name]
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
        return buffer.read(self.late.get(self._late_key(group, name)))

    def _late_key(self, group: str, name: str) -> str:
        shared = group in self.latency and self.latency[group].shared
        return group if shared else f"{group}/{name}"


def _flat(value: Tensor) -> Tensor:
    """Return (num_envs, size) float32; most terms are already."""
    if value.dim() != 2:
        value = value.reshape(value.shape[0], -1)
    return value if value.dtype == torch.float32 else value.float()


def _check(
    groups: dict[str, dict[str, ObsTerm]],
    terms: dict[str, Tensor],
    units: dict[str, str],
    images: Collection[str],
) -> None:
    listed = [name for members in groups.values() for name in members]
    for group, members in groups.items():
        if unknown := sorted(set(members) - set(terms)):
            raise ValueError(
                f"task.observation.{group} asks for {unknown}, the task observes {sorted(terms)}"
            )
    if unread := sorted(set(terms) - set(listed)):
        raise ValueError(f"the task computes {unread}, but no observation group reads them")
    if unlabelled := sorted(set(terms) - set(units)):
        raise ValueError(f"the task gives no unit for {unlabelled}")
    if twice := sorted({name for name in images if listed.count(name) > 1}):
        raise ValueError(f"task.observation lists {twice} in two groups; an image is in one")
    if clash := sorted(set(images) & set(groups)):
        raise ValueError(f"task.observation has a group and an image of one name: {clash}")


def where(mask: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """Return value (num_envs, ...) where the mask (num_envs,) says, other elsewhere."""
    return torch.where(mask.view(-1, *(1 for _ in value.shape[1:])), value, other)


def zeros(num_envs: int, group: Input, device: torch.device) -> Tensor:
    """Return an empty observation of an input: a vector, or a stack of images."""
    dtype, shape = group.tensor
    return torch.zeros((num_envs, *shape), dtype=getattr(torch, dtype), device=device)
