"""A trained policy that acts within a task: what must fit, and that it is the same one later."""

import dataclasses
import shutil

import pytest
import torch

from penspin_style import storage
from penspin_style.deploy.export import export
from penspin_style.env.env import Env
from penspin_style.env.frozen_policy import FrozenPolicy, pinned
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import load_policy, save_policy
from penspin_style.train import compose
from penspin_style.train.load_policy import open_policy
from penspin_style.train.run import Run
from tests.support.helped import PLACE, SPEED, Config, Helped
from tests.support.terminal import call, check_refusal

CPU = torch.device("cpu")
TASK = "task=tests.support.helped"
ACTIONS = (ActionChannel("rail", "m", 0.125, -1.0, 1.0, "delta"),)


def publish(folder, seed=0, size=2, **changes):
    """A small policy of the rail, and its card."""
    rng = torch.Generator().manual_seed(seed)
    policy = GaussianPolicy("teacher", size, 1, hidden=[8], activation="elu", init_std=0.5, rng=rng)
    for parameter in policy.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=rng)
    policy.normalizer.update(torch.tensor([[0.5] * size, [-0.1] * size]))
    card = PolicyCard(
        task="rail", inputs=(Input("teacher", (PLACE, SPEED)),), actions=ACTIONS, joints=(),
        control_dt=0.05, network=policy.describe(),
    )  # fmt: skip
    save_policy(policy, dataclasses.replace(card, **changes), folder)
    return policy.eval()


def frozen(path, feeds=(SPEED, PLACE), actions=ACTIONS, control_dt=0.05):
    return FrozenPolicy("task.helper", str(path), feeds, actions, control_dt=control_dt, device=CPU)


TERMS = {"speed": torch.linspace(-1, 1, 5), "place": torch.linspace(0.4, -0.3, 5)[:, None]}


@pytest.mark.parametrize("kind", ["folder", "run", "onnx"])
def test_it_acts_as_the_policy_does_on_any_number_of_rows(kind, tmp_path):
    policy = publish(tmp_path / "run" / "policy")
    path = {"run": tmp_path / "run"}.get(kind, tmp_path / "run" / "policy")
    if kind == "onnx":
        export(*load_policy(path), tmp_path / "p.onnx")
        path = tmp_path / "p.onnx"
    wanted = policy.act(torch.stack((TERMS["place"][:, 0], TERMS["speed"]), dim=1))
    got = frozen(path)
    action = got.act(TERMS)
    assert action.shape == (5, 1) and not action.requires_grad
    torch.testing.assert_close(action, wanted, atol=1e-6, rtol=0.0)
    one = {name: value[3:4] for name, value in TERMS.items()}
    torch.testing.assert_close(got.act(one), wanted[3:4], atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feeds": (PLACE,)}, r"reads speed \(1,\) in m/s, the task feeds place"),
        ({"feeds": (PLACE, Feature("speed", (2,), "m/s"))}, r"the task feeds speed \(2,\) in m/s"),
        ({"feeds": (PLACE, Feature("speed", (1,), "rad/s"))}, r"feeds speed \(1,\) in rad/s"),
        ({"feeds": (PLACE, dataclasses.replace(SPEED, history=3))}, r"feeds speed .* x 3"),
        ({"feeds": (PLACE, SPEED, Feature("more", (1,)))}, "feeds more, which it does not read"),
        ({"actions": (dataclasses.replace(ACTIONS[0], scale=0.25),)}, "scale 0.125, the task 0.25"),
        ({"actions": (dataclasses.replace(ACTIONS[0], name="cart"),)}, r"commands \['rail'\], the"),
        ({"control_dt": 0.02}, "acts every 0.05 s, the task every 0.02 s"),
    ],
)
def test_one_that_does_not_fit_the_task_is_refused_by_name(change, message, tmp_path):
    publish(tmp_path / "p")
    with pytest.raises(ValueError, match=rf"^task.helper={tmp_path}/p: .*{message}"):
        frozen(tmp_path / "p", **change)


