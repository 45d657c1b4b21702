"""Episodes as a dataset of robomimic, one HDF5 file, and back, without robomimic.

/data              attrs: total (samples), env_args (JSON: env_name, type, env_kwargs)
/data/demo_N       attrs: num_samples; ours: task, source, success, facts, card_sha256
    actions        (T, naction) float32 in [-1, 1], the episode's `action`
    rewards        (T,) float64: measure/reward if there is one, else 1 in the last step of a
                   success
    dones          (T,) int64: 1 in the last step
    obs/<x>        observation/<x> in its own type; a single number is (T, 1)
    next_obs/<x>   if asked for: obs of the next step; in the last step, whose successor nobody
                   saw, that step's own
    time, target, sent, measure/<x>      as in the episode, for `restore`; robomimic ignores them
/mask/train, valid, success              names of demos; train and valid split the trajectories
/penspin           JSON of what all episodes have in common, for `restore`

There are no `states`: only the simulator that made them could use them.
"""

import json
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import h5py.h5d
import h5py.h5t
import numpy as np

from penspin_style import storage
from penspin_style.data.episodes import untrusted_hdf5
from penspin_style.data.episodes.atomic_file import remove_stages, stage_file
from penspin_style.data.episodes.episode import Episode
from penspin_style.data.episodes.layout import (
    MAX_FACTS,
    MAX_NAME,
    TIME,
    Channel,
    DataWarning,
    EpisodeError,
    Header,
    UnknownKindError,
)
from penspin_style.data.episodes.recorder import deflate
from penspin_style.data.formats import provenance
from penspin_style.system.terminal import one_line

OWN = "penspin"
GYM_TYPE = 2
"""robomimic's number for environments that are no robosuite."""
_OWN_COLUMNS = (TIME, "target", "sent")
_COLUMNS = ("actions", "rewards", "dones", "states", *_OWN_COLUMNS)
_GROUPS = ("obs", "next_obs", "measure")
_MAX_DEMOS = 1_000_000
_MAX_MEMBERS = 1024
_MAX_OWN = 64 * 2**20  # bytes
_TEXT_LIMITS = {"task": MAX_NAME, "source": 16, "facts": MAX_FACTS, "card_sha256": 64}
_DEMO = re.compile(r"demo_(\d{1,9})")
_IN_DEMO = re.compile(r"^data/demo_\d+/?")
_BAD = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def write(
    episodes: Sequence[Episode],
    out: pathlib.Path,
    *,
    valid: float = 0.1,
    seed: int = 0,
    next_obs: bool = False,
    env_args: Mapping[str, Any] | None = None,
) -> None:
    """Write episodes of one kind as one new file: whole, or not at all.

    valid: share of the trajectories, drawn with `seed`, that go to the mask `valid`.
    env_args: by default the episodes' task as the name of a gym environment.

    Raises:
        ValueError: no episodes, or not of one kind.
        EpisodeError: an episode is damaged.
        FileExistsError: out is there already.
        OSError: disk full, read only, ...
    """
    header = provenance.common_header(episodes)
    masks = _masks(episodes, provenance.held_back(len(episodes), valid), seed)
    if env_args is None:
        env_args = {"env_name": header.task, "type": GYM_TYPE, "env_kwargs": {}}
    out = pathlib.Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists already; remove it or choose another name")
    storage.make_folder(out.parent)
    remove_stages(out.parent)
    with stage_file(out.parent) as stage:
        with h5py.File(stage, "w", libver=("v110", "v110")) as file:
            data = file.create_group("data")
            data.attrs["total"] = sum(episode.steps for episode in episodes)
            data.attrs["env_args"] = json.dumps(dict(env_args), indent=4, allow_nan=False)
            for number, episode in enumerate(episodes):
                _write_demo(data.create_group(f"demo_{number}"), episode, next_obs=next_obs)
                stage.check()
            for name, demos in masks.items():
                file[f"mask/{name}"] = np.array(demos, dtype="S")
            own = json.dumps(provenance.of_all(header, episodes)).encode()
            file.create_dataset(OWN, data=own, dtype=_text_type(own))
        stage.publish(out)


def _masks(episodes: Sequence[Episode], held: int, seed: int) -> dict[str, list[str]]:
    drawn = np.random.default_rng(seed).permutation(len(episodes))
    found = {
        "train": np.sort(drawn[held:]),
        "valid": np.sort(drawn[:held]),
        "success": np.flatnonzero([bool(episode.success) for episode in episodes]),
    }
    return {name: [f"demo_{i}" for i in numbers] for name, numbers in found.items() if len(numbers)}


