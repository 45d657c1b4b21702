"""Runs that learn from recorded episodes alone: the same promises, and no environment."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from penspin_style.__main__ import main
from penspin_style.env.env import Env
from penspin_style.env.task import task_name
from penspin_style.nets.policy import load_policy, read_policy, save_policy
from penspin_style.storage import MANIFEST
from penspin_style.train.compose import UsageError, compose_train
from penspin_style.train.load_policy import compose_training, open_policy
from penspin_style.train.run import Run
from tests.support.episodes import record, taught
from tests.support.learning import SMALL_ACT, SMALL_DIFFUSION, TASK, register, student, toy_task
from tests.support.small_run import after_iteration, environment, wait_for
from tests.support.training import manifest, rows, untimed

__all__ = ["toy_task"]
pytestmark = pytest.mark.usefixtures("one_thread", "toy_task")
EPOCHS = 7
ALGOS = {
    "clone": ("algo.real_batch_size=24", "algo.lr=0.003"),
    "act": (
        "algo.eval_start_epoch=2",
        *(f"algo.{key}={value}" for key, value in SMALL_ACT.items()),
    ),
    "diffusion": (
        *("algo.real_batch_size=24", "algo.lr=0.03"),
        *(f"algo.{key}={value}" for key, value in SMALL_DIFFUSION.items()),
    ),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A student's run folder, and a folder of episodes."""
    folder = tmp_path_factory.mktemp("given")
    policy, card = student(TASK)
    save_policy(policy, card, folder / "run" / "policy")
    for seed in range(4):
        record(folder / "data", card, taught(card, 20, seed))
    return folder


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch, request):
    """Whatever builds one fails, but for the tests that say so."""
    if "builds" not in request.node.name:
        monkeypatch.setattr(Env, "__init__", lambda *a, **k: pytest.fail("an environment"))


def overrides(given, out, algo, *more):
    own = (f"algo={algo}", f"algo.init_from={given / 'run'}", f"algo.data={given / 'data'}")
    own += (f"algo.num_epochs={EPOCHS}", "algo.eval_freq=2", "loggers=[csv]", "checkpoint_every=1")
    return [*own, f"out={out}", "keep_last=9", *ALGOS[algo], *more]


def make(*args):
    return Run(*compose_training(overrides(*args)))


def fit(*args):
    run = make(*args)
    assert run.fit(quiet=True) == 0
    return run


