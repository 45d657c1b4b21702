"""Advantages of a batch, also of a learner that takes turns with another policy.

The steps in between are none of its decisions: to it they are what the world does after its own
step, however long that takes (a semi-Markov decision process, Sutton et al. 1999). Their rewards
count, discounted step by step; lambda counts once for each of the learner's own steps; the value
function is asked for the learner's own states alone, since it learns of no others.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate

from penspin_style.algo.algorithm import masked_mean, own_steps


def advantages(
    cfg: Any, batch: TensorDict, value: Tensor, next_value: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a batch's advantages and which steps are learned from, [horizon, num_envs, 1] each.

    cfg: an algorithm's, with `gamma`, `gae_lambda` and `reward_scale`.
    """
    nxt: Any = batch["next"]
    fault, own = nxt["fault"], own_steps(batch)
    done, terminated = nxt["done"], nxt["terminated"]
    # a faulty transition gets advantage zero, so that the steps before it bootstrap where it
    # began and nothing that it computed reaches them
    next_value = torch.where(fault, 0.0, next_value)
    reward = torch.where(fault, value, cfg.reward_scale * nxt["reward"])
    terms = (cfg.gamma, cfg.gae_lambda, value, next_value, reward, done, terminated)
    if own is not None:
        return own_advantages(*terms, fault=fault, own=own[..., None], next_own=nxt["learner_acts"])
    # its decorator takes the time axis of positional arguments alone
    return generalized_advantage_estimate(*terms, time_dim=0)[0], ~fault


def normalized(advantage: Tensor, weight: Tensor) -> Tensor:
    """Return advantages with mean 0 and deviation 1 over the rows of weight, of all ranks."""
    mean = masked_mean(advantage, weight, shared=True)
    std = masked_mean((advantage - mean) ** 2, weight, shared=True).sqrt()
    return (advantage - mean) / (std + 1e-8)


def own_advantages(
    gamma: float,
    gae_lambda: float,
    value: Tensor,
    next_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor,
    *,
    fault: Tensor,
    own: Tensor,
    next_own: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return (advantages, which steps count), [horizon, num_envs, 1] as everything that is given.

    Where `own` is true everywhere this is generalised advantage estimation. A step does not count
    that is not the learner's, that is faulty, or after which the data ends, by a time limit, a
    fault or the horizon, before it is the learner's turn again: what such a stretch is worth nobody
    has learned. Advantages are 0 there, so that the steps before bootstrap from its state.

    own, next_own: whether the learner acts in the state, and in the one under `next`.
    """
    advantage, counts = torch.zeros_like(value), torch.zeros_like(own)
    # of the state after the step, where that is not the learner's: its worth, and if it is known
    worth, known = torch.zeros_like(value[-1]), torch.zeros_like(own[-1])
    ahead = torch.zeros_like(value[-1])  # the advantage there, or in the learner's next state
    for t in reversed(range(len(value))):
        then = torch.where(next_own[t], next_value[t], worth)
        worth = reward[t] + gamma * torch.where(terminated[t], 0.0, then)
        known = (terminated[t] | next_own[t] | (known & ~done[t])) & ~fault[t]
        ahead = torch.where(done[t], 0.0, ahead)
        counts[t] = own[t] & known
        gained = worth - value[t] + gae_lambda * gamma * ahead
        advantage[t] = torch.where(counts[t], gained, 0.0)
        ahead = torch.where(own[t], advantage[t], gamma * ahead)
    return advantage, counts