def test_what_is_not_there_or_damaged_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"task.helper=.*/p holds no policy"):
        frozen(tmp_path / "p")
    with pytest.raises(ValueError, match=r"task.helper=.*/p.onnx is no file"):
        frozen(tmp_path / "p.onnx")
    publish(tmp_path / "p")
    file = tmp_path / "p" / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(storage.DamagedError, match=r"policy\.safetensors"):
        frozen(tmp_path / "p")


@pytest.mark.parametrize("kind", ["folder", "onnx"])
def test_another_policy_in_the_same_place_is_noticed(kind, tmp_path):
    def put(seed):
        storage.remove(tmp_path / "p") if (tmp_path / "p").exists() else None
        publish(tmp_path / "p", seed)
        if kind == "folder":
            return str(tmp_path / "p")
        (tmp_path / "p.onnx").unlink(missing_ok=True)
        export(*load_policy(tmp_path / "p"), tmp_path / "p.onnx")
        return str(tmp_path / "p.onnx")

    path = put(0)
    said = pinned("task.helper", path)
    assert said == pinned("task.helper", said) != path
    assert said.startswith(f"{path}@") and frozen(said).act(TERMS).shape == (5, 1)
    put(1)
    assert pinned("task.helper", path) != said == pinned("task.helper", said)
    with pytest.raises(ValueError, match=f"task.helper={path} has changed: .* it was"):
        frozen(said)
    assert frozen(path)  # it does not say which


def test_a_path_that_leads_nowhere_is_left_to_the_task(tmp_path):
    assert pinned("task.helper", f"{tmp_path}/none") == f"{tmp_path}/none"


# A run whose task lets one act.


OVERRIDES = (
    *("num_envs=4", "algo.horizon=8", "eval_every=0", "final_episodes=2", "video=false"),
    *("loggers=[csv]", "task.episode_length=10", "task.start=0.5"),
)


def make(out, *more):
    return Run(*compose.compose_train([TASK, f"out={out}", *OVERRIDES, *more]))


def test_it_acts_in_the_environment_as_by_hand(tmp_path):
    policy = publish(tmp_path / "p")
    env = Env(Helped(Config(helper=str(tmp_path / "p"), start=0.5)), 6, seed=4)
    root = env.current()
    start, own = env.sim.data.qpos.clone().float(), root["learner_acts"]
    assert own.any() and not own.all()
    root.set("action", torch.full((6, 1), 0.5))
    env.step_and_maybe_reset(root)
    helped = policy.act(torch.cat((start, torch.zeros(6, 1)), dim=1))
    wanted = start + 0.125 * torch.where(own, 0.5, helped)
    torch.testing.assert_close(env.task.memory["target"], wanted, atol=1e-6, rtol=0.0)


@pytest.mark.usefixtures("one_thread")
def test_a_run_notes_which_policy_it_was_and_goes_on_with_no_other(tmp_path, capsys):
    publish(tmp_path / "p")
    helper = f"task.helper={tmp_path}/p"
    run = make(tmp_path, helper, "total_samples=32")
    assert run.fit(quiet=True) == 0
    text = (run.folder / "config.yaml").read_text()
    assert f"helper: {pinned('task.helper', str(tmp_path / 'p'))}" in text
    assert make(tmp_path, helper, "total_samples=64", "resume=true").fit(quiet=True) == 0
    opened = open_policy(run.folder, [TASK])
    assert opened.env(2, 0).current()["teacher"].shape == (2, 2)

    shutil.move(tmp_path / "p", tmp_path / "former")
    publish(tmp_path / "p", seed=1)
    with pytest.raises(ValueError, match=r"trained with task.helper=.*@.*, now .*@"):
        make(tmp_path, helper, "total_samples=96", "resume=true")
    capsys.readouterr()
    code = call(f"eval {run.folder} {TASK} --episodes 2")
    check_refusal(code, *capsys.readouterr(), 2, f"{helper} has changed")
    assert call(f"eval {run.folder} {TASK} {helper} --episodes 2") == 0
