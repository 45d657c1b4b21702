"""What SAC and DDPG share: n-step transitions by a loop, samples that count, state that goes on."""

import copy
import itertools

import pytest
import torch
from tensordict import TensorDict

from penspin_style.algo.ddpg import DDPG, DDPGConfig
from penspin_style.algo.off_policy import n_step
from penspin_style.algo.sac import SAC, SACConfig
from penspin_style.features import Feature, Input
from tests.support.ppo_batches import CRITIC, NACTION, SIZE, TEACHER, N, T, close, seeded, spoil

CPU = torch.device("cpu")
SMALL = {"hidden": [8], "critic_hidden": [8], "batch_size": 16, "updates": 3, "warmup": 10}
KINDS = {
    "sac": (SAC, SACConfig, {}),
    "td3": (DDPG, DDPGConfig, {}),
    "ddpg": (DDPG, DDPGConfig, {"twin": False}),
}


def make(kind, *, seed=0, inputs=(TEACHER, CRITIC), **cfg):
    algorithm, config, own = KINDS[kind]
    made = config(**{**SMALL, "horizon": T, **own, **cfg})
    return algorithm(made, inputs, NACTION, device=CPU, seed=seed)


def collected(seed=0, ends=0.2):
    """A batch [T, N] as `rollout` leaves it: random observations, rewards and flags."""
    rng, size = seeded(seed), torch.Size([T, N])

    def observation():
        return {
            "teacher": torch.randn(T, N, SIZE, generator=rng),
            "critic": torch.randn(T, N, 4, generator=rng),
        }

    terminated, truncated = (torch.rand(T, N, 1, generator=rng) < ends for _ in range(2))
    action = 2.0 * torch.randn(T, N, NACTION, generator=rng)
    after = {
        **observation(),
        "reward": torch.randn(T, N, 1, generator=rng),
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
        "fault": torch.zeros(T, N, 1, dtype=torch.bool),
    }
    return TensorDict({**observation(), "action": action, "next": TensorDict(after, size)}, size)