@pytest.fixture(scope="module", params=ALGOS)
def whole(request, given, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        return fit(given, tmp_path_factory.mktemp(request.param), request.param), request.param


@pytest.mark.parametrize("k", [1, 4])
def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(whole, given, tmp_path, k):
    unbroken, algo = whole
    stopped = make(given, tmp_path, algo)
    after_iteration(stopped, k, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped.fit(quiet=True) == 4
    assert not (stopped.folder / "policy").exists()
    resumed = fit(given, tmp_path, algo, "resume=true")
    for i in (k, 5, EPOCHS):  # weights, the best ones, optimiser, generator, counters
        assert manifest(resumed, i) == manifest(unbroken, i)
    assert len({manifest(unbroken, i) for i in (k, 5, EPOCHS)}) == 3
    assert untimed(resumed) == untimed(unbroken)
    policies = [
        (r.folder / "policy" / "policy.safetensors").read_bytes() for r in (resumed, unbroken)
    ]
    assert policies[0] == policies[1]


def test_the_rows_and_the_card_agree_on_what_is_best(whole):
    run, algo = whole
    found = {row["iteration"]: float(row["val/loss"]) for row in rows(run) if row["val/loss"]}
    assert list(found) == ["2", "4", "6", "7"]
    _, card = load_policy_card(run.folder)
    score = card.score
    assert found[str(score["epoch"])] == score["validation_loss"] == min(found.values())
    assert score["validation_loss"] < score["validation_loss_before"]
    samples = {"clone": 60, "act": 12, "diffusion": 60}[algo]
    assert [int(row["samples"]) for row in rows(run)] == [samples * i for i in range(1, EPOCHS + 1)]
    assert card.run == f"{TASK}/run/seed0/samples{EPOCHS * samples}"
    assert run.env is None and not (run.folder / "videos").exists()


def load_policy_card(folder):
    """Weights and card; ACT answers chunks, and is no policy of `load_policy`."""
    card, weights, _ = read_policy(folder / "policy")
    return weights, card


def test_a_run_that_is_killed_goes_on_in_another_process_bit_for_bit(given, tmp_path):
    own = [f"task={TASK}", *overrides(given, tmp_path, "clone"), "algo.patience=0"]
    folder = tmp_path / TASK / "run" / "checkpoints"
    command = [
        sys.executable,
        "-m",
        "penspin_style",
        "train",
        "name=run",
        *own,
        "algo.num_epochs=1000000",
    ]
    child = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (folder / "00000001").exists() or child.poll() is not None)
        assert child.poll() is None, child.stderr.read()
    finally:
        child.kill()
        child.communicate()
    last = max(int(f.name) for f in folder.iterdir() if f.name.isdigit())
    more = ("algo.patience=0", f"algo.num_epochs={last + 3}")
    fit(given, tmp_path, "clone", *more, "resume=true", "resume_changes=[algo.num_epochs]")
    unbroken = fit(given, tmp_path / "whole", "clone", *more)
    for k in (last + 1, last + 2, last + 3):
        assert (folder / f"{k:08d}" / MANIFEST).read_text() == manifest(unbroken, k)


def test_a_finished_run_is_left_alone_and_goes_on_with_more_epochs(given, tmp_path, capsys):
    own = ["train", "name=run", *overrides(given, tmp_path, "clone")]
    assert main([*own, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["score"]["name"] == "validation_loss" and told["success_rate"] is None
    assert told["iteration"] == EPOCHS and told["score"]["value"] > 0
    assert main(own) == 2
    assert "holds a run already: resume=true continues it" in capsys.readouterr().err
    assert main([*own, "resume=true"]) == 0
    assert (
        "a larger algo.num_epochs, with resume_changes=[algo.num_epochs], would go on"
        in capsys.readouterr().err
    )
    more = [*own, "resume=true", "algo.num_epochs=9"]
    assert main(more) == 2
    assert "go on with the change by resume_changes=[algo.num_epochs]" in capsys.readouterr().err
    assert main([*more, "resume_changes=[algo.num_epochs]"]) == 0
    _, card = load_policy(tmp_path / TASK / "run" / "policy")
    assert card.run.endswith("/samples540")


def test_other_episodes_than_before_are_refused_on_a_resume(given, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(given / "data", data)
    stopped = make(given, tmp_path, "clone", f"algo.data={data}")
    after_iteration(stopped, 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped.fit(quiet=True) == 4
    record(data, student(TASK)[1], taught(student(TASK)[1], 20, 9))
    with pytest.raises(ValueError, match=r"does not fit this configuration; .*other episodes in"):
        make(given, tmp_path, "clone", f"algo.data={data}", "resume=true").fit(quiet=True)


@pytest.mark.parametrize("algo", ALGOS)
def test_what_is_missing_or_of_another_task_is_refused(given, tmp_path, algo):
    for key, what in (("data", "a folder of episodes"), ("init_from", "the folder of a student")):
        with pytest.raises(ValueError, match=rf"algo\.{key} must be {what}, got nothing"):
            make(given, tmp_path, algo, f"algo.{key}=")
    with pytest.raises(ValueError, match=rf"algo\.init_from=.* is of the task {TASK}: say task="):
        Run(*compose_train([*overrides(given, tmp_path, algo), "task=pen_spin"]))
    assert not list(tmp_path.iterdir())


# The task of the policy that it begins from.


def test_the_task_is_the_one_of_the_policy_that_it_begins_from():
    shipped = "outputs/pretrained/panda_lift_cube_vision"
    cfg, task, text = compose_training(["algo=clone", f"algo.init_from={shipped}"])
    assert task_name(task) == "panda_lift_cube_vision" and "name: clone" in text
    assert list(cfg.task.latency) == ["student"]  # as it was pre-trained
    own = ["algo=act", f"algo.init_from={shipped}", "task.episode_length=7"]
    assert compose_training(own)[0].task.episode_length == 7
    with pytest.raises(UsageError, match="task=pen_spin: the task is panda_lift_cube_vision alre"):
        compose_training([*own[:2], "task=pen_spin"])
    cfg, task, _ = compose_training(["algo=ppo", "algo.init_from=nowhere", "task=pen_spin"])
    assert task_name(task) == "pen_spin"  # what has an environment is checked against that


def test_an_unfinished_run_has_no_policy_to_evaluate_builds_none(given, tmp_path):
    run = make(given, tmp_path, "clone")
    after_iteration(run, 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert run.fit(quiet=True) == 4
    with pytest.raises(ValueError, match="algo=clone has no policy before it is finished; resume"):
        open_policy(run.folder, [])