def _write_demo(demo: h5py.Group, episode: Episode, *, next_obs: bool) -> None:
    demo.attrs["num_samples"] = episode.steps
    for name, value in provenance.of_one(episode).items():
        if isinstance(value, str):
            text = value.encode()
            demo.attrs.create(name, text, dtype=_text_type(text))
        else:
            demo.attrs[name] = value
    last = np.arange(episode.steps) == episode.steps - 1
    demo["actions"] = episode["action"]
    demo["dones"] = last.astype(np.int64)
    names = [channel.name for channel in episode.header.channels]
    given = "measure/reward" in names
    reward = episode["measure/reward"] if given else last * bool(episode.success)
    demo["rewards"] = reward.astype(np.float64)
    for name in (*_OWN_COLUMNS, *(n for n in names if n.startswith("measure/"))):
        demo[name] = episode[name]
    for channel in episode.header.channels:
        group, _, name = channel.name.rpartition("/")
        if group == "observation":
            _write_observation(demo, f"obs/{name}", episode, channel, ahead=0)
            if next_obs:
                _write_observation(demo, f"next_obs/{name}", episode, channel, ahead=1)


def _write_observation(
    demo: h5py.Group, key: str, episode: Episode, channel: Channel, *, ahead: int
) -> None:
    """Write a column from row `ahead` on; the last row stands in for those beyond it."""
    shape, steps = channel.shape or (1,), episode.steps
    if not channel.is_image:
        rows = np.minimum(np.arange(steps) + ahead, steps - 1)
        demo[key] = episode[channel.name].reshape(steps, *shape)[rows]
        return
    data = demo.create_dataset(
        key, (steps, *shape), channel.dtype, chunks=(1, *shape), compression="gzip", shuffle=True
    )
    for first, block in episode.blocks(channel.name):
        for row, value in enumerate(block, first):
            chunk = deflate(value.tobytes(), value.itemsize)
            last = steps if row == steps - 1 else row - ahead + 1
            for at in range(max(row - ahead, 0), last):
                data.id.write_direct_chunk((at, *(0 for _ in shape)), chunk)


def _text_type(text: bytes) -> Any:
    return h5py.string_dtype("utf-8", max(1, len(text)))


