"""Policies that brax's PPO has trained, as ours. Needs neither brax nor JAX, only its arrays.

params = brax.training.agents.ppo.checkpoint.load(path)  # or what `train_fn` returned
policy = from_brax(params)                         # GaussianPolicy
action = policy.act(observation)                   # equal to deterministic inference there
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from penspin_style.nets.gaussian import raw_deviation
from penspin_style.nets.gaussian_policy import GaussianPolicy

_MIN_STD = 0.001  # of brax's NormalTanhDistribution
_LEAST = 1e-2  # of a normaliser's deviation, below which float32 would lose digits of its square


def from_brax(
    params: Any, *, activation: str = "silu", in_key: str = "teacher", key: str = "state"
) -> GaussianPolicy:
    """Return the policy of brax's PPO parameters: normaliser, layers, tanh of the mean.

    Its deviation is what the last layer's bias says: brax's varies with the observation, ours does
    not. Its normaliser does not clip, as brax's does not.

    params: (normalizer_params, policy_params, ...), as `brax.training.agents.ppo` returns and
        checkpoints hold them, objects or dictionaries; normalizer_params None for none.
    activation: of the hidden layers; brax's default is swish, `silu` here.
    in_key: what the policy calls its input.
    key: which part of observations that are dictionaries the policy reads.

    Raises:
        ValueError: they are of another network than `make_ppo_networks` makes by default; says
            what was found.
    """
    if not isinstance(params, tuple | list) or len(params) < 2:
        raise ValueError(
            "params must be (normalizer, policy, ...) as brax's PPO returns them, got "
            f"{type(params).__name__}"
        )
    layers = _layers(params[1])
    size, naction = layers[0][0].shape[0], layers[-1][1].size // 2
    if layers[-1][1].size % 2:
        raise ValueError(
            f"the last layer has {layers[-1][1].size} outputs, not a mean and a deviation for each "
            "action: only distribution_type='tanh_normal' is read"
        )
    mean, std = _statistics(params[0], key, size)
    hidden = [bias.size for _, bias in layers[:-1]]
    policy = GaussianPolicy(
        in_key,
        size,
        naction,
        hidden=hidden,
        activation=activation,
        init_std=1.0,
        rng=torch.Generator(),
        clip=None,
    )
    safe = np.maximum(std, _LEAST)
    kernels = [(kernel, bias) for kernel, bias in layers]
    kernels[0] = (layers[0][0] * (safe / std)[:, None], layers[0][1])
    kernels[-1] = (kernels[-1][0][:, :naction], kernels[-1][1][:naction])
    raw = np.log1p(np.exp(layers[-1][1][naction:])) + _MIN_STD
    with torch.no_grad():
        policy.normalizer.mean.copy_(torch.from_numpy(mean))
        policy.normalizer.var.copy_(torch.from_numpy(safe**2 - policy.normalizer.epsilon))
        linear: Any = policy.net[::2]
        for layer, (kernel, bias) in zip(linear, kernels, strict=True):
            layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
            layer.bias.copy_(torch.from_numpy(bias))
        policy.raw_std.copy_(torch.tensor([raw_deviation(float(value)) for value in raw]))
    return policy.eval()


def _part(holder: Any, name: str) -> Any:
    """Return an attribute, or what a dictionary holds under a name."""
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _layers(policy: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return kernel (n_in, n_out) and bias of each layer, float64."""
    found = _part(policy, "params") or policy
    names = sorted(found, key=lambda name: (len(name), name))
    wanted = [f"hidden_{i}" for i in range(len(names))]
    if names != wanted:
        odd = ", ".join(name for name in names if not re.fullmatch(r"hidden_\d+", name)) or names
        raise ValueError(f"policy parameters must be {', '.join(wanted)}, found {odd}")
    layers = []
    for name in names:
        if {*found[name]} != {"kernel", "bias"}:
            raise ValueError(f"{name} must have kernel and bias, has {', '.join(found[name])}")
        kernel, bias = (np.asarray(found[name][k], np.float64) for k in ("kernel", "bias"))
        if layers and kernel.shape[0] != layers[-1][1].size:
            raise ValueError(f"{name} takes {kernel.shape[0]} numbers, gets {layers[-1][1].size}")
        layers.append((kernel, bias))
    return layers


def _statistics(normalizer: Any, key: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the observations, (size,) each, float64."""
    if normalizer is None:
        return np.zeros(size), np.ones(size)
    values = []
    for name in ("mean", "std"):
        value = _part(normalizer, name)
        if isinstance(value, Mapping):
            if key not in value:
                raise ValueError(f"observations have {', '.join(value)}, no key={key!r}")
            value = value[key]
        value = np.asarray(math.nan if value is None else value, np.float64)
        if value.shape != (size,):
            raise ValueError(
                f"the normaliser's {name} is {value.shape}, the first layer takes {size} numbers"
            )
        values.append(value)
    return values[0], values[1]
