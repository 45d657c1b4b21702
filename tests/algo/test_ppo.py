"""Acting, steps and learning of PPO."""

import copy
import math
import time

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Independent, Normal

from penspin_style.algo.algorithm import MAX_SKIPPED, DivergedError, rollout
from penspin_style.algo.ppo import PPOConfig
from penspin_style.env.env import Env
from penspin_style.train.evaluate import evaluate
from tests.support.ppo_batches import (
    CRITIC,
    CRITIC_SIZE,
    SIZE,
    TEACHER,
    close,
    collected,
    crafted,
    gradients,
    make,
    randn,
)
from tests.support.toy import Cart, Config

# Acting.


def test_actions_are_drawn_from_the_distribution_that_is_recorded():
    ppo = make()
    td = TensorDict({"teacher": randn(20000, SIZE), "critic": randn(20000, CRITIC_SIZE)}, [20000])
    td["teacher"][:] = td["teacher"][0].clone()
    ppo._has_statistics = True
    ppo.act(td)
    other = Independent(Normal(td["loc"], td["scale"]), 1)
    close(td["log_prob"], other.log_prob(td["action"]), atol=1e-5)
    close(td["loc"], ppo.policy.act(td["teacher"]).detach())
    z = (td["action"] - td["loc"]) / td["scale"]
    close(z.mean(dim=0), torch.zeros(2), atol=4 / 20000**0.5)
    close(z.std(dim=0), torch.ones(2), atol=0.02)
    assert td["scale"][0].tolist() == pytest.approx([0.8, 0.8])  # init_std


def test_the_critic_reads_its_own_group_and_the_policy_does_not():
    ppo = make()
    ppo._has_statistics = True
    batch = collected(ppo)
    other = batch.clone()
    for td in (other, other["next"]):
        td["critic"] += 1.0
    ppo.process(batch)
    value = ppo._batch["state_value"]
    ppo.process(other)
    assert (ppo._batch["state_value"] != value).all()
    with torch.no_grad():
        same = ppo.policy(batch["teacher"]), ppo.policy(other["teacher"])
    assert torch.equal(same[0].loc, same[1].loc)
    batch["teacher"] += 1.0
    ppo.process(batch)
    assert torch.equal(ppo._batch["state_value"], value)
    assert (ppo.policy(batch["teacher"]).loc != same[0].loc).all()


def test_without_a_critic_group_the_critic_reads_what_the_teacher_does():
    assert make(inputs=(TEACHER,)).critic.in_key == "teacher"


def test_a_task_without_a_teacher_group_is_refused():
    with pytest.raises(ValueError, match=r"group 'teacher'; the task has \['critic'\]"):
        make(inputs=(CRITIC,))


def test_update_needs_a_processed_batch():
    with pytest.raises(RuntimeError, match=r"call process\(\) first"):
        make().update()


# Steps.


def weights(ppo):
    return copy.deepcopy({"policy": ppo.policy.state_dict(), "critic": ppo.critic.state_dict()})


def flat_weights(ppo):
    return torch.cat(
        [p.detach().flatten() for net in (ppo.policy, ppo.critic) for p in net.parameters()]
    )


def test_an_update_moves_every_network_and_its_normaliser():
    ppo = make()
    ppo._has_statistics = True  # or the batch would be in them already
    batch = collected(ppo)
    before = weights(ppo)
    ppo.process(batch)
    ppo.update()
    after = weights(ppo)
    same = [
        f"{net}.{key}"
        for net in before
        for key in before[net]
        if torch.equal(before[net][key], after[net][key])
    ]
    assert same == []


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    assert torch.equal(flat_weights(make(seed=1)), flat_weights(make(seed=1)))
    assert not torch.equal(flat_weights(make(seed=1)), flat_weights(make(seed=2)))
    torch.manual_seed(5)
    one, two = make(seed=1), make(seed=1)
    for ppo in (one, two):
        ppo.process(collected(ppo))
        ppo.update()
        torch.manual_seed(6)  # nothing may draw from the global generator
    assert torch.equal(flat_weights(one), flat_weights(two))


