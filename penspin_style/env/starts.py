"""Where training episodes begin beside the task's own initial states, and stalls that end them.

`Starts` keeps states that the policy has reached (`Task.start_state`) in two archives: **far**,
from which it went on making progress, and **falls**, shortly before a failure. A third, the
**bank**, is given: states along recorded trajectories (`start_bank.py`). A share of the episodes of
a training begins there; evaluations never use them.

The candidates of a draw compete: in **far** the one of the largest progress wins, so that episodes
begin ever further along; in the others the one whose success, over the last episodes that began
there, is nearest to a half. An episode from a start succeeds if it is alive `decided` control steps
later.

`Stall` ends an episode that has made no progress for some time: as a failure, without value beyond
it, or as a time limit.
"""

import pathlib
from typing import Any

import torch
from torch import Tensor

from penspin_style.config import StallConfig, StartsConfig
from penspin_style.env.start_bank import read_bank
from penspin_style.env.task import Task
from penspin_style.sim.sim import Sim

KINDS = ("far", "falls", "bank")
"""The archives, in the order of `StartsConfig`'s shares."""
_RING = 8
"""States of the last seconds kept per environment."""
_EVERY = 8
"""Control steps between two of them."""


class Stall:
    """How long each episode has gone without progress."""

    def __init__(self, cfg: StallConfig, num_envs: int, device: torch.device) -> None:
        self.cfg = cfg
        self.best = torch.zeros(num_envs, device=device)
        """Progress that the last step forward led to."""
        self.idle = torch.zeros(num_envs, dtype=torch.long, device=device)
        """Control steps since."""

    def step(self, progress: Tensor) -> Tensor:
        """Note the progress (num_envs,) of this episode; return which episodes stall."""
        forward = progress >= self.best + self.cfg.least
        self.best.copy_(torch.where(forward, progress, self.best))
        self.idle.add_(1).mul_(~forward)
        return self.idle >= self.cfg.steps

    def clear(self, mask: Tensor) -> None:
        """Begin new episodes where the mask says."""
        self.best.masked_fill_(mask, 0.0)
        self.idle.masked_fill_(mask, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor, flat."""
        return {"best": self.best.clone(), "idle": self.idle.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.best.copy_(state["best"])
        self.idle.copy_(state["idle"])


class Archive:
    """The last `capacity` states that were put in, on the device; nothing waits for a GPU."""

    TENSORS = ("rows", "progress", "tries", "wins", "count", "head")

    def __init__(self, capacity: int, width: int, like: Tensor) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, device=like.device)

        self.capacity = capacity
        # one row more, into which what the mask leaves out is written
        self.rows = torch.zeros(capacity + 1, width, device=like.device, dtype=like.dtype)
        self.progress, self.tries, self.wins = (zeros(capacity + 1) for _ in range(3))
        self.count = torch.zeros((), dtype=torch.long, device=like.device)
        self.head = self.count.clone()

    def add(self, mask: Tensor, rows: Tensor, progress: Tensor) -> None:
        """Put in the masked rows (n, width), the oldest ones go; progress: (n,)."""
        place = (self.head + mask.long().cumsum(0) - 1) % self.capacity
        place = torch.where(mask, place, self.capacity)
        self.rows[place] = rows
        self.progress[place] = progress
        self.tries[place], self.wins[place] = 0.0, 0.0
        added = mask.sum()
        self.head.add_(added).remainder_(self.capacity)
        self.count.add_(added).clamp_(max=self.capacity)

    def note(self, ids: Tensor, mask: Tensor, won: Tensor) -> None:
        """Note how the masked episodes went that began in the states ids (n,)."""
        ids = torch.where(mask, ids, self.capacity)
        # the older an outcome, the less it says of the policy of today
        self.tries[ids] = 0.9 * self.tries[ids] + 1.0
        self.wins[ids] = 0.9 * self.wins[ids] + won.float()

    def draw(self, n: int, rivals: int, rng: torch.Generator, *, farthest: bool) -> Tensor:
        """Return n ids, each the best of some rivals: by progress, or by success near a half."""
        u = torch.rand(n, rivals, generator=rng, device=self.rows.device)
        ids = (u * self.count).long().clamp(max=self.capacity - 1)
        share = (self.wins[ids] + 1.0) / (self.tries[ids] + 2.0)
        value = self.progress[ids] if farthest else share * (1.0 - share)
        return ids.gather(1, value.argmax(dim=1, keepdim=True))[:, 0]


class Starts:
    """The archives of one environment, and what its running episodes are put in from."""

    def __init__(self, cfg: StartsConfig, task: Task[Any], sim: Sim) -> None:
        """Allocate; take the bank.

        Raises:
            ValueError: a share of the bank is wanted and there is none, or it is another task's.
            DamagedError: its folder is missing or damaged.
        """
        n, device = sim.num_envs, sim.device
        self.cfg, self.task = cfg, task
        self.shares = torch.tensor([cfg.far, cfg.falls, cfg.bank], device=device).cumsum(0)
        state = task.start_state(sim)
        width = state.shape[1]
        bank = _bank(cfg, task, width, device)
        sizes = (cfg.capacity, cfg.capacity, 1 if bank is None else len(bank))
        self.archives = {
            k: Archive(size, width, state) for k, size in zip(KINDS, sizes, strict=True)
        }
        if bank is not None:
            everything = torch.ones(len(bank), dtype=torch.bool, device=device)
            self.archives["bank"].add(
                everything, bank.to(state), torch.zeros(len(bank), device=device)
            )
        self.kind = torch.full((n,), -1, dtype=torch.long, device=device)
        """In which archive the episode began, -1 for the task's own initial state."""
        self.origin = torch.zeros(n, dtype=torch.long, device=device)
        self.before = torch.zeros(n, device=device)
        """Progress that had been made before the episode began."""
        self.age = torch.zeros(n, dtype=torch.long, device=device)
        self.kept = torch.zeros_like(state)
        """A state of each episode that may prove to be a success."""
        self.kept_at = torch.full((n,), -1, dtype=torch.long, device=device)
        self.kept_progress = torch.zeros(n, device=device)
        self.ring = torch.zeros(_RING, *state.shape, device=device, dtype=state.dtype)
        self.ring_at = torch.full((_RING, n), -1, dtype=torch.long, device=device)
        self.clock = torch.zeros((), dtype=torch.long)

    def begin(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> Tensor:
        """Let a share of the masked episodes, which the task has just begun, start elsewhere.

        Returns: (num_envs,) bool, which.
        """
        n = len(mask)
        u = torch.rand(n, generator=rng, device=mask.device)
        kind = (u[:, None] >= self.shares).sum(dim=1)  # 3: the task's own
        rows, elsewhere = torch.zeros_like(self.kept), torch.zeros_like(mask)
        origin, before = torch.zeros_like(self.origin), torch.zeros_like(self.before)
        for i, (name, archive) in enumerate(self.archives.items()):
            chosen = mask & (kind == i) & (archive.count >= self._fewest(name))
            ids = archive.draw(n, self.cfg.rivals, rng, farthest=name == "far")
            rows = torch.where(chosen[:, None], archive.rows[ids], rows)
            before = torch.where(chosen, archive.progress[ids], before)
            origin = torch.where(chosen, ids, origin)
            elsewhere |= chosen
        kind = torch.where(elsewhere, kind, -1)
        for value, fresh in ((self.kind, kind), (self.origin, origin), (self.before, before)):
            value.copy_(torch.where(mask, fresh, value))
        self.age.masked_fill_(mask, 0)
        self.kept_at.masked_fill_(mask, -1)
        self.ring_at.masked_fill_(mask, -1)
        self.task.set_start_state(sim, elsewhere, rows, rng)
        return elsewhere

    def _fewest(self, name: str) -> int:
        return 1 if name == "bank" else self.cfg.fewest

    def step(self, sim: Sim, progress: Tensor, failed: Tensor, rng: torch.Generator) -> None:
        """Note where the episodes are, before those that end are begun anew.

        progress: (num_envs,) of this episode; failed: (num_envs,) bool, it has just ended so.
        """
        state = self.task.start_state(sim)
        self.age.add_(1)
        self._note_outcomes(failed)
        total = self.before + progress
        self._keep_successes(state, total, failed, rng)
        self._keep_falls(state, failed, rng)

    def _note_outcomes(self, failed: Tensor) -> None:
        decided = self.age == self.cfg.decided
        lost = failed & (self.age <= self.cfg.decided)
        for i, archive in enumerate(self.archives.values()):
            archive.note(self.origin, (self.kind == i) & (decided | lost), ~failed)

    def _keep_successes(
        self, state: Tensor, total: Tensor, failed: Tensor, rng: torch.Generator
    ) -> None:
        """Archive the state that was kept if the episode is alive and further along by now."""
        due = (self.kept_at >= 0) & (self.age - self.kept_at >= self.cfg.decided)
        further = total - self.kept_progress >= self.cfg.least
        self.archives["far"].add(due & further & ~failed, self.kept, self.kept_progress)
        self.kept_at.masked_fill_(due, -1)
        u = torch.rand(len(due), generator=rng, device=due.device)
        fresh = (self.kept_at < 0) & ~failed & (u < self.cfg.rate)
        self.kept.copy_(torch.where(fresh[:, None], state, self.kept))
        self.kept_at.copy_(torch.where(fresh, self.age, self.kept_at))
        self.kept_progress.copy_(torch.where(fresh, total, self.kept_progress))

    def _keep_falls(self, state: Tensor, failed: Tensor, rng: torch.Generator) -> None:
        """Archive one of the states of the last seconds before each failure."""
        low, high = self.cfg.before_fall
        ago = self.age - self.ring_at
        usable = (self.ring_at >= 0) & (ago >= low) & (ago <= high)
        u = torch.rand(usable.shape, generator=rng, device=usable.device)
        slot = torch.where(usable, u, -1.0).argmax(dim=0)
        envs = torch.arange(len(failed), device=failed.device)
        terminated = failed & usable[slot, envs]
        self.archives["falls"].add(terminated, self.ring[slot, envs], self.before)
        if not self.clock % _EVERY:
            self.ring[self.clock // _EVERY % _RING] = state
            self.ring_at[self.clock // _EVERY % _RING] = self.age
        self.clock += 1

    def metrics(self) -> dict[str, float]:
        """Return how many states there are, and how far along the farthest began."""
        far = self.archives["far"]
        return {
            "starts/far": float(far.count),
            "starts/falls": float(self.archives["falls"].count),
            "starts/progress": float(far.progress[: far.capacity].max()),
        }

    _TENSORS = ("kind", "origin", "before", "age", "kept", "kept_at", "kept_progress",
                "ring", "ring_at", "clock")  # fmt: skip

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor, flat."""
        out = {name: getattr(self, name).clone() for name in self._TENSORS}
        for kind, archive in self.archives.items():
            out |= {f"{kind}/{name}": getattr(archive, name).clone() for name in archive.TENSORS}
        return out

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        for name in self._TENSORS:
            getattr(self, name).copy_(state[name])
        for kind, archive in self.archives.items():
            for name in archive.TENSORS:
                getattr(archive, name).copy_(state[f"{kind}/{name}"])

    def take_over(self, other: "Starts") -> None:
        """Take the states of another environment of the same task, whose episodes end here."""
        for kind in ("far", "falls"):
            for name in Archive.TENSORS:
                mine, theirs = (getattr(s.archives[kind], name) for s in (self, other))
                mine.copy_(theirs)


def _bank(cfg: StartsConfig, task: Task[Any], width: int, device: torch.device) -> Tensor | None:
    """Return the states of the bank, (n, width)."""
    if cfg.states:
        bank = read_bank(pathlib.Path(cfg.states)).to(device)
        if bank.shape[1] != width:
            raise ValueError(
                f"algo.starts.states={cfg.states}: its rows have {bank.shape[1]} numbers, not the "
                f"{width} of {type(task).__name__}.start_state"
            )
        return bank
    own = task.start_bank(device)
    if cfg.bank and own is None:
        raise ValueError(
            f"algo.starts.bank={cfg.bank:g}: {type(task).__name__} has no bank of states; use 0, "
            "or name one as algo.starts.states"
        )
    return own
