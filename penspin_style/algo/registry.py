"""The choice of an algorithm by its configuration."""

from collections.abc import Callable

import torch

from penspin_style.algo.algorithm import Algorithm
from penspin_style.algo.distill import Distill
from penspin_style.algo.ppo import PPO
from penspin_style.config import DistillConfig, TrainConfig
from penspin_style.features import Input


def make_algorithm(
    cfg: TrainConfig,
    inputs: tuple[Input, ...],
    reads: Callable[[str], tuple[str, ...]],
    naction: int,
    *,
    device: torch.device,
    seed: int,
) -> Algorithm:
    """Return the algorithm that `cfg.algo` describes.

    inputs: what the environment observes. reads: from a group to the names of its inputs.

    Raises:
        ValueError: the environment does not observe what the algorithm needs.
    """
    if not isinstance(cfg.algo, DistillConfig):
        return PPO(cfg.algo, inputs, naction, device=device, seed=seed)
    names = reads(cfg.algo.group)
    if not names:
        raise ValueError(
            f"algo.group={cfg.algo.group}: the task observes no such group; it has "
            f"{', '.join(i.name for i in inputs)}"
        )
    per_iteration = cfg.num_envs * cfg.algo.horizon
    return Distill(
        cfg.algo,
        inputs,
        names,
        naction,
        iterations=-(-cfg.total_samples // per_iteration),
        per_iteration=per_iteration,
        device=device,
        seed=seed,
    )