def test_a_restored_learner_continues_bit_for_bit():
    ppo, other = make(seed=1, target_kl=0.01), make(seed=2, target_kl=0.01)
    for seed in range(2):
        ppo.process(collected(ppo, seed))
        ppo.update()
    state = copy.deepcopy(ppo.state_dict())
    other.load_state_dict(state)
    results = []
    for each in (ppo, other):
        each.process(collected(each, 5))
        results.append((each.update(), flat_weights(each), each.policy.normalizer.mean.clone()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize(
    ("target_kl", "factor"), [(1e-6, 1 / 1.5), (1e3, 1.5), (None, 1.0)], ids=["far", "near", "off"]
)
def test_the_learning_rate_follows_the_divergence(target_kl, factor):
    ppo = make(learning_rate=1e-3, target_kl=target_kl)
    ppo.process(collected(ppo))
    metrics = ppo.update()
    assert metrics["train/actor/approx_kl"] > 2e-6
    assert metrics["train/actor/lr"] == 1e-3  # that of this update
    assert ppo.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)


def test_the_critic_learns_alone_at_first_and_a_restored_learner_knows_how_long():
    ppo = make(critic_iterations=2, target_kl=1.0)
    moved = []
    for iteration in range(3):
        if iteration == 1:
            restored = make(critic_iterations=2, target_kl=1.0, seed=9)
            restored.load_state_dict(ppo.state_dict())
            ppo = restored
        before = [[p.clone() for p in net.parameters()] for net in (ppo.policy, ppo.critic)]
        ppo.process(collected(ppo, seed=iteration))
        assert ppo.update()["train/actor/lr"] == 3e-4  # no policy has moved by whose KL it adapts
        pairs = zip((ppo.policy, ppo.critic), before, strict=True)
        moved.append([not all(map(torch.equal, net.parameters(), old)) for net, old in pairs])
    assert moved == [[False, True], [False, True], [True, True]]


@pytest.mark.parametrize(
    ("cfg", "legal"),
    [({"critic_iterations": -1}, ">= 0"), ({"shared_critic": True}, "0 with algo.shared_critic")],
)
def test_a_critic_that_cannot_learn_alone_is_refused(cfg, legal):
    with pytest.raises(ValueError, match=f"algo.critic_iterations must be {legal}"):
        PPOConfig(**{"critic_iterations": 3, **cfg})


def test_the_learning_rate_stays_where_the_divergence_is_as_wanted():
    ppo = make(learning_rate=1e-3, epochs=1)
    ppo.process(collected(ppo))
    kl = ppo.update()["train/actor/approx_kl"]
    assert kl > 0
    ppo = make(learning_rate=1e-3, epochs=1, target_kl=kl)
    ppo.process(collected(ppo))
    ppo.update()
    assert ppo.optimizer.param_groups[0]["lr"] == 1e-3


def test_a_large_value_error_does_not_shrink_the_policys_step():
    moved = []
    for scale in (1.0, 1e4):
        ppo = make(seed=1, epochs=1, num_minibatches=1)
        ppo.process(collected(ppo))
        ppo._batch["value_target"] *= scale
        before = [p.detach().clone() for p in ppo.policy.parameters()]
        ppo.update()
        moved.append([p.detach() - b for p, b in zip(ppo.policy.parameters(), before, strict=True)])
    for a, b in zip(*moved, strict=True):
        assert torch.equal(a, b) and (a != 0).any()


def test_gradients_are_clipped_to_their_norm():
    ppo = make(max_grad_norm=0.01, epochs=1, num_minibatches=1)
    ppo.process(collected(ppo))
    ppo._batch["value_target"] *= 100.0
    seen = []
    step = ppo.optimizer.step
    ppo.optimizer.step = lambda: (
        seen.append([p.grad.norm() for p in ppo.critic.parameters()]),
        step(),
    )
    metrics = ppo.update()
    assert metrics["train/actor/grad_norm"] > 1.0  # before clipping
    (norms,) = seen
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)


