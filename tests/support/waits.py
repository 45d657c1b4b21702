"""Where a rollout would wait for an accelerator, found on a CPU."""

import pathlib
import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from penspin_style.algo.algorithm import rollout
from tests.support.toy_env import ROOT

WAITING = {
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("unique_consecutive", "_unique2", "unique_dim", "lift_fresh", "bincount", "histc"),
    )
}
WAITING_METHODS = {
    getattr(torch.Tensor, name)
    for name in ("tolist", "numpy", "cpu", "item", "__bool__", "__float__", "__int__", "__index__")
}
CPU_ENGINE = "penspin_style/sim/batch_sim.py"
CPU_ONLY = "return self._on_cpu and "


class _Dispatch(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        indices = args[1] if name.startswith("aten::index") and isinstance(args[1], list) else []
        masks = [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
        # a lone number is an argument of a kernel, not a copy
        number = name == "aten::lift_fresh" and args[0].ndim == 0
        if (name in WAITING and not number) or masks:
            self.found.append((name, *_where()))
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        get = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
        lists = func in get and _holds_list(args[1])
        if func in WAITING_METHODS or lists or func is torch.tensor:
            self.found.append((getattr(func, "__name__", str(func)), *_where()))
        return func(*args, **(kwargs or {}))


def _holds_list(index):
    return any(isinstance(i, list) for i in (index if isinstance(index, tuple) else (index,)))


def _where():
    """File and line of the innermost frame of this repository, the search itself aside."""
    frame = sys._getframe(1)
    while frame is not None:
        path = pathlib.Path(frame.f_code.co_filename)
        asking = frame.f_code.co_name in ("__torch_dispatch__", "__torch_function__")
        ours = path.is_relative_to(ROOT) and "site-packages" not in path.parts  # a venv lies in it
        if ours and not asking:
            text = path.read_text().splitlines()[frame.f_lineno - 1].strip()
            return path.relative_to(ROOT).as_posix(), text
        frame = frame.f_back
    return "elsewhere", ""


def waits(env, algorithm):
    """Where a rollout would wait for the accelerator: (what, file, line).

    The walk takes its accelerator's branches here: on a CPU it may ask whether a mask is empty.
    The CPU engine is the host. Python data that becomes a tensor counts: on a GPU it is a copy.
    """
    assert env._on_cpu
    env._on_cpu = False
    _, root = rollout(env, algorithm, env.current(), None)  # first calls may allocate
    found = []
    with _Dispatch(found), _Methods(found):
        rollout(env, algorithm, root, None)
    return [place for place in found if place[1] != CPU_ENGINE]
