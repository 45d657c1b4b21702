"""Several ranks learn what one process with all their environments does."""

import json

import pytest
import torch

from penspin_style.algo.grpo import GRPO, GRPOConfig
from penspin_style.system import ranks
from tests.support import ppo_batches
from tests.support.ppo_batches import CPU, NACTION, N, T, collected, spoil
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.forks, pytest.mark.usefixtures("one_thread")]

ONE_STEP = {"num_minibatches": 1, "epochs": 1, "entropy_coef": 0.01, "target_kl": 0.01}


def ppo(**cfg):
    return ppo_batches.make(**{**ONE_STEP, **cfg})


def grpo(**cfg):
    own = {"hidden": [8], "group_size": 2, "horizon": T, **ONE_STEP, **cfg}
    return GRPO(GRPOConfig(**own), (ppo_batches.TEACHER,), NACTION, device=CPU, seed=0)


def learn(algo, batch):
    """Learn from a batch; return the weights, flat, and the metrics."""
    algo.process(batch)
    metrics = algo.update()
    state = {**algo.policy.state_dict(), **vars(algo).get("critic", torch.nn.Module()).state_dict()}
    return [x.item() for v in state.values() for x in v.flatten()], metrics


def on_ranks(tmp_path, make, halves):
    """What each rank has learned from its own half, after one process has begun with `whole`."""

    def work(rank):
        with ranks.joined(CPU):
            algo = make()
            prepare(algo)
            found = learn(algo, halves[rank])
        (tmp_path / f"{rank}.json").write_text(json.dumps(found))

    assert run_ranks(len(halves), work) == [0] * len(halves)
    return [json.loads((tmp_path / f"{k}.json").read_text()) for k in range(len(halves))]


def prepare(algo):
    """Give the normalisers something, the same everywhere."""
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(5))
    for _, normalizer in algo._normalizers():
        size = len(normalizer.mean)
        with torch.no_grad():
            normalizer.mean.copy_(rows.mean(dim=0).repeat(2)[:size])
            normalizer.count.fill_(1.0)
    algo._has_statistics = True


@pytest.mark.parametrize(
    ("make", "faults", "shares"),
    [
        (ppo, (), (3, 3)),
        (ppo, ((0, 0), (3, 1), (4, 2), (6, 0)), (3, 3)),  # more of them on one rank
        (lambda: ppo(value_norm=True, critic_iterations=1), ((2, 5),), (3, 3)),
        (lambda: ppo(encoders={}, shared_critic=False, value_clip=0.2), (), (2, 4)),
        (grpo, ((0, 0),), (2, 4)),
        (lambda: grpo(kl_coef=0.1), ((0, 0), (0, 1)), (2, 4)),  # nothing is left on one rank
    ],
)
def test_a_step_is_that_of_one_process_with_all_the_environments(tmp_path, make, faults, shares):
    one = make()
    prepare(one)
    batch = spoil(collected(one), *faults)
    if isinstance(one, GRPO):
        batch["next", "terminated"][:] = False
        batch["next", "truncated"][:-1] = False
        batch["next", "truncated"][-1] = True
        batch["next", "done"] = batch["next", "terminated"] | batch["next", "truncated"]
        batch = spoil(batch, *faults)
    first, rest = batch.split(list(shares), dim=1)
    found = on_ranks(tmp_path, make, [first.clone(), rest.clone()])
    critic = getattr(one, "critic", None)  # it alone learns in the first critic_iterations
    learns = critic if getattr(one.cfg, "critic_iterations", 0) else one.policy
    before = [p.clone() for p in learns.parameters()]
    weights, metrics = learn(one, batch)
    assert found[0][0] == found[1][0]
    assert found[0][0] == pytest.approx(weights, abs=2e-6)
    moved = [(a - b).abs().max() for a, b in zip(before, learns.parameters(), strict=True)]
    assert max(moved) > 1e-4
    for key in ("actor/policy_loss", "actor/approx_kl", "actor/grad_norm", "actor/lr"):
        own = metrics[f"train/{key}"]
        for _, theirs in found:
            assert theirs[f"train/{key}"] == pytest.approx(own, abs=1e-5), key


def test_a_rank_that_keeps_nothing_takes_as_many_steps_as_the_others(tmp_path):
    """Four minibatches on one rank, no row on the other: nobody waits, and both end alike."""

    def make():
        return grpo(num_minibatches=4, epochs=2)

    batch = collected(make())
    batch["next", "done"][:] = False
    batch["next", "done"][-1] = True
    halves = [half.clone() for half in batch.split([4, 2], dim=1)]
    halves[1]["next", "reward"][:] = 1.0  # the returns of its only group are the same
    found = on_ranks(tmp_path, make, halves)
    assert found[0][0] == found[1][0]
    assert found[0][1]["train/skipped_updates"] == 0.0
    assert [each["rollout/groups_share"] for _, each in found] == [1.0, 0.0]
    nothing = [half.clone() for half in halves]
    nothing[0]["next", "reward"][:] = 1.0
    idle = on_ranks(tmp_path, make, nothing)
    start = make()
    prepare(start)
    assert idle[0][0] == [x.item() for v in start.policy.state_dict().values() for x in v.flatten()]


def test_ranks_explore_differently_from_the_same_weights(tmp_path):
    def work(rank):
        algo = ppo()
        td = collected(algo)
        weights = [p.tolist() for p in algo.policy.parameters()]
        (tmp_path / f"{rank}.json").write_text(json.dumps([weights, td["action"].tolist()]))

    assert run_ranks(2, work) == [0, 0]
    first, second = [json.loads((tmp_path / f"{k}.json").read_text()) for k in range(2)]
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert len(first[1]) == T and len(first[1][0]) == N