def sick(ppo, *bad):
    """Make the losses of these steps NaN."""
    healthy, calls = ppo._losses, iter(range(10**6))

    def losses(mb):
        loss, metrics = healthy(mb)
        return (loss * math.nan if next(calls) in bad else loss), metrics

    ppo._losses = losses
    return ppo


def test_a_step_that_is_not_finite_is_skipped_and_the_others_are_taken():
    ppo = make(epochs=1, num_minibatches=4)
    ppo.process(collected(ppo))
    before = flat_weights(ppo)
    sick(ppo, 0, 1, 2, 3)
    metrics = ppo.update()
    assert metrics["train/skipped_updates"] == 4.0
    assert torch.equal(flat_weights(ppo), before)
    assert all(math.isfinite(value) for value in metrics.values())
    ppo.process(collected(ppo))
    assert ppo.update()["train/skipped_updates"] == 0.0
    assert torch.isfinite(flat_weights(ppo)).all()
    assert not torch.equal(flat_weights(ppo), before)


def test_a_gradient_that_is_not_finite_is_skipped_too():
    ppo = make(epochs=1, num_minibatches=1)
    ppo.process(collected(ppo))
    before = flat_weights(ppo)
    ppo.policy.raw_std.register_hook(lambda grad: grad * math.inf)
    assert ppo.update()["train/skipped_updates"] == 1.0
    assert torch.equal(flat_weights(ppo), before)


def test_five_skipped_steps_in_a_row_mean_that_learning_diverged():
    assert MAX_SKIPPED == 5
    ppo = sick(make(epochs=3, num_minibatches=4), *range(4), *range(5, 9))
    ppo.process(collected(ppo))
    assert ppo.update()["train/skipped_updates"] == 8.0  # never five in a row
    ppo = sick(make(epochs=2, num_minibatches=4), *range(5))
    ppo.process(collected(ppo))
    with pytest.raises(DivergedError, match="5 updates in a row"):
        ppo.update()


def test_skips_are_counted_across_iterations_and_checkpoints():
    ppo = sick(make(epochs=1, num_minibatches=3), 0, 1, 2)
    ppo.process(collected(ppo))
    ppo.update()
    other = make(epochs=1, num_minibatches=3)
    other.load_state_dict(ppo.state_dict())
    sick(other, 0, 1)
    other.process(collected(other))
    with pytest.raises(DivergedError):
        other.update()


# Learning.


def test_ppo_solves_the_cart_within_25_iterations():
    began = time.process_time()
    env = Env(Cart(Config()), 64, seed=0, stagger=True)
    ppo = make(
        inputs=env.inputs,
        naction=1,
        horizon=16,
        epochs=5,
        learning_rate=3e-3,
        gamma=0.9,
        reward_scale=0.1,
        init_std=0.5,
        hidden=[32],
        critic_hidden=[32],
    )

    def mean_return():
        fresh = Env(Cart(Config()), 100, seed=77)
        return evaluate(fresh, lambda td: ppo.policy.act(td["teacher"]), seed=77)

    before = mean_return()
    buffer, root = None, env.current()
    for _ in range(25):
        buffer, root = rollout(env, ppo, root, buffer)
        ppo.process(buffer)
        metrics = ppo.update()
    after = mean_return()
    assert before.success_at_end < 0.3
    assert after.success_at_end >= 0.97
    assert after.return_ > before.return_ + 10.0
    assert metrics["train/critic/explained_variance"] > 0.3
    assert time.process_time() - began < 20.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it does itself
def test_the_compiled_losses_are_the_eager_ones():
    eager, compiled = make(value_clip=0.2), make(value_clip=0.2, compile=True)
    mb, _ = crafted(eager)
    expected = gradients(eager, mb)
    seen = gradients(compiled, mb)
    for a, b in zip(expected, seen, strict=True):
        close(a, b, atol=1e-5)
