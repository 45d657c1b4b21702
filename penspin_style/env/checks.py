"""What an environment checks of a task's configuration and of the actions that it is given."""

from collections.abc import Collection

import mujoco
import torch
from torch import Tensor


def count_substeps(control_dt: float, model: mujoco.MjModel) -> int:
    """Return how many physics steps a control step of `control_dt` seconds has.

    Raises:
        ValueError: not a whole number.
    """
    n = round(control_dt / model.opt.timestep)
    if n < 1 or abs(n * model.opt.timestep - control_dt) > 1e-9:
        raise ValueError(
            f"task.control_dt {control_dt} s must be a multiple of the timestep, "
            f"{model.opt.timestep} s"
        )
    return n


def check_reward_keys(terms: Collection[str], weights: Collection[str]) -> None:
    """Check that a task's configuration weighs exactly the terms that it rewards.

    Raises:
        ValueError: names what is missing or unknown.
    """
    if set(terms) != set(weights):
        missing, unknown = sorted(set(terms) - set(weights)), sorted(set(weights) - set(terms))
        raise ValueError(
            f"task.reward must weigh exactly the task's terms {sorted(terms)}: "
            f"missing {missing}, unknown {unknown}"
        )


def check_action(action: Tensor, num_envs: int, naction: int) -> None:
    """Refuse actions of another shape or type, which a task would read in part; no host sync.

    Raises:
        ValueError: what they are, and what they must be.
    """
    if action.shape != (num_envs, naction) or action.dtype != torch.float32:
        got = f"{tuple(action.shape)} {str(action.dtype).removeprefix('torch.')}"
        raise ValueError(f"the action must be ({num_envs}, {naction}) float32, got {got}")
