"""What collecting ahead gives: both ways learn from the same number of batches."""

import pytest

from penspin_style.bench import overlap
from penspin_style.train.compose import compose_train

SMALL = ("num_envs=2", "device=cpu", "algo.horizon=2", "learn_threads=1", "sim.nthread=1")


def test_each_iteration_learns_from_one_batch_and_collects_one(monkeypatch):
    cfg, task, _ = compose_train(["task=panda_lift_cube", *SMALL])
    counts = []
    collect = overlap.Collection._collect

    def counted(self, env, who):
        counts.append(self.is_ahead)
        return collect(self, env, who)

    monkeypatch.setattr(overlap.Collection, "_collect", counted)
    found = overlap.overlap(cfg, task, rounds=1, steps=3)
    assert counts == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3  # a round to warm up
    assert found["ratio"] > 0 and found["cpu_ratio"] > 0
    assert 0 < found["collect_share"] < 1
    assert found["overlap_per_s"][0] > 0 and found["in_turns_per_s"][0] > 0


def test_an_algorithm_that_collects_in_turns_is_refused():
    cfg, task, _ = compose_train(["task=panda_lift_cube", "algo=sac", *SMALL])
    with pytest.raises(ValueError, match="algo=sac collects and learns in turns"):
        overlap.overlap(cfg, task, rounds=1, steps=3)
