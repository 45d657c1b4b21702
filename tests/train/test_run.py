"""What a training run promises: it resumes exactly, in its own folder, past a full disk."""

import csv
import errno
import json
import os
import signal

import pytest
import torch

from penspin_style.__main__ import main
from penspin_style.storage import MANIFEST
from penspin_style.train.checkpoint import Checkpoints
from tests.support.small_run import (
    ITERATION,
    NOISY,
    SMALL,
    VARIANTS,
    after_iteration,
    fit,
    make,
    weights_sha256,
)
from tests.support.training import manifest, rows, untimed

pytestmark = pytest.mark.usefixtures("one_thread")


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
    overrides = ("algo.horizon=4", f"total_samples={3 * ITERATION}", "resume=true")
    overrides = (*overrides, "resume_changes=[algo.horizon]")
    resumed = fit(tmp_path, *SMALL, *overrides)
    assert [int(row["samples"]) for row in rows(resumed)] == [128, 256, 320, 384]
    assert resumed.samples == 3 * ITERATION


@pytest.mark.parametrize("unbroken", ["noisy"], indirect=True)
def test_a_run_continues_in_another_process_bit_for_bit(unbroken, tmp_path, spawn):
    whole, _ = unbroken
    for overrides in ((f"total_samples={3 * ITERATION}",), ("resume=true",)):
        child = spawn(tmp_path, *NOISY, *overrides)
        _, err = child.communicate(timeout=300)
        assert child.returncode == 0, err
    folder = tmp_path / "panda_lift_cube" / "run"
    assert (folder / "checkpoints" / "00000006" / MANIFEST).read_text() == manifest(whole, 6)


@pytest.mark.parametrize(
    ("overrides", "equal"),
    [(("sim.nthread=1",), True), (("sim.nthread=2",), True), (("seed=1",), False)],
)
def test_the_seed_alone_decides_the_weights_not_the_number_of_threads(
    unbroken, tmp_path, overrides, equal
):
    whole, variant = unbroken
    again = fit(tmp_path, *VARIANTS[variant], *overrides)
    assert (weights_sha256(again) == weights_sha256(whole)) is equal
    assert (manifest(again, 6) == manifest(whole, 6)) is equal
    assert (untimed(again) == untimed(whole)) is equal


# Which folder, which run.


def test_a_run_is_not_written_over_and_nothing_is_resumed_that_is_not_there(tmp_path, capsys):
    overrides = ["train", "name=run", *SMALL, f"out={tmp_path}", f"total_samples={ITERATION}"]
    assert main([*overrides, "resume=true"]) == 2
    assert "resume=true, but" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    fit(tmp_path, f"total_samples={ITERATION}")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert main(overrides) == 2
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
    assert main(["train", "name=run", *SMALL, f"out={tmp_path}", "resume=true"]) == 3
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


def test_resuming_with_other_sizes_is_refused_with_the_run_s_own_values(tmp_path, capsys):
    run = fit(tmp_path, f"total_samples={ITERATION}")
    config = (run.folder / "config.yaml").read_text()
    for word, own in (("num_envs=8", "num_envs=16"), ("algo.hidden=[9]", "algo.hidden=[128,128]")):
        assert main(["train", "name=run", *SMALL, f"out={tmp_path}", "resume=true", word]) == 2
        err = capsys.readouterr().err.splitlines()
        assert "was trained with" in err[-1] and own in err[-1]
        key = word.partition("=")[0]
        assert f"resume_changes=[{key}]" in err[-1]
        more = f"total_samples={2 * ITERATION}"
        leave = [word, more, f"resume_changes=[{key}]"]
        assert main(["train", "name=run", *SMALL, f"out={tmp_path}", "resume=true", *leave]) == 2
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


def test_an_evaluated_policy_is_kept_between_two_checkpoints_and_others_carry_no_score(tmp_path):
    run = make(tmp_path, "checkpoint_every=3", "keep_last=9")
    scores = iter([0.25, 0.75, 0.5])  # after iterations 2, 4, 6
    original = run.evaluate

    def evaluate(episodes, seed):
        from dataclasses import replace

        return replace(original(episodes, seed), success_rate=next(scores, 0.75))

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


# A disk that fails.


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
    assert main(["train", "name=run", *SMALL, f"out={tmp_path}"]) == 3
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
