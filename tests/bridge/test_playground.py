"""Environments of MuJoCo Playground as tasks, by a double that is known by hand."""

import importlib.util
import json

import numpy as np
import pytest
import torch

pytest.importorskip("jax")

from penspin_style.__main__ import main
from penspin_style.bridge import playground
from penspin_style.bridge.playground import playground_task
from penspin_style.env.env import Env
from penspin_style.storage import MANIFEST
from tests.support import playground_double

IS_INSTALLED = importlib.util.find_spec("mujoco_playground") is not None
SMALL = (
    *("task=playground:Walk", "num_envs=16", "algo.horizon=8", "checkpoint_every=10"),
    *("eval_every=10", "eval_episodes=8", "final_episodes=8", "loggers=[csv]", "video=false"),
    *("device=cpu", "learn_threads=1"),
)


@pytest.fixture(autouse=True)
def package(monkeypatch):
    """The double, and nothing that was loaded from another package of this name."""
    for cached in (playground_task, playground._load):
        cached.cache_clear()
    playground_double.install(monkeypatch)
    yield
    for cached in (playground_task, playground._load):
        cached.cache_clear()


def make(num_envs=2, name="Walk", seed=4, **changes):
    task = playground_task(name)
    return Env(task(task.Config(**changes)), num_envs, seed=seed)


def step(env, *actions):
    root = env.current()
    root["action"] = torch.tensor(actions)[:, None]
    transition, root = env.step_and_maybe_reset(root)
    return transition["next"], root


def test_the_last_observation_of_an_episode_is_the_true_one_and_the_root_is_of_the_next():
    env = make()
    start = env.current()["teacher"][:, 0].clone()
    assert (start >= 0).all() and (start < 0.2).all() and start[0] != start[1]
    for i in range(1, 6):
        nxt, root = step(env, 1.0, 0.0)
        x = start[0] + 0.25 * i
        assert nxt["teacher"][0].tolist() == pytest.approx([float(x), i])
        assert nxt["reward"][0].item() == pytest.approx(float(x))
        if x > 1.0:
            break
    assert nxt["terminated"].tolist() == [[True], [False]] and not nxt["truncated"].any()
    assert root["teacher"][0, 1] == 0.0 and root["teacher"][0, 0] < 0.2  # begun anew
    assert root["teacher"][1].tolist() == pytest.approx([float(start[1]), i])
    total = sum(float(start[0]) + 0.25 * k for k in range(1, i + 1))
    metrics = env.metrics()
    assert metrics["env/episode_len"] == i and metrics["env/num_trajectories"] == 1
    assert metrics["env/return"] == pytest.approx(total, rel=1e-5)
    assert metrics["env/reward_x"] == pytest.approx(total, rel=1e-5)


def test_the_time_limit_truncates():
    env = make(episode_length=3)
    for _ in range(3):
        nxt, root = step(env, 0.0, 0.1)
    assert nxt["truncated"].all() and not nxt["terminated"].any()
    assert nxt["teacher"][:, 1].tolist() == [3.0, 3.0] and not root["teacher"][:, 1].any()


def test_a_nan_is_a_fault_of_its_environment_alone():
    env = make()
    before = env.current()["teacher"].clone()
    nxt, root = step(env, float("nan"), 7.0)
    assert nxt["fault"].tolist() == [[True], [False]]
    assert nxt["truncated"].tolist() == [[True], [False]] and nxt["reward"][0] == 0.0
    assert torch.equal(nxt["teacher"][0], before[0])
    assert nxt["teacher"][1, 0] == pytest.approx(float(before[1, 0]) + 0.25)  # clipped
    rows = env.sim.get_state()
    at = [i for i in range(rows.shape[1]) if rows[1, i].view(torch.float32) == nxt["teacher"][1, 0]]
    rows[0, at] = torch.tensor(torch.nan).view(torch.int32)
    env.sim.set_state(rows)
    nxt, root = step(env, 0.0, 0.0)
    assert nxt["fault"].tolist() == [[True], [False]] and torch.isfinite(root["teacher"]).all()
    assert env.faults.counts[0] == 1  # NONFINITE


def test_what_the_critic_alone_sees_is_a_group_of_its_own():
    env = make(name="Asymmetric")
    root = env.current()
    assert root["teacher"].shape == (2, 1) and root["critic"].shape == (2, 2)
    assert [i.name for i in env.inputs] == ["teacher", "critic"]
    assert torch.equal(root["critic"][:, :1], root["teacher"])


def test_actions_are_named_after_actuators_and_fields_follow_the_state():
    env = make()
    assert [channel.name for channel in env.task.actions] == ["push"]
    x = env.sim.data.qpos
    step(env, 0.5, -0.5)
    assert torch.equal(x[:, 0], env.current()["teacher"][:, 0])
    assert "ctrl" not in env.sim.data  # the double's data has none
    with pytest.raises(ValueError, match="whole control steps, of 2 substeps"):
        env.sim.step(1)
    assert env.task.spec().compile().nq == 1


