"""What every task keeps, whatever it is about. A new task is found in the folder `tasks/`."""

import dataclasses
import math
import pathlib
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from torchrl.envs.utils import check_env_specs

import tasks
from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.render.gl_renderer import NoOpenGLError, choose_platform
from penspin_style.sim.sim import Fault

ROOT = pathlib.Path(__file__).parents[2]
# gymnasium warns of these two and its own test-suite ignores them: they say what is true
HONEST = ("minimum value is -infinity", "maximum value is infinity")
# terms of which a few random steps do not move every number
SELDOM = {"tactile", "no_solution"}
PAYS = {"aloha_peg_insertion_student": {"ring_starts": 0.8}}  # where random actions earn something
# what engines may disagree on after a step: 0.002 in SI units, a light pen's rates between contacts
# more
APART = {"pen_angvel": 0.02}
APART_IN = {  # the published ten iterations leave the arms' dry friction unsolved by that much
    "aloha_handover": {"qvel": 0.05},
    # nor how far a peg has rolled between two round fingers, on which its reward depends
    "aloha_peg_insertion": {
        **{"right_qvel": 0.01, "right_object_linvel": 0.02, "right_object_angvel": 0.2},
        **{"right_object_mat": 0.03, "right_target_mat": 0.03, "peg_in_socket": 0.03},
        "reward": 0.05,
    },
}
APART_IN["aloha_peg_insertion_student"] = APART_IN["aloha_peg_insertion"]


