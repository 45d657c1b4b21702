"""Write a policy as one ONNX file, and prove that it acts as the policy in torch does.

The file holds the whole acting function, normaliser to squash, and the policy card as exact JSON.
Its metadata also has mjlab's keys, so that a loader written for mjlab's exports finds joints and
scales.
"""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import logging
import pathlib
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from penspin_style import storage
from penspin_style.deploy.bundle import CARD_KEY, Bundle, check_card
from penspin_style.deploy.float64 import in_float64, with_float32_weights
from penspin_style.deploy.session import OUTPUT
from penspin_style.features import Input, PolicyCard
from penspin_style.nets.normalizer import Normalizer

BATCHES = (1, 2, 7, 64)
_OPSET = 20


class ParityError(ValueError):
    """The graph does not act as the policy does; nothing was written."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it was checked."""

    max_abs_diff: float
    """Largest difference between torch and onnxruntime in any number of any action; of a file that
    computes in float64, from torch in float64."""
    float32_diff: float
    """The same from torch in float32, in which policies learn and are evaluated."""
    samples: int
    """Observations compared."""
    seconds: float
    bytes: int
    sha256: str
    weights_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


class ActingModule(nn.Module):
    """The function that is exported: the tensors of `card.inputs`, in order, to the action.

    policy: its `act` is called if it has one, else the module itself.
    float64: whether it computes in float64; observations and actions are float32 all the same.
    """

    def __init__(self, policy: nn.Module, *, float64: bool = False) -> None:
        super().__init__()
        self.policy = in_float64(policy) if float64 else policy
        self.float64 = float64

    def forward(self, *observations: Tensor) -> Tensor:
        """Return the action (batch, naction), or a chunk (batch, horizon, naction)."""
        act = getattr(self.policy, "act", self.policy)
        if not self.float64:
            return act(*observations)
        exact = (x.double() if x.is_floating_point() else x for x in observations)
        return act(*exact).float()


def export(
    policy: nn.Module,
    card: PolicyCard,
    path: str | pathlib.Path,
    *,
    samples: int = 10_000,
    tolerance: float = 1e-5,
    float64: bool = False,
    seed: int = 0,
) -> ExportReport:
    """Write `path` once torch and onnxruntime agree on random observations; else write nothing.

    card: `weights_sha256` is filled in if it is empty.
    samples: observations to compare; at least one round over the batch sizes is made.
    tolerance: largest difference of any number of an action. A policy so steep that torch itself
        differs by more from batch to batch needs a larger one, or `float64`; the error says so.
    float64: whether the file computes in float64, see `penspin_style.deploy.float64`. It is then
        compared with torch in float64: in float32 torch is the one that is wrong.
    seed: of the observations.

    Raises:
        ValueError: card and policy do not belong together, or torch cannot export the policy.
        BundleError: the robot's side would refuse the file.
        ParityError: the actions differ by more than the tolerance, or from session to session.
    """
    began = time.perf_counter()
    path = pathlib.Path(path)
    check_card(card)
    _check_names(policy, card)
    card = _with_weights(policy, card)
    trained = ActingModule(copy.deepcopy(policy).cpu()).eval()
    acting = ActingModule(trained.policy, float64=True).eval() if float64 else trained
    data = _with_metadata(_graph(acting, card), card).SerializeToString(deterministic=True)
    samples = max(samples, sum(BATCHES))
    rng = np.random.default_rng(seed)
    diff, float32_diff = _compare((acting, trained), data, card, samples, rng)
    if not diff <= tolerance:
        raise ParityError(_explain(acting, card, diff, tolerance))
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_file(path, data)
    return ExportReport(
        max_abs_diff=diff,
        float32_diff=float32_diff,
        samples=samples,
        seconds=time.perf_counter() - began,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        weights_sha256=card.weights_sha256,
    )


def _check_names(policy: nn.Module, card: PolicyCard) -> None:
    names = [i.name for i in card.inputs]
    in_keys = list(getattr(policy, "in_keys", names))
    if names != in_keys:
        raise ValueError(f"the policy reads {in_keys}, its card has inputs {names}")
    features = [f.name for i in card.inputs for f in i.features]
    for name in (*features, *(j.name for j in card.joints)):
        if "," in name or ";" in name:
            raise ValueError(f"{name!r}: mjlab's metadata lists names with ',' and ';'; rename it")


