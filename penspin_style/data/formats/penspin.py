"""PenSpin's files of an Allegro hand's trajectories, written and read.

real_data.h5            groups replay_demon_{idx}, idx from 0
    qpos                (T, 16) rad, measured; index, middle, ring, thumb, as on the hardware
    current_target_qpos (T, 16) rad, sent; `current_target` in files of its recording script
    action              (T, 16) rad, current_target_qpos - qpos
    finger_tip_pose     (T, 12) m, what its fine-tuning reads and no script writes; computed here
    rgb_ori, rgb_c2d, depth, pc, obj_ends  (T, ...) in the full variant

real_data_processed.h5  groups episode_{i}, "baked": windows of 30 frames, each with the next but 29
    obs (96,), proprio_hist (30, 32), finger_tip_pos (12,), action (16,)

Frames of baked windows are positions and targets in hora's order of joints: index, thumb, middle,
ring. Windows that follow each other share 29 frames, so the trajectories are put together again.
"""

import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import h5py.h5a
import numpy as np

from penspin_style.data.episodes import untrusted_hdf5
from penspin_style.data.episodes.atomic_file import remove_stages, stage_file
from penspin_style.data.episodes.episode import Channel, Episode, EpisodeError, Header, Recorder
from penspin_style.data.episodes.layout import COMMANDS, TIME
from penspin_style.data.episodes.recorder import deflate
from penspin_style.features import PolicyCard

JOINTS = 16
RATE = 18.0
"""Hz of PenSpin's robot, for files that do not say."""
WINDOW = 30  # frames of a baked one
TIP_ERROR = 0.02
"""m that recorded fingertips may be from computed ones: upstream's palm stands 5 mm elsewhere."""
_FINGERS = ((0, 2, 3, 1), (0, 1, 2, 3))
"""Ours in hora's order of fingers, and in the hardware's."""
FROM_HORA = tuple(4 * finger + joint for finger in _FINGERS[0] for joint in range(4))
"""Where each joint of the hardware's order stands in hora's, that of a baked file."""

_GROUPS = {"pack": re.compile(r"replay_demon_(\d+)"), "baked": re.compile(r"episode_(\d+)")}
_MAX_GROUPS = 100_000
_TIPS = ("finger_tip_pose", "finger_tip_pos")
_TARGETS = ("current_target_qpos", "current_target")
_IMAGES = {
    "rgb_ori": ("rgb_ori",),
    "rgb_c2d": ("rgb_c2d",),
    "depth": ("depth",),
    "pc": ("pc",),
    "obj_ends": ("obj_ends", "pen_ends"),
}
"""Dataset of the full variant -> observations that it may be."""
_KNOWN = {"qpos", "action", *_TARGETS, *_TIPS, *_IMAGES}
_UNITS = {"pc": "m", "depth": "mm", "obj_ends": "m"}
_POSITIONS = ("joint_pos", "qpos", "proprio")


@dataclass(frozen=True)
class Demo:
    """One trajectory."""

    path: pathlib.Path
    key: str
    qpos: np.ndarray
    """(T, 16) rad, the hardware's order."""
    target: np.ndarray
    """(T, 16) rad, sent in each step."""
    tips: np.ndarray | None = None
    """(T, 12) m, where the file has them."""
    source: str = "real"
    images: dict[str, untrusted_hdf5.Rows] = field(default_factory=dict)
    """Dataset of the full variant -> its rows, as long as the file is open."""
    left_out: tuple[str, ...] = ()
    """What else the file has of it: nothing that PenSpin knows."""


@dataclass(frozen=True)
class Pack:
    """One of PenSpin's files, its structure checked; `read` makes it."""

    path: pathlib.Path
    kind: str
    """`pack` or `baked`."""
    keys: tuple[str, ...]
    control_dt: float
    says_rate: bool = False
    """Whether `control_dt` is the file's; PenSpin's own files do not say."""

    def demos(self) -> Iterator[Demo]:
        """Yield the trajectories. A demo's images can be read until the next is asked for.

        Raises:
            EpisodeError: one is damaged.
        """
        with untrusted_hdf5.opened(self.path) as file:
            if self.kind == "baked":
                yield from _chains(self.path, file, self.keys)
            else:
                for key in self.keys:
                    yield demo(self.path, file, key)


