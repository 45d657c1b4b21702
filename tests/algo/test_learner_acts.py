"""A learner that takes turns with another policy: what it learns from, and what it never sees."""

from dataclasses import dataclass

import pytest
import torch
from torchrl.envs import check_env_specs

from penspin_style.algo.algorithm import masked_mean, rollout
from penspin_style.algo.imitation import DistillConfig
from penspin_style.env.env import Env
from tests.support.ppo_batches import N, T, close, collected, gradients, make, seeded, spoil
from tests.support.rail import Config as RailConfig
from tests.support.rail import Rail


def shared(ppo, own, seed=0, ends=0.2):
    """A batch as `rollout` leaves it, in which the learner acts where `own` (T + 1, N) says."""
    batch = collected(ppo, seed, ends)
    batch["learner_acts"] = own[:-1, :, None].clone()
    batch["next", "learner_acts"] = own[1:, :, None].clone()
    return batch


def turns(seed, share=0.5):
    return torch.rand(T + 1, N, generator=seeded(seed)) < share


def reference(ppo, batch):
    """The learner's own steps by themselves: one decision, what it earned until the next, GAE.

    A decision that earns over k steps is followed by gamma^k of what comes then.
    """
    gamma, lam = ppo.cfg.gamma, ppo.cfg.gae_lambda
    with torch.no_grad():
        value = ppo.critic(batch["critic"])[..., 0].tolist()
        after = ppo.critic(batch["next", "critic"])[..., 0].tolist()
    nxt = {k: batch["next", k][..., 0].tolist() for k in batch["next"].keys() if k != "teacher"}  # noqa: SIM118
    own = batch["learner_acts"][..., 0].tolist()
    found = {}
    for n in range(N):
        decisions = [t for t in range(T) if own[t][n]]
        for t in reversed(decisions):
            earned, discount, s = 0.0, 1.0, t
            while True:
                if nxt["fault"][s][n]:
                    outcome = "unknown"
                    break
                earned += discount * ppo.cfg.reward_scale * nxt["reward"][s][n]
                discount *= gamma
                if nxt["terminated"][s][n]:
                    outcome = "over"
                elif nxt["truncated"][s][n] or s == T - 1:
                    outcome = "cut" if nxt["learner_acts"][s][n] else "unknown"
                elif own[s + 1][n]:
                    outcome = "next"
                else:
                    s += 1
                    continue
                break
            if outcome == "unknown":
                continue
            then = 0.0 if outcome == "over" else after[s][n]
            later = lam * found.get((s + 1, n), 0.0) if outcome == "next" else 0.0
            found[t, n] = earned + discount * (then + later) - value[t][n]
    return found


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_advantages_equal_those_of_the_learners_decisions_alone(gae_lambda, seed):
    ppo = make(gamma=0.9, gae_lambda=gae_lambda, reward_scale=0.5)
    batch = spoil(shared(ppo, turns(seed), seed, ends=0.1), (4, 0), (0, 1), (6, 2))
    expected = reference(ppo, batch)
    assert 5 < len(expected) < batch["learner_acts"].sum()  # some are of unknown worth
    ppo.process(batch)
    kept = sorted(expected)  # rows of the batch in order
    value = torch.tensor([expected[k] for k in kept])
    mine = ppo._batch["value_target"] - ppo._batch["state_value"]
    close(mine.view(-1), value, atol=1e-5)
    normal = (value - value.mean()) / value.std(correction=0)
    close(ppo._batch["advantage"].view(-1), normal, atol=1e-5)
    observed = torch.stack([batch["teacher"][k] for k in kept])
    assert torch.equal(ppo._batch["teacher"], observed)


def test_a_masked_prefix_changes_nothing_of_what_comes_after():
    """The learner's steps are those of an episode that began at its first one."""
    whole = torch.ones(T + 1, N, dtype=torch.bool)
    late = whole.clone()
    late[:3] = False
    plain, prefixed = make(), make()
    plain.process(collected(plain, ends=0.0))
    prefixed.process(shared(prefixed, late, ends=0.0))
    target = plain._batch["value_target"][3:].reshape(-1, 1)
    close(prefixed._batch["value_target"], target)
    assert len(prefixed._batch) == (T - 3) * N