def by_loop(batch, n, gamma):
    """Every transition over up to n steps, one at a time, in the order of the batch."""
    nxt, found = batch["next"], []
    flags = {k: nxt[k][..., 0] for k in ("fault", "done", "terminated")}
    own = batch["learner_acts"][..., 0] if "learner_acts" in batch else None
    for t, env in itertools.product(range(T), range(N)):
        if flags["fault"][t, env] or (own is not None and not own[t, env]):
            continue
        total, last = 0.0, t
        for k in range(n):
            if t + k >= T or flags["fault"][t + k, env]:
                break
            last = t + k
            total += gamma**k * nxt["reward"][last, env, 0].item()
            if flags["done"][last, env]:
                break
        ended = flags["terminated"][last, env].item()
        if own is not None and not ended and not nxt["learner_acts"][last, env, 0]:
            continue
        found.append((t, env, last, total, ended))
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 20])
@pytest.mark.parametrize("shared", [False, True])
def test_transitions_over_several_steps_are_those_of_a_loop(n, shared):
    batch = spoil(collected(ends=0.15), (2, 1), (0, 0), (T - 1, 3))
    if shared:
        own = torch.rand(T + 1, N, 1, generator=seeded(5)) < 0.6
        batch["learner_acts"], batch["next", "learner_acts"] = own[:-1].clone(), own[1:].clone()
    rows = n_step(batch, n, 0.9, keys={"teacher", "critic"})
    expected = by_loop(batch, n, 0.9)
    assert len(rows) == len(expected) > 5
    for row, (t, env, last, total, ended) in zip(rows, expected, strict=True):
        assert torch.equal(row["teacher"], batch["teacher"][t, env])
        assert torch.equal(row["next", "critic"], batch["next", "critic"][last, env])
        assert torch.equal(row["action"], batch["action"][t, env].clamp(-1, 1))
        assert row["next", "reward"].item() == pytest.approx(total, abs=1e-5)
        assert row["next", "terminated"].item() == ended
        assert row["steps_to_next_obs"].item() == last - t + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_faulty_transition_enters_neither_samples_nor_statistics(kind):
    batch = spoil(collected(), (1, 2))
    for where in (batch, batch["next"]):
        where["teacher"][1, 2] = float("nan")
    batch["next", "reward"][1, 2] = float("inf")
    algorithm = make(kind)
    algorithm.process(batch)
    kept = algorithm.replay.content
    assert len(kept) == T * N - 1
    assert all(torch.isfinite(value.float()).all() for value in kept.values(True, True))
    assert torch.isfinite(algorithm.policy.normalizer.mean).all()
    assert algorithm.policy.normalizer.count == T * N - 1
    row = algorithm.update()
    assert row["train/skipped_updates"] == 0.0 and row["rollout/stored"] == T * N - 1


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_warm_up_actions_are_uniform_and_nothing_is_learned(kind):
    algorithm = make(kind, warmup=T * N + 1)
    before = {k: v.clone() for k, v in algorithm.policy.state_dict().items() if "net" in k}
    td = TensorDict({"teacher": torch.zeros(4000, SIZE), "critic": torch.zeros(4000, 4)}, [4000])
    action = algorithm.act(td)["action"]
    assert action.abs().max() <= 1.0
    # a uniform number in [-1, 1] has the deviation 1 / sqrt(3); 4,000 x 2 of them, 5 sigma
    close(action.std(), torch.tensor(3.0**-0.5), atol=0.02)
    algorithm.process(collected())
    algorithm.update()
    after = algorithm.policy.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    algorithm.process(collected(1))
    algorithm.update()
    assert any(not torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("save_replay", [True, False])
def test_a_state_goes_on_bit_for_bit_with_its_samples_and_from_none_without(kind, save_replay):
    one, two = (make(kind, seed=s, save_replay=save_replay) for s in (0, 1))
    for seed in range(3):
        one.process(collected(seed))
        one.update()
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert len(two.replay) == (3 * T * N if save_replay else 0)
    if not save_replay:
        assert not two.is_warm
        return
    rows = []
    for algorithm in (one, two):
        td = TensorDict({"teacher": torch.randn(5, SIZE, generator=seeded(9))}, [5])
        action = algorithm.act(td)["action"]
        algorithm.process(collected(3))
        rows.append((action, algorithm.update()))
    assert torch.equal(rows[0][0], rows[1][0]) and rows[0][1] == rows[1][1]
    left, right = (a.loss.state_dict() for a in (one, two))
    tensors = [key for key, value in left.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 10 and all(torch.equal(left[key], right[key]) for key in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_of_the_critic_follows_it_by_tau(kind):
    algorithm = make(kind, updates=1, tau=0.25)
    algorithm.process(collected())
    name = "value" if kind == "ddpg" else "qvalue"

    def weights(which):
        params = getattr(algorithm.loss, which)
        return torch.cat([p.detach().flatten() for p in params.values(True, True)]).clone()

    target = weights(f"target_{name}_network_params")
    close(target, weights(f"{name}_network_params"))
    algorithm.update()
    now = weights(f"{name}_network_params")
    assert not torch.equal(now, target)
    close(weights(f"target_{name}_network_params"), 0.75 * target + 0.25 * now, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_learns_the_better_action(kind):
    """One step, reward -(a - 0.6)^2 for the first number and -(a + x)^2 for the second."""
    rates = {"learning_rate": 3e-3, "critic_learning_rate": 1e-2}
    own = {"init_temperature": 0.01, "learn_temperature": False} if kind == "sac" else {}
    nets = {"hidden": [32], "critic_hidden": [32], "layer_norm": False}
    algorithm = make(kind, updates=40, batch_size=256, gamma=0.0, **rates, **nets, **own)
    rng = seeded(4)
    for seed in range(12):
        batch = collected(seed, ends=0.0)
        batch["teacher"].clamp_(-0.8, 0.8)[..., 1:] = 0.0
        batch["critic"].zero_()
        action = 2.0 * torch.rand(T, N, NACTION, generator=rng) - 1.0
        batch["action"], x = action, batch["teacher"][..., 0]
        batch["critic"][..., 0] = x
        error = (action[..., 0] - 0.6) ** 2 + (action[..., 1] + x) ** 2
        batch["next", "reward"] = -error[..., None]
        algorithm.process(batch)
        algorithm.update()
    x = torch.linspace(-0.7, 0.7, 9)
    found = algorithm.policy.act(torch.stack((x, 0 * x, 0 * x), dim=1)).detach()
    assert (found[:, 0] - 0.6).abs().max() < 0.25 and (found[:, 1] + x).abs().max() < 0.3


def test_a_task_without_the_teachers_group_is_refused():
    with pytest.raises(
        ValueError, match=r"sac reads the observation group 'teacher'; the task has"
    ):
        make("sac", inputs=(Input("student", (Feature("x", (3,)),)),))


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (SACConfig, {"tau": 0.0}),
        (SACConfig, {"n_step": 0}),
        (SACConfig, {"warmup": 10, "replay_capacity": 9}),
        (SACConfig, {"init_temperature": 0.0}),
        (SACConfig, {"activation": "step"}),
        (DDPGConfig, {"noise": [0.5, 0.1]}),
        (DDPGConfig, {"noise": [0.5]}),
        (DDPGConfig, {"policy_every": 0}),
        (DDPGConfig, {"target_noise": float("nan")}),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(config, wrong):
    with pytest.raises(ValueError, match=rf"algo\.{next(iter(wrong))} must be"):
        config(**wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warm", [False, True])
def test_a_share_of_the_environments_does_what_the_script_says(kind, warm):
    algo = make(kind, expert_share=0.3, warmup=1)
    algo.replay.count = int(warm)
    script = torch.full((10, NACTION), 0.75)
    seen = {"teacher": torch.zeros(10, SIZE), "critic": torch.zeros(10, 4)}
    action = algo.act(TensorDict({**seen, "expert_action": script}, [10]))["action"]
    assert torch.equal(action[:3], script[:3])
    assert (action[3:] != 0.75).all()
    few = algo.act(TensorDict({**seen, "expert_action": script}, [10])[:2])["action"]
    assert torch.equal(few[0], script[0]) and (few[1] != 0.75).all()  # one at least


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_is_asked_in_training_alone_and_only_for_a_share(kind):
    algorithm, config, own = KINDS[kind]
    shared, alone = config(**own, expert_share=0.25), config(**own)
    assert algorithm.env_settings(shared, training=True)["expert"] is True
    assert "expert" not in algorithm.env_settings(shared, training=False)
    assert "expert" not in algorithm.env_settings(alone, training=True)
