"""Check recorded files whole: structure, checksums, every value, and what a card allows.

`check` looks at a file in this process, `verify` at many in a child with 512 MB and a time limit.
The library beneath, HDF5, is written in C and reads structures that an attacker or a failing disk
may have shaped: `guard` asks it for as little as it can, but a file that crashes it, or keeps it
busy for good, must cost one file's result and not the caller, who may be a robot's operator halfway
through ten thousand files.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import h5py.h5a
import numpy as np

from penspin_style.data.episodes import untrusted_hdf5
from penspin_style.data.episodes.episode import Episode
from penspin_style.data.episodes.layout import TIME, Channel, EpisodeError
from penspin_style.data.formats import penspin
from penspin_style.features import PolicyCard
from penspin_style.system.terminal import one_line

MARGIN = 0.05
"""Share of a joint's range by which a value may be beyond it: noise, and joints that give way."""
RATE_MARGIN = 0.15
"""Share by which an episode's control step may differ from a card's."""
MEMORY = 512 * 2**20  # bytes of the child
PATIENCE, RATE = 30.0, 5e6  # s, and bytes that take one more
NO_CARD = "no card is given: joint limits are not checked"
# -P: no module of the current folder, which may hold files of others
_CHILD = (sys.executable, "-P", "-m", "penspin_style.data.check")
_ROOT = pathlib.Path(__file__).parents[2]
_JOINT_TERMS = ("joint_pos", "qpos", "proprio")
"""Features that are joint positions, or those and targets, even where no names say so."""

Item = pathlib.Path | tuple[pathlib.Path, str]
"""A file, or one trajectory of PenSpin's."""


@dataclass(frozen=True)
class Facts:
    """What a file holds."""

    file: str
    kind: str
    """`episode`, `pack` or `baked`."""
    task: str
    source: str
    robot: str
    episodes: int
    steps: int
    seconds: float
    control_dt: float
    success: bool | None
    bytes: int
    columns: dict[str, str]
    """Name -> shape, type and unit."""
    notes: tuple[str, ...]
    """What is odd, but no fault."""
    sha256: str


@dataclass(frozen=True)
class CheckResult:
    """Facts of a file that can be trusted, or why it cannot be."""

    file: pathlib.Path
    facts: Facts | None
    fault: EpisodeError | None = None


def check(path: pathlib.Path, *, card: PolicyCard | None = None, key: str | None = None) -> Facts:
    """Check an episode or one of PenSpin's files, every value of it.

    card: whose limits hold and whose inputs must be there; without one, the episode's own limits.
    key: one trajectory of PenSpin's file, to check no other.

    Raises:
        EpisodeError: names file, key and row.
    """
    path = pathlib.Path(path)
    with untrusted_hdf5.opened(path) as file:
        if _is_episode(file):
            return _check_episode(Episode.read(path, file), file, card)
    pack = penspin.read(path, gaps=key is not None)
    if key is not None:
        pack = dataclasses.replace(pack, keys=(key,))
    return _pack_facts(pack, card, values=True)


def damaged(pack: penspin.Pack, card: PolicyCard | None = None) -> dict[str, str]:
    """Return the trajectories of PenSpin's file that cannot be trusted, and why, by their keys."""
    lost = {}
    items = [(pack.path, key) for key in pack.keys]
    for result, key in zip(verify(items, card=card), pack.keys, strict=True):
        if result.fault is not None:
            lost[key] = result.fault.args[0].removeprefix(f"{pack.path}: ")
    return lost


def info(path: pathlib.Path) -> Facts:
    """Return what a file says of itself, its structure checked but not its values.

    Raises:
        EpisodeError: names file and key.
    """
    path = pathlib.Path(path)
    if kind_of(path) == "episode":
        return facts_of(Episode.open(path))
    return _pack_facts(penspin.read(path), None, values=False)


def kind_of(path: pathlib.Path) -> str:
    """Return `episode`, `pack` or `baked`.

    Raises:
        EpisodeError: it is none of them.
    """
    with untrusted_hdf5.opened(path) as file:
        return "episode" if _is_episode(file) else penspin.kind_of(path, file)


def _is_episode(file: h5py.File) -> bool:
    return h5py.h5a.exists(file.id, b"format")


def facts_of(episode: Episode, notes: tuple[str, ...] = ()) -> Facts:
    """Return the facts of an episode."""
    header = episode.header
    return Facts(
        str(episode.path),
        "episode",
        header.task,
        header.source,
        header.robot,
        1,
        episode.steps,
        episode.steps * header.control_dt,
        header.control_dt,
        episode.success,
        episode.path.stat().st_size,
        {c.name: f"{c.shape} {c.dtype} [{c.unit}]" for c in header.columns},
        notes,
        episode.sha256,
    )