def test_a_learner_that_always_acts_learns_as_one_that_shares_with_nobody():
    own = torch.ones(T + 1, N, dtype=torch.bool)
    plain, alone = make(gamma=0.9), make(gamma=0.9)
    plain.process(spoil(collected(plain), (2, 1)))
    alone.process(spoil(shared(alone, own), (2, 1)))
    kept = plain._batch["weight"].squeeze(-1) > 0
    for key in ("advantage", "value_target", "log_prob"):
        close(alone._batch[key], plain._batch[key][kept], atol=1e-5)


def test_nothing_of_the_others_steps_reaches_the_learner():
    """Whatever they observed, and whatever the action would have been, all stays bit for bit."""
    own = torch.zeros(T + 1, N, dtype=torch.bool)
    own[3:, : N // 2] = True  # half the environments are never the learner's
    learned = []
    for garbage in (0.0, 1e8):
        ppo = make(value_norm=True, target_kl=0.01)
        batch = shared(ppo, own, ends=0.0)
        state = {k: v.clone() for k, v in ppo.policy.state_dict().items()}
        others = ~own[:-1]
        for key in ("teacher", "critic", "action", "log_prob", "loc"):
            batch[key][others] += garbage
        batch["next", "reward"][others] += garbage
        ppo.process(batch)
        metrics = ppo.update()
        assert metrics["rollout/learner_share"] == own[:-1].float().mean().item()
        nets = {"policy": ppo.policy, "critic": ppo.critic, "value": ppo.value_normalizer}
        learned.append(
            ({n: net.state_dict() for n, net in nets.items() if net is not None}, metrics)
        )
        moved = ppo.policy.state_dict()
        assert any(not torch.equal(state[k], moved[k]) for k in state)
    (first, said), (second, said_too) = learned
    assert said == said_too
    for name, weights in first.items():
        assert all(torch.equal(v, second[name][k]) for k, v in weights.items())


def test_a_batch_without_a_step_of_the_learners_changes_no_weight():
    ppo = make(target_kl=0.01)
    batch = shared(ppo, torch.zeros(T + 1, N, dtype=torch.bool))
    before = {k: v.clone() for k, v in ppo.policy.state_dict().items()}
    ppo.process(batch)
    metrics = ppo.update()
    assert metrics["rollout/learner_share"] == 0.0
    assert all(value == value and abs(value) < 1e9 for value in metrics.values())
    assert all(torch.equal(v, before[k]) for k, v in ppo.policy.state_dict().items())
    assert not ppo.optimizer.state


def test_statistics_begin_with_the_learners_first_observation():
    ppo = make()
    td = collected(ppo)[0].select("teacher", "critic")
    ppo = make()
    td["learner_acts"] = torch.zeros(N, 1, dtype=torch.bool)
    ppo.act(td)
    assert ppo.policy.normalizer.count == 0 and not ppo._has_statistics
    td["learner_acts"][2] = True
    ppo.act(td)
    assert ppo.policy.normalizer.count == 1
    assert torch.equal(ppo.policy.normalizer.mean, td["teacher"][2])


# A task of this kind.


@dataclass
class Config(RailConfig):
    first: int = 4
    """Control steps that another policy drives."""


class Relay(Rail):
    """Another one pulls the cart to the left first; what the learner says then is not heard."""

    Config = Config
    cfg: Config

    def start(self, sim):
        super().start(sim)
        self.memory["step"] = torch.zeros(sim.num_envs, dtype=torch.long)

    def reset(self, sim, mask, rng):
        super().reset(sim, mask, rng)
        self.memory["step"].masked_fill_(mask, 0)

    def learner_acts(self, sim):
        return self.memory["step"] >= self.cfg.first

    def apply_action(self, sim, action):
        own = self.learner_acts(sim)[:, None]
        super().apply_action(sim, torch.where(own, action, torch.full_like(action, -0.25)))
        self.memory["step"] += 1


def test_the_environment_says_whose_the_coming_step_is():
    env = Env(Relay(Config(episode_length=7)), 3, seed=1)
    check_env_specs(env, break_when_any_done="both")
    env.reset()
    said, ended = [], []
    root = env.current()
    for _ in range(9):
        root.set("action", torch.ones(3, 1))
        transition, root = env.step_and_maybe_reset(root)
        said.append((transition["learner_acts"][0].item(), transition["next", "learner_acts"][0]))
        ended.append(transition["next", "done"][0].item())
    assert [s for s, _ in said] == [False] * 4 + [True] * 3 + [False] * 2
    assert [s.item() for _, s in said] == [False] * 3 + [True] * 4 + [False] * 2
    assert ended == [False] * 6 + [True] + [False] * 2


def test_the_place_before_the_learners_turn_is_the_others_doing():
    env = Env(Relay(Config()), 2)
    for action in (torch.ones(2, 1), -torch.ones(2, 1)):
        root = env.reset()
        for _ in range(4):
            root.set("action", action)
            _, root = env.step_and_maybe_reset(root)
        assert env.task.memory["target"].tolist() == [[-0.125]] * 2  # 4 x -0.25 x 0.125


def test_a_restored_environment_says_it_too():
    one, other = (Env(Relay(Config()), 2, seed=s) for s in (0, 5))
    root = one.current()
    for _ in range(4):
        root.set("action", torch.ones(2, 1))
        _, root = one.step_and_maybe_reset(root)
    assert not other.current()["learner_acts"].any()
    other.load_state_dict(one.state_dict())
    assert other.current()["learner_acts"].all()


def test_an_environment_of_any_other_task_says_nothing():
    env = Env(Rail(RailConfig()), 2)
    assert "learner_acts" not in env.current().keys()  # noqa: SIM118
    assert "learner_acts" not in env.observation_spec


def test_ppo_learns_from_a_roll_out_of_such_a_task():
    env = Env(Relay(Config(episode_length=7)), 6, seed=0)
    ppo = make(inputs=env.inputs, naction=1, horizon=14)
    batch, _ = rollout(env, ppo, env.current(), None)
    ppo.process(batch)
    assert len(ppo._batch) == 6 * 2 * 3
    metrics = ppo.update()
    assert metrics["rollout/learner_share"] == pytest.approx(3 / 7)
    weight = torch.ones(6 * 2 * 3)
    kept = batch["next", "reward"][batch["learner_acts"]]
    expected = masked_mean(kept, weight).item()
    assert metrics["rollout/rewards"] == pytest.approx(expected, abs=1e-6)
    assert ppo.policy.normalizer.count == 6 + 36  # the first of the learner's, then all


def test_masked_rows_have_no_gradient():
    ppo = make()
    own = turns(3)
    ppo.process(shared(ppo, own, ends=0.0))
    loss, _, grads = gradients(ppo, ppo._batch.clone())
    assert loss.isfinite() and grads.abs().sum() > 0
    assert (ppo._batch["weight"] == 1.0).all()


def test_a_student_learns_from_its_own_steps_alone(monkeypatch):
    from penspin_style.algo import distill as module

    env = Env(Relay(Config(episode_length=7)), 4, seed=0)

    class Teacher(torch.nn.Module):
        in_keys = ("teacher",)

        def act(self, teacher):
            return -teacher[:, :1]

    monkeypatch.setattr(module, "_load_teacher", lambda *_: (Teacher(), None))
    cfg = DistillConfig(horizon=7, group="student", encoder="", hidden=[8], replay_capacity=100)
    student = module.Distill(
        cfg, env.inputs, ("student",), 1,
        iterations=3, per_iteration=28, device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    batch, root = rollout(env, student, env.current(), None)
    student.process(batch)
    own = batch["learner_acts"].squeeze(-1)
    assert torch.equal(student._batch["student"], batch["student"][own])
    assert student._replay.count == 12
    metrics = student.update()
    assert metrics["rollout/learner_share"] == pytest.approx(3 / 7)
    expected = batch["imitated"][own].mean().item()
    assert metrics["train/imitation_error"] == pytest.approx(expected)

    student.horizon = 4  # a roll-out without any of its own
    batch, _ = rollout(env, student, root, None)
    assert not batch["learner_acts"].any()
    weights = {k: v.clone() for k, v in student.policy.state_dict().items()}
    student.process(batch)
    assert student.update()["rollout/learner_share"] == 0.0
    assert all(torch.equal(v, weights[k]) for k, v in student.policy.state_dict().items())
