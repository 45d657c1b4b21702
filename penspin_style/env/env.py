"""The walk of a step: action -> physics -> reward, termination, observation.

`Env` is a TorchRL `EnvBase` with its own `step_and_maybe_reset`: no branch on a GPU value, the true
last observation under `next`, finished environments restarted in the same call. Keys of a
TensorDict with batch size [num_envs]:

| key | shape, type | meaning |
| --- | --- | --- |
| action | (naction,) float32 | clipped to [-1, 1]; NaN or infinity is a fault |
| teacher, critic, ... | (size,) float32 | observation groups of the task's config |
| <camera>_rgb | (height, width, 3) uint8 | images that some group lists |
| <camera>_depth | (height, width) float32 | metres along the optical axis; 0: nothing there |
| reward | (1,) float32 | weighted sum of the task's terms |
| terminated | (1,) bool | the task ended the episode |
| truncated | (1,) bool | time limit, or a fault |
| done | (1,) bool | either |
| success | (1,) bool | the task's success holds now |
| fault | (1,) bool | this transition is not to be learned from |
| is_absent | (1,) bool | only with `absent_object`: no object is in sight, doing nothing is right |
| task_label | (naction,) float32 | only with `labels`, of tasks that say so: see `Task.label` |
| expert_action | (naction,) float32 | only with `expert`, in roots: what `Task.expert` would do |
| learner_acts | (1,) bool | only of tasks that say so: the coming step is the learner's own |
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from penspin_style.config import StallConfig, StartsConfig
from penspin_style.env.checks import check_action, check_reward_keys
from penspin_style.env.contract import check_terms
from penspin_style.env.expert import ExpertActions
from penspin_style.env.faults import FaultLog
from penspin_style.env.rounds import Rounds
from penspin_style.env.specs import make_specs
from penspin_style.env.starts import Stall, Starts
from penspin_style.env.statistics import EpisodeStatistics
from penspin_style.env.task import Task
from penspin_style.env.terms import Groups, where, zeros
from penspin_style.env.world import World
from penspin_style.features import Input, PolicyCard
from penspin_style.sim.perturb import Perturbation
from penspin_style.sim.sim import Sim, check_mask


class Env(EnvBase):
    """`num_envs` copies of one task."""

    def __init__(
        self,
        task: Task[Any],
        num_envs: int,
        device: str | torch.device = "cpu",
        *,
        seed: int = 0,
        engine: str = "auto",
        nthread: int = 0,
        nconmax: int | None = None,
        njmax: int | None = None,
        renderer: str = "auto",
        stagger: bool = False,
        final_images: bool = True,
        absent_object: float = 0.0,
        labels: bool = False,
        expert: bool = False,
        perturb: Sequence[Perturbation] = (),
        starts: StartsConfig | None = None,
        stall: StallConfig | None = None,
        groups: tuple[int, int] | None = None,
    ) -> None:
        """Build the world and restart every environment.

        stagger: begin with random episode ages, so that restarts spread evenly over time; those
            shortened first episodes do not enter the statistics.
        final_images: whether the images under `next` are those of the true last state also
            where an episode ends; without, they are of the new episode there, and every step
            renders once instead of up to twice.
        absent_object: share of episodes in which the task's object is out of sight; there is
            nothing to succeed at, so they do not enter the statistics.
        labels: whether the task's own labels are in each root.
        expert: whether what the task's script would do is.
        renderer: what draws images; see `make_renderer`.
        perturb: changes of the model on top of the randomisation; not in `state_dict`.
        starts: where else episodes begin; those do not enter the statistics.
        stall: when an episode without progress ends.
        groups: (size, steps): each `size` consecutive environments begin alike, and after so many
            steps all begin anew; see `rounds.py`. Episodes that begin in between do not enter the
            statistics.

        Raises:
            ValueError: starts, stalls or an expert of a task that knows no progress, or has none;
                invalid groups.
        """
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))
        self.world = World(
            *(task, num_envs, self.device),
            seed=seed,
            engine=engine,
            nthread=nthread,
            nconmax=nconmax,
            njmax=njmax,
            renderer=renderer,
            perturb=perturb,
        )
        self.task, self.cfg = task, task.cfg
        self.model, self.rng = self.world.model, self.world.rng
        self.n_substeps, self.cameras = self.world.n_substeps, self.world.cameras
        self.stagger = stagger
        self.final_images = final_images
        self.absent_object = absent_object
        self.labels = labels
        self.rounds = Rounds.make(groups, num_envs, task.cfg.episode_length)
        self._allocate()
        self._prepare_starts(starts, stall)
        self.expert = ExpertActions(task, self.sim) if expert else None
        self._restart(torch.ones(num_envs, dtype=torch.bool, device=self.device))
        self._ask_expert()
        self._make_specs()

    @property
    def sim(self) -> Sim:
        """The simulation."""
        return self.world.sim

    @property
    def num_envs(self) -> int:
        """Number of environments."""
        return self.batch_size[0]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Return the observation groups, with names, shapes and units of their terms."""
        return self.groups.inputs

    def card(
        self,
        *,
        task: str,
        run: str,
        network: dict[str, Any],
        score: dict[str, Any],
        versions: dict[str, str],
        in_keys: tuple[str, ...],
    ) -> PolicyCard:
        """Return the card of a policy that was trained here and reads the inputs `in_keys`."""
        inputs = {i.name: i for i in self.inputs}
        return PolicyCard(
            task=task,
            inputs=tuple(inputs[key] for key in in_keys),
            actions=self.task.actions,
            joints=self.task.joints,
            control_dt=self.cfg.control_dt,
            run=run,
            preprocessing={k: self.cameras.describe(k) for k in in_keys if k in self.cameras.names},
            network=network,
            score=score,
            versions=versions,
        )

    # The walk.

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        transition = self._advance(tensordict, images=True)
        self._ask_expert()
        if self.expert is not None:
            transition.set("expert_action", self.expert.action)
        return transition

    def _advance(self, tensordict: TensorDictBase, *, images: bool) -> TensorDict:
        action = tensordict["action"]
        check_action(action, self.num_envs, self._naction)
        bad_action = ~torch.isfinite(action).all(dim=1)
        action = torch.where(bad_action[:, None], 0.0, action).clamp(-1.0, 1.0)
        before = self.sim.get_state()
        self.world.begin(action)
        self.world.advance()
        self.step_count.add_(1)
        terms, terminated, success = self.world.finish(action)
        weighted = {name: self.cfg.reward[name] * value.float() for name, value in terms.items()}
        reward = torch.stack(list(weighted.values())).sum(dim=0)
        self.groups.draw_latency()
        observation = self.groups.observe(self.world.observe(images=images))

        fault = self._collect_faults(before, bad_action, observation, reward)
        if not self._is_empty(fault):
            # a faulty step ends its episode; what it computed enters no network and no sum
            reward = torch.where(fault, 0.0, reward)
            weighted = {name: torch.where(fault, 0.0, value) for name, value in weighted.items()}
            success, terminated = success & ~fault, terminated & ~fault
            for name, value in observation.items():
                observation[name] = where(fault, self._last[name], value)
        truncated = (self.step_count >= self.cfg.episode_length) | fault | self.rounds.advance()
        if self._goes_by_progress:
            reward, terminated, truncated = self._follow(reward, terminated, truncated, fault)
        self.reward_terms.update(weighted)
        self.measures = self.statistics.task_metrics.add(self.sim, fault)
        self._last.update(observation)
        self._note_step()
        self.statistics.add(reward, weighted, success)
        ended = (terminated | truncated) & self.statistics.counted & ~fault & ~self.is_absent
        if not self._is_empty(ended):
            self.statistics.end(ended, terminated, success)
        return self._tensordict(
            self._last, success, fault, terminated, truncated, reward=reward[:, None]
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            mask = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
            self.rounds.step = 0
        self._restart(mask.view(-1))
        self._ask_expert(mask.view(-1))
        return self.current()

    def step_and_maybe_reset(
        self, tensordict: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        """Step; restart what is done. Return (the transition, the next root), as TorchRL does."""
        transition = self._advance(tensordict, images=self.final_images)
        tensordict.set("next", transition)
        done = transition["done"].view(-1)
        self._restart(done, images=self.final_images)
        self._ask_expert()
        if self.cameras.names and not self.final_images:
            terms = self.cameras.render()
            self._last.update(self.groups.observe(terms))
            if not self._is_empty(done):
                self._last.update(self.groups.observe(terms, done))
            for name in self.groups.images:
                transition.set(name, self._last[name])
        return tensordict, self.current()

    def current(self) -> TensorDict:
        """Return the root from which the next step starts."""
        return self._tensordict(self._last, *(torch.zeros_like(self.is_absent) for _ in range(4)))

    def _restart(self, mask: Tensor, *, images: bool = True) -> None:
        """Begin a new episode where the mask says; the other environments are not touched."""
        if self._is_empty(mask):
            return
        begun = self._begin(mask)
        self.groups.draw_latency(mask)
        observation = self.groups.observe(self.world.observe(images=images), mask)
        # an episode that begins so ends with its first step, as a fault; nobody sees how it began
        self.unusable.logical_and_(~mask).logical_or_(mask & self._is_unusable(observation))
        usable = mask & ~self.unusable
        for name, value in observation.items():
            self._last[name] = where(usable, value, self._last[name])
        self.step_count.mul_(~mask)
        if self.stagger:
            age = torch.randint(
                self.cfg.episode_length, (self.num_envs,), generator=self.rng, device=self.device
            )
            self.step_count.add_(age)
        self.statistics.clear(mask, counts=not self.stagger and not self.rounds.is_amid)
        if begun is not None:
            self.statistics.counted.logical_and_(~(mask & begun))
        if self.stall is not None:
            self.stall.clear(mask)
        self._note_step()
        self.stagger = False
        if self.expert is not None:
            self.expert.restart(mask, self.rng)

    def _begin(self, mask: Tensor) -> Tensor | None:
        """Restart the world where the mask says; return which episodes begin in other states."""
        begun: list[Tensor] = []

        def drawn() -> None:
            if self.absent_object:
                self._remove_objects(mask)
            if self.starts is not None:
                begun.append(self.starts.begin(self.sim, mask, self.rng))

        self.world.restart(mask, drawn=drawn)
        if self.rounds.begin():
            self.world.share(self.rounds.size)
        return begun[0] if begun else None

    def _follow(
        self, reward: Tensor, terminated: Tensor, truncated: Tensor, fault: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the step's outcome with stalls; keep states from which episodes can begin."""
        progress = self.task.progress(self.sim)
        assert progress is not None
        if self.stall is not None:
            stalled = self.stall.step(progress) & ~(terminated | truncated)
            if self.stall.cfg.fails:
                terminated = terminated | stalled
                reward = reward - self.stall.cfg.penalty * stalled
            else:
                truncated = truncated | stalled
        if self.starts is not None:
            # a faulty state is none to begin in
            self.starts.step(self.sim, progress, terminated | fault, self.rng)
        return reward, terminated, truncated

    def _note_step(self) -> None:
        """Note whose the coming step is, and what is right in it, if the task says so."""
        if self.learner_acts is not None:
            self.learner_acts = self.task.learner_acts(self.sim)
        if self.task_label is not None:
            self.task_label = self.task.label(self.sim)

    def _ask_expert(self, mask: Tensor | None = None) -> None:
        """Note what the expert would do in the coming step, once; mask: where it is a new one."""
        if self.expert is not None:
            self.expert.ask(mask)

    def _remove_objects(self, mask: Tensor) -> None:
        draw = torch.rand(self.num_envs, generator=self.rng, device=self.device)
        self.is_absent.copy_(torch.where(mask, draw < self.absent_object, self.is_absent))
        self.task.remove_object(self.sim, mask & self.is_absent)

    def _is_empty(self, mask: Tensor) -> bool:
        """Return whether a mask is known to hold nothing; a GPU is not asked: it would stall."""
        return self._on_cpu and not mask.any()

    def images(self) -> dict[str, Tensor]:
        """Return the images of the current observation, (num_envs, height, width, ...)."""
        return {name: self._last[name] for name in self.groups.images}

    # Bookkeeping.

    def _allocate(self) -> None:
        n, device = self.num_envs, self.device
        self._naction = len(self.task.actions)
        observed = self.task.observe(self.sim)
        rewarded = self.task.reward(self.sim, torch.zeros(n, self._naction, device=device))
        check_terms(self.task, n, observe=observed, reward=rewarded)
        check_reward_keys(rewarded, self.cfg.reward)
        self.learner_acts = self.task.learner_acts(self.sim)
        if self.learner_acts is not None:
            check_mask(self.learner_acts, n)
        self.task_label = self.task.label(self.sim) if self.labels else None
        if self.task_label is not None:
            check_action(self.task_label, n, self._naction)
        observation, latency = self.cfg.sensed()
        self.groups = Groups(
            observation,
            {**observed, **self.cameras.empty()},
            {**self.task.units, **self.cameras.units},
            self.rng,
            images=self.cameras.names,
            latency=latency,
        )
        self._last = {i.name: zeros(n, i, device) for i in self.inputs}
        self.is_absent = torch.zeros(n, dtype=torch.bool, device=device)
        self._on_cpu = self.device.type == "cpu"
        self.step_count = torch.zeros(n, dtype=torch.long, device=device)
        self.unusable = torch.zeros(n, dtype=torch.bool, device=device)
        self.reward_terms: dict[str, Tensor] = {}  # of the last step, weighted
        self.measures: dict[str, Tensor] = {}  # of the last step
        self.statistics = EpisodeStatistics(self.task, self.sim, rewarded)
        self.faults = FaultLog(self.sim)

    def _prepare_starts(self, starts: StartsConfig | None, stall: StallConfig | None) -> None:
        self.starts, self.stall = None, None
        self._goes_by_progress = starts is not None or stall is not None
        if self._goes_by_progress and self.task.progress(self.sim) is None:
            raise ValueError(
                f"{type(self.task).__name__} knows no progress: algo.starts and algo.stall are for "
                "tasks with `progress`; leave their shares and steps at 0"
            )
        if stall is not None:
            self.stall = Stall(stall, self.num_envs, self.device)
        if starts is not None:
            self.starts = Starts(starts, self.task, self.sim)

    def _make_specs(self) -> None:
        flags = ["success", "fault"]
        flags += ["is_absent"] if self.absent_object else []
        flags += ["learner_acts"] if self.learner_acts is not None else []
        told = {"task_label": self.task_label is not None, "expert_action": self.expert is not None}
        vectors = [name for name, given in told.items() if given]
        specs = make_specs(self._last, flags, vectors, self._naction)
        self.observation_spec, self.action_spec, self.reward_spec, self.full_done_spec = specs

    def _tensordict(
        self,
        observation: dict[str, Tensor],
        success: Tensor,
        fault: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        **extra: Tensor,
    ) -> TensorDict:
        if self.absent_object:
            extra["is_absent"] = self.is_absent[:, None].clone()
        if self.learner_acts is not None:
            extra["learner_acts"] = self.learner_acts[:, None].clone()
        if self.task_label is not None:
            extra["task_label"] = self.task_label.float()
        if self.expert is not None:
            extra["expert_action"] = self.expert.action
        return TensorDict(
            {
                **observation,
                **extra,
                "success": success[:, None],
                "fault": fault[:, None],
                "terminated": terminated[:, None],
                "truncated": truncated[:, None],
                "done": (terminated | truncated)[:, None],
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _collect_faults(
        self, before: Tensor, bad_action: Tensor, observation: dict[str, Tensor], reward: Tensor
    ) -> Tensor:
        """Return which environments are faulty after this step, and note why. No host sync."""
        bad_observation = self._is_unusable(observation) | self.unusable
        bad_reward = ~(reward.abs() <= self.task.largest)
        fault = (self.sim.faults != 0) | bad_action | bad_observation | bad_reward
        if self._is_empty(fault):
            return fault
        self.unusable.zero_()
        self.faults.add(
            fault, before, action=bad_action, observation=bad_observation, reward=bad_reward
        )
        return fault

    def _is_unusable(self, observation: dict[str, Tensor]) -> Tensor:
        """Return where a number is NaN, infinite or beyond what the task says can be observed."""
        vectors = [value for name, value in observation.items() if name not in self.groups.images]
        return ~(torch.cat(vectors, dim=1).abs().amax(dim=1) <= self.task.largest)

    def metrics(self) -> dict[str, float]:
        """Return the means over the episodes that ended since the last call, and clear them.

        Keys: env/return, env/episode_len, env/success_once (at some step), env/success_at_end,
        env/num_trajectories, env/<name> of the task's metrics, reward/<term> (episode sums,
        weighted). Means are absent when no
        episode ended. One host sync.
        """
        own = {} if self.starts is None else self.starts.metrics()
        return self.statistics.take() | own

    # State.

    def _set_seed(self, seed: int | None) -> None:
        """Make everything from the next reset on depend on the seed alone."""
        if seed is not None:
            self.world.seed(seed)

    def state_dict(self, **_: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return every tensor that a bit-exact continuation needs, flat."""
        return {
            **self.world.state_dict(),
            **self.statistics.state_dict(),
            **self.faults.state_dict(),
            "stagger": torch.tensor(self.stagger),
            "round_step": torch.tensor(self.rounds.step),
            "step_count": self.step_count.clone(),
            "is_absent": self.is_absent.clone(),
            "unusable": self.unusable.clone(),
            **{f"last/{k}": v.clone() for k, v in self._last.items()},
            **{f"terms/{k}": v.clone() for k, v in self.groups.state_dict().items()},
            **{
                f"{name}/{k}": v
                for name, part in self._parts().items()
                if part is not None
                for k, v in part.state_dict().items()
            },
        }

    def _parts(self) -> dict[str, Any]:
        return {"starts": self.starts, "stall": self.stall, "expert": self.expert}

    def load_state_dict(self, state_dict: dict[str, Any], **_: Any) -> None:  # type: ignore
        """Continue exactly where `state_dict` was taken; `current()` is then the root."""
        for former, name in (("hidden", "is_absent"), ("memory/hidden", "memory/is_absent")):
            if former in state_dict:  # an older checkpoint's
                state_dict = {**state_dict, name: state_dict[former]}
        self.world.load_state_dict(state_dict)
        self.statistics.load_state_dict(state_dict)
        self.faults.load_state_dict(state_dict)
        self.stagger = bool(state_dict["stagger"])
        self.rounds.step = int(state_dict.get("round_step", 0))  # older checkpoints have none
        self.step_count.copy_(state_dict["step_count"])
        self.is_absent.copy_(state_dict["is_absent"])
        self.unusable.zero_()
        if "unusable" in state_dict:  # older checkpoints had no such episodes
            self.unusable.copy_(state_dict["unusable"])
        self._last = {k: state_dict[f"last/{k}"].clone() for k in self._last}
        self._note_step()
        for name, part in {"terms": self.groups, **self._parts()}.items():
            if part is not None:
                prefix = f"{name}/"
                own = {
                    k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)
                }
                part.load_state_dict(own)
