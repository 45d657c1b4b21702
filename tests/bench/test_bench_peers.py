"""The programme that measures ours beside others, with doubles in place of the others."""

import argparse
import contextlib
import importlib.util
import io
import json
import pathlib
import stat
import subprocess
import sys
import textwrap
import time
import types

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
ARGS = argparse.Namespace(num_envs=3, seconds=1e-6, more=[])


@pytest.fixture
def load(monkeypatch):
    """Return what loads a script as a module; each finds the protocol beside it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name):
        found = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module

    return load


def script(path, text):
    path.write_text(textwrap.dedent(text))
    return path.name


DOUBLE = f"""
    import os, sys
    sys.path.insert(0, {str(SCRIPTS)!r})
    from peer_protocol import parse, serve

    def prepare():
        print("a table of mine")
        os.write(1, b"and what a library of C writes")
        return {{
            "env": lambda: RATE * args.num_envs,
            "substeps": lambda: len(args.more),
            "published": lambda: {{"samples": 7200000, "from": os.environ["WARP_CACHE_PATH"]}},
        }}

    args = parse(__doc__)
    serve(("torch",), prepare)
"""


def double(path, rate):
    return script(path, '"""A double."""\n' + textwrap.dedent(DOUBLE).replace("RATE", str(rate)))


def run(bench, monkeypatch, *words):
    """Return the exit code of the programme and what it prints."""
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", *words])
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            bench.main()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def test_what_is_not_there_is_named_in_one_line(load, monkeypatch, tmp_path):
    bench = load("bench_peers")
    bare = tmp_path / "python"  # finds no package
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(bare.stat().st_mode | stat.S_IXUSR)
    for words, text in (
        ((), "give one or more of --sb3 PYTHON, --mjlab PYTHON, --playground PYTHON"),
        (("--mjlab", str(bare)), f"it has no mjlab==1.6.0; {bare} -m pip install mjlab==1.6.0"),
        (("--sb3", str(bare)), "-m pip install stable-baselines3 gymnasium mujoco"),
        (("--playground", str(tmp_path / "no")), "no: this is no Python that runs"),
        (("--mjlab", "python", "--envs", "0"), "--envs: '0' is not a whole number"),
        (("--mjlab", "python", "--seconds", "nan"), "--seconds: 'nan' is not a number above 0"),
    ):
        code, out, err = run(bench, monkeypatch, *words)
        assert code == 2 and out == "" and text in err and err.count("\n") == 1


def test_both_are_started_twice_take_turns_and_what_training_takes_is_predicted(
    load, monkeypatch, tmp_path
):
    bench = load("bench_peers")
    for name, rate in (("ours.py", 1000), ("theirs.py", 10)):
        double(tmp_path / name, rate)
    known = bench.Kind("theirs.py", ("torch",), "panda_lift_cube", ("robot",))
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "OURS", "ours.py")
    monkeypatch.setitem(bench.PEERS, "mjlab", known)
    monkeypatch.setattr(bench, "cpu_seconds", lambda pid: time.perf_counter())
    words = ("--mjlab", sys.executable, "--envs", "20", "--rounds", "3", "seed=4")
    code, out, err = run(bench, monkeypatch, *words)
    assert code == 0, err
    out = json.loads(out)
    figures = out["mjlab"]
    assert set(out) == {"load_average", "ours", "mjlab"} and "torch" in figures["versions"]
    assert figures["env_ours_per_s"] == [20000.0] * 3 and figures["env_peer_per_s"] == [200.0] * 3
    assert figures["env_ratio_per_s"] == [100.0] * 3
    assert figures["num_envs"] == 20 and figures["our_task"] == "panda_lift_cube"
    assert figures["substeps"] == {"ours": 2, "peer": 1}  # task= and seed=; the robot
    starts = figures["start_s_and_cpu_s"]
    assert [len(starts[who]) for who in ("ours", "peer")] == [2, 2]
    predicted = figures["predicted"]
    assert predicted["hours"] == 10.0 and predicted["samples"] == 7200000  # 7.2e6 / 200 / 3600
    assert predicted["what"].startswith("predicted, not measured")
    assert pathlib.Path(predicted["from"]).name == "mjlab"  # kernels go to a folder of the run
    assert not pathlib.Path(predicted["from"]).parent.exists()


def test_rates_are_of_the_clock_and_of_processor_time_and_ratios_of_the_same_round(
    load, monkeypatch
):
    bench = load("bench_peers")
    now, used = [0.0], {1: 0.0, 2: 0.0}  # s
    monkeypatch.setattr(bench, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(bench, "cpu_seconds", used.__getitem__)

    def measured(pid, cores, rates):
        values = iter(rates)

        def measure():
            now[0] += 2.0
            used[pid] += 2.0 * cores
            return next(values)

        return measure, pid

    mine, peer = (
        measured(1, 2.0, [1e6, 40.0, 60.0, 90.0]),
        measured(2, 0.5, [1.0, 20.0, 10.0, 30.0]),
    )
    out = bench.compare("env", mine, peer, rounds=3)
    assert out == {
        "env_ours_per_s": [40.0, 60.0, 90.0],
        "env_peer_per_s": [10.0, 20.0, 30.0],
        "env_ratio_per_s": [2.0, 3.0, 6.0],
        "env_ours_per_cpu_s": [20.0, 30.0, 45.0],
        "env_peer_per_cpu_s": [20.0, 40.0, 60.0],
        "env_ratio_per_cpu_s": [0.5, 0.75, 1.5],
    }


def test_whole_steps_are_counted_and_not_the_first(load, monkeypatch):
    protocol = load("peer_protocol")
    now, seen = [0.0], []
    monkeypatch.setattr(protocol, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def step(action):
        now[0] += 0.4 if seen else 100.0  # the first compiles
        seen.append(action)

    measure = protocol.stepping(step, "ab", num_envs=8, seconds=1.0)
    assert seen == ["a"]
    assert measure() == pytest.approx(8 * 3 / 1.2)
    assert seen == ["a", "b", "a", "b"]


def test_only_answers_reach_standard_output(tmp_path):
    double(tmp_path / "theirs.py", 2)
    line = [sys.executable, str(tmp_path / "theirs.py"), "--num-envs=4", "--seconds=1", "x"]
    done = subprocess.run(line, input="env\nsubsteps\n", capture_output=True, text=True, check=True)
    versions, *answers = map(json.loads, done.stdout.splitlines())
    assert list(versions) == ["torch"] and answers == [8, 1]
    assert "a table of mine" in done.stderr and "library of C" in done.stderr


def test_ours_steps_the_task_that_it_is_told(load):
    kinds = load("peer_ours").prepare(
        argparse.Namespace(num_envs=3, seconds=0.02, more=["task=panda_pick_cube", "num_envs=7"])
    )
    assert kinds["substeps"]() == 4 and kinds["env"]() > 3.0


def test_mjlabs_environment_is_on_the_cpu_and_its_own_configuration_says_how_long(
    load, monkeypatch
):
    seen = []

    class Env:
        def __init__(self, cfg, device):
            seen.append((cfg.scene.num_envs, device))
            self.action_manager = types.SimpleNamespace(total_action_dim=7)

        def reset(self):
            seen.append("reset")

        def step(self, action):
            assert action.shape == (3, 7) and action.abs().max() <= 1.0
            seen.append("step")

    cfg = types.SimpleNamespace(scene=types.SimpleNamespace(num_envs=1), decimation=4)
    learning = types.SimpleNamespace(max_iterations=5, num_steps_per_env=11)
    modules = {
        "mjlab": {},
        "mjlab.tasks": {},
        "mjlab.envs": {"ManagerBasedRlEnv": Env},
        "mjlab.tasks.registry": {
            "load_env_cfg": {"Mjlab-Lift-Cube-Yam": cfg}.__getitem__,
            "load_rl_cfg": {"Mjlab-Lift-Cube-Yam": learning}.__getitem__,
        },
    }
    install(monkeypatch, modules)
    kinds = load("peer_mjlab").prepare(ARGS)
    assert seen == [(3, "cpu"), "reset", "step"]
    assert kinds["env"]() > 0.0 and seen[3:] == ["step"] * len(seen[3:]) != []
    assert kinds["substeps"]() == 4
    assert kinds["published"]()["samples"] == 5 * 11 * 3


def test_playgrounds_scene_has_our_robot_and_its_step_is_compiled_once(load, monkeypatch, tmp_path):
    jax = pytest.importorskip("jax")
    panda, traced = types.SimpleNamespace(), []
    (tmp_path / "panda.xml").write_text("<robot/>")

    class Cube:
        action_size, n_substeps = 8, 4

        def __init__(self, config_overrides):
            assert config_overrides == {"impl": "jax"}
            self.assets = panda.get_assets()
            made.append(self)

        def reset(self, keys):
            return {
                "x": jax.numpy.asarray(1.0),
                "y": keys[:, 0] * 0.0,
            }  # x is weakly typed, as Playground's are

        def step(self, state, action):
            traced.append(action.shape)
            return {"x": state["x"] + action.sum(), "y": state["y"] + 1.0}

    class Wrapper:
        def __init__(self, env, episode_length, action_repeat):
            assert (episode_length, action_repeat) == (150, 1)
            self.reset, self.step = env.reset, env.step

    made, franka = [], "mujoco_playground._src.manipulation.franka_emika_panda"
    default = types.SimpleNamespace(episode_length=150, action_repeat=1)

    def update_assets(found, folder, glob):
        assert folder == tmp_path / "manipulation" / "franka_emika_panda" / "xmls"
        found |= {"scene.xml": b"<scene/>", "mjx_panda.xml": b"no"}

    install(
        monkeypatch,
        {
            "mujoco_playground": {"wrapper": types.SimpleNamespace(wrap_for_brax_training=Wrapper)},
            "mujoco_playground._src": {},
            "mujoco_playground._src.mjx_env": {
                "ROOT_PATH": tmp_path,
                "update_assets": update_assets,
            },
            "mujoco_playground._src.manipulation": {},
            franka: {
                "panda": panda,
                "pick": types.SimpleNamespace(PandaPickCube=Cube, default_config=lambda: default),
            },
            "mujoco_playground.config": {},
            "mujoco_playground.config.manipulation_params": {
                "brax_ppo_config": {"PandaPickCube": types.SimpleNamespace(num_timesteps=77)}.get
            },
        },
    )
    args = argparse.Namespace(num_envs=3, seconds=0.01, more=[str(tmp_path / "panda.xml")])
    kinds = load("peer_playground").prepare(args)
    assert made[0].assets == {"scene.xml": b"<scene/>", "mjx_panda.xml": b"<robot/>"}
    assert kinds["env"]() > 0.0 and traced == [(3, 8)]
    assert kinds["substeps"]() == 4 and kinds["published"]()["samples"] == 77


def install(monkeypatch, modules):
    """Let `import` find these modules: name -> what is in it."""
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
