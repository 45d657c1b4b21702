"""Tensors and JAX arrays on the same memory: equal addresses, or an error, in both directions."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from penspin_style.bridge.dlpack import to_jax, to_torch

jax = pytest.importorskip("jax")
jnp = jax.numpy

SHARED = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32),
    *(torch.bool, torch.complex64),
)
HALVED = (torch.float64, torch.int64, torch.uint64, torch.complex128)
BASE = torch.arange(48.0).reshape(8, 6)


def aligned(shape):
    """Zeros of numpy's on an address as JAX wants it."""
    memory = np.zeros(4 * int(np.prod(shape)) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


LAYOUTS = {
    "rows": lambda: BASE.clone(),
    "transposed": lambda: BASE.clone().T,
    "permuted": lambda: torch.rand(2, 3, 4).permute(2, 0, 1),
    "channels last": lambda: torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "a scalar": lambda: torch.tensor(1.5),
    "axes of one": lambda: torch.rand(4)[:, None, None],
    "no rows": lambda: torch.zeros(0, 3),
    "no columns": lambda: torch.zeros(3, 0),
    "an aligned view": lambda: torch.zeros(64, 16)[4:8],
    "numpy's memory": lambda: torch.from_numpy(aligned((16, 4))),
    "detached": lambda: torch.rand(3, requires_grad=True).detach(),
}
GAPS = r"strides .*\.contiguous\(\)"
REFUSED = {
    "columns": (lambda: torch.zeros(8, 6)[:, 1:3], GAPS),
    "every other row": (lambda: torch.zeros(8, 6)[::2], GAPS),
    "expanded": (lambda: torch.zeros(1, 6).expand(4, 6), GAPS),
    "overlapping": (
        lambda: torch.zeros(8).as_strided((4, 4), (1, 1)),
        GAPS,
    ),
    "an unaligned view": (lambda: torch.zeros(32)[1:], "copied: .*aligned to 64 bytes"),
    "requires grad": (lambda: torch.zeros(3, requires_grad=True), r"tensor\.detach\(\)"),
    "conjugated": (lambda: torch.zeros(3, dtype=torch.complex64).conj(), "resolve_conj"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "to_dense"),
    "nowhere": (lambda: torch.zeros(3, device="meta"), "on meta"),
}


def address(array):
    return array.unsafe_buffer_pointer()


@pytest.mark.parametrize("dtype", SHARED, ids=str)
def test_a_tensor_of_a_shared_type_crosses_both_ways_without_a_copy(dtype):
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    array = to_jax(tensor)
    assert address(array) == tensor.data_ptr()
    back = to_torch(array)
    assert back.data_ptr() == tensor.data_ptr() and back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))
    made = jnp.zeros((3, 5), array.dtype)  # by JAX itself
    assert to_torch(made).data_ptr() == address(made) and to_torch(made).dtype == dtype


@pytest.mark.parametrize("dtype", HALVED, ids=str)
def test_a_64_bit_tensor_is_refused_unless_jax_knows_64_bits(dtype):
    tensor = torch.ones(4, 6, dtype=dtype)
    assert address(jnp.from_dlpack(tensor)) != tensor.data_ptr()  # what JAX itself does
    with pytest.raises(ValueError, match="would halve it, since jax_enable_x64 is off"):
        to_jax(tensor)
    with jax.enable_x64(True):
        array = to_jax(tensor)
        assert address(array) == tensor.data_ptr() and array.dtype.itemsize == dtype.itemsize
        assert to_torch(array).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_compact_layout_is_shared(layout):
    tensor = LAYOUTS[layout]()
    array = to_jax(tensor)
    assert array.shape == tensor.shape
    assert np.array_equal(np.asarray(array), tensor.numpy())
    if tensor.numel():
        assert address(array) == tensor.data_ptr()
        back = to_torch(array)
        assert back.data_ptr() == tensor.data_ptr() and torch.equal(back, tensor)
    else:
        assert to_torch(array).shape == tensor.shape


@pytest.mark.parametrize("layout", REFUSED)
def test_a_layout_that_would_be_copied_is_refused_with_the_remedy(layout):
    make, remedy = REFUSED[layout]
    with pytest.raises(ValueError, match=remedy):
        to_jax(make())


