"""The programme that measures checkpoints of a replay buffer, on a small one."""

from tests.soak.measure_checkpoint import measure


def test_a_buffer_is_written_once_and_then_what_is_new_of_it():
    overrides = ["task=panda_lift_cube", "num_envs=16", "algo.n_step=1", "sim.nthread=1"]
    found = measure(overrides, samples=40_000, rounds=2)
    assert found["samples"] == 40_000 and found["same"]
    assert found["buffer_mb"] < found["files_mb"] < 2.0 * found["buffer_mb"]
    times = [found[name]["stall_s"] for name in ("first", "later", "without")]
    assert min(times) > 0.0
    assert found["peak_mb"]["saved"] >= found["peak_mb"]["filled"] >= found["peak_mb"]["before"]
