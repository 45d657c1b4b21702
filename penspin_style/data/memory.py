"""What a dataset in another format must remember, to give back the episodes it was made of.

`of_all` once for all episodes, `of_one` for each; `headers` makes both what they were.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from penspin_style import storage
from penspin_style.data.episode import Episode
from penspin_style.data.layout import Channel, Header, card_text, facts_text, sha256
from penspin_style.features import PolicyCard

FORMAT = 1
TEXTS = ("task", "source", "facts", "card_sha256")
"""The fields of `of_one` beside `success`."""

Recording = tuple[Header, dict[str, np.ndarray], bool | None]
"""What `write_episode` takes after the folder."""


def common_header(episodes: Sequence[Episode]) -> Header:
    """Return the header that stands for all episodes.

    Raises:
        ValueError: there are none, or they differ in channels, robot or control_dt.
    """
    if not episodes:
        raise ValueError("a dataset needs at least one episode")
    first = episodes[0]
    for other in episodes:
        for name in ("channels", "robot", "control_dt"):
            if getattr(first.header, name) != getattr(other.header, name):
                raise ValueError(
                    f"{other.path} is of another kind than {first.path}: {name} differs; "
                    "write a dataset of each kind"
                )
    return first.header


def held_back(count: int, valid: float) -> int:
    """Return how many of `count` episodes the share `valid` is: one at least, and never all.

    Raises:
        ValueError: it is no share.
    """
    if not 0.0 <= valid < 1.0:
        raise ValueError(f"valid={valid} must be a share of the episodes, from 0 to below 1")
    return min(count - 1, max(1, round(valid * count))) if valid else 0


def of_all(header: Header, episodes: Iterable[Episode]) -> dict[str, Any]:
    """Return what the episodes have in common, as JSON values, and every card once."""
    cards = {card_text(episode.header.card) for episode in episodes} - {""}
    return {
        "format": FORMAT,
        "robot": header.robot,
        "control_dt": header.control_dt,
        "channels": [dataclasses.asdict(channel) for channel in header.channels],
        "cards": {sha256(card): card for card in sorted(cards)},
    }


def of_one(episode: Episode) -> dict[str, Any]:
    """Return what one episode has for itself: `TEXTS` and success, 1, 0 or -1 for unknown."""
    header, card = episode.header, card_text(episode.header.card)
    return {
        "task": header.task,
        "source": header.source,
        "success": -1 if episode.success is None else int(episode.success),
        "facts": facts_text(header.facts),
        "card_sha256": sha256(card) if card else "",
    }


def headers(
    common: Mapping[str, Any], own: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Header, bool | None]]:
    """Yield header and success of every episode, from what `of_all` and `of_one` returned.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not what they returned.
    """
    if common["format"] != FORMAT:
        raise ValueError(f"format {common['format']!r}, this version reads {FORMAT}")
    channels = tuple(
        Channel(**{**c, "shape": tuple(c["shape"]), "names": tuple(c["names"])})
        for c in common["channels"]
    )
    cards = {name: PolicyCard.from_json(text) for name, text in common["cards"].items()}
    for one in own:
        card = cards[one["card_sha256"]] if one["card_sha256"] else None
        robot, control_dt = common["robot"], common["control_dt"]
        facts = storage.parse_json(one["facts"])
        header = Header(one["task"], one["source"], robot, control_dt, channels, card, facts)
        yield header, {1: True, 0: False, -1: None}[one["success"]]
