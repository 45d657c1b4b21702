"""Whole numbers in the settings of those that imitate: refused where the configuration is made."""

import dataclasses

import pytest

from penspin_style.algo.act import ACTConfig
from penspin_style.algo.clone import CloneConfig
from penspin_style.algo.diffusion import DiffusionConfig
from penspin_style.algo.imitation import DistillConfig, TemporalConfig

MAY_BE_ZERO = {"replay_capacity", "beta_iterations", "patience", "eval_start_epoch"}
COUNTS = [
    (kind, field.name)
    for kind in (ACTConfig, CloneConfig, DiffusionConfig, DistillConfig, TemporalConfig)
    for field in dataclasses.fields(kind)
    if isinstance(field.default, int) and not isinstance(field.default, bool)
]


def test_every_such_algorithm_has_some():
    assert {kind for kind, _ in COUNTS} > {ACTConfig, DiffusionConfig}
    assert (DiffusionConfig, "num_queries") in COUNTS


@pytest.mark.parametrize(("kind", "key"), COUNTS)
def test_a_count_that_is_too_small_is_named(kind, key):
    least = 0 if key in MAY_BE_ZERO else 1
    with pytest.raises(ValueError, match=rf"^algo\.(temporal\.)?{key} must be .*, got {least - 1}"):
        kind(**{key: least - 1})
