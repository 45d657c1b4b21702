"""What a training run promises: exact resumption, no lost checkpoint, quarantined faults.

`PENSPIN_FULL=1 pytest tests/test_run.py -k sigkill -s` kills 20 times instead of 4 and prints what
the kills hit.
"""

import csv
import errno
import hashlib
import itertools
import json
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import mujoco
import numpy as np
import pytest
import torch

from penspin_style import interrupt, run_faults
from penspin_style.__main__ import main
from penspin_style.algo.algorithm import MAX_SKIPPED
from penspin_style.algo.ppo import PPO
from penspin_style.checkpoint import Checkpoints
from penspin_style.run import FaultyRunError
from penspin_style.sim.sim import Fault
from penspin_style.storage import MANIFEST
from tests import training
from tests.training import manifest, rows, untimed

ROOT = pathlib.Path(__file__).parent.parent
FULL = os.environ.get("PENSPIN_FULL") == "1"
ITERATION = 16 * 8
SMALL = (
    *("num_envs=16", "algo.horizon=8", "eval_every=2", "eval_episodes=4", "final_episodes=4"),
    *("checkpoint_every=1", "loggers=[csv]", "video=false", f"total_samples={6 * ITERATION}"),
)
NOISY = tuple(
    f"task.observation.teacher.box_pos.{word}"
    for word in ("noise=0.005", "delay=[0,2]", "history=2")
)
VARIANTS = {"plain": (), "noisy": NOISY}


pytestmark = pytest.mark.usefixtures("one_thread")


def make(out, *words):
    return training.make(out, "task=panda_lift_cube", *SMALL, *words)


def fit(out, *words):
    return training.fit(out, "task=panda_lift_cube", *SMALL, *words)


def weights_sha256(run):
    digest = hashlib.sha256()
    state = run.checkpoints.newest()[1]["algo"]
    for tree in (state["policy"], state["critic"], *state["optimizer"]["state"].values()):
        for name, tensor in tree.items():
            digest.update(str(name).encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def after_iteration(run, k, work):
    """Call `work` in the loop, when iteration k has been logged and before it is saved."""
    log = run._log

    def wrapped(*args):
        log(*args)
        if run.iteration == k:
            work()

    run._log = wrapped


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def spawn():
    """Start a training in a process of its own; none outlives the test."""
    children = []

    def start(out, *words):
        command = [sys.executable, "-m", "penspin_style", "train", *SMALL, f"out={out}", *words]
        children.append(
            subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=out)
        )
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()
        child.stderr.close()


