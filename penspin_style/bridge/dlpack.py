"""Arrays of JAX as tensors of torch and back, by DLPack: the same memory, or an error.

    tensor = to_torch(array)     # tensor.data_ptr() == array.unsafe_buffer_pointer()
    array = to_jax(tensor)

Nothing is ever copied behind the caller's back, as `jax.numpy.from_dlpack` does for 64-bit types
(it halves them while `jax_enable_x64` is off) and for memory that is not aligned as JAX wants it.
Whether memory is shared is found out by comparing addresses, not by asking.

**Writing.** JAX takes an array for a constant, torch does not know constants. What torch writes
into shared memory appears in the array: the next computation that is *given* the array reads it,
one that has read it does not. So write only into memory that torch owns (`to_jax`), between
computations, and never into what `to_torch` returned.

**Lifetime.** Each side keeps the memory alive that it looks at. A buffer that torch looks at is not
reused by a donation (`jax.jit(..., donate_argnums=...)`): JAX computes into another one. An array
that was donated or deleted has no memory, and is refused.

**Order on a GPU.** Both conversions order the streams by an event, without waiting on the host:
`to_torch` lets torch's current stream wait for the computation of the array, `to_jax` lets JAX's
stream wait for what torch's current stream was given until then. Later work on a tensor is not
ordered with a conversion before it: convert again, which costs microseconds, after writing.
"""

from typing import Any

import torch
from torch import Tensor

from penspin_style.bridge.start import import_jax

_HALVED = (torch.float64, torch.int64, torch.uint64, torch.complex128)


def to_torch(array: Any) -> Tensor:
    """Return a tensor on the memory of a JAX array.

    It has the array's shape and type, on its device, and is contiguous.

    Raises:
        TypeError: no JAX array, or one that is being traced.
        ValueError: torch cannot look at its memory; says why, and what to do.
    """
    jax = import_jax("to_torch")
    if not isinstance(array, jax.Array):
        raise TypeError(f"to_torch takes a jax.Array, got {_kind(array)}")
    if isinstance(array, jax.core.Tracer):
        raise TypeError(
            "to_torch takes an array, not one that is being traced: call it outside jit"
        )
    what = f"a JAX array {array.shape} {array.dtype}"
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        raise ValueError(f"{what} has no memory of its own: convert jax.random.key_data(keys)")
    if array.is_deleted():
        raise ValueError(f"{what} was donated or deleted: there is no memory to look at")
    if len(array.devices()) != 1:
        places = len(array.devices())
        raise ValueError(f"{what} is spread over {places} devices: convert its addressable_shards")
    try:
        tensor = torch.from_dlpack(array)
    except (RuntimeError, BufferError, ValueError, TypeError) as error:
        raise ValueError(
            f"{what} cannot be a tensor ({_first_line(error)}): convert it with array.astype"
        ) from error
    _check_shared(tensor, array, f"{what}", "convert a copy, jax.numpy.copy(array)")
    return tensor


def to_jax(tensor: Tensor) -> Any:
    """Return a JAX array on the memory of a tensor.

    It has the tensor's shape and type, on its device.

    Raises:
        TypeError: no tensor.
        ValueError: JAX cannot look at its memory; says why, and what to do.
    """
    jax = import_jax("to_jax")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"to_jax takes a torch.Tensor, got {_kind(tensor)}")
    what = f"a tensor {tuple(tensor.shape)} {tensor.dtype}"
    if reason := _refused(tensor, x64=jax.config.jax_enable_x64):
        raise ValueError(f"{what} cannot be a JAX array: {reason}")
    try:
        array = jax.numpy.from_dlpack(tensor)
    except (RuntimeError, BufferError, ValueError, TypeError) as error:
        raise ValueError(f"{what} cannot be a JAX array: {_first_line(error)}") from error
    remedy = "JAX wants memory aligned to 64 bytes; convert tensor.clone()"
    _check_shared(tensor, array, what, remedy)
    return array


def _refused(tensor: Tensor, *, x64: bool) -> str:
    """Return why JAX could not look at a tensor's memory, and what to do; empty if it may."""
    if tensor.layout != torch.strided:
        return f"it is {tensor.layout}; convert tensor.to_dense()"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"it is on {tensor.device}; it must be on a CPU or a GPU"
    if tensor.requires_grad:
        return "it requires a gradient, which JAX would not pass on; convert tensor.detach()"
    if tensor.is_conj() or tensor.is_neg():
        return "it is conjugated or negated when it is read; convert tensor.resolve_conj() or neg"
    if tensor.dtype in _HALVED and not x64:
        return (
            "JAX would halve it, since jax_enable_x64 is off; convert tensor.float() or int(), or "
            "turn that on"
        )
    if not _is_compact(tensor):
        return (
            f"its strides {tensor.stride()} leave gaps or repeat; convert tensor.contiguous(), and "
            "convert again after writing"
        )
    return ""


def _is_compact(tensor: Tensor) -> bool:
    """Return whether the elements lie side by side, in the order of some axes."""
    if tensor.numel() == 0:
        return True
    expected = 1
    axes = [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]
    for stride, size in sorted(axes):
        if stride != expected:
            return False
        expected *= size
    return True


def _check_shared(tensor: Tensor, array: Any, what: str, remedy: str) -> None:
    """Refuse what was copied or converted.

    Raises:
        ValueError: the addresses, shapes or sizes of elements differ.
    """
    same = tensor.shape == array.shape and tensor.element_size() == array.dtype.itemsize
    if same and tensor.numel():
        same = tensor.data_ptr() == array.unsafe_buffer_pointer()
    if not same:
        raise ValueError(f"{what} would be copied: {remedy}")


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
