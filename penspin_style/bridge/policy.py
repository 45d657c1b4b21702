"""Our perceptrons as functions of JAX, for `jax.jit`, `jax.vmap` and `jax.lax.scan`.

act = jax_policy("outputs/pretrained/panda_lift_cube/policy.onnx")
action = act(observation)             # (..., size) -> (..., naction) in [-1, 1], deterministic
"""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from penspin_style import storage
from penspin_style.bridge.dlpack import to_jax
from penspin_style.bridge.start import import_jax
from penspin_style.deploy.bundle import MAX_BYTES, Bundle
from penspin_style.nets.gaussian_policy import GaussianPolicy

Act = Callable[[Any], Any]


def jax_policy(policy: nn.Module | str | pathlib.Path) -> Act:
    """Return what a policy's `act` computes, as a function of one JAX array, raw observations.

    policy: a `GaussianPolicy`, whose weights the function shares: what training changes in place
        is seen by its next call, outside of what was compiled before; or the path of an exported
        `.onnx`, which is checked as `Bundle.load` does.

    Raises:
        TypeError: another kind of policy.
        ValueError: weights that JAX cannot look at; a file that is no bundle, or does more than a
            perceptron on one input; names the operators.
    """
    if isinstance(policy, str | pathlib.Path):
        return _from_onnx(pathlib.Path(policy))
    if not isinstance(policy, GaussianPolicy):
        raise TypeError(
            f"jax_policy takes a GaussianPolicy or an exported .onnx, got {type(policy).__name__}"
        )
    return _from_torch(policy)


def _from_torch(policy: GaussianPolicy) -> Act:
    jax = import_jax("jax_policy")
    jnp = jax.numpy
    activations: dict[type[nn.Module], Act] = {
        nn.ELU: jax.nn.elu,
        nn.ReLU: jax.nn.relu,
        nn.SiLU: jax.nn.silu,
        nn.Tanh: jnp.tanh,
    }
    normalizer = policy.normalizer
    mean, var = to_jax(normalizer.mean), to_jax(normalizer.var)
    layers = [
        (to_jax(layer.weight.detach()), to_jax(layer.bias.detach()))
        if isinstance(layer, nn.Linear)
        else activations[type(layer)]
        for layer in policy.net
    ]

    def act(observation: Any) -> Any:
        x = (observation - mean) * jax.lax.rsqrt(var + normalizer.epsilon)
        x = jnp.clip(x, -normalizer.clip, normalizer.clip)
        for layer in layers:
            if isinstance(layer, tuple):
                x = jnp.matmul(x, layer[0].T, precision="highest") + layer[1]
            else:
                x = layer(x)
        return jnp.tanh(x)

    return act


def _from_onnx(path: pathlib.Path) -> Act:
    import_jax("jax_policy")
    bundle = Bundle.load(path)
    if len(bundle.card.inputs) != 1:
        names = ", ".join(i.name for i in bundle.card.inputs)
        raise ValueError(f"{path} reads {names}; jax_policy takes policies of one vector")
    graph = onnx.load_from_string(storage.read_file(path, MAX_BYTES)).graph
    operators = _operators()
    if unknown := sorted({node.op_type for node in graph.node} - {*operators}):
        raise ValueError(
            f"{path} is no perceptron: it has {', '.join(unknown)}; jax_policy knows "
            f"{', '.join(sorted(operators))}"
        )
    weights = {i.name: _shared(numpy_helper.to_array(i)) for i in graph.initializer}
    given, wanted = graph.input[0].name, graph.output[0].name

    def act(observation: Any) -> Any:
        values: dict[str, Any] = {**weights, given: observation}
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            found = [values[name] if name else None for name in node.input]
            values[node.output[0]] = operators[node.op_type](attributes, *found)
        return values[wanted]

    return act


def _shared(values: np.ndarray) -> Any:
    return to_jax(torch.from_numpy(values.copy()).clone())


def _operators() -> Mapping[str, Callable[..., Any]]:
    jax = import_jax("jax_policy")
    jnp = jax.numpy

    def gemm(attributes: Mapping[str, Any], a: Any, b: Any, c: Any = 0.0) -> Any:
        a = a.T if attributes.get("transA", 0) else a
        b = b.T if attributes.get("transB", 0) else b
        product = jnp.matmul(a, b, precision="highest")
        return attributes.get("alpha", 1.0) * product + attributes.get("beta", 1.0) * c

    def clip(_: Mapping[str, Any], x: Any, low: Any = None, high: Any = None) -> Any:
        return jnp.clip(x, -math.inf if low is None else low, math.inf if high is None else high)

    return {
        "Add": lambda _, a, b: a + b,
        "Clip": clip,
        "Div": lambda _, a, b: a / b,
        "Elu": lambda attributes, x: jax.nn.elu(x, attributes.get("alpha", 1.0)),
        "Gemm": gemm,
        "Identity": lambda _, x: x,
        "MatMul": lambda _, a, b: jnp.matmul(a, b, precision="highest"),
        "Mul": lambda _, a, b: a * b,
        "Relu": lambda _, x: jax.nn.relu(x),
        "Sigmoid": lambda _, x: jax.nn.sigmoid(x),
        "Sub": lambda _, a, b: a - b,
        "Swish": lambda attributes, x: x * jax.nn.sigmoid(attributes.get("alpha", 1.0) * x),
        "Tanh": lambda _, x: jnp.tanh(x),
    }