def kind_of(path: pathlib.Path, file: h5py.File) -> str:
    """Return `pack` or `baked`.

    Raises:
        EpisodeError: it is neither; says what it may be.
    """
    names = untrusted_hdf5.members(path, "", file, _MAX_GROUPS)
    for kind, pattern in _GROUPS.items():
        if any(pattern.fullmatch(name) for name in names):
            return kind
    what = f"is neither an episode nor a file of PenSpin; it holds {names[:5]}"
    if "data" in names:
        what += "; robomimic's files are read by penspin_style.data.formats.robomimic, by no verb"
    raise EpisodeError(path, None, None, what)


def read(path: pathlib.Path, *, gaps: bool = False) -> Pack:
    """Return a file's list of trajectories.

    gaps: whether numbers may be missing, as where a file is being rescued.

    Raises:
        EpisodeError: it is no file of PenSpin's, or its groups are not numbered from 0 on.
    """
    with untrusted_hdf5.opened(path) as file:
        kind = kind_of(path, file)
        numbers: dict[int, str] = {}
        for name in untrusted_hdf5.members(path, "", file, _MAX_GROUPS):
            match = _GROUPS[kind].fullmatch(name)
            if match is None:
                raise EpisodeError(path, name, None, "is no trajectory; it does not belong there")
            if len(match[1]) > 9 or int(match[1]) in numbers:
                what = f"has the number of {numbers.get(int(match[1]), 'none')}"
                raise EpisodeError(path, name, None, what)
            numbers[int(match[1])] = name
        if not gaps and (missing := sorted(set(range(len(numbers))) - set(numbers))):
            prefix = numbers[max(numbers)].rstrip("0123456789")
            what = "is missing: numbers have gaps; penspin data repair makes episodes of the rest"
            raise EpisodeError(path, f"{prefix}{missing[0]}", None, what)
        control_dt = 1.0 / RATE
        if says_rate := h5py.h5a.exists(file.id, b"control_dt"):
            control_dt = untrusted_hdf5.number(path, file, "control_dt", "f")
        if not 0 < control_dt < 60:
            raise EpisodeError(path, None, None, f"control_dt is {control_dt} s")
        keys = tuple(numbers[i] for i in sorted(numbers))
        return Pack(path, kind, keys, control_dt, says_rate)


def demo(path: pathlib.Path, file: h5py.File, key: str) -> Demo:
    """Return one trajectory of a pack.

    Raises:
        EpisodeError: a column is missing, ragged, of another shape or type, or damaged.
    """
    names = untrusted_hdf5.members(path, key, untrusted_hdf5.group(path, file, key), 64)
    targets = [name for name in _TARGETS if name in names]
    if "qpos" not in names or not targets:
        missing = "qpos" if "qpos" not in names else " or ".join(_TARGETS)
        raise EpisodeError(path, f"{key}/{missing}", None, "is missing")
    qpos = _numbers(path, file, f"{key}/qpos", (JOINTS,))
    rows = len(qpos)
    both = [_numbers(path, file, f"{key}/{name}", (JOINTS,), rows) for name in targets]
    if len(both) > 1 and not np.array_equal(both[0], both[1]):
        raise EpisodeError(path, f"{key}/{targets[1]}", None, f"is not what {targets[0]} is")
    if "action" in names:
        _numbers(path, file, f"{key}/action", (JOINTS,), rows)
    tips = None
    for name in (name for name in _TIPS if name in names):
        tips = _numbers(path, file, f"{key}/{name}", (12,), rows)
    source = "real"
    if h5py.h5a.exists(file[key].id, b"source"):
        source = untrusted_hdf5.text(path, key, file[key], "source", 16)
    images = {}
    for name in sorted(set(_IMAGES) & set(names)):
        images[name] = untrusted_hdf5.rows(path, file, f"{key}/{name}")
        _same_length(path, f"{key}/{name}", images[name].shape[0], rows)
    left_out = tuple(name for name in names if name not in _KNOWN)
    return Demo(path, key, qpos, both[0], tips, source, images, left_out)


