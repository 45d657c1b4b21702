"""The arithmetic of the benchmarks: who is called when, and what becomes of the times."""

import itertools

import pytest
import torch

from penspin_style.bench import sim_train
from penspin_style.config import TrainConfig
from penspin_style.sim.batch_sim import BatchSim
from penspin_style.train.compose import compose_train


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""
    now = [0.0]
    monkeypatch.setattr(sim_train.time, "perf_counter", lambda: now[0])
    return now


def test_contenders_take_turns_and_the_first_round_does_not_count(clock):
    said = []

    def contender(name, seconds):
        def call(i):
            said.append((name, i))
            clock[0] += next(seconds)

        return call

    def prepare():
        said.append("prepare")
        clock[0] += 100.0

    def finish():
        clock[0] += 1.0

    slow = itertools.chain([50.0] * 2, itertools.repeat(1.5))
    speeds = sim_train.alternate(
        {"slow": contender("slow", slow), "quick": contender("quick", itertools.repeat(0.5))},
        *(3, 2),
        prepare=prepare,
        finish=finish,
    )
    turn = ["prepare", ("slow", 0), ("slow", 1), "prepare", ("quick", 0), ("quick", 1)]
    assert said == turn * 4
    # two calls in 2 * 1.5 + 1 and in 2 * 0.5 + 1 seconds
    assert speeds == {"slow": [0.5] * 3, "quick": [1.0] * 3}


def test_a_report_holds_medians_of_ratios_of_the_same_round_and_rates_of_all_environments():
    speeds = {"ours": [1.0, 2.0, 6.0], "base": [2.0, 1.0, 2.0]}
    report = sim_train.report(TrainConfig(num_envs=10), speeds, {"ratio": ("ours", "base")})
    assert report["num_envs"] == 10
    assert report["ratio"] == 2.0 and report["ratio_spread"] == [0.5, 3.0]
    assert report["ours_per_s"] == [10, 20, 60] and report["base_per_s"] == [10, 20, 20]
    frames = sim_train.report(TrainConfig(num_envs=10), speeds, {}, per_env=3, unit="frames_")
    assert frames["ours_frames_per_s"] == [30, 60, 180]
    assert set(frames) == {"num_envs", "cores", "ours_frames_per_s", "base_frames_per_s"}


def test_what_makes_a_call_ready_does_not_count(clock):
    said = []

    def ready(i):
        said.append(("ready", i))
        clock[0] += 100.0

    def call(i):
        said.append(("call", i))
        clock[0] += 0.5

    speeds = sim_train.alternate({"x": call}, 2, 2, prepare=lambda: None, ready={"x": ready})
    assert said == [("ready", 0), ("call", 0), ("ready", 1), ("call", 1)] * 3
    assert speeds == {"x": [2.0] * 2}


@pytest.mark.parametrize("task", ["pen_spin", "panda_lift_cube", "panda_pick_cube"])
def test_the_engine_alone_goes_the_environments_way_bit_for_bit(task):
    """Through restarts, new parameters and inputs that change within a control step."""
    cfg, which, _ = compose_train([f"task={task}", "num_envs=6", "device=cpu"])
    env = sim_train.make_env(cfg, which)
    env.step_count.copy_(env.cfg.episode_length - torch.arange(1, 7))  # each restarts in its step
    actions = 2.0 * torch.rand(8, 6, len(env.task.actions), generator=env.rng) - 1.0
    start, root, done = env.state_dict(), env.current(), []

    def walk(i):
        nonlocal root
        transition, root = env.step_and_maybe_reset(root.set("action", actions[i]))
        done.append(transition["next", "done"].view(-1))

    tape = sim_train.Tape(env, walk, 8)
    same, other = ~done[-1], torch.stack(done).any(dim=0)
    assert same.any() and other.all()
    end = env.sim.get_state()
    for play in (tape.bare, tape.staged):
        env.load_state_dict(start)
        for i in range(8):
            tape.ready(i)
            play(i)
        assert torch.equal(env.sim.get_state()[same], end[same])


def test_the_walk_behind_a_tape_is_the_usual_one():
    """Listening changes nothing, and the environment has its own simulation back."""
    cfg, which, _ = compose_train(["task=panda_lift_cube", "num_envs=2", "device=cpu"])
    heard, plain = (sim_train.make_env(cfg, which) for _ in range(2))
    action = torch.full((2, len(plain.task.actions)), 0.5)

    def step(env):
        env.step_and_maybe_reset(env.current().set("action", action))

    sim_train.Tape(heard, lambda _: step(heard), 3)
    for _ in range(3):
        step(plain)
    assert isinstance(heard.sim, BatchSim)
    assert torch.equal(heard.sim.get_state(), plain.sim.get_state())
