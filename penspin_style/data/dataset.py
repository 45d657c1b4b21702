"""Episodes as a policy learns from them: what it would have read at every step, and what was done.

One time base. The inputs of step t are those that `penspin_style.deploy.history` would have given
the policy then: each feature's history and delay, with the first value standing for all that was
before it. The label of step t is the action, in the policy's own units, that leads from what was
sent in step t-1 to what was sent in step t; so it is what the robot did, whatever was asked for.
At a limit many actions lead there: the recorded one is the label if it does. The smallest is not: a
gripper that is pressed shut would be labelled 0 from then on, and a policy that learned 0, missing
it by a little in every step, lets go.

Columns are matched by name: joints that were recorded in another order are brought into the
policy's, columns and never rows.
"""

import hashlib
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penspin_style.data.episodes.episode import Channel, Episode, EpisodeError, episodes
from penspin_style.data.formats import penspin
from penspin_style.deploy.actions import Decoder
from penspin_style.deploy.history import stack_episode
from penspin_style.features import Feature, PolicyCard

MAX_RATE_ERROR = 0.15
"""Share by which an episode's control step may differ from the policy's: PenSpin's hand ran at
18 Hz, its simulation at 20."""
BEYOND = 1.05
"""Size of an action that the policy could not have answered."""
MAX_BEYOND = 0.1
"""Share of an episode's numbers that may be so: more are of another rate or unit."""


@dataclass(frozen=True)
class Windows:
    """Rows to learn from; arrays (n, ...)."""

    inputs: dict[str, np.ndarray]
    """Input of the card -> what the policy reads."""
    labels: np.ndarray
    """(n, naction) float32 in [-1, 1]."""
    steps: np.ndarray
    """(n,) the control step of its episode that each row is of."""
    beyond: int = 0
    """Numbers of the labels that had to be clipped to what the policy can answer."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.labels)


@dataclass(frozen=True)
class Trajectories:
    """What a folder holds to learn from."""

    rows: list[Windows]
    """Of each episode."""
    sha256: dict[str, str]
    """File -> checksum, in the order of `rows`."""
    left_out: int = 0
    """Episodes that were no success."""

    @property
    def beyond(self) -> int:
        """Numbers of the labels that were clipped."""
        return sum(w.beyond for w in self.rows)


def load(
    path: pathlib.Path,
    card: PolicyCard,
    *,
    failures: bool = False,
    hand: penspin.Hand | None = None,
) -> Trajectories:
    """Read the successful episodes of a folder, or all of PenSpin's real_data.h5, for a card.

    failures: read the others too. hand: whose joints PenSpin's file holds.

    Raises:
        ValueError: there is no episode, or no successful one.
        EpisodeError: one is damaged, or does not fit the policy.
    """
    theirs = path if path.is_file() else path / "real_data.h5"
    if theirs.is_file():
        if hand is None:
            raise ValueError(f"{theirs} holds a hand's joints, and no hand was given")
        return _load_penspin(theirs, card, hand)
    found = episodes(path)
    if not found:
        raise ValueError(f"{path} holds no episodes; record some, or convert with penspin data")
    rows, sums = [], {}
    for file in found:
        episode = Episode.open(file)
        if episode.success or failures:
            rows.append(windows(episode, card))
            sums[file.name] = _sha256(file)
    if not rows:
        raise ValueError(
            f"none of the {len(found)} episodes of {path} was a success; collect successful ones, "
            "or learn from failures too by algo.failures=true"
        )
    return Trajectories(rows, sums, len(found) - len(rows))


def _load_penspin(path: pathlib.Path, card: PolicyCard, hand: penspin.Hand) -> Trajectories:
    """Read a file of PenSpin's; it holds what its makers took for successes."""
    pack = penspin.read(path)
    digest, rows, sums = _sha256(path), [], {}
    with tempfile.TemporaryDirectory() as folder:
        files = penspin.unpack(
            *(pack.demos(), pathlib.Path(folder), hand), control_dt=pack.control_dt, card=card
        )
        for file in files:
            episode = Episode.open(file)
            rows.append(windows(episode, card))
            sums[f"{path.name}/{episode.header.facts['group']}"] = digest
    return Trajectories(rows, sums)


def windows(episode: Episode, card: PolicyCard) -> Windows:
    """Return an episode's rows for the policy of a card.

    The first row is left out where what the robot followed before it is not known.

    Raises:
        EpisodeError: it lacks what the policy reads, holds it in another shape, type or unit, or
            was recorded at another rate.
    """
    _check_rate(episode, card)
    _check_units(episode, card)
    labels, known, beyond = _labels(episode, card)
    rows = np.flatnonzero(known)
    values = {f.name: observed(episode, f, card) for given in card.inputs for f in given.features}
    return Windows(stack_episode(card, values, rows), labels[rows], rows, beyond)


def join(parts: Sequence[Windows]) -> Windows:
    """Return the rows of several episodes as one, in their order."""
    first = parts[0]
    return Windows(
        {name: np.concatenate([p.inputs[name] for p in parts]) for name in first.inputs},
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.steps for p in parts]),
        sum(p.beyond for p in parts),
    )