def _pack_facts(pack: penspin.Pack, card: PolicyCard | None, *, values: bool) -> Facts:
    """Return the facts of one of PenSpin's files, after checking its values if asked to."""
    limits = _joint_limits(card)
    count, steps, columns, left_out = 0, 0, dict[str, str](), set[str]()
    for demo in pack.demos():
        if values:
            penspin.check_demo(demo, limits)
        count, steps = count + 1, steps + len(demo.qpos)
        columns |= {name: "(16,) float64 [rad]" for name in ("qpos", "current_target_qpos")}
        columns |= {name: f"{r.shape[1:]} {r.dtype}" for name, r in demo.images.items()}
        left_out |= set(demo.left_out)
    notes = (NO_CARD,) if values and not limits else ()
    if left_out:
        notes += (f"left out: {', '.join(map(repr, sorted(left_out)))}",)
    notes += rate_notes(pack.control_dt, card)
    dt, size = pack.control_dt, pack.path.stat().st_size
    file, seconds = str(pack.path), steps * dt
    return Facts(
        file, pack.kind, "", "", "", count, steps, seconds, dt, None, size, columns, notes, ""
    )


def rate_notes(control_dt: float, card: PolicyCard | None) -> tuple[str, ...]:
    """Return what is to be said of trajectories at another rate than a card's."""
    if card is None or abs(control_dt / card.control_dt - 1.0) <= RATE_MARGIN:
        return ()
    return (f"control steps of {control_dt:.4g} s, the policy has {card.control_dt:.4g} s",)


# Values.


def _check_episode(episode: Episode, file: h5py.File, card: PolicyCard | None) -> Facts:
    if card is not None:
        _check_fit(episode, card)
    card = episode.header.card if card is None else card
    try:
        limits = {} if card is None else _limits(episode.header.channels, card)
    except (TypeError, ValueError, AttributeError) as error:
        raise EpisodeError(episode.path, "card", None, f"is invalid: {error}") from error
    notes: list[str] = []
    for channel in episode.header.columns:
        if channel.name == TIME:
            notes += _check_time(episode)
            continue
        low, high = limits.get(channel.name, (-np.inf, np.inf))
        for row, block in episode.blocks(channel.name, file):
            if channel.dtype.startswith("float"):
                untrusted_hdf5.check_values(episode.path, channel.name, row, block, low, high)
    return facts_of(episode, tuple(notes))


def _check_time(episode: Episode) -> list[str]:
    time = episode[TIME]
    untrusted_hdf5.check_values(episode.path, TIME, 0, time, 0.0, np.inf)
    steps = np.diff(time)
    if not (steps > 0).all():
        row = int(np.argmin(steps > 0)) + 1
        what = f"{time[row]} s does not come after {time[row - 1]} s"
        raise EpisodeError(episode.path, TIME, row, what)
    nominal, notes = episode.header.control_dt, []
    if len(steps) and abs(float(np.median(steps)) / nominal - 1.0) > 0.1:
        notes.append(f"control steps took {np.median(steps):.4g} s, the header says {nominal:g} s")
    if len(steps) and steps.max() > 3 * nominal:
        notes.append(f"{steps.max():.3g} s passed before row {int(steps.argmax()) + 1}")
    return notes


def _limits(channels: Sequence[Channel], card: PolicyCard) -> dict[str, tuple[Any, Any]]:
    """Return the limits, wider by the margin, of each channel that has some."""
    limits: dict[str, tuple[Any, Any]] = {"action": (-1.0, 1.0)}
    bounds = _wider([a.low for a in card.actions], [a.high for a in card.actions])
    limits |= {"target": bounds, "sent": bounds}
    joints = _joint_limits(card)
    for channel in channels:
        times = _joint_blocks(channel, card)
        if joints is not None and times:
            limits[channel.name] = (np.tile(joints[0], times), np.tile(joints[1], times))
    return limits


def _joint_limits(card: PolicyCard | None) -> tuple[np.ndarray, np.ndarray] | None:
    if card is None or not card.joints:
        return None
    return _wider([j.low for j in card.joints], [j.high for j in card.joints])


def _wider(low: Sequence[float], high: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    lows, highs = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.isfinite(lows) & np.isfinite(highs) & (lows <= highs)).all():
        raise ValueError(f"limits {low} to {high}")
    return lows - MARGIN * (highs - lows), highs + MARGIN * (highs - lows)


def _joint_blocks(channel: Channel, card: PolicyCard) -> int:
    """Return how many times over an observation holds the card's joints, in their order."""
    group, _, name = channel.name.partition("/")
    count = len(card.joints)
    if group != "observation" or len(channel.shape) != 1 or not count or channel.shape[0] % count:
        return 0
    if channel.unit != card.joints[0].unit:
        return 0
    times = channel.shape[0] // count
    named = [n.rpartition("/")[2] for n in channel.names] == [j.name for j in card.joints] * times
    return times if named or (not channel.names and name in _JOINT_TERMS) else 0


