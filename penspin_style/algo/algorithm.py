"""What every algorithm answers, and the loop that collects its data."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

from penspin_style import SPINS_UNBOUNDED
from penspin_style.config import TrainConfig
from penspin_style.features import ActionChannel, Input, channel_differences
from penspin_style.nets.policy import open_policy
from penspin_style.system import ranks

MAX_SKIPPED = 5
"""Non-finite updates in a row after which learning has diverged."""


class DivergedError(RuntimeError):
    """Several updates in a row had a loss or gradient that was not finite."""


class GuardedOptimizer:
    """Gradient steps that are left out when they are not finite; one for all ranks together.

    nets: each has its own bound on the gradient's norm.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, nets: Sequence[nn.Module], max_grad_norm: float
    ) -> None:
        self.optimizer = optimizer
        self.nets = nets
        self.max_grad_norm = max_grad_norm
        self.skipped_in_a_row = 0

    def step(
        self, loss: Tensor, *, weight: Tensor | None = None, metrics: Tensor | None = None
    ) -> Tensor | None:
        """Descend; return the gradient's norm, or None if it was not finite and skipped.

        weight: of this rank's loss, a mean over so many rows; 1 if not given.
        metrics: become their means over the ranks, as loss and gradient do.

        Raises:
            DivergedError: too many were skipped in a row.
        """
        self.optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        grads = [p.grad for net in self.nets for p in net.parameters() if p.grad is not None]
        others = [loss] if metrics is None else [loss, metrics]
        ranks.average_([*grads, *others], torch.ones(()) if weight is None else weight)
        norms = [
            nn.utils.clip_grad_norm_(net.parameters(), self.max_grad_norm) for net in self.nets
        ]
        norm = torch.stack(norms).norm()
        if not torch.isfinite(loss + norm):
            self.optimizer.zero_grad()
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= MAX_SKIPPED:
                raise DivergedError(
                    f"{MAX_SKIPPED} updates in a row had a non-finite loss or gradient"
                )
            return None
        self.skipped_in_a_row = 0
        self.optimizer.step()
        return norm.detach()


@dataclass(frozen=True)
class Interface:
    """What an algorithm is told of the environment that it learns in."""

    inputs: tuple[Input, ...]
    """All that it observes."""
    actions: tuple[ActionChannel, ...]
    control_dt: float
    """Seconds between two actions."""
    reads: Callable[[str], tuple[str, ...]]
    """From an observation group to the names of its inputs."""
    find_robot: Callable[[str], Any] | None = None
    """From a robot's name to its description, the module of `tasks/robots`."""


