"""Open the bytes of a policy with onnxruntime: first in a child that may crash, stall or swell.

onnxruntime is written in C++ and computes while it opens a file. What a hostile file makes of that
ends in the child, by limits that the kernel keeps; the caller, who may be a robot's control
process, opens only what has been opened and run before.
"""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import onnxruntime

from penspin_style.deploy.onnx_scan import BundleError
from penspin_style.features import Input, PolicyCard

OUTPUT = "action"
SECONDS = 5.0
"""Of computing, to open and try a file; the slowest policy here takes 0.1."""
MEMORY = 512 * 2**20  # bytes of the child
_SHOWN = 1000  # characters of onnxruntime's errors, which quote the file
_WALL = 120.0  # s: a computer that swaps is slow, but not for ever
# onnxruntime's tanh exceeds 1 by a rounding
_SQUASHED = 1.0 + 1e-6
ONNX_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}
# -P: no module of the current folder, which may hold files of others
_CHILD = (sys.executable, "-P", "-m", "penspin_style.deploy.session")
_ROOT = pathlib.Path(__file__).parents[2]


def open_session(data: bytes, card: PolicyCard) -> onnxruntime.InferenceSession:
    """Return a session of scanned bytes that fits the card and has acted on random observations.

    Raises:
        BundleError: onnxruntime refuses it, it does not fit the card, or it cannot act.
    """
    options = onnxruntime.SessionOptions()
    # else a file's own bytes decide how it is read; the scan has read it as ONNX
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # one thread: a policy is small, and a robot's other loops need the cores
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # what goes wrong is raised; onnxruntime would print it as well
    options.log_severity_level = 4
    # onnxruntime's exceptions have no common base of their own
    try:
        # its fallback prints the error and tries the same again
        session = onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], enable_fallback=False
        )
    except Exception as error:
        raise BundleError(f"onnxruntime refuses it: {error!s:.{_SHOWN}}") from error
    _check_graph(session, card)
    _probe(session, card)
    return session


def horizon_of(session: onnxruntime.InferenceSession) -> int:
    """Return how many actions a checked policy answers at a time."""
    shape = session.get_outputs()[0].shape
    return int(shape[1]) if len(shape) == 3 else 1


def run(session: onnxruntime.InferenceSession, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the actions (batch, naction) float32 of input tensors, in [-1, 1].

    Of a policy with a horizon above 1, (batch, horizon, naction).

    Raises:
        BundleError: the policy answered with something that is not an action.
    """
    # onnxruntime types the result as a union over tensors, sequences and maps
    action = np.asarray(session.run([OUTPUT], dict(tensors))[0])
    # one comparison refuses NaN, infinity and what a squash would have excluded
    fine = np.abs(action) <= _SQUASHED
    if not fine.all():
        bad = action[~fine].flat[0]
        raise BundleError(f"the policy answered {bad}, which is not in [-1, 1]; do not run it")
    return np.clip(action, -1.0, 1.0)


def _check_graph(session: onnxruntime.InferenceSession, card: PolicyCard) -> None:
    """Check the graph's inputs and output against the card."""
    inputs = session.get_inputs()
    got, want = [i.name for i in inputs], [i.name for i in card.inputs]
    if got != want:
        raise BundleError(f"the graph has inputs {got}, its card {want}")
    outputs = [o.name for o in session.get_outputs()]
    if outputs != [OUTPUT]:
        raise BundleError(f"the graph has outputs {outputs}, a policy has [{OUTPUT!r}]")
    for node, group in zip(inputs, card.inputs, strict=True):
        dtype, shape = group.tensor
        _check_node(f"input {node.name!r}", node, ONNX_TYPES[dtype], shape)
    output = session.get_outputs()[0]
    shape = tuple(output.shape)
    chunk = shape[1:2] if len(shape) == 3 and isinstance(shape[1], int) and shape[1] > 1 else ()
    _check_node("the output", output, ONNX_TYPES["float32"], (*chunk, len(card.actions)))


def _check_node(
    what: str, node: onnxruntime.NodeArg, onnx_type: str, shape: tuple[int, ...]
) -> None:
    if node.type != onnx_type:
        raise BundleError(f"{what} is {node.type} in the graph, {onnx_type} in the card")
    got = list(node.shape)
    if got[1:] != list(shape):
        raise BundleError(f"{what} has shape {got} in the graph, (batch, ...) {shape} in the card")
    if isinstance(got[0], int):
        raise BundleError(f"{what} has a fixed batch of {got[0]}; export it with a dynamic one")


def _probe(session: onnxruntime.InferenceSession, card: PolicyCard) -> None:
    """Run random observations, so that a policy that cannot act is refused now."""
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        # onnxruntime's exceptions have no common base of their own
        try:
            action = run(session, {i.name: _draw(i, batch, rng) for i in card.inputs})
        except BundleError:
            raise
        except Exception as error:
            raise BundleError(
                f"the graph fails on a batch of {batch}: {error!s:.{_SHOWN}}"
            ) from error
        chunk = (horizon,) if (horizon := horizon_of(session)) > 1 else ()
        if action.shape != (batch, *chunk, len(card.actions)):
            raise BundleError(
                f"the graph answers a batch of {batch} with shape {action.shape}, the card "
                f"has {len(card.actions)} actions"
            )


def _draw(group: Input, batch: int, rng: np.random.Generator) -> np.ndarray:
    dtype, shape = group.tensor
    if dtype == "uint8":
        return rng.integers(0, 256, (batch, *shape), np.uint8)
    return rng.normal(0.0, 3.0, (batch, *shape)).astype(dtype)


# In a child.


def try_out(data: bytes, card: PolicyCard) -> None:
    """Do what `open_session` does in a child of bounded time and memory.

    Raises:
        BundleError: as `open_session`; or the child crashed, or took more than `SECONDS` of
            computing. What needs more than `MEMORY` fails as onnxruntime reports it.
    """
    asked = {"card": card.to_json(), "seconds": SECONDS, "memory": MEMORY}
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    # one thread: each of a numerical library's threads claims memory of its own
    single = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    try:
        done = subprocess.run(
            _CHILD,
            input=json.dumps(asked).encode() + b"\n" + data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **single, "PYTHONPATH": path},
            timeout=_WALL,
        )
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        code, said = -signal.SIGPROF, b""
    if code == -signal.SIGPROF:
        raise BundleError(
            f"opening and trying it takes longer than {SECONDS:g} s, which no policy of ours "
            "does; do not run it"
        )
    if code:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise BundleError(f"onnxruntime does not survive it ({how}); do not run it")
    if (fault := json.loads(said)) is not None:
        raise BundleError(fault)


def _serve() -> None:
    """Be the child: read a line of JSON and the file, answer with the fault or null."""
    asked = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    for kind, size in (("DATA", asked["memory"]), ("FSIZE", 0), ("CORE", 0)):
        _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{kind}"))
        size = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (size, hard))
    # seconds of computing, so that a busy computer changes nothing; the signal ends the process
    signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
    fault = None
    try:
        open_session(data, PolicyCard.from_json(asked["card"]))
    except BundleError as error:
        fault = str(error)
    print(json.dumps(fault))


if __name__ == "__main__":
    _serve()
