"""The script that teaches a policy of the pick to carry."""

import pytest
import torch

from penspin_style.algo.actor_critic import make_policy
from penspin_style.env.env import Env
from penspin_style.nets.policy import load_policy, save_policy
from penspin_style.train.compose import compose_train
from scripts import clone_carrying as script
from tasks.aloha.pick_expert import STAGES


@pytest.fixture
def untrained(tmp_path):
    """A folder with a policy that was never trained."""
    cfg, kind, _ = compose_train(["task=aloha_pick"])
    env = Env(kind(cfg.task), 2)
    policy = make_policy(cfg.algo, {i.name: i for i in env.inputs}, 7, torch.Generator())
    facts = {"task": "aloha_pick", "run": "none", "score": {}, "versions": {}}
    card = env.card(**facts, network=policy.describe(), in_keys=policy.in_keys)
    save_policy(policy, card, tmp_path / "untrained")
    return tmp_path / "untrained"


def test_a_policy_is_taught_and_saved_with_its_exploration(untrained, tmp_path, capsys):
    out = tmp_path / "taught"
    arguments = [str(untrained), str(out), "--steps", "12", "--envs", "16", "--std", "0.3"]
    assert script.main(arguments) == 0
    before, _ = load_policy(untrained)
    after, card = load_policy(out)
    assert card.task == "aloha_pick" and card.network == before.describe()
    seen = torch.randn(20, 53)
    assert not torch.equal(after.act(seen), before.act(seen))
    assert float(after(seen).scale.detach().mean()) == pytest.approx(0.3, rel=1e-3)
    assert script.main(arguments) == 2  # it is there already
    assert "remove it or name another" in capsys.readouterr().err


def test_the_scripts_labels_are_for_bars_in_the_hand():
    cfg, kind, _ = compose_train(["task=aloha_pick"])
    env = Env(kind(cfg.task), 64, seed=1)
    task = env.task
    rows = task.start_bank(torch.device("cpu"))
    rows = rows[torch.linspace(0, len(rows) - 1, 64).long()].double()
    task.set_start_state(env.sim, torch.ones(64, dtype=torch.bool), rows, env.rng)
    env.sim.forward()
    for _ in range(3):
        env.step(env.current().set("action", torch.zeros(64, 7)))
    expert = task.expert(env.sim)
    expert.restart(torch.ones(64, dtype=torch.bool))
    held, label = script.script_labels(task, expert)
    assert 10 < int(held.sum()) < 60
    assert (expert.stage[held] == STAGES.index("carry")).all()
    assert (label[held][:, 6] == -1.0).all()  # it does not let go


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "out"], "nowhere"),
        (["nowhere", "out", "--std", "0"], "--steps, --envs and --std must be above 0"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(arguments, said, capsys):
    assert script.main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
