"""The walk of a step: action -> physics -> reward, termination, observation.

`Env` is a TorchRL `EnvBase` with its own `step_and_maybe_reset`: no branch on a GPU value, the true
last observation under `next`, finished environments restarted in the same call. Keys of a
TensorDict with batch size [num_envs]:

| key | shape, type | meaning |
| --- | --- | --- |
| action | (naction,) float32 | clipped to [-1, 1]; NaN or infinity is a fault |
| teacher, critic, ... | (size,) float32 | observation groups of the task's config |
| <camera>_rgb | (height, width, 3) uint8 | pictures that some group lists |
| <camera>_depth | (height, width) float32 | metres along the optical axis; 0: nothing there |
| reward | (1,) float32 | weighted sum of the task's terms |
| terminated | (1,) bool | the task ended the episode |
| truncated | (1,) bool | time limit, or a fault |
| done | (1,) bool | either |
| success | (1,) bool | the task's success holds now |
| fault | (1,) bool | this transition is not to be learned from |
| hidden | (1,) bool | only with `holdout`: the object is out of sight, doing nothing is right |
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from penspin_style.env.checks import check_action, check_reward_keys, count_substeps
from penspin_style.env.measures import Tally
from penspin_style.env.pictures import Pictures
from penspin_style.env.task import Task
from penspin_style.env.terms import Groups
from penspin_style.features import Input, PolicyCard
from penspin_style.sim.randomize import Randomizer, per_env_fields
from penspin_style.sim.shift import Shift, Shifter
from penspin_style.sim.sim import Fault, make_sim


class FaultRecord(NamedTuple):
    """One environment's fault: which, why, and the state that the faulty step started from."""

    env_id: int
    code: Fault
    row: Tensor


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
        stagger: bool = False,
        final_pictures: bool = True,
        holdout: float = 0.0,
        shift: Sequence[Shift] = (),
    ) -> None:
        """Build the world and restart every environment.

        stagger: begin with random episode ages, so that restarts spread evenly over time; those
            shortened first episodes do not enter the statistics.
        final_pictures: whether the pictures under `next` are those of the true last state also
            where an episode ends; without, they are of the new episode there, and every step
            renders once instead of up to twice.
        holdout: share of episodes in which the task's object is out of sight; there is nothing to
            succeed at, so they do not enter the statistics.
        shift: changes of the model on top of the randomisation; `state_dict` knows nothing of it.
        """
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))
        self.task = task
        self.cfg = task.cfg
        self.stagger = stagger
        self.final_pictures = final_pictures
        self.holdout = holdout
        self.rng = torch.Generator(device=self.device).manual_seed(seed)
        self.model = task.spec().compile()
        self.n_substeps = count_substeps(self.cfg.control_dt, self.model)
        rows = task.randomize() if self.cfg.randomize else []
        self._varied = task.varied if self.cfg.randomize else ()
        self.sim = make_sim(
            self.model,
            num_envs,
            self.device,
            per_env=tuple(dict.fromkeys((*per_env_fields((*rows, *shift)), *self._varied))),
            engine=engine,
            nthread=nthread,
            nconmax=nconmax,
            njmax=njmax,
        )
        task.start(self.sim)
        self.cameras = Pictures(self.sim, task.cfg)
        self.randomizer = Randomizer(self.sim, rows, self.cfg.control_dt, Shifter(self.sim, shift))
        self._vary()
        self._allocate()
        self._restart(torch.ones(num_envs, dtype=torch.bool, device=self.device))
        self._make_specs()

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
        return self._advance(tensordict, pictures=True)

    def _advance(self, tensordict: TensorDictBase, *, pictures: bool) -> TensorDict:
        action = tensordict["action"]
        check_action(action, self.num_envs, self._naction)
        bad_action = ~torch.isfinite(action).all(dim=1)
        action = torch.where(bad_action[:, None], 0.0, action).clamp(-1.0, 1.0)
        before = self.sim.get_state()
        self.randomizer.interval(self.total_steps, self.rng)
        self.task.apply_action(self.sim, action)
        self.sim.step(self.n_substeps, self.task.substeps(self.sim, self.n_substeps, self.rng))
        self.total_steps += 1
        self.step_count.add_(1)

        terms = self.task.reward(self.sim, action)
        weighted = {name: self.cfg.reward[name] * value.float() for name, value in terms.items()}
        reward = torch.stack(list(weighted.values())).sum(dim=0)
        terminated = self.task.terminated(self.sim)
        success = self.task.success(self.sim)
        self.groups.draw_latency()
        observation = self.groups.observe(self._terms(pictures=pictures))

        fault = self._collect_faults(before, bad_action, observation, reward)
        if not self._is_empty(fault):
            # a faulty step ends its episode; what it computed enters no network and no sum
            reward = torch.where(fault, 0.0, reward)
            weighted = {name: torch.where(fault, 0.0, value) for name, value in weighted.items()}
            success, terminated = success & ~fault, terminated & ~fault
            for name, value in observation.items():
                observation[name] = _where(fault, self._last[name], value)
        truncated = (self.step_count >= self.cfg.episode_length) | fault
        self.reward_terms.update(weighted)
        self.measures = self.tally.add(self.sim, fault)
        self._last.update(observation)
        self._count_episode(reward, weighted, success, terminated, truncated, fault)
        return self._tensordict(
            self._last, success, fault, terminated, truncated, reward=reward[:, None]
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            mask = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._restart(mask.view(-1))
        return self.current()

    def step_and_maybe_reset(
        self, tensordict: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        """Step; restart what is done. Return (the transition, the next root), as TorchRL does."""
        transition = self._advance(tensordict, pictures=self.final_pictures)
        tensordict.set("next", transition)
        done = transition["done"].view(-1)
        self._restart(done, pictures=self.final_pictures)
        if self.cameras.names and not self.final_pictures:
            terms = self.cameras.render()
            self._last.update(self.groups.observe(terms))
            if not self._is_empty(done):
                self._last.update(self.groups.observe(terms, done))
            for name in self.groups.pictures:
                transition.set(name, self._last[name])
        return tensordict, self.current()

    def current(self) -> TensorDict:
        """Return the root from which the next step starts."""
        return self._tensordict(self._last, *(torch.zeros_like(self.succeeded) for _ in range(4)))

    def _vary(self) -> None:
        """Draw what differs between the worlds: the table's startup rows, then the task's own."""
        self.randomizer.startup(self.rng)
        if self._varied:
            self.task.vary(self.sim, self.rng)
            self.sim.set_const()

    def _restart(self, mask: Tensor, *, pictures: bool = True) -> None:
        """Begin a new episode where the mask says; the other environments are not touched."""
        if self._is_empty(mask):
            return
        self.randomizer.reset_model(mask, self.rng)
        self.sim.reset(mask)
        self.task.reset(self.sim, mask, self.rng)
        if self.holdout:
            draw = torch.rand(self.num_envs, generator=self.rng, device=self.device)
            self.hidden.copy_(torch.where(mask, draw < self.holdout, self.hidden))
            self.task.hide(self.sim, mask & self.hidden)
        self.randomizer.reset_state(mask, self.rng)
        self.sim.forward(mask)
        self.groups.draw_latency(mask)
        terms = self._terms(pictures=pictures)
        keep = ~mask
        observation = self.groups.observe(terms, mask)
        # an episode that begins so ends with its first step, as a fault; nobody sees how it began
        self.unusable.logical_and_(keep).logical_or_(mask & self._is_unusable(observation))
        usable = mask & ~self.unusable
        for name, value in observation.items():
            self._last[name] = _where(usable, value, self._last[name])
        self.step_count.mul_(keep)
        if self.stagger:
            age = torch.randint(
                self.cfg.episode_length, (self.num_envs,), generator=self.rng, device=self.device
            )
            self.step_count.add_(age)
            self.counted.zero_()
            self.stagger = False
        else:
            self.counted.logical_or_(mask)
        self.episode.mul_(keep)
        self.succeeded.logical_and_(keep)
        self.tally.clear(mask)

    def _is_empty(self, mask: Tensor) -> bool:
        """Return whether a mask is known to hold nothing; a GPU is not asked: it would stall."""
        return self._on_cpu and not mask.any()

    def pictures(self) -> dict[str, Tensor]:
        """Return the pictures of the current observation, (num_envs, height, width, ...)."""
        return {name: self._last[name] for name in self.groups.pictures}

    def _terms(self, *, pictures: bool) -> dict[str, Tensor]:
        """Return the task's terms, with the pictures if wanted."""
        terms = self.task.observe(self.sim)
        return {**terms, **self.cameras.render()} if pictures else terms

    # Bookkeeping.

    def _allocate(self) -> None:
        n, device = self.num_envs, self.device
        self._naction = len(self.task.actions)
        observed = self.task.observe(self.sim)
        rewarded = self.task.reward(self.sim, torch.zeros(n, self._naction, device=device))
        check_reward_keys(rewarded, self.cfg.reward)
        self.groups = Groups(
            self.cfg.observation,
            {**observed, **self.cameras.empty()},
            {**self.task.units, **self.cameras.units},
            self.rng,
            pictures=self.cameras.names,
            latency=self.cfg.latency,
        )
        self._last = {i.name: _zeros(n, i, device) for i in self.inputs}
        self.hidden = torch.zeros(n, dtype=torch.bool, device=device)
        self.total_steps = 0
        self._on_cpu = self.device.type == "cpu"
        self._one = torch.ones(n, device=device)
        self.step_count = torch.zeros(n, dtype=torch.long, device=device)
        self.counted = torch.zeros(n, dtype=torch.bool, device=device)
        self.succeeded = torch.zeros(n, dtype=torch.bool, device=device)
        self.unusable = torch.zeros(n, dtype=torch.bool, device=device)
        self.columns = ("return", "episode_len", *(f"reward/{name}" for name in rewarded))
        self.episode = torch.zeros(len(self.columns), n, device=device)
        self.reward_terms: dict[str, Tensor] = {}  # of the last step, weighted
        self.measures: dict[str, Tensor] = {}  # of the last step
        self.tally = Tally(self.task, self.sim)
        self.means = (*self.columns, *self.tally.names, "success_once", "success_at_end")
        self.finished = torch.zeros(len(self.means) + 1, device=device, dtype=torch.float64)
        self.fault_counts = torch.zeros(len(Fault), dtype=torch.long, device=device)
        self._fault_code = torch.zeros(n, dtype=torch.int32, device=device)
        self._fault_row = torch.zeros_like(self.sim.get_state())
        self._bits = torch.tensor([int(f) for f in Fault], dtype=torch.int32, device=device)

    def _make_specs(self) -> None:
        n, device = torch.Size([self.num_envs]), self.device

        def flag() -> Binary:
            return Binary(n=1, shape=torch.Size([*n, 1]), dtype=torch.bool, device=device)

        spec: dict[str, Any] = {
            name: Unbounded(value.shape, device=device, dtype=value.dtype)
            for name, value in self._last.items()
        }
        spec |= {"success": flag(), "fault": flag()}
        if self.holdout:
            spec["hidden"] = flag()
        self.observation_spec = Composite(spec, shape=n, device=device)
        self.action_spec = Bounded(-1.0, 1.0, torch.Size([*n, self._naction]), device=device)
        self.reward_spec = Unbounded(torch.Size([*n, 1]), device=device)
        done = {"done": flag(), "terminated": flag(), "truncated": flag()}
        self.full_done_spec = Composite(done, shape=n, device=device)

    def _tensordict(
        self,
        observation: dict[str, Tensor],
        success: Tensor,
        fault: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        **extra: Tensor,
    ) -> TensorDict:
        if self.holdout:
            extra["hidden"] = self.hidden[:, None].clone()
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
        code = (
            self.sim.faults
            | bad_action * int(Fault.ACTION)
            | bad_observation * int(Fault.OBSERVATION)
            | bad_reward * int(Fault.REWARD)
        ).to(torch.int32)
        self.sim.faults.zero_()
        self.unusable.zero_()
        self.fault_counts += ((code[:, None] & self._bits) != 0).sum(dim=0)
        first = fault & (self._fault_code == 0)
        self._fault_code = torch.where(first, code, self._fault_code)
        self._fault_row = torch.where(first[:, None], before, self._fault_row)
        return fault

    def _is_unusable(self, observation: dict[str, Tensor]) -> Tensor:
        """Return where a number is NaN, infinite or beyond what the task says can be observed."""
        vectors = [value for name, value in observation.items() if name not in self.groups.pictures]
        return ~(torch.cat(vectors, dim=1).abs().amax(dim=1) <= self.task.largest)

    def _count_episode(
        self,
        reward: Tensor,
        weighted: dict[str, Tensor],
        success: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        fault: Tensor,
    ) -> None:
        self.succeeded.logical_or_(success)
        self.episode.add_(torch.stack((reward, self._one, *weighted.values())))
        ended = (terminated | truncated) & self.counted & ~fault & ~self.hidden
        if self._is_empty(ended):
            return
        judged = self.tally.judge(self.episode[1], terminated)  # columns[1]: the length
        others = torch.stack((*judged, self.succeeded.float(), success.float(), self._one))
        columns = torch.cat((self.episode, others))
        self.finished.add_(torch.where(ended, columns, 0.0).sum(dim=1, dtype=torch.float64))

    def metrics(self) -> dict[str, float]:
        """Return the means over the episodes that ended since the last call, and clear them.

        Keys: env/return, env/episode_len, env/success_once (at some step), env/success_at_end,
        env/num_trajectories, env/<name> of what the task judges, reward/<term> (episode sums,
        weighted), env/fault (number of faulty transitions, all kinds). Means are absent when no
        episode ended. One host sync.
        """
        *sums, count = self.finished.tolist()
        self.finished.zero_()
        out: dict[str, float] = {"env/num_trajectories": count}
        if count:
            for name, total in zip(self.means, sums, strict=True):
                out[name if name.startswith("reward/") else f"env/{name}"] = total / count
        return out

    def take_faults(self) -> list[FaultRecord]:
        """Return a record per environment that was faulty since the last call; clear them."""
        ids = self._fault_code.nonzero().flatten().tolist()
        records = [
            FaultRecord(i, Fault(int(self._fault_code[i])), self._fault_row[i].clone()) for i in ids
        ]
        self._fault_code.zero_()
        return records

    # State.

    def _set_seed(self, seed: int | None) -> None:
        """Make everything from the next reset on depend on the seed alone."""
        if seed is not None:
            self.rng.manual_seed(seed)
            self.total_steps = 0  # interval rows count from here
            self._vary()

    def state_dict(self, **_: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return every tensor that a bit-exact continuation needs, flat."""
        return {
            "sim": self.sim.get_state(),
            "rng": self.rng.get_state(),
            "total_steps": torch.tensor(self.total_steps),
            "stagger": torch.tensor(self.stagger),
            **{name: getattr(self, name).clone() for name in (*_BUFFERS, *_NEWER)},
            **{f"last/{k}": v.clone() for k, v in self._last.items()},
            **{f"params/{k}": self.sim.params[k].clone() for k in dir(self.sim.params)},
            **{f"memory/{k}": v.clone() for k, v in self.task.memory.items()},
            **{f"measure/{k}": v.clone() for k, v in self.tally.sums.items()},
            **{f"terms/{k}": v.clone() for k, v in self.groups.state_dict().items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any], **_: Any) -> None:  # type: ignore
        """Continue exactly where `state_dict` was taken; `current()` is then the root."""
        for name in dir(self.sim.params):
            self.sim.params[name].copy_(state_dict[f"params/{name}"])
        if self._varied:
            self.sim.set_const()
        else:
            self.randomizer.restore_constants()
        self.sim.set_state(state_dict["sim"])
        self.sim.faults.zero_()
        self.rng.set_state(state_dict["rng"])
        self.total_steps = int(state_dict["total_steps"])
        self.stagger = bool(state_dict["stagger"])
        for name in _BUFFERS:
            getattr(self, name).copy_(state_dict[name])
        for name in _NEWER:
            own, saved = getattr(self, name), state_dict.get(name)
            own.copy_(own.zero_() if saved is None or saved.shape != own.shape else saved)
        self._last = {k: state_dict[f"last/{k}"].clone() for k in self._last}
        for name, value in self.task.memory.items():
            value.copy_(state_dict[f"memory/{name}"])
        for name, value in self.tally.sums.items():
            value.copy_(state_dict[f"measure/{name}"])
        self.groups.load_state_dict(
            {k.removeprefix("terms/"): v for k, v in state_dict.items() if k.startswith("terms/")}
        )


_BUFFERS = (
    *("step_count", "counted", "succeeded", "hidden", "episode"),
    *("fault_counts", "_fault_code", "_fault_row"),
)
_NEWER = ("finished", "unusable")
"""Buffers that older checkpoints lack, or have shorter, and whose content is then known to be 0."""


def _where(mask: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """Return value (num_envs, ...) where the mask (num_envs,) says, other elsewhere."""
    return torch.where(mask.view(-1, *(1 for _ in value.shape[1:])), value, other)


def _zeros(num_envs: int, group: Input, device: torch.device) -> Tensor:
    """Return an empty observation of an input: a vector, or a stack of pictures."""
    dtype, shape = group.tensor
    return torch.zeros((num_envs, *shape), dtype=getattr(torch, dtype), device=device)
