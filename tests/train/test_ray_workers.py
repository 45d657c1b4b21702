"""Workers that collect for one learner: what is sent, merged, lost, dropped and counted.

Ray itself is played in this process, but for `test_run_ray.py`.
"""

import contextlib
import dataclasses
import functools
import re
import socket
import sys
import types

import numpy as np
import pytest
import torch

from penspin_style.__main__ import main
from penspin_style.algo.registry import make_algorithm
from penspin_style.config import ClusterConfig, PlacementConfig, RolloutConfig, TrainConfig
from penspin_style.system.ranks import PeerLostError
from penspin_style.train import folder as run_folder
from penspin_style.train import ray_workers
from penspin_style.train.compose import compose_train
from penspin_style.train.environment import interface
from penspin_style.train.faults import FaultyRunError
from penspin_style.train.rollout_worker import (
    RolloutWorker,
    fault_of,
    merged,
    packed_weights,
)
from penspin_style.train.run import Run
from tests.support import training
from tests.support.ray_double import RayDouble
from tests.support.training import manifest, rows, untimed

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    *("task=tests.support.toy", "num_envs=4", "algo.horizon=8", "algo.hidden=[16]"),
    *("algo.critic_hidden=[16]", "algo.epochs=1", "algo.num_minibatches=2"),
    *("eval_every=0", "final_episodes=2", "checkpoint_every=1"),
    *("loggers=[csv]", "video=false", "keep_last=9", "sim.nthread=1", "learn_threads=1"),
)
EACH = 4 * 8
TWO = ("launcher=ray", "cluster.env=2")
CPU = torch.device("cpu")


composed = functools.cache(lambda *overrides: compose_train(overrides))


def configured(*overrides):
    return composed(*SMALL, *TWO, *overrides)[:2]


def make(out, each, *overrides, **changes):
    """A run of so many times what a worker collects in an iteration."""
    cfg, task, resolved = composed(*SMALL, *(overrides or TWO))
    cfg = dataclasses.replace(cfg, out=str(out), total_samples=each * EACH, **changes)
    return Run(cfg, task, resolved)


def begun(count=2, *overrides):
    workers = [RolloutWorker(*configured(*overrides), k) for k in range(count)]
    for k, worker in enumerate(workers):
        worker.begin(k, 0, None)
    return workers


def learner(env, *overrides):
    cfg, _ = configured(*overrides)
    return make_algorithm(cfg, interface(env), device=CPU, seed=cfg.seed)


# What is sent.


@pytest.fixture(scope="module")
def pair():
    """Two workers and a learner after one iteration's collection: (workers, learner, batches)."""
    workers = begun()
    algo = learner(workers[0].env)
    roots = [worker.root() for worker in workers]
    algo.take_first(merged(roots, dim=0, device=CPU))
    batches = [worker.collect(1, 0, packed_weights(algo)) for worker in workers]
    return roots, algo, batches