class Algorithm(Protocol):
    """Four verbs and a state. `policy` is what acts in the end and what is exported.

    `act` and `process` are called horizon by horizon, `update` once after each. So one on policy
    keeps what `process` is given until `update`; one off policy fills a replay buffer in `process`
    and draws from it in `update`; its `state_dict` may leave the buffer out, and then a resumed run
    fills a new one and is not the same bit for bit. One that learns from recorded data has
    `collects` False; if it needs no environment at all, see `recorded.Recorded`. There may be any
    number of networks besides `policy`, in `state_dict` with their optimisers.

    One that learns in several processes (`system/ranks.py`) binds `many_ranks = True`, and in
    `rank_state` the keys of `state_dict` that are each process's own, its generator `rng` first.

    One whose batches may be collected by a copy of itself that is one update old, while it learns
    (`train/collection.py`), binds `acts_by`, the keys of `state_dict` that `act` reads besides
    those of `rank_state`, and has a property `can_lag`: false while `act` changes any of them.

    Where others collect for it (`launcher=ray`), `takes_first` is set to False on those, and
    `needs_first` and `take_first` give it the first observations of all: see `OnPolicy`.
    """

    Config: ClassVar[Any]
    """The dataclass of what `algo.KEY` can set; its `name` is what `algo=NAME` says."""

    @classmethod
    def make(
        cls, cfg: TrainConfig, env: Interface, *, device: torch.device, seed: int
    ) -> "Algorithm":
        """Return the algorithm of a run, before its first iteration.

        Raises:
            ValueError: it cannot learn in this environment; names the key that says otherwise.
        """
        ...

    @classmethod
    def untrained(cls, cfg: Any, env: Interface) -> nn.Module:
        """Return the policy that a `Config` makes, on the CPU, to be given a checkpoint's weights.

        No file that the configuration names is opened.
        """
        ...

    @classmethod
    def env_settings(cls, cfg: Any, *, training: bool) -> dict[str, Any] | None:
        """Return the keywords of `Env` that a `Config` asks for, in training or in evaluation.

        `num_envs` is among them where it needs fewer than the run's. None: it learns and is
        validated without any, as `recorded.Recorded` says; then `make` is given an interface
        without inputs and actions.
        """
        ...

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """What descends; their rates are halved where a run has diverged."""
        ...

    @property
    def policy(self) -> nn.Module:
        """The network that acts."""
        ...

    @property
    def horizon(self) -> int:
        """Steps collected per environment and iteration."""
        ...

    @property
    def collects(self) -> bool:
        """Whether it learns from roll-outs; if not, `process` is given None."""
        ...

    def act(self, td: TensorDict) -> TensorDict:
        """Write `action`, and what `update` will need, into the root td [num_envs]."""
        ...

    def process(self, batch: TensorDict | None) -> None:
        """Turn collected transitions [horizon, num_envs] into something to learn from."""
        ...

    def update(self) -> dict[str, float]:
        """Learn from what was processed; return metrics under `train/` and `rollout/`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bit-exact continuation needs: tensors and plain numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        ...


def begin_from(policy: Any, path: str, env: Interface) -> None:
    """Give a policy the weights of a trained one, statistics of observations among them.

    Raises:
        ValueError: there is none, or it is of another shape; names `algo.init_from` and how.
    """
    trained, card = open_policy("algo.init_from", path)
    observed = {i.name: i for i in env.inputs}
    own, network = policy.describe(), card.network
    faults = [
        f"it reads {i.name!r}, {i.size} numbers; the environment has none such"
        for i in card.inputs
        if observed.get(i.name) != i
    ]
    faults += channel_differences(card.actions, env.actions, "environment")
    faults += [
        f"its network has {key}={network.get(key)}, this one {own.get(key)}"
        for key in {**own, **network}
        if own.get(key) != network.get(key)
    ]
    if faults:
        raise ValueError(f"algo.init_from={path} is of another shape: {faults[0]}")
    policy.load_state_dict(trained.state_dict())


def observed_groups(algo: str, inputs: Sequence[Input]) -> dict[str, Input]:
    """Return the inputs by name, for an algorithm that learns a teacher.

    Raises:
        ValueError: the group `teacher` is not among them.
    """
    observed = {i.name: i for i in inputs}
    if "teacher" not in observed:
        raise ValueError(
            f"{algo} reads the observation group 'teacher'; the task has {sorted(observed)}"
        )
    return observed


class Reinforcement:
    """How algorithms that learn a policy from rewards are built, and what they ask of `Env`.

    They are called with a `Config`, the inputs, the number of actions, device and seed.
    """

    @classmethod
    def make(cls, cfg: TrainConfig, env: Interface, *, device: torch.device, seed: int) -> Any:
        """Return the algorithm of a run."""
        build: Any = cls
        made = build(cfg.algo, env.inputs, len(env.actions), device=device, seed=seed)
        made.overlap = cfg.collects_ahead
        if cfg.algo.init_from and not cfg.resume:
            begin_from(made.policy, cfg.algo.init_from, env)
        return made

    @classmethod
    def untrained(cls, cfg: Any, env: Interface) -> nn.Module:
        """Return the policy before it has learned."""
        build: Any = cls
        return build(cfg, env.inputs, len(env.actions), device=torch.device("cpu"), seed=0).policy

    @classmethod
    def env_settings(cls, cfg: Any, *, training: bool) -> dict[str, Any]:
        """Return where training's episodes begin and when they stall; evaluation's are as is."""
        if not training:
            return {}
        return {
            **({"starts": cfg.starts} if cfg.starts.used else {}),
            **({"stall": cfg.stall} if cfg.stall.steps else {}),
        }


@torch.no_grad()
def rollout(
    env: EnvBase, algorithm: Algorithm, root: TensorDict, buffer: TensorDict | None
) -> tuple[TensorDict, TensorDict]:
    """Collect `algorithm.horizon` steps. Return (batch [horizon, num_envs], the next root).

    buffer: the batch of an earlier call, written over in place; None to allocate one. `next` holds
    the true last observation of an episode also where the environment has restarted. Observations
    that the algorithm lists as `unread`, if it does, are left out.
    """
    unread = getattr(algorithm, "unread", ())
    left_out = [*unread, *(("next", name) for name in unread)]
    for t in range(algorithm.horizon):
        transition: Any
        transition, root = env.step_and_maybe_reset(algorithm.act(root))  # type: ignore[assignment]
        if left_out:
            transition = transition.exclude(*left_out)
        if buffer is None:
            buffer = transition.expand(algorithm.horizon, *env.batch_size).clone()
        buffer[t] = transition  # type: ignore[index]
    assert buffer is not None
    return buffer, root


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch this many threads for a while.

    Learning gains from a second thread; in a roll-out it would only take a core from physics.
    """
    if count > 1 and SPINS_UNBOUNDED:
        warnings.warn(
            "torch was imported before penspin_style: beside a busy process its threads wait "
            "spinning and learning can be ten times slower; import penspin_style first, or set "
            "GOMP_SPINCOUNT=1000 or learn_threads=1",
            stacklevel=3,
        )
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def own_steps(td: TensorDictBase) -> Tensor | None:
    """Return where the coming step is the learner's own, bool in the batch's shape; None: all are.

    In the others the task acts itself (`Task.learner_acts`): an algorithm learns nothing from them.
    """
    return td["learner_acts"].squeeze(-1) if "learner_acts" in td.keys() else None  # noqa: SIM118


def labels(td: TensorDictBase, action: Tensor) -> Tensor:
    """Return what is to be learned where a teacher would do `action`, (n, naction)."""
    if "task_label" in td.keys():  # noqa: SIM118  (a TensorDict is no mapping)
        own: Any = td["task_label"]
        action = torch.where(own.isnan(), action, own)
    if "is_absent" in td.keys():  # noqa: SIM118
        action = torch.where(td["is_absent"], 0.0, action)
    return action


def masked_mean(value: Tensor, weight: Tensor, *, shared: bool = False) -> Tensor:
    """Return the mean of value where weight is 1, zero if that is nowhere.

    Where weight is 0, value may be anything, also NaN.

    shared: over all ranks.
    """
    kept, count = torch.where(weight > 0, value * weight, 0.0).sum(), weight.sum()
    if shared:
        kept, count = ranks.total(torch.stack((kept, count)))
    return kept / count.clamp(min=1.0)