def observed(episode: Episode, feature: Feature, card: PolicyCard) -> np.ndarray:
    """Return a feature's current values (T, *shape) in its own type and order.

    Raises:
        EpisodeError: they are not there, or are something else.
    """
    key = f"observation/{feature.name}"
    channel = _channel(episode, key, f"the policy of {card.task} reads it")
    path, shape = episode.path, tuple(feature.shape)
    if channel.shape != shape:
        raise EpisodeError(path, key, None, f"is {channel.shape}, the policy reads {shape}")
    if channel.unit != feature.unit:
        what = f"is in [{channel.unit}], the policy reads [{feature.unit}]"
        raise EpisodeError(path, key, None, what)
    if (channel.dtype == "uint8") != (feature.dtype == "uint8"):
        raise EpisodeError(path, key, None, f"is {channel.dtype}, the policy reads {feature.dtype}")
    values = episode[key].astype(feature.dtype, copy=False)
    order = _joint_order(channel, card)
    return values if order is None else values[:, order]


def commanded(episode: Episode, key: str, card: PolicyCard) -> np.ndarray:
    """Return `action`, `target` or `sent` (T, naction) in the card's order of channels.

    Raises:
        EpisodeError: they are of other channels, or in other units.
    """
    channel = _channel(episode, key, "every episode has it")
    names, path = [a.name for a in card.actions], episode.path
    units = {a.unit for a in card.actions}
    if key != "action" and len(units) == 1 and channel.unit not in units:
        what = f"is in [{channel.unit}], the policy commands [{units.pop()}]"
        raise EpisodeError(path, key, None, what)
    if channel.shape != (len(names),):
        what = f"has {channel.shape[0]} columns, the policy commands {len(names)}"
        raise EpisodeError(path, key, None, what)
    values = episode[key].astype(np.float64)
    if not channel.names or list(channel.names) == names:
        return values
    if sorted(channel.names) != sorted(names):
        odd = sorted(set(channel.names) ^ set(names))
        what = f"is of other channels than the policy's; in one but not the other: {odd}"
        raise EpisodeError(path, key, None, what)
    return values[:, [channel.names.index(name) for name in names]]


def _labels(episode: Episode, card: PolicyCard) -> tuple[np.ndarray, np.ndarray, int]:
    """Return labels (T, naction), whether they are known (T,), and how many were out of reach."""
    action, target, sent = (commanded(episode, k, card) for k in ("action", "target", "sent"))
    decoder = Decoder(card)
    # what came before the first row is not recorded, but the first action was decoded from it
    start = decoder.origin(target[0], action[0])
    scale = np.array([abs(a.scale) for a in card.actions])
    inside = (start >= decoder.low - 1e-6) & (start <= decoder.high + 1e-6)
    again = decoder.decode(action[0], start.clip(decoder.low, decoder.high))
    known = np.ones(len(sent), bool)
    known[0] = bool((inside & (np.abs(again - target[0]) <= 1e-5 * scale)).all())
    last = np.concatenate((start[None], sent[:-1]))
    # at a limit `encode` answers the smallest of the actions that end there, not what was asked
    does = np.abs(decoder.decode(action, last) - sent) <= 1e-5 * scale
    asked = action.clip(-1.0, 1.0).astype(np.float32)
    labels = np.where(does, asked, decoder.encode(sent, last))
    raw = decoder.steps(sent, last)
    far = (np.abs(raw) > BEYOND) & known[:, None]
    if far.mean() > MAX_BEYOND:
        row, column = np.argwhere(far)[0]
        raise EpisodeError(
            episode.path,
            "sent",
            int(row),
            f"moves {card.actions[column].name} by {raw[row, column]:.3g} times what the policy "
            f"can, and {far.mean():.0%} of all numbers are beyond it: recorded at another rate or "
            "in other units?",
        )
    return labels, known, int(far.sum())


def _joint_order(channel: Channel, card: PolicyCard) -> list[int] | None:
    """Return the columns of a channel in the order of the card's joints, None if they are so.

    A channel may hold the joints several times over, as positions and targets.
    """
    joints = [j.name for j in card.joints]
    count = len(joints)
    if not channel.names or not count or len(channel.names) % count:
        return None
    order: list[int] = []
    for first in range(0, len(channel.names), count):
        block = [name.rpartition("/")[2] for name in channel.names[first : first + count]]
        if sorted(block) != sorted(joints):
            return None
        order += [first + block.index(name) for name in joints]
    return order if order != sorted(order) else None


def _channel(episode: Episode, key: str, why: str) -> Channel:
    for channel in episode.header.channels:
        if channel.name == key:
            return channel
    names = [c.name for c in episode.header.channels if c.name.startswith("observation/")]
    there = ", ".join(name.removeprefix("observation/") for name in names) or "nothing"
    raise EpisodeError(episode.path, key, None, f"is missing, and {why}; observed are: {there}")


def _check_rate(episode: Episode, card: PolicyCard) -> None:
    ratio = episode.header.control_dt / card.control_dt
    if abs(ratio - 1.0) > MAX_RATE_ERROR:
        raise EpisodeError(
            episode.path,
            None,
            None,
            f"has control steps of {episode.header.control_dt:g} s, the policy acts every "
            f"{card.control_dt:g} s; record at the policy's rate",
        )


def _check_units(episode: Episode, card: PolicyCard) -> None:
    """Check channel by channel, which the columns of several units do not say, if a card is there.

    Scale, limits and mode may be others: labels are made anew from what was sent.
    """
    units = {a.name: a.unit for a in card.actions}
    for a in episode.header.card.actions if episode.header.card else ():
        if units.get(a.name, a.unit) != a.unit:
            what = f"has {a.name} in [{a.unit}], the policy commands [{units[a.name]}]"
            raise EpisodeError(episode.path, "sent", None, what)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
