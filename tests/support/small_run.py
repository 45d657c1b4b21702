"""A small training: its overrides, its processes, and what it does at a given iteration."""

import hashlib
import os
import pathlib
import time

from tests.support import training

ROOT = pathlib.Path(__file__).parents[2]


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


def make(out, *overrides):
    return training.make(out, "task=panda_lift_cube", *SMALL, *overrides)


def fit(out, *overrides):
    return training.fit(out, "task=panda_lift_cube", *SMALL, *overrides)


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


def wait_for(condition, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
