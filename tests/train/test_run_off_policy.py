"""Runs of SAC and DDPG: the same again after a stop, with their samples, and honest without."""

import signal

import pytest

from penspin_style.nets.policy import load_policy
from penspin_style.nets.squashed import SquashedPolicy
from tests.support import training
from tests.support.training import manifest
from tests.support.training import untimed as rows

SMALL = (
    *("task=panda_lift_cube", "num_envs=4", "algo.horizon=3", "algo.batch_size=8"),
    *("algo.updates=2", "algo.warmup=12", "algo.replay_capacity=40", "task.episode_length=4"),
    *("algo.hidden=[16]", "algo.critic_hidden=[16]", "total_samples=60", "keep_last=9"),
    *("eval_every=2", "eval_episodes=2", "final_episodes=2", "checkpoint_every=1"),
    *("loggers=[csv]", "video=false"),
)
KINDS = {
    "sac": ("algo=sac", "algo.expert_share=0.5"),
    "td3": ("algo=ddpg",),
    "ddpg": ("algo=ddpg", "algo.twin=false"),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def make(out, kind, *overrides):
    return training.make(out, *KINDS[kind], *SMALL, *overrides)


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    run = make(tmp_path_factory.mktemp("whole"), request.param)
    assert run.fit(quiet=True) == 0
    return request.param, run


def stopped(out, kind, at, *overrides):
    run = make(out, kind, *overrides)
    log = run._log

    def stop(*args):
        log(*args)
        if run.iteration == at:
            signal.raise_signal(signal.SIGTERM)

    run._log = stop
    assert run.fit(quiet=True) == 4
    return run


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(whole, tmp_path, at):
    kind, run = whole
    stopped(tmp_path, kind, at)
    resumed = make(tmp_path, kind, "resume=true")
    assert resumed.fit(quiet=True) == 0
    for i in range(at, 6):  # weights, targets, samples, generators, physics
        assert manifest(resumed, i) == manifest(run, i)
    assert rows(resumed) == rows(run)
    state = run.checkpoints.newest()[1]
    assert state["algo"]["replay"].count == 60 and len(state["algo"]["replay"]) == 40


def test_without_its_samples_a_resumed_run_warms_up_again(whole, tmp_path):
    kind, _ = whole
    stopped(tmp_path, kind, 3, "algo.save_replay=false")
    resumed = make(tmp_path, kind, "algo.save_replay=false", "resume=true")
    assert resumed.fit(quiet=True) == 0
    stored = [float(row["train/replay"]) for row in rows(resumed)]
    assert stored == [12.0, 24.0, 36.0, 12.0, 24.0]
    assert not (resumed.folder / "replay").exists()


def test_the_policy_acts_as_it_was_trained_and_reads_one_group(whole):
    _, run = whole
    policy, card = load_policy(run.folder / "policy")
    assert isinstance(policy, SquashedPolicy) and [i.name for i in card.inputs] == ["teacher"]
    td = run.env.current()
    own = run.algo.policy.act(td["teacher"])
    assert (policy.act(td["teacher"]) == own).all() and own.abs().max() <= 1.0


def test_what_is_logged_has_the_names_that_ppo_gives_it(whole):
    kind, run = whole
    last = rows(run)[-1]
    names = [
        "train/actor/policy_loss",
        "train/critic/value_loss",
        "rollout/rewards",
        "train/replay",
    ]
    if kind == "sac":
        names += ["train/actor/entropy", "train/actor/temperature"]
    assert all(float(last[name]) == float(last[name]) for name in names)
