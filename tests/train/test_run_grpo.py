"""A run of GRPO: the same again after a stop."""

import signal

import pytest

from tests.support import training
from tests.support.training import manifest, untimed

SMALL = (
    *("task=panda_lift_cube", "algo=grpo", "num_envs=4", "algo.group_size=2", "algo.horizon=3"),
    *("algo.hidden=[16]", "algo.kl_coef=0.1", "total_samples=60", "keep_last=9", "loggers=[csv]"),
    *("eval_every=2", "eval_episodes=2", "final_episodes=2", "checkpoint_every=1", "video=false"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path):
    whole = training.fit(tmp_path / "whole", *SMALL)
    halved = training.make(tmp_path / "halved", *SMALL)
    log = halved._log

    def stop(*args):
        log(*args)
        if halved.iteration == 2:
            signal.raise_signal(signal.SIGTERM)

    halved._log = stop
    assert halved.fit(quiet=True) == 4
    resumed = training.fit(tmp_path / "halved", *SMALL, "resume=true")
    for i in range(2, 6):
        assert manifest(resumed, i) == manifest(whole, i)
    assert untimed(resumed) == untimed(whole)
