"""Distillation: a student learns to act as a privileged teacher does.

DAgger (Ross et al. 2011, arXiv 1011.0686) as MuJoCo Playground's ALOHA students were trained: the
student drives, the teacher says at every step what it would have done, the student is fitted to
that. `act` draws one augmented view of every observation, and what the student did and what it
learns are of the same view. Without `replay_capacity` each iteration's samples are used once; with
it they are aggregated on the device. With `rollouts` nothing is simulated: the same student clones
recorded roll-outs (see `data/rollouts.py`). With `driver=teacher` the teacher acts throughout, as
PenSpin's did. With `teacher=expert` labels are those of the task's script, `Task.expert`, wherever
the student gets to. What the student is, and what of an observation it keeps, stands in
`imitation.py`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.objectives import BCLoss

from penspin_style.algo.algorithm import (
    GuardedOptimizer,
    Interface,
    begin_from,
    labels,
    masked_mean,
    own_steps,
)
from penspin_style.algo.imitation import EXPERT, DistillConfig, Student, make_student
from penspin_style.config import TrainConfig
from penspin_style.data.replay import Replay
from penspin_style.data.rollouts import Rollouts, shuffled
from penspin_style.features import Input, PolicyCard, command_differences, in_scale_of
from penspin_style.nets.policy import open_policy


class Distill:
    """A student on the inputs `reads`, a frozen teacher on its own.

    inputs: all that the environment observes.
    reads: names of the inputs that the student is given, its numbers first.
    iterations: how many there will be, for the learning rate's schedule.
    per_iteration: samples of each.

    Raises:
        ValueError: the teacher reads what the environment does not observe, or acts otherwise.
    """

    Config: ClassVar[Any] = DistillConfig
    rank_state = ("rng",)
    acts_by = ("policy", "iteration")

    def __init__(
        self,
        cfg: DistillConfig,
        inputs: tuple[Input, ...],
        reads: tuple[str, ...],
        naction: int,
        *,
        iterations: int,
        per_iteration: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self.cfg, self.iterations, self.per_iteration = cfg, iterations, per_iteration
        self.horizon = cfg.horizon
        self.rng = torch.Generator(device=device).manual_seed(seed)
        observed = {i.name: i for i in inputs}
        weights = torch.Generator().manual_seed(seed)  # they do not depend on the device
        given = [observed[name] for name in reads]
        self.student = make_student(cfg, given, naction, weights=weights, rng=self.rng)
        self.policy = self.student.policy.to(device)
        self.teacher: Any = None  # recorded roll-outs have labels, and so has a script
        self.teacher_card: PolicyCard | None = None
        self.factors: Tensor | float = 1.0
        """What an action of the teacher is multiplied by, to be the same command as here."""
        if not cfg.rollouts and cfg.teacher != EXPERT:
            teacher, self.teacher_card = _load_teacher(cfg.teacher, observed, naction)
            self.teacher = teacher.to(device)
        self.rollouts = Rollouts(pathlib.Path(cfg.rollouts)) if cfg.rollouts else None
        self.collects = self.rollouts is None
        if self.rollouts is not None:
            _check_recorded(self.rollouts, given, naction)
        self._actor = _Learner(self.student)
        self.loss = _Loss(self._actor, loss_function=cfg.loss, reduction="none")  # type: ignore
        learned = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(learned, lr=cfg.learning_rate)
        self._guard = GuardedOptimizer(self.optimizer, (self.policy,), cfg.max_grad_norm)
        self.iteration = 0
        self._replay = Replay(cfg.replay_capacity)
        self._batch: TensorDict | None = None
        self._has_statistics = False  # whether the normaliser has seen anything

    @classmethod
    def make(
        cls, cfg: TrainConfig, env: Interface, *, device: torch.device, seed: int
    ) -> "Distill":
        """Return the distillation of a run."""
        per_iteration = cfg.num_envs * cfg.algo.horizon
        made = cls(
            cfg.algo,
            env.inputs,
            _reads(cfg.algo, env),
            len(env.actions),
            iterations=-(-cfg.total_samples // per_iteration),
            per_iteration=per_iteration,
            device=device,
            seed=seed,
        )
        teacher = made.teacher_card
        if teacher is not None:
            teacher, factors = in_scale_of(teacher, env.actions)
            if faults := command_differences(teacher, env.actions, env.control_dt, "environment"):
                raise ValueError(f"algo.teacher={cfg.algo.teacher}: {'; '.join(faults[:2])}")
            made.factors = torch.tensor(factors, device=device)
        if cfg.algo.init_from and not cfg.resume:
            begin_from(made.policy, cfg.algo.init_from, env)
        return made

    @classmethod
    def untrained(cls, cfg: DistillConfig, env: Interface) -> nn.Module:
        """Return the student before it has learned; teacher, encoders and roll-outs stay closed."""
        observed = {i.name: i for i in env.inputs}
        given = [observed[name] for name in _reads(cfg, env)]
        rng = torch.Generator()
        own = dataclasses.replace(cfg, encoder="")
        return make_student(own, given, len(env.actions), weights=rng, rng=rng).policy

    @classmethod
    def env_settings(cls, cfg: DistillConfig, *, training: bool) -> dict[str, Any]:
        """Return that labels are of what was seen before a step, and how often nothing is there.

        Recorded roll-outs need no more than one environment, to tell what it observes.
        """
        settings = {"final_images": False, "absent_object": cfg.absent_object if training else 0.0}
        settings["labels"] = training
        settings["expert"] = training and cfg.teacher == EXPERT and not cfg.rollouts
        return {**settings, "num_envs": 1} if cfg.rollouts and training else settings

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The student's."""
        return (self.optimizer,)

    @property
    def can_lag(self) -> bool:
        """Whether the normaliser has begun: `act` has no part in it from then on."""
        return self.policy.normalizer is None or self._has_statistics

    # The four verbs.

    @torch.no_grad()
    def act(self, td: TensorDict) -> TensorDict:
        """Label, see and act; write `label`, what was seen, `action` and `imitated`."""
        numbers = self._numbers(td)
        if numbers is not None and not self._has_statistics:
            own = own_steps(td)
            if own is None or own.any():
                self._update_normalizer(numbers, own)
        label = labels(td, self._taught(td))
        td.update(self.student.see(td))
        action = self.student.act(td)
        drives = torch.rand(len(label), 1, generator=self.rng, device=label.device) < self.beta
        td.set("imitated", (action - label).square().sum(dim=1))
        if self.cfg.action_noise:
            noise = torch.randn(action.shape, generator=self.rng, device=action.device)
            action = action + self.cfg.action_noise * noise
        td.set("action", torch.where(drives, label, action))
        td.set("label", label)
        return td

    @torch.no_grad()
    def process(self, batch: TensorDict | None) -> None:
        """Keep what an iteration has shown, [horizon, num_envs], to learn from.

        batch: None if this clones recorded roll-outs; as many of their rows are seen instead.
        """
        if batch is None:
            self._batch = self._recorded()
            return
        own = own_steps(batch)
        rows: Any = batch.reshape(-1) if own is None else batch[own]
        after: Any = rows["next"]
        flat: Any = rows.select(*self.student.keys, "label")
        flat["weight"] = (~after["fault"]).float().reshape(-1)
        self._fresh = {"train/beta": self.beta}
        if len(rows):
            self._fresh["train/imitation_error"] = rows["imitated"].mean().item()
            self._fresh["rollout/rewards"] = after["reward"].mean().item()
        if own is not None:
            self._fresh["rollout/learner_share"] = own.float().mean().item()
        numbers = self._numbers(flat)
        if numbers is not None and len(numbers):
            self._update_normalizer(numbers, flat["weight"] > 0)
        self._batch = flat
        self._replay.add(flat)

    def update(self) -> dict[str, float]:
        """Make `epochs` passes, in shuffled minibatches, over fresh samples or those kept."""
        if self._batch is None:
            raise RuntimeError("update() needs a batch: call process() first")
        n, size = len(self._batch), self.cfg.minibatch_size
        source = self._replay.content if self.cfg.replay_capacity and n else self._batch
        losses, skipped = [], 0
        self._set_learning_rate()
        for _ in range(self.cfg.epochs):
            order = torch.randperm(len(source), generator=self.rng, device=self.rng.device)[:n]
            for ids in order.split(size) if n else ():
                loss = self._step(source[ids])
                if loss is None:
                    skipped += 1
                else:
                    losses.append(loss)
        self._batch = None
        self.iteration += 1
        mean = torch.stack(losses).mean(dim=0).tolist() if losses else [float("nan")] * 2
        return {
            **self._fresh,
            "train/loss": mean[0],
            "train/grad_norm": mean[1],
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/memory": float(len(source)),
            "train/skipped_updates": float(skipped),
        }

    def _recorded(self) -> TensorDict:
        """Return rows of the recording as if they had just been rolled out."""
        assert self.rollouts is not None
        rows = shuffled(self.rollouts, self.per_iteration, self.rng)
        n, device = self.per_iteration, self.rng.device
        td = TensorDict(rows, batch_size=[n], device=device)
        td.update(self.student.see(td))
        numbers = self._numbers(td)
        if numbers is not None:
            self._update_normalizer(numbers)
        td["weight"] = torch.ones(n, device=device)
        self._fresh = {}
        return td.select(*self.student.keys, "label", "weight")

    def _taught(self, td: TensorDict) -> Tensor:
        """Return what the teacher would do, (num_envs, naction)."""
        if self.teacher is None:
            return td["expert_action"]
        return self.factors * self.teacher.act(*(td[key] for key in self.teacher.in_keys))

    @property
    def beta(self) -> float:
        """Share of steps that the teacher drives in this iteration."""
        last = self.cfg.beta_iterations
        if self.cfg.driver == "teacher":
            return 1.0
        return max(0.0, 1.0 - self.iteration / last) if last else 0.0

    # What is learned.

    def _numbers(self, td: TensorDictBase) -> Tensor | None:
        return td[self.cfg.group] if self.policy.normalizer is not None else None

    def _update_normalizer(self, numbers: Tensor, keep: Tensor | None = None) -> None:
        assert self.policy.normalizer is not None
        self.policy.normalizer.update(numbers, keep)
        self._has_statistics = True

    def _step(self, mb: TensorDict) -> Tensor | None:
        """Take one gradient step; return (loss, norm), or None if it was not finite and skipped."""
        weight = mb["weight"]
        mb = mb.exclude("weight").set("action", mb["label"])
        error = self.loss(mb)["loss_bc"].sum(dim=-1)
        loss = masked_mean(error, weight)
        norm = self._guard.step(loss)
        return None if norm is None else torch.stack((loss.detach(), norm))

    def _set_learning_rate(self) -> None:
        """Follow the schedule from where the rate is: a run that diverged has halved it."""
        change = self._rate(self.iteration) / self._rate(max(0, self.iteration - 1))
        for group in self.optimizer.param_groups:
            group["lr"] *= change

    def _rate(self, iteration: int) -> float:
        done = min(1.0, iteration / max(1, self.iterations))
        first, last = self.cfg.learning_rate, self.cfg.final_learning_rate
        return first + done * (last - first)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return weights, normaliser, optimiser, generator, counters and the kept samples."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "iteration": self.iteration,
            "skipped_in_a_row": self._guard.skipped_in_a_row,
            **({"replay": self._replay} if self.cfg.replay_capacity else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self.iteration = int(state["iteration"])
        self._guard.skipped_in_a_row = int(state["skipped_in_a_row"])
        normalizer = self.policy.normalizer
        self._has_statistics = normalizer is not None and bool(normalizer.count)
        if self.cfg.replay_capacity:
            self._replay.take(state["replay"], self.rng.device)


class _Loss(BCLoss):
    """TorchRL's loss, with the annotation whose absence it warns of itself."""

    target_actor_network_params: Any


class _Learner(TensorDictModuleBase):
    """A student as TorchRL's loss wants it, from what was kept to the action."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.policy = student.policy
        self.learn = student.learn
        self.in_keys = list(student.keys)
        self.out_keys = ["action"]

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        return td.set("action", self.learn(td))


def _reads(cfg: DistillConfig, env: Interface) -> tuple[str, ...]:
    """Return the names of the inputs that the student is given.

    Raises:
        ValueError: the task observes none of that group, or not what is to be ignored.
    """
    names = env.reads(cfg.group)
    if not names:
        raise ValueError(
            f"algo.group={cfg.group}: the task observes no such group; it has "
            f"{', '.join(i.name for i in env.inputs)}"
        )
    if unknown := sorted(set(cfg.ignored_inputs) - set(names)):
        raise ValueError(
            f"algo.ignored_inputs names {', '.join(unknown)}; the group {cfg.group} has "
            f"{', '.join(names)}"
        )
    if kept := tuple(name for name in names if name not in cfg.ignored_inputs):
        return kept
    raise ValueError(f"algo.ignored_inputs leaves nothing of the group {cfg.group} to read")


def _check_recorded(rollouts: Rollouts, inputs: Sequence[Input], naction: int) -> None:
    if rollouts.naction != naction:
        raise ValueError(
            f"algo.rollouts={rollouts.folder} has {rollouts.naction} actions, the task {naction}"
        )
    recorded = {i.name: i for i in rollouts.inputs}
    for wanted in inputs:
        if recorded.get(wanted.name) != wanted:
            raise ValueError(
                f"algo.rollouts={rollouts.folder} has not recorded {wanted.name!r} as the student "
                f"reads it; it holds {', '.join(sorted(recorded))}"
            )


def _load_teacher(
    path: str, observed: Mapping[str, Input], naction: int
) -> tuple[nn.Module, PolicyCard]:
    """Return the frozen teacher and its card.

    Raises:
        ValueError: it is not there, or does not fit the environment.
    """
    teacher, card = open_policy("algo.teacher", path)
    if getattr(teacher, "horizon", 1) != 1:
        raise ValueError(f"algo.teacher={path} answers chunks of actions, not one; it cannot teach")
    for wanted in card.inputs:
        if observed.get(wanted.name) != wanted:
            found = observed.get(wanted.name)
            names = ", ".join(f.name for f in found.features) if found else "nothing of that name"
            raise ValueError(
                f"algo.teacher={path} reads {wanted.name!r} with "
                f"{', '.join(f.name for f in wanted.features)}; the environment observes {names}"
            )
    if len(card.actions) != naction:
        raise ValueError(
            f"algo.teacher={path} has {len(card.actions)} actions, the task has {naction}"
        )
    return teacher.requires_grad_(False), card


NAME = "distill"
ALGORITHM = Distill
