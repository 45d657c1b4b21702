"""The benchmarks of simulation and training: the engine alone does the same work."""

import types

import pytest
import torch

from penspin_style.bench import sim_train
from penspin_style.bench.alternate import make_env
from penspin_style.bench.sim_train import Tape, train
from penspin_style.sim.batch_sim import BatchSim
from penspin_style.train.compose import compose_train


@pytest.mark.parametrize("task", ["pen_spin", "panda_lift_cube", "panda_pick_cube"])
def test_the_engine_alone_goes_the_environments_way_bit_for_bit(task):
    """Through restarts, new parameters and inputs that change within a control step."""
    cfg, which, _ = compose_train([f"task={task}", "num_envs=6", "device=cpu"])
    env = make_env(cfg, which)
    env.step_count.copy_(env.cfg.episode_length - torch.arange(1, 7))  # each restarts in its step
    actions = 2.0 * torch.rand(8, 6, len(env.task.actions), generator=env.rng) - 1.0
    start, root, done = env.state_dict(), env.current(), []

    def walk(i):
        nonlocal root
        transition, root = env.step_and_maybe_reset(root.set("action", actions[i]))
        done.append(transition["next", "done"].view(-1))

    tape = Tape(env, walk, 8)
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
    heard, plain = (make_env(cfg, which) for _ in range(2))
    action = torch.full((2, len(plain.task.actions)), 0.5)

    def step(env):
        env.step_and_maybe_reset(env.current().set("action", action))

    Tape(heard, lambda _: step(heard), 3)
    for _ in range(3):
        step(plain)
    assert isinstance(heard.sim, BatchSim)
    assert torch.equal(heard.sim.get_state(), plain.sim.get_state())


@pytest.mark.parametrize(
    "algo", [("task=panda_lift_cube", "algo=ppo"), ("task=pen_spin_student", "algo=distill")]
)
def test_any_algorithm_that_collects_is_measured(algo, monkeypatch):
    small = ("num_envs=4", "device=cpu", "algo.horizon=2")
    cfg, which, _ = compose_train([*algo, *small, "learn_threads=1"])
    found = train(cfg, which, rounds=1, steps=3)
    assert found["train_per_s"][0] > 0 and found["ratio"] > 0
    recorded = types.SimpleNamespace(collects=False)
    monkeypatch.setattr(sim_train, "make_algorithm", lambda *_, **settings: recorded)
    with pytest.raises(ValueError, match="collects nothing"):
        train(cfg, which, rounds=1, steps=3)