def test_one_learns_from_what_all_saw_under_its_weights(pair):
    roots, algo, batches = pair
    first = np.concatenate([root["teacher"] for root in roots])
    normalizer = algo.policy.normalizer
    assert normalizer.count == len(first) == 8
    assert normalizer.mean.numpy() == pytest.approx(first.mean(axis=0), rel=1e-5, abs=1e-6)
    batch = merged([b.arrays for b in batches], dim=1, device=CPU)
    assert batch.shape == (8, 8)
    # they have acted with these very weights, each with draws and worlds of its own
    with torch.no_grad():
        found = algo._actor.get_dist(batch).log_prob(batch["action"])
    assert found.numpy() == pytest.approx(batch["log_prob"].numpy(), rel=1e-5, abs=1e-5)
    one, two = (b.arrays for b in batches)
    assert not np.isclose(one["action"], two["action"]).any()
    assert not (one["teacher"][0] == two["teacher"][0]).all()
    seen = np.concatenate(
        [first, *(b.arrays["teacher"].reshape(-1, first.shape[1]) for b in batches)]
    )
    algo.process(batch)
    algo.update()
    assert normalizer.count == len(seen) == 8 + 8 * 8
    assert normalizer.mean.numpy() == pytest.approx(seen.mean(axis=0), rel=1e-4, abs=1e-5)
    assert normalizer.var.numpy() == pytest.approx(seen.var(axis=0), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("key", ["teacher", ("next", "reward"), ("next", "done")])
def test_a_batch_with_one_other_bit_is_known(pair, key):
    batch = pair[2][1]
    good = {"worker": 1, "iteration": 1, "shape": (8, 4)}
    assert fault_of(batch, **good) == ""
    array = batch.arrays[key].copy()
    array.view(np.uint8)[3, 2] ^= 1
    spoiled = dataclasses.replace(batch, arrays={**batch.arrays, key: array})
    assert fault_of(spoiled, **good) == "its checksum does not match what it holds"


def test_a_batch_of_another_worker_iteration_or_shape_is_known(pair):
    batch = pair[2][0]
    asked = {"worker": 0, "iteration": 2, "shape": (8, 4)}
    assert fault_of(batch, **asked) == (
        "it is of worker 0, iteration 1; asked was worker 0, iteration 2"
    )
    assert "asked was worker 1" in fault_of(batch, **{**asked, "worker": 1, "iteration": 1})
    odd = fault_of(batch, **{**asked, "iteration": 1, "shape": (8, 5)})
    assert odd == "teacher has the shape (8, 4, 3), not (8, 5) and more"


def test_a_worker_goes_on_from_its_state_bit_for_bit(pair):
    weights = packed_weights(pair[1])
    (worker,) = begun(1, "algo.noise_correlation=0.5")
    worker.collect(1, 0, weights)
    state = worker.state()
    expected = worker.collect(2, 0, weights)
    other = RolloutWorker(*configured("algo.noise_correlation=0.5"), 0)
    other.begin(7, 0, state)  # whatever its seeds are
    found = other.collect(2, 0, weights)
    assert found.checksum == expected.checksum
    assert all((found.arrays[k] == v).all() for k, v in expected.arrays.items())


# What is lost.


@pytest.fixture
def ray(monkeypatch):
    double = RayDouble()
    monkeypatch.setattr(ray_workers, "_ray", lambda: double)
    monkeypatch.setattr(ray_workers, "_running", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(ray_workers, "_check_size", lambda *_: None)
    return double


def fit(out, each, *overrides, **changes):
    run = make(out, each, *overrides, **changes)
    assert run.fit() == 0
    return run


def once(worker_number, method, nth=1):
    """Let a worker die in its nth call of a method."""
    left = [nth]

    def dies(worker, name):
        left[0] -= worker.worker == worker_number and name == method
        return left[0] == 0 and worker.worker == worker_number and name == method

    return dies


def test_a_worker_that_dies_is_replaced_and_its_samples_are_dropped(tmp_path, ray, capfd):
    ray.dies = once(1, "collect", nth=2)
    run = fit(tmp_path, 5)
    table = rows(run)
    assert [row["samples"] for row in table] == ["64", "96", "160"]
    assert [row["ray/workers"] for row in table] == ["2.0", "1.0", "2.0"]
    assert [row["ray/lost"] for row in table] == ["0.0", "1.0", "1.0"]
    assert [row["ray/dropped_samples"] for row in table] == ["0.0", "32.0", "32.0"]
    assert {row["ray/corrupt_batches"] for row in table} == {"0.0"}
    err = capfd.readouterr().err
    assert "warning: worker 1 (process " in err
    assert ") has died: 32 samples are dropped, another is started" in err
    # it has seeds of its own: nobody sees the first episodes twice
    state = run.checkpoints.newest()[1]["env"]
    assert int(state["workers/started"]) == 3


def test_a_corrupt_batch_is_dropped_and_its_worker_goes_on(tmp_path, ray, capfd):
    calls = [0]

    def sent(method, value):
        calls[0] += method == "collect"
        if method == "collect" and calls[0] == 3:
            value.arrays["action"] = value.arrays["action"] + 1.0
        return value

    ray.sent = sent
    run = fit(tmp_path, 5)
    table = rows(run)
    assert [row["samples"] for row in table] == ["64", "96", "160"]
    last = table[-1]
    assert (last["ray/corrupt_batches"], last["ray/dropped_samples"]) == ("1.0", "32.0")
    assert last["ray/lost"] == "0.0"
    assert (
        "warning: a batch of worker 0 is dropped, 32 samples: its checksum does not match"
        in capfd.readouterr().err
    )


def test_where_all_die_the_iteration_is_collected_anew(tmp_path, ray):
    dead = set()

    def dies(worker, method):
        if method != "collect" or worker.worker in dead:
            return False
        dead.add(worker.worker)
        return True

    ray.dies = dies
    run = fit(tmp_path, 2)
    first = rows(run)[0]
    assert int(first["samples"]) == EACH * float(first["ray/workers"]) > 0
    assert (first["ray/lost"], first["ray/dropped_samples"]) == ("2.0", "64.0")


def test_one_that_comes_late_is_not_waited_for(tmp_path, ray):
    ray.dies = once(0, "collect", nth=2)
    late = [3]

    def is_late(ref):
        # of the begun that replaces it
        if len(ray.options_given) == 3 and ref is run.workers.slots[0].begun:
            late[0] -= 1
            return late[0] > 0
        return False

    ray.late = is_late
    run = make(tmp_path, 8)
    assert run.fit(quiet=True) == 0
    found = [row["ray/workers"] for row in rows(run)]
    assert found == ["2.0", "1.0", "1.0", "1.0", "2.0", "2.0"][: len(found)]
    assert found.count("1.0") >= 2 and found[-1] == "2.0"


def test_a_worker_that_dies_again_and_again_ends_the_run(tmp_path, ray):
    ray.dies = lambda worker, method: worker.worker == 1 and method == "begin"
    run = make(tmp_path, 2)
    with pytest.raises(PeerLostError, match=r"worker 1 has died as it began, 6 times in a row"):
        run.fit(quiet=True)
    assert run.checkpoints.newest()[1]["run"]["iteration"] == 0


def test_a_worker_that_says_nothing_is_given_up(tmp_path, ray, monkeypatch, capfd):
    silent = []

    def is_late(ref):
        k, iteration = run.workers._asked.get(ref, (0, 0))
        if (k, iteration) == (1, 2):
            monkeypatch.setattr(ray_workers, "SILENCE", 0.0)
            silent.append(ref)
            return True
        monkeypatch.setattr(ray_workers, "SILENCE", 600.0)
        return False

    ray.late = is_late
    run = make(tmp_path, 5)
    assert run.fit() == 0
    assert silent and [row["ray/lost"] for row in rows(run)] == ["0.0", "1.0", "1.0"]
    assert "has said nothing for 0 s: 32 samples are dropped" in capfd.readouterr().err
    assert not ray.actors[1].alive


def test_one_that_dies_while_it_is_saved_is_lost_once(tmp_path, ray):
    ray.dies = once(1, "state")
    run = make(tmp_path, 8, *TWO, "rollout.pipeline_stage_num=2")
    assert run.fit(quiet=True) == 0
    assert float(rows(run)[-1]["ray/lost"]) <= 1.0 and run.workers.counts["lost"] == 1


def test_what_a_worker_raises_is_raised_here(tmp_path, ray, monkeypatch):
    def broken(*_):
        raise ValueError("task.size must be > 0")

    monkeypatch.setattr(RolloutWorker, "begin", broken)
    run = make(tmp_path, 2)
    with pytest.raises(ValueError, match=r"task\.size must be > 0"):
        run.fit(quiet=True)


def test_faults_of_workers_are_counted_and_dumped(tmp_path, ray):
    def sent(method, value):
        if method == "collect" and value.iteration == 2 and value.worker == 1:
            value.fault_counts[0] = 1
            value.faults = [(2, 1, np.zeros(5))]
            value.seal()
        return value

    ray.sent = sent
    run = make(tmp_path, 4)
    # 1 of 2 x 4 environments, over ten iterations
    with pytest.raises(FaultyRunError, match=r"1\.2% of the environments were .* now NONFINITE"):
        run.fit(quiet=True)
    (dump,) = (run.folder / "faults").glob("*.npz")
    assert dump.name == "00000002-env6-NONFINITE.npz"


# Going on.


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, ray):
    whole = fit(tmp_path / "whole", 6)
    for cut in (0, 2):
        out = tmp_path / str(cut)
        run = make(out, 6)
        run._is_trained = lambda run=run, cut=cut: run.iteration >= cut
        run._finish = lambda *_, **__: 4  # as if it had been interrupted
        assert run.fit(quiet=True) == 4
        resumed = fit(out, 6, resume=True)
        for i in range(cut + 1, 4):
            assert manifest(resumed, i) == manifest(whole, i)
        assert untimed(resumed) == untimed(whole)


def test_another_number_of_workers_or_none_goes_on_and_says_so(tmp_path, ray, capfd):
    fit(tmp_path, 2)
    fit(tmp_path, 5, "launcher=ray", "cluster.env=3", resume=True)
    assert (
        "3 processes go on, there were 2: an iteration has 96 samples instead of 64; 1 of them "
        "begin new episodes"
    ) in capfd.readouterr().err
    alone = fit(tmp_path, 6, "launcher=local", resume=True)
    err = capfd.readouterr().err
    assert (
        "1 processes go on, there were 3: an iteration has 32 samples instead of 96; all begin new "
        "episodes"
    ) in err
    assert "changed from here on: launcher=local, was ray" in err
    assert [row["samples"] for row in rows(alone)] == ["64", "160", "192"]
    again = fit(tmp_path, 8, resume=True)
    assert rows(again)[-1]["samples"] == "256"


def test_a_run_from_before_there_were_launchers_goes_on_without_a_word_of_them(tmp_path):
    resolved = composed(*SMALL, "launcher=local")[2]
    for key in ("launcher", "cluster", "rollout"):
        resolved, count = re.subn(rf"(?m)^{key}:.*\n(^ .*\n)*", "", resolved)
        assert count == 1
    (tmp_path / "config.yaml").write_text(resolved)
    assert run_folder.changes(tmp_path, composed(*SMALL, "launcher=local")[2]) == {}
    found = run_folder.changes(tmp_path, composed(*SMALL, *TWO)[2])
    assert found["launcher"] == ("absent", "ray") and found["cluster.env"] == ("absent", "2")


def test_with_two_stages_the_policy_that_collects_is_one_update_old(tmp_path, ray):
    updates = []
    put = ray.put
    ray.put = lambda weights: (updates.append(run.algo.iteration), put(weights))[1]
    run = make(tmp_path, 6, *TWO, "rollout.pipeline_stage_num=2")
    assert run.fit(quiet=True) == 0
    assert [row["samples"] for row in rows(run)] == ["64", "128", "192"]
    # the first batch is waited for; from then on one is under way while another is learned from
    assert updates == [0, 0, 1, 2]
    assert run.algo.overlap and not fit(tmp_path / "in_turns", 2).algo.overlap


def begun_in(ray):
    """The workers that are alive."""
    return [actor._made for actor in ray.actors if actor.alive]


def test_grpo_learns_from_workers(tmp_path, ray):
    own = ("algo=grpo", "algo.group_size=2", "algo.horizon=3", "algo.hidden=[16]")
    small = [o for o in SMALL if "algo." not in o]
    run = training.make(tmp_path, *small, *own, *TWO, "total_samples=48")
    assert run.fit(quiet=True) == 0
    assert [row["samples"] for row in rows(run)] == ["24", "48"]


def test_workers_follow_the_curriculum(tmp_path, ray):
    stages = "curriculum=[{task: {start: 0.2}, samples: 64}, {}]"
    run = fit(tmp_path, 6, *TWO, stages)
    assert run.curriculum.index == 1
    starts = {worker.env.cfg.start for worker in begun_in(ray)}
    assert starts == {1.0}
    assert [row["samples"] for row in rows(run)] == ["64", "128", "192"]


# What is refused.


@pytest.mark.parametrize(
    ("key", "values", "line"),
    [
        ("cluster", {"env": 0}, "cluster.env must be >= 1, got 0"),
        ("cluster", {"learner": 2}, "cluster.learner must be 1: torchrun divides the learning"),
        ("cluster", {"num_nodes": 2}, "cluster.num_nodes must be 1 without cluster.address"),
        ("placement", {"env": "all"}, "env must be processes as 0-7, or empty, got all"),
        ("placement", {"env": "7-0"}, "env must be processes as 0-7, or empty, got 7-0"),
        (
            "placement",
            {"env": "0-1", "rollout": "2-3"},
            "rollout must be 0-1, as env: the process of an environment runs the policy, got 2-3",
        ),
        ("placement", {"actor": "0-1"}, "actor must be one process: torchrun divides"),
        (
            "cluster",
            {"env": 3, "component_placement": PlacementConfig(env="0-1")},
            "cluster.env must be 2, as cluster.component_placement says, or left out, got 3",
        ),
        ("rollout", {"pipeline_stage_num": 3}, "rollout.pipeline_stage_num must be 1 or 2, got 3"),
        ("train", {"launcher": "slurm"}, "launcher must be local or ray, got slurm"),
        (
            "train",
            {"cluster": ClusterConfig(env=2), "rollout": RolloutConfig(pipeline_stage_num=2)},
            "launcher must be ray for cluster.env, got local",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(key, values, line):
    kinds = {"cluster": ClusterConfig, "placement": PlacementConfig, "rollout": RolloutConfig}
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        {**kinds, "train": TrainConfig}[key](**values)
    assert "\n" not in str(caught.value)


def test_an_algorithm_that_collects_by_itself_is_refused(tmp_path, ray, capsys):
    words = ["task=panda_lift_cube", "launcher=ray", f"out={tmp_path}", "algo=sac"]
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err == (
        "penspin: algo=sac collects in its own process; leave launcher=ray out, or choose among "
        "grpo, ppo\n"
    )
    assert not list(tmp_path.iterdir())


def test_placement_says_how_many(tmp_path):
    placed = ClusterConfig(component_placement=PlacementConfig(env="0-2,5", rollout="0-2,5"))
    assert placed.workers == 4
    assert ClusterConfig(component_placement=PlacementConfig(rollout="3", actor="0")).workers == 1
    assert ClusterConfig(env=6).workers == 6


def test_without_ray_the_remedy_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["train", "task=panda_lift_cube", "launcher=ray", f"out={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "launcher=ray needs Ray (" in err and "pip install 'penspin_style[ray]'" in err
    assert err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_ray_is_started_again_where_a_busy_machine_was_too_slow():
    calls = []

    def init(**given):
        calls.append(given)
        if len(calls) < 3:
            raise Exception("The current node timed out during startup. This could")

    ray = types.SimpleNamespace(init=init)
    ray_workers._init(ray, {"address": "local"}, "Ray does not start here")
    assert calls == [{"address": "local"}] * 3
    ray.init = lambda **_: (_ for _ in ()).throw(OSError("AF_UNIX path length\nmore"))
    with pytest.raises(ValueError, match=r"^Ray does not start here: AF_UNIX path length$"):
        ray_workers._init(ray, {}, "Ray does not start here")


def test_an_address_at_which_nothing_listens_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray_workers._check_reachable(address)
    with pytest.raises(ValueError, match=rf"cluster\.address={address}: nothing answers there"):
        ray_workers._check_reachable(address)


def test_a_ray_that_cannot_be_had_leaves_no_folder(tmp_path, ray, monkeypatch):
    def fail(*_):
        raise ValueError("Ray does not start here: no memory")

    monkeypatch.setattr(ray_workers, "_running", fail)
    words = [*SMALL, *TWO, "total_samples=64", f"out={tmp_path}", "name=run"]
    assert main(["train", *words]) == 2
    assert not list(tmp_path.glob("*/*"))


def test_a_cluster_that_is_too_small_is_refused():
    ray = types.SimpleNamespace(
        nodes=lambda: [{"Alive": True}, {"Alive": False}], cluster_resources=lambda: {"CPU": 6.0}
    )
    with pytest.raises(ValueError, match=r"cluster\.num_nodes=2: 1 have joined the Ray at head:1"):
        ray_workers._check_size(ray, ClusterConfig(env=2, num_nodes=2, address="head:1"))
    with pytest.raises(ValueError, match=r"4 workers of cluster\.cpus=2 need 8 CPUs, Ray has 6"):
        ray_workers._check_size(ray, ClusterConfig(env=4, cpus=2, address="head:1"))