def test_its_configuration_can_be_set_and_what_is_left_alone_stays():
    task = playground_task("Walk")
    assert task.Config().playground == {
        **{"sim_dt": 0.05, "speed": 1.0, "limit": None, "scales": {"x": [1.0, 2.0]}}
    }
    own = make().task.env.config
    assert own["limit"] == float("inf") and own["scales"] == {"x": (1.0, 2.0)}
    cfg = task.Config()
    cfg.playground["limit"], cfg.playground["scales"]["x"] = 3.0, [4.0]
    changed = task(cfg).env.config
    assert changed["limit"] == 3.0 and changed["scales.x"] == [4.0] and changed["speed"] == 1.0
    assert task.Config().playground["limit"] is None


def test_a_continuation_is_exact_bit_for_bit():
    env, again = make(4, seed=2, episode_length=5), make(4, seed=3, episode_length=5)
    rng = torch.Generator().manual_seed(0)
    actions = (2.0 * torch.rand(20, 4, generator=rng) - 1.0).tolist()
    for action in actions[:7]:
        step(env, *action)
    again.load_state_dict(env.state_dict())
    for action in actions[7:]:
        one, two = step(env, *action)[0], step(again, *action)[0]
        assert all(torch.equal(one[k], two[k]) for k in one.keys())  # noqa: SIM118
    assert env.metrics() == again.metrics()
    assert torch.equal(env.sim.get_state(), again.sim.get_state())
    mask = torch.tensor([True, False, False, True])
    before, saved = env.sim.get_state(), make(4, seed=9).sim.get_state()
    env.sim.set_state(saved, mask)
    assert torch.equal(env.sim.get_state(), torch.where(mask[:, None], saved, before))


def test_it_trains_resumes_evaluates_and_exports_as_any_task(tmp_path, one_thread, capsys):
    whole, parts = (f"out={tmp_path / name}" for name in ("whole", "parts"))
    own = ("name=a", "task.playground.speed=0.5")
    assert main(["train", *SMALL, whole, *own, "total_samples=2560"]) == 0
    assert main(["train", *SMALL, parts, *own, "total_samples=1280"]) == 0
    assert main(["train", *SMALL, parts, *own, "total_samples=2560", "resume=true"]) == 0
    runs = [tmp_path / name / "playground:Walk" / "a" for name in ("whole", "parts")]
    one, other = (sorted((run / "checkpoints").iterdir())[-1] for run in runs)
    assert one.name == other.name
    assert (one / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
    card = json.loads((runs[0] / "policy" / "card.json").read_text())
    assert card["task"] == "playground:Walk" and card["score"]["scored_by"] == "return"
    assert card["actions"][0]["name"] == "push" and card["control_dt"] == 0.1
    rows = np.genfromtxt(runs[0] / "metrics.csv", delimiter=",", names=True)
    returns = rows["envreturn"][np.isfinite(rows["envreturn"])]
    assert returns[-3:].mean() > returns[:3].mean() + 2.0  # it learns
    capsys.readouterr()
    assert main(["eval", str(runs[0]), "--episodes", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["export", str(runs[0]), "--samples", "100"]) == 0
    capsys.readouterr()
    assert main(["eval", str(runs[0] / "policy.onnx"), "--episodes", "8", "--json"]) == 0
    # with the configuration that it was trained with, half the speed
    assert json.loads(capsys.readouterr().out)["return"] == pytest.approx(found["return"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=playground:Wakl"], "no environment 'Wakl'; did you mean playground:Walk?"),
        (["task=playground:Pixels"], "playground:Pixels observes pixels; a vector `state`"),
        (["task=playground:Broken"], "cannot load Broken: FileNotFoundError: no mesh leg.obj"),
        (["task.playground.sped=2"], "'task.playground.sped'; did you mean task.playground.speed?"),
        (["task.playground.impl=warp"], "unknown key 'task.playground.impl'"),
        (["task.randomize=true"], "task.randomize must be false"),
        (["sim.engine=warp"], "sim.engine must be auto or mjx, got warp"),
        (["task.control_dt=0.07"], "task.control_dt 0.07 s must be a multiple"),
    ],
)
def test_what_cannot_be_is_one_line(words, said, tmp_path, capsys):
    task = [] if words[0].startswith("task=") else ["task=playground:Walk"]
    assert main(["train", *task, *words, f"out={tmp_path}", "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_without_playground_the_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "mujoco_playground", None)
    assert main(["train", "task=playground:CartpoleBalance"]) == 2
    error = capsys.readouterr().err
    assert "needs mujoco_playground" in error and error.count("\n") == 1
    assert "pip install 'penspin_style[playground]'" in error


@pytest.mark.skipif(not IS_INSTALLED, reason="needs the package playground")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_playgrounds_own_environment_steps_as_it_does_by_itself(monkeypatch):
    monkeypatch.undo()
    import jax
    from mujoco_playground import registry

    env = make(3, "CartpoleBalance", episode_length=4)
    theirs = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    assert env.cfg.control_dt == 0.01 and [c.name for c in env.task.actions] == ["slide"]
    state, move = env.sim.state, jax.jit(jax.vmap(theirs.step))
    for i in range(4):
        action = torch.tensor([0.5, -1.0, 0.1 * i])
        state = move(state, action[:, None].numpy())
        nxt, _ = step(env, *action.tolist())
        assert np.allclose(nxt["teacher"], state.obs, atol=1e-5)
        assert np.allclose(nxt["reward"][:, 0], state.reward, atol=1e-5)
    assert nxt["truncated"].all()