def _check_fit(episode: Episode, card: PolicyCard) -> None:
    """Check that a policy could have been at work, and could learn from it."""
    path, header = episode.path, episode.header
    channels = {channel.name: channel for channel in header.channels}
    for feature in dict.fromkeys(f for group in card.inputs for f in group.features):
        key = f"observation/{feature.name}"
        found = channels.get(key)
        wanted = (tuple(feature.shape), feature.dtype, feature.unit)
        if found is None:
            raise EpisodeError(path, key, None, f"is missing; the policy of {card.task} reads it")
        if (got := (found.shape, found.dtype, found.unit)) != wanted:
            raise EpisodeError(path, key, None, f"is {got}, the policy reads {wanted}")
    names, sent = tuple(a.name for a in card.actions), channels["sent"]
    if sent.shape != (len(names),) or (sent.names and sent.names != names):
        raise EpisodeError(path, "sent", None, f"is of {sent.names}, the policy commands {names}")
    if abs(header.control_dt / card.control_dt - 1.0) > RATE_MARGIN:
        what = f"has control steps of {header.control_dt:g} s, the policy {card.control_dt:g} s"
        raise EpisodeError(path, None, None, what)


# Many files, in a child.


def verify(
    items: Sequence[Item],
    *,
    card: PolicyCard | None = None,
    patience: float = PATIENCE,
) -> Iterator[CheckResult]:
    """Check files in a child of bounded memory; yield a result on each, in their order.

    patience: seconds that a file may take, beside those for its size.
    """
    waiting = [item if isinstance(item, tuple) else (item, None) for item in items]
    seen: dict[str, pathlib.Path] = {}
    while waiting:
        child = _Child(waiting, card)
        try:
            while waiting:
                result = child.result(waiting.pop(0)[0], patience)
                yield _unless_seen(result, seen)
                if child.dead:
                    break
        finally:
            child.end()


def _unless_seen(result: CheckResult, seen: dict[str, pathlib.Path]) -> CheckResult:
    """Refuse an episode that came before under another name: it would count twice."""
    facts = result.facts
    if facts is None or not facts.sha256:
        return result
    first = seen.setdefault(facts.sha256, result.file)
    if first == result.file:
        return result
    what = f"is the same episode as {first}; remove one"
    return CheckResult(result.file, None, EpisodeError(result.file, None, None, what))


class _Child:
    """A process that checks files and says one line of JSON about each."""

    def __init__(
        self, items: Sequence[tuple[pathlib.Path, str | None]], card: PolicyCard | None
    ) -> None:
        # one thread: each of a numerical library's threads claims address space of its own
        single = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            _CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **single, "PYTHONPATH": path},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        listed = [(os.fsdecode(path), key) for path, key in items]
        asked = {"card": card and card.to_json(), "items": listed}
        self._input, self._output = self._process.stdin, self._process.stdout
        self._left, self._buffer = json.dumps(asked).encode() + b"\n", b""
        os.set_blocking(self._input.fileno(), False)
        self.dead = False

    def result(self, path: pathlib.Path, patience: float) -> CheckResult:
        """Return what the child says of the next file, or that it died of it."""
        with contextlib.suppress(OSError):  # the child says what is wrong with it
            patience += path.stat().st_size / RATE
        line = self._line(time.monotonic() + patience)
        if line is None:
            self.dead = True
            self._process.kill()
            what = f"takes more than {patience:.0f} s to check; it is damaged or hostile"
        elif line:
            said = json.loads(line)
            if (raw := said.get("facts")) is not None:
                raw["notes"] = tuple(raw["notes"])
                return CheckResult(path, Facts(**raw))
            return CheckResult(
                path, None, EpisodeError(path, said["key"], said["row"], said["what"])
            )
        else:
            self.dead = True
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            what = f"crashes the HDF5 library ({how}); it is damaged or hostile"
        return CheckResult(path, None, EpisodeError(path, None, None, what))

    def _line(self, deadline: float) -> bytes | None:
        """Return the next line, empty at the end, None if it does not come in time."""
        while b"\n" not in self._buffer:
            writers = [self._input] if self._left else []
            left = deadline - time.monotonic()
            ready = select.select([self._output], writers, [], max(0.0, left))
            if not any(ready):
                return None
            if ready[1]:
                self._feed()
            if ready[0]:
                if not (part := os.read(self._output.fileno(), 65536)):
                    return b""
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _feed(self) -> None:
        try:
            self._left = self._left[os.write(self._input.fileno(), self._left[:65536]) :]
        except BrokenPipeError:
            self._left = b""
        if not self._left:
            self._input.close()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._input, self._output):
            pipe.close()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve() -> None:
    """Be the child."""
    _limit()
    asked = json.loads(sys.stdin.readline())
    card = None if asked["card"] is None else PolicyCard.from_json(asked["card"])
    for path, key in asked["items"]:
        said = _answer(lambda path=path, key=key: check(pathlib.Path(path), card=card, key=key))
        print(json.dumps(said), flush=True)


def _answer(run: Callable[[], Facts]) -> dict[str, Any]:
    try:
        return {"facts": dataclasses.asdict(run())}
    except EpisodeError as error:
        return {"key": error.key, "row": error.row, "what": error.what}
    except MemoryError:
        what = f"needs more than {MEMORY // 2**20} MB to check; it is damaged or hostile"
        return {"key": None, "row": None, "what": what}
    except Exception as error:  # a result on this file, and the others are checked all the same
        what = f"cannot be checked: {type(error).__name__}: {one_line(error)}"
        return {"key": None, "row": None, "what": what}


if __name__ == "__main__":
    _serve()
