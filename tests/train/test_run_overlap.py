"""A run with `overlap=true`: the same again after a stop, and what goes wrong while it learns."""

import shutil
import signal
import threading
import types

import pytest
import torch

from penspin_style.__main__ import main
from penspin_style.algo.ppo import PPO
from penspin_style.env.env import Env
from penspin_style.train import folder as run_folder
from penspin_style.train.checkpoint import Checkpoints
from penspin_style.train.collection import Collection
from penspin_style.train.compose import compose_train
from tests.support import training
from tests.support.small_run import (
    ITERATION,
    NOISY,
    SMALL,
    after_iteration,
    fit,
    make,
    weights_sha256,
)
from tests.support.training import manifest, rows, untimed

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = ("sim.nthread=1", "learn_threads=1", "keep_last=9", "final_episodes=1")
BRIEF = (*NOISY, *ONE, "eval_episodes=2", "task.episode_length=20")
AHEAD = (*BRIEF, f"total_samples={4 * ITERATION}", "overlap=true")
GRPO = (
    *("task=panda_lift_cube", "algo=grpo", "num_envs=4", "algo.group_size=2", "algo.horizon=3"),
    *("algo.hidden=[16]", "total_samples=36", "eval_every=0", "checkpoint_every=1"),
)
DISTILL = (
    *("task=panda_lift_cube_vision", "num_envs=2", "algo.horizon=2", "algo.minibatch_size=4"),
    *("algo.replay_capacity=6", "algo.beta_iterations=2", "task.episode_length=3"),
    *("eval_every=0", "checkpoint_every=1", "algo.hidden=[16]", "algo.latent=8"),
    "total_samples=12",
)
COMMON = (*ONE, "overlap=true", "loggers=[csv]", "video=false")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), *AHEAD)


def check_same(resumed, whole, iterations):
    for i in iterations:
        assert manifest(resumed, i) == manifest(whole, i)
    assert untimed(resumed) == untimed(whole)


