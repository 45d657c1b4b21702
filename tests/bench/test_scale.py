"""What more workers would give: the arithmetic, and what a rank measures."""

import dataclasses
import json
import subprocess

import pytest
import torch

from penspin_style.bench import scale
from penspin_style.system import ranks
from penspin_style.train.compose import compose_train
from tests.support.ranks import run_ranks

COST = scale.Cost(
    samples=1000,
    collect=0.6,
    learn=0.3,
    sample_bytes=200.0,
    weights=10_000,
    steps=10,
    latency=0.002,
    per_byte=1e-8,
    broadcast=0.004,
)
SMALL = ("task=panda_lift_cube", "num_envs=2", "algo.horizon=4", "algo.num_minibatches=2")


def test_one_worker_needs_no_link():
    assert scale.by_ranks(COST, 1) == pytest.approx(1000 / 0.9)
    free = dataclasses.replace(COST, latency=0.0, per_byte=0.0)
    assert scale.by_one_learner(free, 1) == pytest.approx(1000 / 0.9)


def test_a_ring_passes_each_part_to_all_and_back():
    assert scale.ring(COST, 2) == pytest.approx(0.002 + 1e-4)  # what two were measured with
    assert scale.ring(COST, 4) == pytest.approx(2 * 3 * (0.001 + 2500e-8))
    rate = 4 * 1000 / (0.9 + 10 * scale.ring(COST, 4))
    assert scale.by_ranks(COST, 4) == pytest.approx(rate)


def test_one_learner_learns_from_all_and_tells_all_along_a_tree():
    seconds = 0.6 + 0.002 + 8000 * 200e-8 + 8 * 0.3 + 3 * 0.004
    assert scale.by_one_learner(COST, 8) == pytest.approx(8000 / seconds)
    assert scale.by_one_learner(COST, 64) < 1000 / 0.3  # never above what the learner takes


def test_medians_of_the_rounds_become_one_table(monkeypatch):
    def ran(count, steps, overrides):
        assert (steps, overrides) == (8, SMALL)
        cost = dataclasses.asdict(COST) | {"rate": 1000.0 * count}
        return cost if count == 2 else cost | {"latency": 0.0, "per_byte": 0.0, "broadcast": 0.0}

    monkeypatch.setattr(scale, "_torchrun", ran)
    cfg, task, _ = compose_train(SMALL)
    found = scale.scale(cfg, task, SMALL, rounds=2, steps=8)
    assert (found["collect_per_s"], found["learn_per_s"]) == (1667, 3333)
    assert (found["all_reduce_ms"], found["broadcast_ms"]) == (2.1, 4.0)
    assert list(found["workers"]) == ["1", "2", "4", "8", "16", "32", "64"]
    assert found["workers"]["1"]["ranks"] == 1111
    assert found["workers"]["2"]["measured"] == [2000, 2000, 2000]
    assert "measured" not in found["workers"]["4"] and found["measured_ratio"] == 2.0


@pytest.mark.forks
def test_a_rank_counts_its_samples_steps_and_bytes(tmp_path):
    cfg, task, _ = compose_train(SMALL)
    cfg.sim.nthread = cfg.learn_threads = 1

    def measured(rank):
        with ranks.joined(torch.device("cpu")):
            row = scale.measure(cfg, task, steps=4)
        (tmp_path / f"{rank}.json").write_text(json.dumps(row))
        return 0

    assert run_ranks(2, measured) == [0, 0]
    for rank in (0, 1):
        row = json.loads((tmp_path / f"{rank}.json").read_text())
        assert row["samples"] == 8
        assert row["steps"] == 2 * 4  # minibatches and epochs
        assert row["weights"] == 158_244
        assert 200 < row["sample_bytes"] < 300
        assert row["latency"] > 0 and row["per_byte"] >= 0 and row["broadcast"] > 0
        assert row["rate"] == pytest.approx(2 * 8 / (row["collect"] + row["learn"]))


def test_an_algorithm_of_one_process_is_refused_and_a_failed_rank_says_why(monkeypatch):
    line = ("task=panda_lift_cube_vision",)
    cfg, task, _ = compose_train(line)
    with pytest.raises(ValueError, match=r"^algo=distill trains in one process.*grpo, ppo$"):
        scale.scale(cfg, task, line, rounds=1, steps=1)
    failed = subprocess.CompletedProcess([], 1, "", "one\nthe reason\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="2 ranks ended with code 1: the reason"):
        scale._torchrun(2, 8, SMALL)