def _with_weights(policy: nn.Module, card: PolicyCard) -> PolicyCard:
    """Return the card with the SHA-256 of `policy.safetensors` as `save_policy` writes it."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items()}
    digest = hashlib.sha256(save_tensors(tensors)).hexdigest()
    if card.weights_sha256 not in ("", digest):
        raise ValueError(
            f"the card is of weights {card.weights_sha256}, the policy has {digest}; "
            "leave weights_sha256 empty to have it filled in"
        )
    return dataclasses.replace(card, weights_sha256=digest)


def _graph(acting: ActingModule, card: PolicyCard) -> onnx.ModelProto:
    """Return the graph of the acting function, with a dynamic batch and no metadata."""
    rng = np.random.default_rng(0)
    # torch takes a batch of 1 for a constant
    example = tuple(torch.from_numpy(x) for x in _observation(acting, card, 2, rng).values())
    _check_action(acting, example, card)
    batch = torch.export.Dim("batch")
    with _quiet():
        # The TorchScript exporter (dynamo=False) does as well on a perceptron (either differs from
        # torch by < 1e-7) in 0.2 s instead of 1.7 s, but torch deprecates it, and it freezes a
        # branch on data into the graph without a word, where this one raises. That this one has
        # written wrong graphs (pytorch #166797, #169178) is what the comparison is for.
        try:
            program = torch.onnx.export(
                acting,
                example,
                input_names=[i.name for i in card.inputs],
                output_names=[OUTPUT],
                opset_version=_OPSET,
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in example),),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(
                f"torch cannot export {type(acting.policy).__name__}: {error}"
            ) from error
    if program is None:
        raise ValueError("torch.onnx.export returned no program")
    model = _without_traces(program.model_proto)
    return with_float32_weights(model) if acting.float64 else model


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what torch notes about the source of each operator: paths of this computer."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


def _check_action(acting: ActingModule, example: tuple[Tensor, ...], card: PolicyCard) -> None:
    with torch.no_grad():
        action = acting(*example)
    horizon = getattr(acting.policy, "horizon", 1)
    want = (len(example[0]), *((horizon,) if horizon > 1 else ()), len(card.actions))
    if not isinstance(action, Tensor) or tuple(action.shape) != want:
        got = tuple(action.shape) if isinstance(action, Tensor) else type(action).__name__
        raise ValueError(f"the policy's action is {got}, its card has {len(card.actions)} actions")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch.onnx says about torch's own code, which the user cannot change."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    # at the level of warnings it lists the torchvision operators that are not installed
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export copies a tree of its own through a constructor that torch deprecates
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            # it is one axis on purpose
            warnings.filterwarnings("ignore", r"# The axis name: batch will not", UserWarning)
            yield
    finally:
        log.setLevel(level)


def _with_metadata(model: onnx.ModelProto, card: PolicyCard) -> onnx.ModelProto:
    for key, value in {CARD_KEY: card.to_json(), **_mjlab_metadata(card)}.items():
        model.metadata_props.add(key=key, value=value)
    return model


def _mjlab_metadata(card: PolicyCard) -> dict[str, str]:
    """Return mjlab's keys (exporter_utils.py): lists as CSV with three decimals, so rounded."""
    features = [f for group in card.inputs for f in group.features]
    return {
        "run_path": card.run,
        "joint_names": ",".join(j.name for j in card.joints),
        "joint_stiffness": _csv(j.stiffness for j in card.joints),
        "joint_damping": _csv(j.damping for j in card.joints),
        "default_joint_pos": _csv(j.default for j in card.joints),
        # mjlab's commands are observations here
        "command_names": "",
        "observation_names": ",".join(f.name for f in features),
        "observation_terms_scale": _csv(1.0 for _ in features),
        "observation_terms_flatten_history_dim": _csv(1.0 for _ in features),
        # mjlab writes 0 where nothing is stacked
        "observation_terms_history_length": _csv(
            0.0 if f.history == 1 else f.history for f in features
        ),
        "observation_terms_clip": ",".join("-inf;inf" for _ in features),
        "action_scale": _csv(a.scale for a in card.actions),
    }


def _csv(numbers: Iterable[float]) -> str:
    return ",".join(f"{x:.3f}" for x in numbers)