@pytest.mark.parametrize("k", [1, 2])
def test_a_run_that_was_stopped_and_resumed_is_the_unbroken_one_bit_for_bit(whole, tmp_path, k):
    stopped = make(tmp_path, *AHEAD)
    after_iteration(stopped, k, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped.fit(quiet=True) == 4
    check_same(fit(tmp_path, *AHEAD, "resume=true"), whole, range(5))


def while_collecting(run, iteration, work):
    """Call `work` in an iteration's learning, once the actor stands in the batch's third step."""
    process, step = run.algo.process, run.env.step_and_maybe_reset
    inside, done, steps = threading.Event(), threading.Event(), [0]

    def hold(td):
        steps[0] += 1
        if steps[0] == iteration * 8 + 3:  # of the batch after this iteration's
            assert threading.current_thread() is not threading.main_thread()
            inside.set()
            assert done.wait(60)
        return step(td)

    def learn(batch):
        if run.iteration + 1 == iteration:
            assert inside.wait(60)
            work()
            done.set()
        process(batch)

    run.env.step_and_maybe_reset, run.algo.process = hold, learn


def test_a_signal_while_both_are_at_work_saves_and_the_resume_is_exact(whole, tmp_path, capsys):
    stopped = make(tmp_path, *AHEAD)
    while_collecting(stopped, 2, lambda: signal.raise_signal(signal.SIGINT))
    assert stopped.fit() == 4
    assert "signal 2: saved iteration 2; resume=true continues" in capsys.readouterr().err
    assert len(rows(stopped)) == 2
    check_same(fit(tmp_path, *AHEAD, "resume=true"), whole, range(5))


def test_a_finished_run_goes_on_as_if_it_had_not_ended_or_in_turns(whole, tmp_path):
    fit(tmp_path / "one", *AHEAD, f"total_samples={2 * ITERATION}")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    check_same(fit(tmp_path / "one", *AHEAD, "resume=true"), whole, range(5))
    off = ("overlap=false", "resume=true", "resume_changes=[overlap]")
    turns = fit(tmp_path / "two", *AHEAD, *off)
    assert [row["iteration"] for row in rows(turns)] == list("1234")
    assert untimed(turns)[:2] == untimed(whole)[:2]
    assert weights_sha256(turns) != weights_sha256(whole)
    assert turns.checkpoints.newest()[1]["collection"] == {}


@pytest.mark.parametrize(
    "overrides", [GRPO, pytest.param(DISTILL, marks=pytest.mark.slow)], ids=["grpo", "distill"]
)
def test_others_that_collect_ahead_resume_exactly_too(tmp_path, overrides):
    whole = training.fit(tmp_path / "whole", *overrides, *COMMON)
    stopped = training.make(tmp_path / "other", *overrides, *COMMON)
    after_iteration(stopped, 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped.fit(quiet=True) == 4
    resumed = training.fit(tmp_path / "other", *overrides, *COMMON, "resume=true")
    check_same(resumed, whole, range(2, whole.iteration + 1))
    if overrides is DISTILL:  # the teacher's share is that of the batch, not of the weights
        betas = [float(row["train/beta"]) for row in rows(whole)]
        assert betas == [1.0, 0.5, 0.0]


def test_the_first_iteration_is_that_in_turns_and_later_ones_are_of_older_samples(whole, tmp_path):
    turns = fit(tmp_path, *BRIEF, f"total_samples={2 * ITERATION}")
    named = [{k for k in rows(run)[0] if k.startswith("time/")} for run in (whole, turns)]
    assert named[0] - named[1] == {"time/overlap"}
    other, own = untimed(turns), untimed(whole)
    for key, value in own[0].items():
        if not value:  # no episode has ended
            continue
        assert float(value) == pytest.approx(float(other[0][key]), rel=1e-3, abs=1e-5), key
    assert own[1]["rollout/rewards"] != other[1]["rollout/rewards"]
    for row in rows(whole):
        assert 0.0 < float(row["time/overlap"]) <= float(row["time/update"])


# What goes wrong.


@pytest.mark.parametrize("overlap", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_error_in_a_batch_surfaces_where_it_would_have_been_learned_from(
    whole, tmp_path, monkeypatch, overlap
):
    run = make(tmp_path, *AHEAD, f"overlap={overlap}")
    step, steps = Env.step_and_maybe_reset, [0]

    def broken(self, td):
        if self is run.env:
            steps[0] += 1
            if steps[0] == 2 * 8 + 4:  # in the third batch
                raise RuntimeError("the engine is gone")
        return step(self, td)

    with monkeypatch.context() as patch:
        patch.setattr(Env, "step_and_maybe_reset", broken)
        with pytest.raises(RuntimeError, match="the engine is gone"):
            run.fit(quiet=True)
    assert [row["iteration"] for row in rows(run)] == ["1", "2"]
    assert run.checkpoints.newest()[0].name == "00000002"
    if overlap:
        check_same(fit(tmp_path, *AHEAD, "resume=true"), whole, range(5))


def spoiled_actions(monkeypatch, batches):
    """Make the first environment's action NaN in the first step of these batches, from 1 on."""
    act, calls = PPO.act, [0]

    def spoiled(self, td):
        td = act(self, td)
        calls[0] += 1
        if calls[0] % 8 == 1 and calls[0] // 8 + 1 in batches:
            td["action"][0] = float("nan")
        return td

    monkeypatch.setattr(PPO, "act", spoiled)


def test_faults_are_counted_in_the_iteration_that_learns_from_them_and_too_many_end_it(
    tmp_path, monkeypatch, capsys
):
    """One of 16 environments, in one of ten iterations, is 0.6 %; in two it is 1.2 %."""
    spoiled_actions(monkeypatch, {1, 3})
    overrides = ["train", "name=run", "task=panda_lift_cube", *SMALL, *BRIEF, "eval_every=0"]
    assert main([*overrides, f"out={tmp_path}", "overlap=true"]) == 3
    assert "1.2% of the environments were faulty" in capsys.readouterr().err
    checkpoints = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints")
    folder, state, messages = checkpoints.newest()
    assert (folder.name, messages) == ("00000002", [])
    assert state["run"]["faulty"] == [1 / 16, 0.0]
    names = sorted(f.name for f in (folder.parents[1] / "faults").glob("*.npz"))
    assert names == ["00000001-env0-ACTION.npz", "00000003-env0-ACTION.npz"]


def test_learning_that_diverges_goes_back_and_collects_the_same_batch_again(
    whole, tmp_path, capsys
):
    run = make(tmp_path, *AHEAD)
    losses, calls = run.algo._losses, [0]

    def spoiled(batch):
        loss, metrics = losses(batch)
        calls[0] += 1
        return (loss * float("nan") if 34 < calls[0] <= 39 else loss), metrics  # 16 an iteration

    run.algo._losses = spoiled
    assert run.fit() == 0
    assert "rolled back to 00000002 with half the learning rate" in capsys.readouterr().err
    assert [row["iteration"] for row in rows(run)] == list("1234")
    assert untimed(run)[:2] == untimed(whole)[:2]
    assert untimed(run)[2]["rollout/rewards"] == untimed(whole)[2]["rollout/rewards"]
    assert untimed(run)[3] != untimed(whole)[3]


def test_a_stage_of_a_curriculum_begins_with_a_batch_of_its_own(tmp_path):
    stages = "curriculum=[{task:{episode_length:10},samples:256},{}]"
    own = (*AHEAD, stages, "eval_every=0")
    whole = fit(tmp_path / "whole", *own)
    state = whole.checkpoints.load(whole.checkpoints.folder / "00000002")
    assert state["collection"]["in_flight"] is False
    stopped = make(tmp_path / "other", *own)
    after_iteration(stopped, 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped.fit(quiet=True) == 4
    check_same(fit(tmp_path / "other", *own, "resume=true"), whole, range(2, 5))


# What is refused.

REFUSED = {
    "algo=sac": "algo=sac collects and learns in turns; leave it out, or choose among distill, "
    "grpo, ppo",
    "task=panda_lift_cube_vision algo=clone": "algo=clone collects and learns in turns",
    "launcher=ray": "with launcher=ray say rollout.pipeline_stage_num=2 instead",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_collected_ahead_is_refused_in_one_line(tmp_path, line, capsys):
    assert main(["train", *line.split(), "overlap=true", f"out={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert REFUSED[line] in err and err.count("\n") == 1


def test_a_run_from_before_there_was_overlap_goes_on_in_turns_without_a_word(tmp_path):
    resolved = compose_train(["task=panda_lift_cube"])[2]
    assert resolved.count("overlap: false\n") == 1
    (tmp_path / "config.yaml").write_text(resolved.replace("overlap: false\n", ""))
    assert run_folder.changes(tmp_path, resolved) == {}
    ahead = compose_train(["task=panda_lift_cube", "overlap=true"])[2]
    assert run_folder.changes(tmp_path, ahead) == {"overlap": ("absent", "True")}


def test_several_processes_are_refused(tmp_path, monkeypatch, capsys):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert main(["train", "task=panda_lift_cube", "overlap=true", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        "penspin: overlap=true is for one process, and torchrun has started 2; leave one of them "
        "out\n"
    )


@pytest.mark.parametrize(
    ("device", "collects", "said"),
    [
        ("cuda:0", True, "overlap=true: on device=cuda:0 simulation and learning take turns"),
        ("cpu", False, "overlap=true: algo=distill as configured collects nothing"),
    ],
)
def test_where_nothing_would_overlap_it_is_refused(device, collects, said):
    cfg = types.SimpleNamespace(overlap=True, algo=types.SimpleNamespace(name="distill"))
    env = types.SimpleNamespace(device=torch.device(device))
    with pytest.raises(ValueError, match=said):
        Collection.make(cfg, types.SimpleNamespace(collects=collects), env)


# Who collects.


def test_a_batch_is_acted_by_the_weights_before_the_last_update(tmp_path):
    run = make(tmp_path, *NOISY, "overlap=true")
    run._lock.close()
    collection, algo, env = run.collection, run.algo, run.env
    first = collection.next(env)
    before = {k: v.clone() for k, v in algo.policy.state_dict().items()}
    noise = algo.rng.get_state()
    with collection.ahead(env):
        pass
    assert torch.equal(algo.rng.get_state(), noise)  # the actor's noise is another generator's
    with pytest.raises(AssertionError):
        torch.testing.assert_close(collection.next(env)["action"], first["action"])
    with collection.ahead(env):
        algo.process(first)
        algo.update()
    batch = collection.next(env)
    after = algo.policy.state_dict()
    assert not torch.equal(after["normalizer.mean"], before["normalizer.mean"])
    now = algo.policy(batch["teacher"]).loc
    assert (now - batch["loc"]).abs().max() > 1e-3
    algo.policy.load_state_dict(before)
    torch.testing.assert_close(algo.policy(batch["teacher"]).loc, batch["loc"])


def test_nothing_is_collected_ahead_before_there_are_statistics(tmp_path):
    run = make(tmp_path, "overlap=true")
    run._lock.close()
    steps = run.env.step_count.clone()
    with run.collection.ahead(run.env):
        pass
    assert torch.equal(run.env.step_count, steps)
    assert run.collection.state_dict()["in_flight"] is False
    run.collection.next(run.env)
    with run.collection.ahead(run.env):
        pass
    assert run.collection.state_dict()["in_flight"] is True


def test_a_batch_that_is_dropped_has_never_begun(tmp_path):
    run = make(tmp_path, *NOISY, "overlap=true")
    run._lock.close()
    run.collection.next(run.env)
    before, noise = run.env.state_dict(), run.collection.state_dict()["actor"]["rng"]
    with run.collection.ahead(run.env):
        pass
    assert not torch.equal(run.env.sim.get_state(), before["sim"])
    run.collection.drop(run.env)
    after = run.env.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    state = run.collection.state_dict()
    assert state["in_flight"] is False and torch.equal(state["actor"]["rng"], noise)
