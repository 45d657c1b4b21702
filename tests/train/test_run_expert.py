"""A run that learns from a script, is stopped and goes on, and what reinforcement makes of it."""

import signal

import pytest
import torch

from penspin_style.nets.gaussian import deviation
from penspin_style.nets.policy import load_policy
from tests.support import training
from tests.support.training import manifest
from tests.support.training import untimed as rows

TASK = ("task=tests.support.homed", "task.start=0.5", "num_envs=8", "algo.hidden=[8]")
RUN = (
    *("eval_every=2", "eval_episodes=2", "final_episodes=4", "checkpoint_every=1", "keep_last=9"),
    *("loggers=[csv]", "video=false", "algo.activation=elu"),
)
DISTILL = (
    *("algo=distill", "algo.teacher=expert", "algo.group=teacher", "algo.network=gaussian"),
    *("algo.absent_object=0", "algo.horizon=10", "algo.action_noise=0.2", "algo.epochs=20"),
    *("algo.learning_rate=0.01", "algo.replay_capacity=200", "total_samples=320"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return training.fit(tmp_path_factory.mktemp("whole"), *TASK, *RUN, *DISTILL)


def test_the_student_does_what_the_script_does(whole):
    assert [row["iteration"] for row in rows(whole)] == list("1234")
    policy, card = load_policy(whole.folder / "policy")
    assert [i.name for i in card.inputs] == ["teacher"]
    with torch.no_grad():
        action = policy.act(torch.tensor([[-0.2, 0.0], [0.0, 0.0], [0.2, 0.0]]))[:, 0]
    torch.testing.assert_close(action, torch.tensor([0.8, 0.0, -0.8]), atol=0.25, rtol=0.0)


def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(whole, tmp_path):
    stopped = training.make(tmp_path, *TASK, *RUN, *DISTILL)
    log = stopped._log

    def stop(*args):
        log(*args)
        if stopped.iteration == 2:
            signal.raise_signal(signal.SIGTERM)

    stopped._log = stop
    assert stopped.fit(quiet=True) == 4
    resumed = training.fit(tmp_path, *TASK, *RUN, *DISTILL, "resume=true")
    for i in (2, 3, 4):  # what the script remembers is among it
        assert manifest(resumed, i) == manifest(whole, i)
    assert rows(resumed) == rows(whole)
    state = whole.checkpoints.newest()[1]["env"]
    assert {"expert/action", "expert/memory/asked", "expert/memory/drawn"} <= set(state)


def test_reinforcement_goes_on_from_it_while_the_critic_learns_first(whole, tmp_path):
    ppo = ("algo=ppo", f"algo.init_from={whole.folder}", "algo.critic_iterations=2")
    small = ("algo.horizon=10", "algo.critic_hidden=[8]", "total_samples=240", "algo.target_kl=1")
    run = training.make(tmp_path, *TASK, *RUN, *ppo, *small)
    student = whole.algo.policy.state_dict()
    seen = []
    update = run.algo.update

    def watched():
        row = update()
        critic = torch.cat([p.detach().flatten() for p in run.algo.critic.parameters()])
        policy = torch.cat([p.detach().flatten() for p in run.algo.policy.parameters()])
        seen.append((policy.clone(), critic.clone(), row["train/actor/lr"]))
        return row

    run.algo.update = watched
    begun = torch.cat([p.detach().flatten() for p in run.algo.policy.parameters()]).clone()
    torch.testing.assert_close(deviation(run.algo.policy.raw_std), torch.tensor([0.2]))
    for name, value in run.algo.policy.state_dict().items():
        assert torch.equal(value, student[name]), name
    assert run.fit(quiet=True) == 0
    policies, critics, rates = zip(*seen, strict=True)
    assert torch.equal(policies[0], begun) and torch.equal(policies[1], begun)
    assert (policies[2] != begun).any()
    assert (critics[0] != critics[1]).any() and (critics[1] != critics[2]).any()
    assert rates[0] == rates[1] == rates[2]  # a policy that rests says nothing of its rate