class _Range(NamedTuple):
    """Where an input's numbers lie; each row of a draw has one of the spreads, in std."""

    mean: np.ndarray
    std: np.ndarray
    spreads: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)


def _range(acting: nn.Module, group: Input) -> _Range:
    """Return the range of an input from the policy's normaliser; unit normals if it has none."""
    found = {n: m for n, m in acting.named_modules() if isinstance(m, Normalizer)}
    own = [m for n, m in found.items() if n.endswith(f"normalizers.{group.name}")]
    for normalizer in own or found.values():
        if own or len(normalizer.mean) == group.size:
            count = group.size // len(normalizer.mean)  # the points of a cloud share theirs
            std = torch.sqrt(normalizer.var + normalizer.epsilon).repeat(count)
            mean = normalizer.mean.repeat(count)
            usual = _Range(mean.numpy(force=True), std.numpy(force=True))
            # a normaliser clips, so sensors that fail high stay comparable in float32
            return usual._replace(spreads=(*usual.spreads, 1e3, 1e6))
    return _Range(np.zeros(group.size), np.ones(group.size))


def _draw(group: Input, where: _Range, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Return random observations (batch, ...) of an input.

    A tenth of the numbers lies exactly on the edge where the normaliser clips.
    """
    dtype, shape = group.tensor
    if dtype == "uint8":
        return rng.integers(0, 256, (batch, *shape), dtype=np.uint8)
    if group.is_image:  # metres, and pixels from which nothing came back
        metres = rng.uniform(0.0, 3.0, (batch, *shape))
        return np.where(rng.random(metres.shape) < 0.2, 0.0, metres).astype(np.float32)
    z = rng.normal(size=(batch, group.size)) * rng.choice(where.spreads, size=(batch, 1))
    edge = rng.choice((-Normalizer.clip, Normalizer.clip), size=z.shape)
    z = np.where(rng.random(z.shape) < 0.1, edge, z)
    return (where.mean + where.std * z).astype(np.float32)


def _compare(
    modules: tuple[ActingModule, ...],
    data: bytes,
    card: PolicyCard,
    samples: int,
    rng: np.random.Generator,
) -> list[float]:
    """Return the largest difference of each module from onnxruntime over random observations.

    Raises:
        ParityError: a second session answers with other bits.
    """
    first, second = Bundle(data, "the exported model"), Bundle(data, "the exported model")
    worst = np.zeros(len(modules))
    for batch in _batches(samples):
        drawn = _observation(modules[0], card, batch, rng)
        action = first(drawn)
        if second(drawn).tobytes() != action.tobytes():
            raise ParityError(f"two sessions of one model differ on a batch of {batch}")
        # unlike max, np.maximum keeps a NaN
        worst = np.maximum(worst, [np.abs(action - _act(m, drawn)).max() for m in modules])
    return worst.tolist()


def _batches(samples: int) -> Iterator[int]:
    """Yield the batch sizes in turn until they add up to samples."""
    for size in itertools.cycle(BATCHES):
        yield min(size, samples)
        samples -= size
        if samples <= 0:
            return


def _explain(acting: ActingModule, card: PolicyCard, diff: float, tolerance: float) -> str:
    """Say whether the graph is wrong, or the policy beyond what float32 resolves."""
    drawn = _observation(acting, card, max(BATCHES), np.random.default_rng(0))
    rows = [{k: v[i : i + 1] for k, v in drawn.items()} for i in range(max(BATCHES))]
    alone = np.concatenate([_act(acting, row) for row in rows])
    rounding = float(np.abs(alone - _act(acting, drawn)).max())
    return (
        f"torch and onnxruntime differ by {diff:.1e}, more than {tolerance:.1e}; nothing was "
        f"written. torch alone differs by {rounding:.1e} between one observation and a batch: if "
        "that is about as much, the policy is steeper than float32 resolves, and float64 or a "
        "larger tolerance is right; if not, the exported graph is wrong"
    )


def _observation(
    acting: ActingModule, card: PolicyCard, batch: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    return {i.name: _draw(i, _range(acting, i), batch, rng) for i in card.inputs}


def _act(acting: ActingModule, observation: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return acting(*(torch.from_numpy(x) for x in observation.values())).numpy()