def check_demo(demo: Demo, limits: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Check every value of a trajectory.

    limits: lower and upper of the joints, rad.

    Raises:
        EpisodeError: names key and row.
    """
    low, high = (-np.inf, np.inf) if limits is None else limits
    for name, values in (("qpos", demo.qpos), (_TARGETS[0], demo.target)):
        untrusted_hdf5.check_values(demo.path, f"{demo.key}/{name}", 0, values, low, high)
    if demo.tips is not None:
        untrusted_hdf5.check_values(demo.path, f"{demo.key}/{_TIPS[0]}", 0, demo.tips, -10.0, 10.0)
    for rows in demo.images.values():
        for row, block in _summed(rows):
            untrusted_hdf5.check_values(demo.path, rows.key, row, block, -np.inf, np.inf)


def _numbers(
    path: pathlib.Path, file: h5py.File, key: str, shape: tuple[int, ...], length: int | None = None
) -> np.ndarray:
    """Return a column of floats (T, *shape) as float64."""
    rows = untrusted_hdf5.rows(path, file, key)
    if rows.shape[1:] != shape or not rows.dtype.startswith("float"):
        what = f"is (T, {rows.shape[1:]}) {rows.dtype}, not (T, {shape}) of floats"
        raise EpisodeError(path, key, None, what)
    if length is not None:
        _same_length(path, key, rows.shape[0], length)
    return np.concatenate([block for _, block in _summed(rows)]).astype(np.float64)


def _summed(rows: untrusted_hdf5.Rows) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a dataset's blocks; compare them with its checksum if it has one."""
    total = hashlib.sha256()
    for row, block in rows.blocks():
        total.update(block.tobytes())
        yield row, block
    owner = h5py.Dataset(rows.data)
    if h5py.h5a.exists(owner.id, b"sha256"):
        own = untrusted_hdf5.text(rows.path, rows.key, owner, "sha256", 64)
        if own != total.hexdigest():
            raise EpisodeError(rows.path, rows.key, None, "does not match its checksum")


def _same_length(path: pathlib.Path, key: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise EpisodeError(path, key, None, f"has {got} rows, qpos has {wanted}")


def _chains(path: pathlib.Path, file: h5py.File, keys: Sequence[str]) -> Iterator[Demo]:
    """Put baked windows together: each that repeats the last one's frames continues it."""
    frames: list[np.ndarray] = []
    first, last = "", np.empty(0)
    for key in keys:
        untrusted_hdf5.members(path, key, untrusted_hdf5.group(path, file, key), 64)
        window = _numbers(path, file, f"{key}/proprio_hist", (2 * JOINTS,))
        if len(window) != WINDOW:
            what = f"has {len(window)} frames, a window has {WINDOW}"
            raise EpisodeError(path, f"{key}/proprio_hist", None, what)
        if frames and np.array_equal(window[:-1], last[1:]):
            frames.append(window[-1])
        else:
            if frames:
                yield _chain(path, first, frames)
            first, frames = key, list(window)
        last = window
    yield _chain(path, first, frames)


def _chain(path: pathlib.Path, key: str, frames: list[np.ndarray]) -> Demo:
    qpos, target = np.stack(frames).reshape(-1, 2, JOINTS)[:, :, list(FROM_HORA)].swapaxes(0, 1)
    return Demo(path, key, qpos, target)


# Writing PenSpin's file.


def pack(episodes: Sequence[Episode], out: pathlib.Path, *, full: bool = False) -> None:
    """Write episodes of an Allegro hand as PenSpin's real_data.h5, whole or not at all.

    full: with images, depth, point cloud and the pen's ends where an episode has them.

    Raises:
        FileExistsError: out is there already.
        ValueError: there is no episode, or episodes of different rates.
        EpisodeError: one is not of an Allegro hand, or damaged.
        OSError: the disk failed.
    """
    if not episodes:
        raise ValueError("there is no episode to pack")
    rates = {episode.header.control_dt for episode in episodes}
    if len(rates) > 1:
        raise ValueError(f"episodes of different control steps, {sorted(rates)} s, in one file")
    remove_stages(out.parent)
    with stage_file(out.parent) as stage:
        file = h5py.File(stage, "w")
        try:
            file.attrs["control_dt"] = rates.pop()
            for i, episode in enumerate(episodes):
                group = file.create_group(f"replay_demon_{i}")
                _write_text(group, "source", episode.header.source)
                _pack_one(group, episode, full=full)
                stage.check()
        finally:
            file.close()
        stage.publish(out)


def _pack_one(group: h5py.Group, episode: Episode, *, full: bool) -> None:
    qpos, sent = positions(episode), episode["sent"]
    for name, values in (("qpos", qpos), ("action", sent - qpos), (_TARGETS[0], sent)):
        data = group.create_dataset(name, data=values)
        _write_text(data, "sha256", hashlib.sha256(values.tobytes()).hexdigest())
    if not full:
        return
    channels = {channel.name: channel for channel in episode.header.channels}
    for name, sources in _IMAGES.items():
        for key in (f"observation/{s}" for s in sources if f"observation/{s}" in channels):
            _pack_images(group, name, episode, channels[key])
            break


def _pack_images(group: h5py.Group, name: str, episode: Episode, channel: Channel) -> None:
    dtype = np.dtype(channel.dtype)
    data = group.create_dataset(
        name,
        (episode.steps, *channel.shape),
        dtype,
        chunks=(1, *channel.shape),
        compression="gzip",
        shuffle=True,
    )
    total = hashlib.sha256()
    for row, block in episode.blocks(channel.name):
        for i, value in enumerate(block):
            raw = value.tobytes()
            total.update(raw)
            origin = (row + i, *(0 for _ in channel.shape))
            data.id.write_direct_chunk(origin, deflate(raw, dtype.itemsize))
    _write_text(data, "sha256", total.hexdigest())


def _write_text(owner: Any, name: str, text: str) -> None:
    data = text.encode()
    owner.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", len(data)))


def positions(episode: Episode) -> np.ndarray:
    """Return an episode's measured joints (T, 16), rad, as it holds them.

    Raises:
        EpisodeError: it has none, or commands something else than 16 joints.
    """
    channels = {channel.name: channel for channel in episode.header.channels}
    sent = channels["sent"]
    for key in (f"observation/{name}" for name in _POSITIONS):
        found = channels.get(key)
        if found is None or found.shape not in ((JOINTS,), (2 * JOINTS,)):
            continue
        named = tuple(name.rpartition("/")[2] for name in found.names[:JOINTS])
        if sent.shape != (JOINTS,) or (named and sent.names and named != sent.names):
            what = f"commands {sent.names or sent.shape}, which are not the joints of {key}"
            raise EpisodeError(episode.path, "sent", None, what)
        return episode[key][:, :JOINTS].astype(np.float64)
    what = f"is missing: an Allegro hand's {JOINTS} joints, as any of {', '.join(_POSITIONS)}"
    raise EpisodeError(episode.path, f"observation/{_POSITIONS[0]}", None, what)


# From PenSpin's file to episodes.


@dataclass(frozen=True)
class Hand:
    """What the files do not say of the hand."""

    name: str
    joints: tuple[str, ...]
    """Names of the 16, in the hardware's order."""
    action_scale: float
    """rad that an action of 1 moves a target, where there is no card."""
    fingertips: Callable[[np.ndarray], np.ndarray]
    """Joint positions (T, 16) rad -> the tips' centres (T, 4, 3) m, in PenSpin's world."""

    @classmethod
    def of(cls, description: Any) -> "Hand":
        """Take it from a robot's description, the module of `tasks/robots`.

        Raises:
            ValueError: that describes no such hand.
        """
        names = ("ROBOT", "JOINTS", "ACTION_SCALE", "fingertips")
        if missing := [name for name in names if not hasattr(description, name)]:
            raise ValueError(f"it has no {', '.join(missing)}")
        return cls(*(getattr(description, name) for name in names))


def unpack(
    demos: Iterator[Demo],
    folder: pathlib.Path,
    hand: Hand,
    *,
    control_dt: float,
    card: PolicyCard | None = None,
    success: bool | None = True,
) -> Iterator[pathlib.Path]:
    """Write each trajectory as an episode; yield its file.

    Observed are `joint_pos`, exactly; `proprio`, positions and the target followed, and
    `fingertips`, as the policies of `pen_spin_student` read them. `action` is what leads from one
    target to the next, clipped to [-1, 1]; before the first the hand is taken to rest.

    card: of the policy that is to learn from them; its scale and limits are those of the commands.

    Raises:
        ValueError: the card's policy commands other joints.
        EpisodeError: a trajectory is damaged.
        RecorderError: the disk failed.
    """
    for demo in demos:
        head, columns = _episode(demo, hand, control_dt, card)
        with Recorder(folder, head) as recorder:
            blocks = {name: rows.blocks() for name, rows in demo.images.items()}
            shown: dict[str, tuple[int, np.ndarray]] = {}
            for t in range(len(demo.qpos)):
                row = {name: column[t] for name, column in columns.items()}
                for name, source in blocks.items():
                    first, block = shown.get(name, (0, np.empty(0)))
                    if t >= first + len(block):
                        first, block = shown[name] = next(source)
                    row[f"observation/{name}"] = block[t - first]
                recorder.append(row, wait=True)
            yield recorder.finish(success)


def _episode(
    demo: Demo, hand: Hand, control_dt: float, card: PolicyCard | None
) -> tuple[Header, dict[str, np.ndarray]]:
    if card is not None and (names := tuple(a.name for a in card.actions)) != hand.joints:
        raise ValueError(f"the card commands {names}, the hand has {hand.joints}")
    qpos, target = demo.qpos, demo.target
    last = np.concatenate((qpos[:1], target[:-1]))
    scale = hand.action_scale if card is None else np.array([a.scale for a in card.actions])
    action = (target - last) / scale
    clipped = int((np.abs(action[1:]) > 1.0 + 1e-6).sum())
    columns = {
        TIME: control_dt * np.arange(len(qpos)),
        "observation/joint_pos": qpos,
        "observation/proprio": np.concatenate((qpos, last), axis=1).astype(np.float32),
        "observation/fingertips": _fingertips(demo, hand).astype(np.float32),
        "action": action.clip(-1.0, 1.0).astype(np.float32),
        "target": target,
        "sent": target,
    }
    both = tuple(f"{what}/{name}" for what in ("measured", "target") for name in hand.joints)
    units = {"action": "1"}
    channels = [
        Channel("observation/joint_pos", (JOINTS,), "float64", "rad", hand.joints),
        Channel("observation/proprio", (2 * JOINTS,), "float32", "rad", both),
        Channel("observation/fingertips", (4, 3), "float32", "m"),
        *(Channel(n, (JOINTS,), t, units.get(n, "rad"), hand.joints) for n, t in COMMANDS.items()),
    ]
    for name, rows in demo.images.items():
        unit = _UNITS.get(name, "1")
        channels.append(Channel(f"observation/{name}", rows.shape[1:], rows.dtype, unit))
    facts = {"unpacked": demo.path.name, "group": demo.key, "clipped": clipped}
    task = "pen_spin" if card is None else card.task
    head = Header(task, demo.source, hand.name, control_dt, tuple(channels), card, facts)
    return head, columns


def _fingertips(demo: Demo, hand: Hand) -> np.ndarray:
    """Return the tips (T, 4, 3) of the file, in our order of fingers, or those computed.

    Raises:
        EpisodeError: the file's are not where the joints put them.
    """
    computed = hand.fingertips(demo.qpos)
    if demo.tips is None:
        return computed
    found = demo.tips.reshape(-1, 4, 3)
    orders = [found[:, order] for order in _FINGERS]
    away = [float(np.linalg.norm(tips - computed, axis=2).max()) for tips in orders]
    if min(away) > TIP_ERROR:
        what = f"is up to {1e3 * min(away):.0f} mm from where the joints put the fingertips"
        raise EpisodeError(demo.path, f"{demo.key}/{_TIPS[0]}", None, what)
    return orders[int(np.argmin(away))]