@pytest.fixture(params=tasks.task_names(), scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def has_opengl():
    try:
        choose_platform()
    except NoOpenGLError:
        return False
    return True


@pytest.fixture(scope="module", autouse=True)
def registered():
    tasks.register_gymnasium()


@pytest.fixture
def endless(name, monkeypatch):
    """No episode ends by itself: what random actions drop within a few steps may lie."""

    def terminated(self, sim):
        return torch.zeros(sim.num_envs, dtype=torch.bool)

    monkeypatch.setattr(load_task(name), "terminated", terminated)
    # a pen that was dropped long ago may fly away at a thousand metres a second
    monkeypatch.setattr(load_task(name), "largest", 1e9)


def make(name, num_envs, seed=1, engine="auto", **config):
    stagger = config.pop("stagger", False)
    kind = load_task(name)
    task = kind(kind.Config(**config))
    return Env(task, num_envs, seed=seed, engine=engine, stagger=stagger)


def draw_actions(env, steps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return 2.0 * torch.rand(steps, *env.action_spec.shape, generator=rng) - 1.0


def transition(env, action):
    """Step with restarts; the transition that a learner would store."""
    return env.step_and_maybe_reset(env.current().set("action", action))[0]


def drive(env, actions):
    return torch.stack([transition(env, action) for action in actions])


def unlike(a, b):
    """Keys of two TensorDicts that differ in a single bit."""
    keys = set(a.keys(True, True)) ^ set(b.keys(True, True))
    return keys | {k for k in a.keys(True, True) if not torch.equal(a[k], b[k])}


def groups(env, td):
    """All that is observed in one row, images raveled."""
    return torch.cat([td[i.name].flatten(td.ndim).float() for i in env.inputs], dim=-1)


def vectors(env, td):
    """The numbers alone."""
    return torch.cat([td[i.name] for i in env.inputs if not i.is_image], dim=-1)


def owners(env):
    """The term to which each number of `vectors` belongs."""
    features = [f for i in env.inputs if not i.is_image for f in i.features]
    return [f.name for f in features for _ in range(f.size)]


def shake(env, rng):
    """Throw every body about, so that the values that rest under random actions move too."""
    wrench = torch.randn(env.num_envs, env.model.nbody, 6, generator=rng, dtype=torch.float64)
    mass = torch.from_numpy(env.model.body_mass)[:, None]
    # about its long axis a slender body would soon turn faster than physics steps can follow
    inertia = torch.from_numpy(env.model.body_inertia.min(axis=1))[:, None]
    force = torch.cat((20.0 * mass * wrench[..., :3], 100.0 * inertia * wrench[..., 3:]), dim=2)
    env.sim.data.xfrc_applied.copy_(force)


# What a task says about itself.


def test_tasks_are_found_without_importing_them():
    code = (
        "import sys, tasks; tasks.register_gymnasium(); tasks.register_gymnasium();"
        "print(tasks.task_names(), sorted({'torch', 'mujoco'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == f"{tasks.task_names()} []"
    assert {"panda_lift_cube", "panda_pick_cube"} <= set(tasks.task_names())
    assert tasks.gymnasium_id("panda_lift_cube") == "penspin_style/PandaLiftCube-v0"


def test_the_docstring_defines_success(name):
    assert "**Success**" in sys.modules[load_task(name).__module__].__doc__


def test_every_observation_has_a_unit_and_every_action_channel_limits(name):
    env = make(name, 1)
    units = {**env.task.units, **env.cameras.units}
    for group in env.inputs:
        assert group.features
        for feature in group.features:
            assert feature.unit == units[feature.name] != ""
    channels = env.task.actions
    assert len({c.name for c in channels}) == len(channels) == env.action_spec.shape[-1]
    for channel in channels:
        assert channel.unit
        assert channel.scale > 0
        assert math.isfinite(channel.low) and math.isfinite(channel.high)
        assert channel.low < channel.high
        assert channel.mode in ("delta", "absolute")
    for joint in env.task.joints:
        assert joint.low <= joint.default <= joint.high
    assert env.model.camera(env.task.camera).id >= 0


def test_reward_weights_must_be_those_of_the_terms(name):
    env = make(name, 2)
    terms = env.task.reward(env.sim, torch.zeros(env.action_spec.shape))
    assert terms.keys() == env.cfg.reward.keys()
    assert {value.shape for value in terms.values()} == {(2,)}
    with pytest.raises(ValueError, match=r"unknown \['sparkle'\]"):
        make(name, 1, reward={**env.cfg.reward, "sparkle": 1.0})
    lost = min(env.cfg.reward)
    rest = {key: weight for key, weight in env.cfg.reward.items() if key != lost}
    with pytest.raises(ValueError, match=rf"missing \['{lost}'\]"):
        make(name, 1, reward=rest)


# TorchRL and Gymnasium.


def test_torchrl_accepts_the_specs(name):
    check_env_specs(make(name, 4, episode_length=20), seed=3)


def test_gymnasium_accepts_the_environment(name, has_opengl):
    env = gymnasium.make(tasks.gymnasium_id(name), config={"episode_length": 20})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=not has_opengl)
    complaints = [str(w.message) for w in caught]
    assert [c for c in complaints if not any(honest in c for honest in HONEST)] == []
    env.close()


@pytest.mark.usefixtures("endless")
def test_gymnasium_plays_an_episode_to_its_time_limit(name):
    env = gymnasium.make(tasks.gymnasium_id(name), config={"episode_length": 4})
    env.reset(seed=1)
    env.action_space.seed(1)
    for step in range(1, 5):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert (terminated, truncated) == (False, step == 4)
        assert obs in env.observation_space
        assert sum(info["reward_terms"].values()) == pytest.approx(reward, abs=1e-6)
        assert (info["success"], info["fault"]) == (False, False)
    env.close()


def test_gymnasium_seeds_determine_an_environment_that_has_a_past(name):
    ids = tasks.gymnasium_id(name)
    fresh, used = gymnasium.make(ids), gymnasium.make(ids)
    used.reset(seed=8)
    for _ in range(7):
        used.step(used.action_space.sample())
    first, second = fresh.reset(seed=5)[0], used.reset(seed=5)[0]
    np.testing.assert_array_equal(first, second)
    action = fresh.action_space.sample()
    np.testing.assert_array_equal(fresh.step(action)[0], used.step(action)[0])
    assert not np.array_equal(used.reset(seed=6)[0], first)
    assert not np.array_equal(used.reset()[0], fresh.reset()[0])


@pytest.mark.usefixtures("endless")
def test_the_vector_environment_restarts_in_the_step_that_ends_an_episode(name):
    vec = gymnasium.make_vec(tasks.gymnasium_id(name), num_envs=3, config={"episode_length": 4})
    assert vec.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    twin = make(name, 3, episode_length=100)
    twin.set_seed(5)
    group = twin.inputs[0].name
    obs, _ = vec.reset(seed=5)
    np.testing.assert_array_equal(obs, twin.reset()[group])
    vec.action_space.seed(2)
    for step in range(1, 5):
        action = vec.action_space.sample()
        obs, reward, terminated, truncated, infos = vec.step(action)
        after = twin.step(twin.current().set("action", torch.from_numpy(action)))["next"]
        np.testing.assert_array_equal(reward, after["reward"][:, 0])
        assert not terminated.any()
        assert truncated.tolist() == [step == 4] * 3
        if step < 4:
            np.testing.assert_array_equal(obs, after[group])
            assert "final_obs" not in infos
            assert infos["_success"].all()
    np.testing.assert_array_equal(np.stack(infos["final_obs"]), after[group])
    assert infos["_final_obs"].all()
    terms = infos["final_info"]["reward_terms"]
    total = sum(value for key, value in terms.items() if not key.startswith("_"))
    np.testing.assert_allclose(total, reward, atol=1e-6)
    assert "success" not in infos  # a new episode has none yet
    assert obs in vec.observation_space
    assert (obs != np.stack(infos["final_obs"])).any(axis=1).all()
    later, _, _, truncated, infos = vec.step(action)
    assert not truncated.any()
    masked, _ = vec.reset(options={"reset_mask": np.array([True, False, False])})
    np.testing.assert_array_equal(masked[1:], later[1:])
    assert not np.array_equal(masked[0], later[0])


def test_the_vector_environment_refuses_what_it_cannot_do(name):
    vec = gymnasium.make_vec(tasks.gymnasium_id(name), num_envs=2)
    with pytest.raises(ValueError, match="one seed"):
        vec.reset(seed=[1, 2])
    with pytest.raises(ValueError, match=r"must be \(2,\) bool, got \(3,\) bool"):
        vec.reset(options={"reset_mask": np.ones(3, dtype=bool)})
    with pytest.raises(ValueError, match="no observation group 'nose'"):
        gymnasium.make(tasks.gymnasium_id(name), group="nose")


def test_gymnasium_shows_the_group_that_is_asked_for(name):
    (whole,) = make(name, 1).inputs[:1]
    last = whole.features[-1]
    terms = load_task(name).Config().observation[whole.name]
    student = {last.name: dataclasses.replace(terms[last.name], noise=0.0)}
    observation = {"teacher": terms, "student": student}
    config = {"observation": observation}
    ids = tasks.gymnasium_id(name)
    teacher = gymnasium.make(ids, config=config)
    student = gymnasium.make(ids, config=config, group="student")
    assert teacher.observation_space.shape == (whole.size,)
    assert student.observation_space.shape == (last.size,)
    seen = teacher.reset(seed=4)[0][-last.size :]
    np.testing.assert_array_equal(student.reset(seed=4)[0], seen)


def test_gymnasium_renders_every_environment_of_a_batch(name, has_opengl):
    if not has_opengl:
        pytest.skip("no off-screen OpenGL on this machine")
    ids = tasks.gymnasium_id(name)
    assert gymnasium.make_vec(ids, num_envs=2).render() is None
    vec = gymnasium.make_vec(ids, num_envs=2, render_mode="rgb_array")
    vec.reset(seed=1)
    first, second = vec.render()
    assert first.shape == second.shape == (480, 480, 3)
    assert first.dtype == np.uint8
    assert (first != second).any()
    assert vec.metadata["render_fps"] == round(1 / load_task(name).Config().control_dt)
    vec.close()


# Determinism, observations, episodes.


def test_a_seed_determines_the_trajectory(name):
    config = {"episode_length": 6, **PAYS.get(name, {})}
    env, twin, other = (make(name, 4, seed=seed, **config) for seed in (1, 1, 2))
    actions = draw_actions(env, 15)
    first = drive(env, actions)
    assert unlike(first, drive(twin, actions)) == set()
    assert first["next", "done"].sum() >= 8
    differing = unlike(first, drive(other, actions))
    assert {("next", "reward"), *(("next", i.name) for i in env.inputs)} <= differing


@pytest.mark.usefixtures("endless")
def test_observations_are_finite_and_every_number_moves(name):
    env = make(name, 8, episode_length=25, **PAYS.get(name, {}))
    rng = torch.Generator().manual_seed(3)
    seen = []
    for action in draw_actions(env, 60):
        shake(env, rng)
        seen.append(transition(env, action))
    seen = torch.stack(seen)
    assert not seen["next", "fault"].any()
    for where in ((), ("next",)):
        td = seen[where] if where else seen
        assert torch.isfinite(groups(env, td)).all()
        still = vectors(env, td).flatten(0, 1).std(dim=0) == 0
        assert set(np.array(owners(env))[still.numpy()]) <= SELDOM
        for image in env.groups.images:  # not every pixel need change
            assert (td[image].float().std(dim=0) > 0).flatten(1).any(dim=1).all()
    assert torch.isfinite(seen["next", "reward"]).all()
    assert seen["next", "reward"].std() > 0


def test_observations_of_different_steps_share_no_memory(name):
    env = make(name, 4, episode_length=5)
    kept = [transition(env, action) for action in draw_actions(env, 12)]
    env_again = make(name, 4, episode_length=5)
    copies = [transition(env_again, a).clone() for a in draw_actions(env_again, 12)]
    for stored, copied in zip(kept, copies, strict=True):
        assert unlike(stored, copied) == set()
    for i in env.inputs:
        assert len({td["next", i.name].data_ptr() for td in kept}) == 12


@pytest.mark.usefixtures("endless")
def test_truncation_shows_the_true_last_observation(name):
    short, long = make(name, 4, episode_length=5), make(name, 4, episode_length=100)
    actions = draw_actions(short, 5)
    short, long = drive(short, actions), drive(long, actions)
    assert short["next", "truncated"][-1].all()
    assert not long["next", "done"].any()
    assert unlike(short, long) == {("next", "truncated"), ("next", "done")}


@pytest.mark.usefixtures("endless")
def test_the_root_after_a_restart_is_the_first_observation_of_the_new_episode(name):
    env = make(name, 4, episode_length=5)
    ended = drive(env, draw_actions(env, 5))[-1]
    root = env.current()
    assert env.step_count.tolist() == [0] * 4
    assert not root["done"].any()
    assert (groups(env, root) != groups(env, ended["next"])).any(dim=1).all()
    observed = env.task.observe(env.sim)
    for group in env.inputs:
        if group.is_image:
            continue
        exact = [observed[f.name].reshape(4, -1).float() for f in group.features]
        terms = env.cfg.observation[group.name].values()
        if all(term.noise == 0 and term.history == 1 for term in terms):
            assert torch.equal(root[group.name], torch.cat(exact, dim=1))


@pytest.mark.usefixtures("endless")
def test_the_time_limit_truncates_and_does_not_terminate(name):
    env = make(name, 4, episode_length=6)
    seen = drive(env, draw_actions(env, 12))["next"]
    assert not seen["terminated"].any()
    at_limit = torch.tensor([(step + 1) % 6 == 0 for step in range(12)])
    assert torch.equal(seen["truncated"][..., 0], at_limit[:, None].expand(12, 4))
    assert torch.equal(seen["done"], seen["truncated"])
    assert env.metrics()["env/episode_len"] == 6.0


def rows(env):
    """Everything that belongs to single environments, by name."""
    state = env.state_dict()
    others = ("rng", "episode")  # of the latter's rows each is a figure
    return {k: v for k, v in state.items() if v.ndim and v.shape[0] == 5 and k not in others}


@pytest.mark.usefixtures("endless")
def test_a_partial_reset_leaves_the_others_bit_identical(name):
    env = make(name, 5)
    drive(env, draw_actions(env, 3))
    before, root = rows(env), env.current()
    mask = torch.tensor([False, True, False, True, False])
    after_root = env.reset(env.current().set("_reset", mask[:, None]))
    after = rows(env)
    assert {"sim", "step_count", *(f"memory/{k}" for k in env.task.memory)} <= before.keys()
    for key, value in before.items():
        assert torch.equal(after[key][~mask], value[~mask]), key
    for i in env.inputs:
        assert torch.equal(after_root[i.name][~mask], root[i.name][~mask])
        assert (after_root[i.name][mask] != root[i.name][mask]).flatten(1).any(dim=1).all()
    assert env.step_count.tolist() == [3, 0, 3, 0, 3]


def test_a_restored_environment_continues_bit_for_bit(name):
    config = {"episode_length": 12, "stagger": True}
    env, other = make(name, 4, seed=1, **config), make(name, 4, seed=9, **config)
    drive(env, draw_actions(env, 10))
    drive(other, draw_actions(other, 3, seed=4))
    other.load_state_dict(env.state_dict())
    assert unlike(env.current(), other.current()) == set()
    actions = draw_actions(env, 50, seed=5)
    expected = drive(env, actions)
    assert unlike(expected, drive(other, actions)) == set()
    assert expected["next", "done"].sum() >= 4 * 4
    assert env.metrics() == other.metrics()


# Faults.


def assert_only_faulty(env, twin, faulty, action, bad_action):
    """Step both; check that one environment is cut out and the others notice nothing."""
    last = groups(env, env.current())
    expected, seen = transition(twin, action)["next"], transition(env, bad_action)["next"]
    others = torch.arange(env.num_envs) != faulty
    assert seen["fault"][:, 0].tolist() == [not other for other in others]
    assert unlike(expected[others], seen[others]) == set()
    assert seen["truncated"][faulty] and not seen["terminated"][faulty]
    assert seen["reward"][faulty] == 0.0
    assert torch.equal(groups(env, seen)[faulty], last[faulty])  # what the fault made is not shown
    assert torch.isfinite(groups(env, env.current())).all()
    assert env.metrics()["env/num_trajectories"] == 0
    assert env.step_count[faulty] == 0
    (record,) = env.faults.take()
    assert record.env_id == faulty
    assert not drive(env, draw_actions(env, 3, seed=7))["next", "fault"].any()
    return record


@pytest.mark.usefixtures("endless")
def test_a_nan_action_faults_only_its_own_environment(name):
    env, twin = make(name, 8), make(name, 8)
    *past, action = draw_actions(env, 4)
    assert unlike(drive(env, past), drive(twin, past)) == set()
    bad = action.clone()
    bad[3, 0] = math.nan
    assert assert_only_faulty(env, twin, 3, action, bad).code == Fault.ACTION


@pytest.mark.usefixtures("endless")
def test_a_nan_state_faults_only_its_own_environment(name):
    env, twin = make(name, 8), make(name, 8)
    *past, action = draw_actions(env, 4)
    assert unlike(drive(env, past), drive(twin, past)) == set()
    env.sim.data.qpos[5, 0] = math.nan
    record = assert_only_faulty(env, twin, 5, action, action)
    assert record.code & (Fault.NONFINITE | Fault.WARNING)


# Engines.


@pytest.fixture(scope="module")
def on_warp(name):
    return make(name, 2, engine="warp", randomize=False, latency={})


def test_warp_runs_the_task_without_faults(on_warp):
    seen = drive(on_warp, draw_actions(on_warp, 3))
    assert not seen["next", "fault"].any()
    assert torch.isfinite(groups(on_warp, seen["next"])).all()
    first, last = groups(on_warp, seen["next"])[[0, -1]]
    assert (first != last).any(dim=1).all()


def test_warp_and_mujoco_agree_on_a_step(name, on_warp):
    exact = make(name, 2, randomize=False, latency={})
    drive(exact, draw_actions(exact, 2))
    on_warp.load_state_dict(exact.state_dict())
    action = draw_actions(exact, 1, seed=2)[0]
    expected, seen = transition(exact, action)["next"], transition(on_warp, action)["next"]
    one, other = vectors(exact, seen), vectors(exact, expected)
    apart = APART | APART_IN.get(name, {})
    atol = torch.tensor([apart.get(term, 2e-3) for term in owners(exact)])
    assert ((one - other).abs() <= atol + 1e-3 * other.abs()).all()
    for image in exact.groups.images:  # an edge may fall on the next pixel
        one, other = seen[image].float(), expected[image].float()
        assert ((one - other).abs() > 0.01 * other.max()).float().mean() < 0.01
    np.testing.assert_allclose(
        seen["reward"], expected["reward"], atol=apart.get("reward", 1e-3), rtol=1e-3
    )
    assert torch.equal(seen["terminated"], expected["terminated"])
    assert torch.equal(seen["success"], expected["success"])