def wait_for(condition, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


# The same again.


@pytest.fixture(scope="module", params=VARIANTS)
def unbroken(request, tmp_path_factory):
    return fit(tmp_path_factory.mktemp(request.param), *VARIANTS[request.param]), request.param


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_run_that_was_stopped_and_resumed_is_the_unbroken_one_bit_for_bit(unbroken, tmp_path, k):
    whole, variant = unbroken
    stopped = make(tmp_path, *VARIANTS[variant])
    after_iteration(stopped, k, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped.fit(quiet=True) == 4
    assert len(rows(stopped)) == k
    resumed = fit(tmp_path, *VARIANTS[variant], "resume=true")
    assert (resumed.iteration, whole.iteration) == (6, 6)
    for i in (4, 5, 6):  # weights, optimiser, generators, physics, observations' past, statistics
        assert manifest(resumed, i) == manifest(whole, i)
    assert weights_sha256(resumed) == weights_sha256(whole)
    assert untimed(resumed) == untimed(whole)


def test_the_comparison_could_fail(unbroken):
    """The state that is compared moves, episodes end in it, and the noise is really there."""
    run, variant = unbroken
    assert len({manifest(run, i) for i in (4, 5, 6)}) == 3
    assert [row["iteration"] for row in rows(run)] == list("123456")
    state = run.checkpoints.newest()[1]["env"]
    assert (state["step_count"] < 8).any(), "no restart in the last iteration"
    rings = [k for k in state if k.startswith("terms/") and k.endswith("ring")]
    assert len(rings) == (1 if variant == "noisy" else 0)
    assert state["last/teacher"].shape == (16, 25 if variant == "noisy" else 22)


def test_samples_add_up_over_a_resume_with_another_horizon(tmp_path):
    fit(tmp_path, *SMALL, f"total_samples={2 * ITERATION}")
    words = ("algo.horizon=4", f"total_samples={3 * ITERATION}", "resume=true")
    words = (*words, "resume_changes=[algo.horizon]")
    resumed = fit(tmp_path, *SMALL, *words)
    assert [int(row["samples"]) for row in rows(resumed)] == [128, 256, 320, 384]
    assert resumed.samples == 3 * ITERATION


@pytest.mark.parametrize("unbroken", ["noisy"], indirect=True)
def test_a_run_continues_in_another_process_bit_for_bit(unbroken, tmp_path, spawn):
    whole, _ = unbroken
    for words in ((f"total_samples={3 * ITERATION}",), ("resume=true",)):
        child = spawn(tmp_path, *NOISY, *words)
        _, err = child.communicate(timeout=300)
        assert child.returncode == 0, err
    folder = tmp_path / "panda_lift_cube" / "run"
    assert (folder / "checkpoints" / "00000006" / MANIFEST).read_text() == manifest(whole, 6)


@pytest.mark.parametrize(
    ("words", "equal"),
    [(("sim.nthread=1",), True), (("sim.nthread=2",), True), (("seed=1",), False)],
)
def test_the_seed_alone_decides_the_weights_not_the_number_of_threads(
    unbroken, tmp_path, words, equal
):
    whole, variant = unbroken
    again = fit(tmp_path, *VARIANTS[variant], *words)
    assert (weights_sha256(again) == weights_sha256(whole)) is equal
    assert (manifest(again, 6) == manifest(whole, 6)) is equal
    assert (untimed(again) == untimed(whole)) is equal


# Which folder, which run.


def test_a_run_is_not_written_over_and_nothing_is_resumed_that_is_not_there(tmp_path, capsys):
    words = ["train", *SMALL, f"out={tmp_path}", f"total_samples={ITERATION}"]
    assert main([*words, "resume=true"]) == 2
    assert "resume=true, but" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    fit(tmp_path, f"total_samples={ITERATION}")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "holds a run already: resume=true continues it, name=OTHER starts another" in err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_run_whose_checkpoints_are_all_damaged_exits_with_3_and_names_the_files(tmp_path, capsys):
    run = fit(tmp_path, f"total_samples={ITERATION}")
    for folder in run.checkpoints.published():
        with (folder / "state.safetensors").open("r+b") as file:
            file.seek(1000)
            byte = file.read(1)
            file.seek(1000)
            file.write(bytes([byte[0] ^ 1]))
    assert main(["train", *SMALL, f"out={tmp_path}", "resume=true"]) == 3
    err = capsys.readouterr().err
    assert err.count("state.safetensors does not match its checksum") == 2


def test_a_damaged_newest_checkpoint_is_passed_over_and_written_anew(tmp_path, capsys):
    whole = fit(tmp_path / "whole")
    run = make(tmp_path / "other")
    after_iteration(run, 4, lambda: signal.raise_signal(signal.SIGTERM))
    assert run.fit(quiet=True) == 4
    (run.checkpoints.folder / "00000004" / "state.json").write_text("{}")
    resumed = make(tmp_path / "other", "resume=true")
    assert resumed.fit() == 0
    err = capsys.readouterr().err
    assert "checkpoint 00000004 is damaged and passed over" in err
    assert "resuming from iteration 3" in err
    assert [manifest(resumed, i) for i in (4, 5, 6)] == [manifest(whole, i) for i in (4, 5, 6)]
    assert untimed(resumed) == untimed(whole)


def test_resuming_with_other_sizes_is_refused_with_the_run_s_own_words(tmp_path, capsys):
    run = fit(tmp_path, f"total_samples={ITERATION}")
    config = (run.folder / "config.yaml").read_text()
    for word, own in (("num_envs=8", "num_envs=16"), ("algo.hidden=[9]", "algo.hidden=[128,128]")):
        assert main(["train", *SMALL, f"out={tmp_path}", "resume=true", word]) == 2
        err = capsys.readouterr().err.splitlines()
        assert "was trained with" in err[-1] and own in err[-1]
        key = word.partition("=")[0]
        assert f"resume_changes=[{key}]" in err[-1]
        more = f"total_samples={2 * ITERATION}"
        leave = [word, more, f"resume_changes=[{key}]"]
        assert main(["train", *SMALL, f"out={tmp_path}", "resume=true", *leave]) == 2
        err = capsys.readouterr().err.splitlines()
        assert "does not fit this configuration; it was trained with" in err[-1]
        assert own in err[-1]
        assert (run.folder / "config.yaml").read_text() == config


def test_what_a_killed_writer_left_in_the_run_s_folder_is_removed_at_the_resume(tmp_path):
    run = fit(tmp_path, f"total_samples={ITERATION}")
    (run.folder / ".stage-policy").mkdir()
    (run.folder / ".stage-metrics.csv-0").write_text("half")
    (run.checkpoints.folder / ".stage-1").mkdir()
    fit(tmp_path, f"total_samples={2 * ITERATION}", "resume=true")
    assert not list(run.folder.rglob(".stage-*"))


def test_a_judged_policy_is_kept_between_two_checkpoints_and_others_carry_no_score(tmp_path):
    run = make(tmp_path, "checkpoint_every=3", "keep_last=9")
    scores = iter([0.25, 0.75, 0.5])  # after iterations 2, 4, 6
    judge = run.evaluate

    def evaluate(episodes, seed):
        from dataclasses import replace

        return replace(judge(episodes, seed), success_rate=next(scores, 0.75))

    run.evaluate = evaluate
    assert run.fit(quiet=True) == 0
    kept = {
        int(f.name): json.loads((f / MANIFEST).read_text())["score"]
        for f in run.checkpoints.published()
    }
    assert kept == {0: None, 2: 0.25, 3: None, 4: 0.75, 6: 0.5}
    assert run.checkpoints.best().name == "00000004"
    best = run.checkpoints.load(run.checkpoints.best())["algo"]["policy"]
    assert all(torch.equal(v, best[k]) for k, v in run.algo.policy.state_dict().items())


def test_a_damaged_best_checkpoint_costs_the_best_policy_but_not_the_run(tmp_path, capsys):
    run = make(tmp_path, "keep_last=1", f"total_samples={3 * ITERATION}")
    after_iteration(run, 3, lambda: (run.checkpoints.folder / "00000002" / "state.json").unlink())
    assert run.fit() == 0
    assert "state.json is missing; the policy is the last one" in capsys.readouterr().err
    assert (run.folder / "policy" / "card.json").exists()


# Killed and interrupted.


def test_sigkill_at_any_moment_loses_at_most_the_iteration_under_way(tmp_path, spawn):
    """One child after the other continues the run and is killed, every other inside a save."""
    kills, seed = (20 if FULL else 4), int(os.environ.get("PENSPIN_SEED", "0"))
    draw = random.Random(seed)
    checkpoints = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints")
    newest = in_save = damaged = lost = 0
    words = ("eval_every=0", "total_samples=1000000000")
    for kill in range(kills):
        child = spawn(tmp_path, *words, *(["resume=true"] if kill else []))
        first = newest
        wait_for(lambda c=child, f=first: _iteration(checkpoints) > f or c.poll() is not None)
        assert child.poll() is None, child.stderr.read()
        time.sleep(draw.uniform(0.1, 3.0 if FULL else 1.0))
        if kill % 2:
            wait_for(lambda: any(checkpoints.folder.glob(".stage-*")))
        seen = _iteration(checkpoints)
        child.kill()
        child.communicate()
        in_save += any(checkpoints.folder.glob(".stage-*"))
        folder, state, messages = checkpoints.newest()
        damaged += len(messages)
        newest = int(folder.name)
        lost += newest < seen
        assert state["run"]["iteration"] == newest > first
    total = newest + 2
    last = make(tmp_path, "eval_every=0", f"total_samples={total * ITERATION}", "resume=true")
    assert last.fit(quiet=True) == 0
    print(
        f"\nsigkill, seed {seed}: {kills} kills, {in_save} inside a save, {damaged} damaged, "
        f"{lost} lost, {newest} iterations, resumed {kills} of {kills}"
    )
    assert (damaged, lost) == (0, 0)
    assert in_save >= kills // 4
    assert [int(row["iteration"]) for row in rows(last)] == list(range(1, total + 1))
    whole = fit(tmp_path / "whole", "eval_every=0", f"total_samples={total * ITERATION}")
    assert manifest(last, total) == manifest(whole, total)


def _iteration(checkpoints):
    published = checkpoints.published()
    return int(published[-1].name) if published else -1


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_saves_the_iteration_under_way_and_exits_with_4(tmp_path, spawn, number, capsys):
    words = ("total_samples=1000000000", "num_envs=64", "algo.horizon=40")
    checkpoints = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints")
    seconds, newest = [], 0
    for k in range(20 if FULL else 1):
        child = spawn(tmp_path, *words, *(["resume=true"] if k else []))
        wait_for(lambda c=child, n=newest: _iteration(checkpoints) > n or c.poll() is not None)
        if k == 0:
            _check_that_the_folder_is_taken(tmp_path, words, capsys)
        began = time.monotonic()
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        seconds.append(time.monotonic() - began)
        assert child.returncode == 4
        iteration = int(re.search(rf"signal {int(number)}: saved iteration (\d+)", err)[1])
        folder, _, messages = checkpoints.newest()
        assert (int(folder.name), messages) == (iteration, [])
        assert iteration > newest
        newest = iteration
    middle, most = np.median(seconds), max(seconds)
    print(f"\n{len(seconds)} {number.name}: exit 4, median {middle:.2f} s, at most {most:.2f} s")
    assert most <= 20.0


def _check_that_the_folder_is_taken(out, words, capsys):
    """Two more processes want it: one to continue the run, one to begin another."""
    for word, says in (("resume=true", "another process trains"), ("seed=0", "holds a run")):
        assert main(["train", *SMALL, *words, f"out={out}", word]) == 2
        printed, err = capsys.readouterr()
        assert printed == "" and err.count("\n") == 1 and says in err


def test_a_second_signal_ends_the_process_at_once_and_harms_no_checkpoint(tmp_path, spawn):
    # an iteration of minutes: the first signal alone would wait for its end
    child = spawn(tmp_path, "total_samples=1000000000", "algo.horizon=100000")
    checkpoints = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints")
    wait_for(lambda: _iteration(checkpoints) == 0 or child.poll() is not None)
    time.sleep(1.0)  # let the iteration begin
    child.send_signal(signal.SIGTERM)
    assert child.stderr.readline() == (
        "signal 15: saving after this iteration; a second signal ends at once\n"
    )
    time.sleep(0.1)
    assert child.poll() is None
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    took = time.monotonic() - began
    print(f"\nsecond SIGTERM: exit {child.returncode} after {took:.2f} s")
    assert child.returncode == 128 + signal.SIGTERM
    assert took < 2.0
    assert checkpoints.newest()[2] == []


# A disk that fails.


@pytest.fixture
def full_disk(monkeypatch):
    """A set of names; a file or folder of such a name cannot be published."""
    names, rename, replace = set(), os.rename, os.replace

    def fail(real):
        def call(source, target, *args, **kwargs):
            if pathlib.Path(target).name in names:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            return real(source, target, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "rename", fail(rename))
    monkeypatch.setattr(os, "replace", fail(replace))
    return names


def test_a_full_disk_while_saving_is_a_warning_and_training_goes_on(
    tmp_path, full_disk, capsys, unbroken
):
    whole, variant = unbroken
    full_disk |= {f"{i:08d}" for i in (1, 2, 4, 5)}  # never three in a row
    run = make(tmp_path, *VARIANTS[variant], "keep_last=9")
    assert run.fit() == 0
    assert capsys.readouterr().err.count("warning: checkpoint not saved") == 4
    assert [int(f.name) for f in run.checkpoints.published()] == [0, 3, 6]
    assert manifest(run, 6) == manifest(whole, 6)
    assert len(rows(run)) == 6
    assert not list(run.checkpoints.folder.glob(".stage-*"))


def test_three_checkpoints_in_a_row_that_fail_end_the_run(tmp_path, full_disk, capsys):
    full_disk |= {f"{i:08d}" for i in (2, 3, 4)}
    assert main(["train", *SMALL, f"out={tmp_path}"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "3 checkpoints in a row failed" in last and "No space left on device" in last
    folder, _, messages = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints").newest()
    assert (folder.name, messages) == ("00000001", [])


def test_a_signal_whose_checkpoint_cannot_be_saved_is_not_reported_as_saved(
    tmp_path, full_disk, capsys
):
    full_disk.add("00000002")
    run = make(tmp_path)
    after_iteration(run, 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert run.fit() == 3
    assert "could not save iteration 2" in capsys.readouterr().err


def test_a_metrics_row_that_does_not_fit_on_the_disk_is_a_warning_and_no_half_row_stays(
    tmp_path, monkeypatch, capsys
):
    run = make(tmp_path)
    writerow = csv.DictWriter.writerow

    def fail(writer, row):
        if row["iteration"] in (3, 4) and "time/eval" in row:
            writer.writer.writerow(["3", "half"])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return writerow(writer, row)

    monkeypatch.setattr(csv.DictWriter, "writerow", fail)
    assert run.fit() == 0
    assert capsys.readouterr().err.count("warning: no row in") == 2
    assert [row["iteration"] for row in rows(run)] == ["1", "2", "5", "6"]
    assert all(None not in row.values() and None not in row for row in rows(run))


# Faults of one environment.

QUIET = ("num_envs=64", f"total_samples={6 * 64 * 8}", "eval_every=0", "stagger=false")
ENV = {"qpos": 5, "observation": 6, "action": 7, "reward": 8}
# MuJoCo C restarts a world with a NaN position without a word, but counts a warning
QPOS = {
    "mujoco": Fault.WARNING,
    "warp": Fault.NONFINITE | Fault.OBSERVATION | Fault.REWARD,
}
NAN = float("nan")


class Injector:
    """Put a NaN into one environment once per kind, in iterations 2 to 5, and into the loss in 6.

    `ages` holds the step counts right before and after each fault.
    """

    def __init__(self, run):
        self.run, self.steps, self.losses, self.kind = run, 0, 0, None
        self.ages, self.shown = {}, []
        env, algo = run.env, run.algo
        self._wrap(env.task, "apply_action", self._apply_action)
        self._wrap(env.task, "observe", self._observe)
        self._wrap(env.task, "reward", self._reward)
        self._wrap(env, "step_and_maybe_reset", self._step)
        self._wrap(algo, "act", self._act)
        self._wrap(algo, "_losses", self._lose)

    def _wrap(self, owner, name, replacement):
        real = getattr(owner, name)
        setattr(owner, name, lambda *args: replacement(real, *args))

    def _act(self, real, td):
        self.shown.append(bool(torch.isfinite(td["teacher"]).all()))
        # the fourth step of iterations 2, 3, 4, 5
        due = {11: "qpos", 19: "observation", 27: "action", 35: "reward"}
        self.kind = due.get(self.steps)
        td = real(td)
        if self.kind == "action":
            td["action"][ENV["action"], 2] = NAN
        return td

    def _step(self, real, td):
        before = self.run.env.step_count.clone()
        out = real(td)
        after = out[0]["next"]
        self.shown.append(all(bool(torch.isfinite(after[k]).all()) for k in ("teacher", "reward")))
        if self.kind:
            self.ages[self.kind] = before, self.run.env.step_count.clone()
        self.steps += 1
        self.kind = None
        return out

    def _apply_action(self, real, sim, action):
        real(sim, action)
        if self.kind == "qpos":
            sim.data.qpos[ENV["qpos"], 3] = NAN

    def _observe(self, real, sim):
        out = real(sim)
        if self.kind == "observation":
            self.kind = "observation done"  # observe is called again for the restart
            out = {k: v.clone() for k, v in out.items()}
            out["box_pos"][ENV["observation"], 0] = NAN
        return out

    def _reward(self, real, sim, action):
        out = real(sim, action)
        if self.kind == "reward":
            out["lift"] = out["lift"].clone()
            out["lift"][ENV["reward"]] = NAN
        return out

    def _lose(self, real, batch):
        loss, metrics = real(batch)
        self.losses += 1
        return (loss * NAN if self.losses == 5 * 16 + 3 else loss), metrics


@pytest.fixture(scope="module", params=["mujoco", "warp"])
def injected(request, tmp_path_factory):
    run = make(tmp_path_factory.mktemp(request.param), *QUIET, f"sim.engine={request.param}")
    injector = Injector(run)
    assert run.fit(quiet=True) == 0
    return request.param, run, injector


def test_a_nan_in_one_environment_of_64_is_counted_once_under_its_own_name(injected):
    engine, run, _ = injected
    expected = {2: QPOS[engine], 3: Fault.OBSERVATION, 4: Fault.ACTION, 5: Fault.REWARD}
    for row in rows(run):
        found = {f: float(row[f"fault/{f.name.lower()}"]) for f in Fault}
        hit = expected.get(int(row["iteration"]), Fault(0))
        assert found == {f: float(f in hit) for f in Fault}, row["iteration"]
        assert float(row["env/fault"]) == float(bool(hit))


def test_only_the_faulty_environment_is_restarted(injected):
    _, _, injector = injected
    ages = {kind.removesuffix(" done"): pair for kind, pair in injector.ages.items()}
    assert set(ages) == set(ENV)
    for kind, (before, after) in ages.items():
        others = torch.arange(64) != ENV[kind]
        assert after[ENV[kind]] == 0
        assert torch.equal(after[others], before[others] + 1)
        assert before[ENV[kind]] > 0


def test_no_nan_reaches_a_network_a_weight_or_a_metric(injected):
    _, run, injector = injected
    assert len(injector.shown) == 2 * 48 and all(injector.shown)
    state = run.checkpoints.newest()[1]
    assert state["run"]["iteration"] == 6
    for name, tensor in state["algo"]["policy"].items() | state["algo"]["critic"].items():
        assert torch.isfinite(tensor).all(), name
    for row in rows(run):
        assert all(math.isfinite(float(v)) for v in row.values() if v), row
    skipped = [float(row["train/skipped_updates"]) for row in rows(run)]
    assert skipped == [0, 0, 0, 0, 0, 1]


def test_each_fault_leaves_a_dump_from_which_the_step_can_be_repeated(injected):
    engine, run, _ = injected
    dumps = sorted((run.folder / "faults").glob("*.npz"))
    qpos = "+".join(f.name for f in QPOS[engine])
    assert [d.stem for d in dumps] == [
        f"00000002-env5-{qpos}",
        "00000003-env6-OBSERVATION",
        "00000004-env7-ACTION",
        "00000005-env8-REWARD",
    ]
    model = mujoco.MjModel.from_xml_path(str(run.folder / "faults" / "model.xml"))
    data = mujoco.MjData(model)
    for dump in dumps:
        with np.load(dump, allow_pickle=False) as file:
            row, signature = file["state"].astype(np.float64), int(file["signature"])
        assert row.shape == (mujoco.mj_stateSize(model, signature),)
        assert np.isfinite(row).all()  # it is the state before the step
        mujoco.mj_setState(model, data, row, signature)
        mujoco.mj_step(model, data)
        assert data.time == pytest.approx(row[0] + model.opt.timestep)
        assert row[0] == pytest.approx(0.05 * {"2": 11, "3": 19, "4": 27, "5": 35}[dump.stem[7]])


def test_a_fault_does_not_change_the_other_environments(tmp_path):
    """The same run with and without a NaN action: until the next update, the others are equal."""
    roots = []
    for inject in (False, True):
        run = make(tmp_path / str(inject), *QUIET)
        root = run.env.current()
        for t in range(8):
            td = run.algo.act(root)
            if inject and t == 3:
                td["action"][7] = NAN
            _, root = run.env.step_and_maybe_reset(td)
        roots.append(root["teacher"])
        run._lock.close()
    others = torch.arange(64) != 7
    assert torch.equal(roots[0][others], roots[1][others])
    assert not torch.equal(roots[0][7], roots[1][7])


def spoil_actions(monkeypatch, count, *, until=math.inf):
    """Make the actions of the first environments NaN in the first step of every iteration."""
    act, calls = PPO.act, itertools.count()

    def spoiled(self, td):
        td = act(self, td)
        k = next(calls)
        if k % self.horizon == 0 and k < until * self.horizon:
            td["action"][:count] = NAN
        return td

    monkeypatch.setattr(PPO, "act", spoiled)


def test_dumps_are_bounded_over_iterations_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(run_faults, "MAX_DUMPS", 7)
    monkeypatch.setattr(run_faults, "MAX_SHARE", 1.0)
    spoil_actions(monkeypatch, 5)
    run = fit(tmp_path, f"total_samples={ITERATION}")
    assert len(list((run.folder / "faults").glob("*.npz"))) == 5
    for total in (3, 4):
        run = fit(tmp_path, f"total_samples={total * ITERATION}", "resume=true")
        assert len(list((run.folder / "faults").glob("*.npz"))) == 7
    assert [float(row["env/fault"]) for row in rows(run)] == [5.0] * 4
    assert sum(f.stat().st_size for f in (run.folder / "faults").iterdir()) < 200_000


def test_a_dump_that_does_not_fit_on_the_disk_is_a_warning(
    tmp_path, full_disk, monkeypatch, capsys
):
    monkeypatch.setattr(run_faults, "MAX_SHARE", 1.0)
    spoil_actions(monkeypatch, 1, until=1)
    full_disk.add("00000001-env0-ACTION.npz")
    run = make(tmp_path, f"total_samples={ITERATION}")
    assert run.fit() == 0
    assert "warning: faulty state not written" in capsys.readouterr().err
    assert [f.name for f in (run.folder / "faults").iterdir()] == ["model.xml"]


def test_more_than_one_percent_faulty_over_ten_iterations_exits_with_3(
    tmp_path, monkeypatch, capsys
):
    """One of 64 in every iteration: 6 in ten are 0.9 %, 7 are 1.1 %."""
    spoil_actions(monkeypatch, 1)
    words = ["train", *SMALL, *QUIET, f"out={tmp_path}", f"total_samples={20 * 64 * 8}"]
    assert main(words) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "1.1% of the environments were faulty over 10 iterations (limit 1%)" in last
    folder, _, messages = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints").newest()
    assert (folder.name, messages) == ("00000006", [])


def test_up_to_one_percent_faulty_goes_on(tmp_path, monkeypatch):
    spoil_actions(monkeypatch, 1, until=6)
    run = fit(tmp_path, *QUIET, f"total_samples={12 * 64 * 8}")
    assert [float(row["env/fault"]) for row in rows(run)] == [1.0] * 6 + [0.0] * 6


def test_a_contact_buffer_that_overflows_exits_with_3_and_the_setting_to_raise(tmp_path, capsys):
    words = ["train", *SMALL, f"out={tmp_path}", "num_envs=2", "sim.engine=warp", "eval_every=0"]
    assert main([*words, "sim.njmax=4"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a contact buffer overflowed" in last and "set sim.njmax=8" in last


# Divergence.


def spoil_losses(run, starts):
    """Make the losses of MAX_SKIPPED updates in a row NaN, from each of these calls on."""
    losses, calls = run.algo._losses, itertools.count()

    def spoiled(batch):
        loss, metrics = losses(batch)
        k = next(calls)
        return (loss * NAN if any(s <= k < s + MAX_SKIPPED for s in starts) else loss), metrics

    run.algo._losses = spoiled


FIXED_RATE = ("algo.target_kl=null", "algo.learning_rate=4e-4", "eval_every=0")


def test_diverged_learning_goes_back_to_the_last_checkpoint_with_half_the_rate(tmp_path, capsys):
    run = make(tmp_path, *FIXED_RATE)
    spoil_losses(run, [3 * 16 + 2])  # within iteration 4
    assert run.fit() == 0
    err = capsys.readouterr().err
    assert "rolled back to 00000003 with half the learning rate" in err
    assert [row["iteration"] for row in rows(run)] == list("123456")
    assert [float(row["train/actor/lr"]) for row in rows(run)] == [4e-4] * 3 + [2e-4] * 3
    whole = fit(tmp_path / "whole", *FIXED_RATE)
    assert untimed(run)[:3] == untimed(whole)[:3]
    # the collected data of iteration 4 are the same: generators and physics went back too
    assert untimed(run)[3]["rollout/rewards"] == untimed(whole)[3]["rollout/rewards"]
    assert run.checkpoints.newest()[1]["run"]["rate_halved"] is True


def test_faults_before_a_roll_back_are_not_counted_twice(tmp_path, monkeypatch):
    spoil_actions(monkeypatch, 1)  # six in ten iterations are just allowed, see above
    run = make(tmp_path, *QUIET)
    spoil_losses(run, [3 * 16 + 2])
    assert run.fit(quiet=True) == 0
    assert run.checkpoints.newest()[1]["run"]["faulty"] == [1 / 64] * 6


def test_learning_that_diverges_again_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    run = make(tmp_path, *FIXED_RATE)
    spoil_losses(run, [3 * 16 + 2, 3 * 16 + 2 + MAX_SKIPPED + 20])
    with pytest.raises(FaultyRunError, match="again after the learning rate was halved"):
        run.fit(quiet=True)
    folder, state, messages = run.checkpoints.newest()
    assert (folder.name, messages) == ("00000004", [])
    assert all(torch.isfinite(t).all() for t in state["algo"]["policy"].values())


def test_weights_that_became_infinite_are_not_saved_and_end_the_run(tmp_path):
    run = make(tmp_path)
    weight = next(run.algo.policy.parameters())
    after_iteration(run, 2, lambda: weight.data.view(-1)[:1].fill_(math.inf))
    with pytest.raises(FaultyRunError, match=r"algo/policy/\S+ is not finite after iteration 2"):
        run.fit(quiet=True)
    assert run.checkpoints.newest()[0].name == "00000001"