def read(path: pathlib.Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of every demo, demo_2 before demo_10: actions, obs/<x>, ..., (T, ...).

    Anyone's file. What is no column that robomimic or we know, or of a kind that is not read, is
    left out, and so is a demo without steps; a DataWarning names each kind of it once.

    Raises:
        EpisodeError: names file, key and row of what is damaged, missing or hostile.
    """
    path = pathlib.Path(path)
    left_out = _LeftOut(path)
    with untrusted_hdf5.opened(path) as file:
        for name in untrusted_hdf5.members(path, "", file, _MAX_MEMBERS):
            if name not in ("data", "mask", OWN):
                left_out(name, "is nothing that robomimic or we know")
        for name in _demos(path, file):
            demo = untrusted_hdf5.group(path, file, f"data/{name}")
            if untrusted_hdf5.number(path, demo, "num_samples", "iu") == 0:
                left_out(f"data/{name}", "has no steps")
                continue
            yield _read_demo(path, file, f"data/{name}", left_out)


def restore(path: pathlib.Path) -> Iterator[provenance.Recording]:
    """Yield the episodes of a file that `write` made, as they were before, bit for bit.

    Raises:
        EpisodeError: as `read`; or another program wrote the file.
    """
    path = pathlib.Path(path)
    with untrusted_hdf5.opened(path) as file:
        demos = _demos(path, file)
        headers = _read_headers(path, file, demos)
        for name, (header, success) in zip(demos, headers, strict=True):
            columns = _read_demo(path, file, f"data/{name}", _LeftOut(path))
            yield header, _own_columns(path, f"data/{name}", header, columns), success


def _demos(path: pathlib.Path, file: h5py.File) -> list[str]:
    top = untrusted_hdf5.members(path, "", file, _MAX_MEMBERS)
    if "data" not in top:
        raise EpisodeError(path, "data", None, "is missing: this is no dataset of robomimic")
    group = untrusted_hdf5.group(path, file, "data")
    names = untrusted_hdf5.members(path, "data", group, _MAX_DEMOS)
    for name in names:
        if not _DEMO.fullmatch(name):
            raise EpisodeError(path, f"data/{name}", None, "is not named demo_NUMBER")
    if not names:
        raise EpisodeError(path, "data", None, "holds no demos")
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


class _LeftOut:
    """Warn of what is left out of the demos, of each name once."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._said = path, set[str]()

    def __call__(self, key: str, why: str) -> None:
        name = _IN_DEMO.sub("", key)
        if name not in self._said:
            self._said.add(name)
            text = f"{self._path}: {key}: {why}; it is left out here and wherever else it is so"
            warnings.warn(one_line(text), DataWarning, stacklevel=3)


def _read_demo(
    path: pathlib.Path, file: h5py.File, key: str, left_out: _LeftOut
) -> dict[str, np.ndarray]:
    demo = untrusted_hdf5.group(path, file, key)
    names = untrusted_hdf5.members(path, key, demo, _MAX_MEMBERS)
    for name in sorted(set(names) - set(_COLUMNS) - set(_GROUPS)):
        left_out(f"{key}/{name}", "is no column that robomimic or we know")
    keys = [name for name in _COLUMNS if name in names]
    for name in _GROUPS:
        if name in names:
            group = untrusted_hdf5.group(path, file, f"{key}/{name}")
            inner = untrusted_hdf5.members(path, f"{key}/{name}", group, _MAX_MEMBERS)
            keys += [f"{name}/{member}" for member in inner]
    if "actions" not in keys:
        raise EpisodeError(path, f"{key}/actions", None, "is missing")
    columns = {}
    for name in keys:
        try:
            if name == "states" and 0 in untrusted_hdf5.dataset(path, file, f"{key}/{name}").shape:
                continue  # what robomimic asks for where there is no simulator's state
            rows = untrusted_hdf5.rows(path, file, f"{key}/{name}")
        except UnknownKindError as error:
            if name == "actions":  # without them it is no demo
                raise
            left_out(f"{key}/{name}", error.what)
            continue
        values = columns[name] = rows.read(0, rows.shape[0])
        if values.dtype.kind == "f":
            untrusted_hdf5.check_values(path, f"{key}/{name}", 0, values, -np.inf, np.inf)
    lengths = {name: len(values) for name, values in columns.items()}
    steps = untrusted_hdf5.number(path, demo, "num_samples", "iu")
    for name, length in lengths.items():
        if length != steps:
            what = f"has {length} rows, num_samples is {steps}"
            raise EpisodeError(path, f"{key}/{name}", None, what)
    return columns


def _read_headers(
    path: pathlib.Path, file: h5py.File, demos: Sequence[str]
) -> list[tuple[Header, bool | None]]:
    if OWN not in file:
        raise EpisodeError(path, OWN, None, "is missing: another program wrote the file, use read")
    own = []
    for name in demos:
        demo = untrusted_hdf5.group(path, file, f"data/{name}")
        try:
            limits = _TEXT_LIMITS.items()
            texts = {n: untrusted_hdf5.text(path, f"data/{name}", demo, n, k) for n, k in limits}
            own.append({**texts, "success": untrusted_hdf5.number(path, demo, "success", "i")})
        except KeyError as error:
            what = f"lacks an attribute: {error}"
            raise EpisodeError(path, f"data/{name}", None, what) from error
    try:
        return list(provenance.headers(storage.parse_json(_own_text(path, file)), own))
    except EpisodeError:
        raise
    except _BAD as error:
        raise EpisodeError(path, OWN, None, f"does not fit this file: {error!r}") from error


def _own_text(path: pathlib.Path, file: h5py.File) -> str:
    data = untrusted_hdf5.dataset(path, file, OWN)
    plan, kind = data.get_create_plist(), data.get_type()
    local = plan.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    text = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    if not local or not text or data.shape != ():
        raise EpisodeError(path, OWN, None, "is not a text of fixed length")
    if data.get_storage_size() > min(_MAX_OWN, path.stat().st_size):
        raise EpisodeError(path, OWN, None, f"is longer than {_MAX_OWN} bytes")
    return bytes(h5py.Dataset(data)[()]).decode()


def _own_columns(
    path: pathlib.Path, key: str, header: Header, columns: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return an episode's columns of a demo's."""
    found = {}
    for channel in header.columns:
        group, _, name = channel.name.rpartition("/")
        theirs = f"obs/{name}" if group == "observation" else channel.name
        theirs = "actions" if theirs == "action" else theirs
        values = columns.get(theirs)
        wanted = (channel.shape or (1,)) if group == "observation" else channel.shape
        if values is None or (values.shape[1:], values.dtype) != (wanted, np.dtype(channel.dtype)):
            what = "is missing" if values is None else f"is {values.dtype} {values.shape}"
            raise EpisodeError(
                path, f"{key}/{theirs}", None, f"{what}, not {channel.dtype} (T, *{wanted})"
            )
        found[channel.name] = values.reshape(len(values), *channel.shape)
    return found
