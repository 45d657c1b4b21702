"""The processes of one training, as `torchrun` starts them: ranks 0 to size - 1.

`RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` say who is there; without them there is one
process, and everything here is the identity. Sums and means go over gloo on a CPU and nccl on a
GPU. Every rank must call the same functions in the same order.
"""

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = 45.0
"""Seconds after which a rank that says nothing is given up, while training."""
_GOLDEN = 2654435761  # 2**32 over the golden ratio: multiples of it lie far apart
_TO_BEGIN = 1800.0  # in which all must have built their environments


class PeerLostError(RuntimeError):
    """Another process of this training has ended or says nothing any more."""


def rank() -> int:
    """Return the number of this process."""
    return _whole("RANK", 0) if size() > 1 else 0


def size() -> int:
    """Return the number of processes."""
    given = all(os.environ.get(key) for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return _whole("WORLD_SIZE", 1) if given else 1


def here() -> tuple[int, int]:
    """Return the number of this process among those of this machine, and how many they are."""
    if size() == 1:
        return 0, 1
    return _whole("LOCAL_RANK", rank()), _whole("LOCAL_WORLD_SIZE", size())


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return rank() == 0


def own_seed(seed: int) -> int:
    """Return this rank's seed."""
    return seed_of(seed, rank())


def seed_of(seed: int, number: int) -> int:
    """Return the seed of one of several processes: the run's own for 0, else one far from it.

    A generator on the CPU takes 32 bits of it.
    """
    return (seed + number * _GOLDEN) % 2**32 if number else seed


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other ranks; in the block they can be summed over.

    Raises:
        PeerLostError: not all have come.
    """
    if size() == 1:
        yield
        return
    end = time.monotonic() + _TO_BEGIN
    with _peers():
        found = dist.rendezvous("env://", timeout=datetime.timedelta(seconds=_TO_BEGIN))
        store, own, count = next(iter(found))
        store.set(f"ready/{own}", "")
        # not `store.wait`, in which no signal would be handled
        while not store.check([f"ready/{k}" for k in range(count)]):
            if time.monotonic() > end:
                raise PeerLostError(f"after {_TO_BEGIN:.0f} s not all {count} processes are there")
            time.sleep(0.05)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=own,
            world_size=count,
            timeout=datetime.timedelta(seconds=TIMEOUT),
        )
    try:
        yield
    finally:
        dist.destroy_process_group()


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks."""
    if not dist.is_initialized():
        return value
    summed = value.detach().clone()
    with _peers():
        dist.all_reduce(summed)
    return summed


def largest(number: int) -> int:
    """Return the largest of the ranks' whole numbers."""
    if not dist.is_initialized():
        return number
    value = torch.tensor(number, dtype=torch.int64)
    with _peers():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def any_of(flag: bool) -> bool:
    """Return whether a flag is set on any rank."""
    return bool(largest(int(flag)))


def of_first(ask: Callable[[], bool]) -> bool:
    """Return what rank 0 is told; it alone asks."""
    return any_of(is_first() and ask())


def average_(values: Sequence[Tensor], weight: Tensor) -> None:
    """Replace tensors of one type by their weighted means over the ranks, in one sum.

    weight: of this rank, a number; where all are 0, so are the means.
    """
    if not dist.is_initialized():
        return
    weight = weight.detach().to(values[0])
    flat = torch.cat([*(v.detach().reshape(-1) * weight for v in values), weight.reshape(1)])
    with _peers():
        dist.all_reduce(flat)
    flat = flat[:-1] / flat[-1].clamp(min=1.0)
    for value, part in zip(values, flat.split([v.numel() for v in values]), strict=True):
        value.detach().copy_(part.view_as(value))


def gather(content: bytes) -> list[bytes]:
    """Return what each rank gives, in order, on rank 0; elsewhere nothing."""
    if not dist.is_initialized():
        return [content]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    with _peers():
        dist.all_gather(sizes, torch.tensor([len(content)]))
    sent = _padded(content, int(max(sizes)))
    parts = [torch.zeros_like(sent) for _ in sizes] if is_first() else None
    with _peers():
        dist.gather(sent, parts)
    given = zip(parts or (), sizes, strict=False)
    return [part[: int(count)].numpy().tobytes() for part, count in given]


def broadcast(content: bytes) -> bytes:
    """Return what rank 0 gives."""
    if not dist.is_initialized():
        return content
    count = largest(len(content) if is_first() else 0)
    sent = _padded(content if is_first() else b"", count)
    with _peers():
        dist.broadcast(sent, 0)
    return sent[:count].numpy().tobytes()


def _padded(content: bytes, room: int) -> Tensor:
    return torch.frombuffer(bytearray(content.ljust(max(room, 1), b"\0")), dtype=torch.uint8)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Say what a broken connection means."""
    try:
        yield
    except PeerLostError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0].split("] ", 1)[-1].split(". ")[0]
        raise PeerLostError(
            f"rank {rank()} of {size()}: another process has ended or has said nothing for "
            f"{TIMEOUT:.0f} s ({reason}); every checkpoint "
            "so far is whole, and resume=true continues"
        ) from error


def _whole(key: str, default: int) -> int:
    text = os.environ.get(key, str(default))
    if not text.isdecimal():
        raise ValueError(f"{key}={text} in the environment: must be a whole number >= 0")
    return int(text)