@pytest.mark.parametrize("view", ["transposed", "sliced", "reshaped", "empty"])
def test_what_jax_views_is_a_buffer_of_its_own_and_shared(view):
    array = jnp.arange(24.0).reshape(4, 6)
    made = {"transposed": array.T, "sliced": array[:, 1:3], "reshaped": array.reshape(-1)}
    made = made.get(view, array[:0])
    tensor = to_torch(made)
    assert tensor.is_contiguous() and np.array_equal(tensor.numpy(), np.asarray(made))
    if made.size:
        assert tensor.data_ptr() == address(made)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: jnp.zeros(4, "int4"), ValueError, "astype"),
        (lambda: jax.random.key(0), ValueError, "key_data"),
        (lambda: np.zeros(3), TypeError, "takes a jax.Array, got numpy.ndarray"),
        (lambda: torch.zeros(3), TypeError, "takes a jax.Array, got torch.Tensor"),
    ],
)
def test_what_torch_cannot_look_at_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        to_torch(make())


def test_a_numpy_array_is_no_tensor():
    with pytest.raises(TypeError, match=r"takes a torch.Tensor, got numpy.ndarray"):
        to_jax(np.zeros(3))


def test_a_traced_array_is_refused():
    with pytest.raises(TypeError, match="call it outside jit"):
        jax.jit(to_torch)(jnp.zeros(3))


def test_a_donated_or_deleted_array_is_refused_and_never_read():
    gone = jnp.zeros(3)
    gone.delete()
    donated = jnp.zeros(1024)
    jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
    for array in (gone, donated):
        with pytest.raises(ValueError, match="donated or deleted"):
            to_torch(array)


def test_a_donation_leaves_alone_what_torch_looks_at():
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    own = jnp.zeros(1024)
    before = address(own)
    assert address(add(own)) == before  # donated memory is used again, as a rule
    array = jnp.zeros(1024)
    seen = to_torch(array)
    assert address(add(array)) != seen.data_ptr() and not seen.any()
    tensor = torch.zeros(1024)
    assert address(add(to_jax(tensor))) != tensor.data_ptr() and not tensor.any()


def test_what_torch_writes_is_read_by_the_next_computation():
    tensor = torch.zeros(4)
    array = to_jax(tensor)
    twice = jax.jit(lambda x: 2.0 * x)
    tensor[1] = 3.0
    assert to_torch(twice(array)).tolist() == [0.0, 6.0, 0.0, 0.0]
    tensor[1] = 4.0
    assert to_torch(twice(array)).tolist() == [0.0, 8.0, 0.0, 0.0]


def test_memory_outlives_the_side_that_made_it():
    tensor = to_torch(jnp.arange(4096.0) * 1.0)
    array = to_jax(torch.arange(4096.0))
    gc.collect()
    rest = [jnp.full(4096, 7.0) for _ in range(8)], [torch.full((4096,), 7.0) for _ in range(8)]
    assert tensor[4095] == 4095.0 and float(array[4095]) == 4095.0
    del rest


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_are_ordered_without_waiting_on_the_host():
    """A long kernel of the one side is done before the other reads, on any of torch's streams."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs JAX on CUDA")
    side = torch.cuda.Stream()
    heavy = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ y), x))
    with torch.cuda.stream(side):
        tensor = torch.zeros(2048, 2048, device="cuda")
        torch.cuda._sleep(10**8)
        tensor.fill_(1e-3)
        array = to_jax(tensor)
        assert address(array) == tensor.data_ptr()
        late = to_torch(heavy(array) * 0.0 + array).clone()
    side.synchronize()
    assert torch.equal(late, torch.full_like(late, 1e-3))


def started(environment, said):
    code = (
        "from penspin_style.bridge.start import import_jax; import os; import_jax(); "
        "print(os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE'))"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_PYTHON", "XLA_CLIENT"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [said]


def test_jax_leaves_gpu_memory_to_torch_unless_told_otherwise():
    started({}, "false")
    started({"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}, "true")
    started({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".4"}, "None")
