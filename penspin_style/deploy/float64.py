"""Compute a policy in float64 with float32 weights, for one steeper than float32 resolves.

Where large terms cancel, in the convolutions of a frozen encoder or in a perceptron that acts like
a servo, two correct float32 programs differ by more than 1e-5 in an action. In float64 they agree
to the last bit of the float32 action. Weights stay what they are, so a file grows by little.
"""

import copy

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional


def in_float64(policy: nn.Module) -> nn.Module:
    """Return a copy that computes in float64, of operators that onnxruntime has in float64."""
    policy = copy.deepcopy(policy).cpu().double()
    found: list[tuple[nn.Module, str, nn.Module]] = [
        (parent, name, child)
        for parent in policy.modules()
        for name, child in parent.named_children()
    ]
    for parent, name, child in found:
        if isinstance(child, nn.ELU):
            setattr(parent, name, _Elu(child.alpha))
        elif isinstance(child, nn.Conv2d):
            setattr(parent, name, _Conv(child))
    return policy


class _Elu(nn.Module):
    """`nn.ELU` from operators: onnxruntime has none in float64."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.alpha * (torch.exp(x.clamp(max=0.0)) - 1.0))


class _Conv(nn.Module):
    """`nn.Conv2d` as a product of matrices: onnxruntime has none in float64.

    Raises:
        ValueError: groups, or padding other than with zeros.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"{conv} cannot be computed in float64: only plain ones with zeros")
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        dilation, padding, stride = conv.dilation, conv.padding, conv.stride
        assert not isinstance(padding, str)
        sizes = zip(x.shape[2:], conv.kernel_size, stride, padding, dilation, strict=True)
        shape = [(n + 2 * pad - far * (k - 1) - 1) // by + 1 for n, k, by, pad, far in sizes]
        columns = functional.unfold(x, conv.kernel_size, dilation, padding, stride)
        out = (conv.weight.flatten(1) @ columns).unflatten(2, shape)
        return out if conv.bias is None else out + conv.bias[:, None, None]


def with_float32_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store each float64 weight that float32 holds exactly as that, and cast it in the graph."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.DOUBLE:
            continue
        exact = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):  # what overflows is not held exactly, and stays
            short = exact.astype(np.float32)
        if not np.array_equal(short.astype(np.float64), exact):
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(short, f"{name}.float32"))
        casts.append(
            onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.DOUBLE)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
