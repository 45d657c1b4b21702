"""A hand that follows random actions, and PenSpin's files of it."""

import h5py
import numpy as np

from penspin_style.data.episodes.episode import Channel, Episode, Header, episodes, write_episode
from penspin_style.data.formats.penspin import Hand
from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard
from tasks.robots.allegro import description

NAMES = description.JOINTS
LOW, HIGH = np.array(description.LOWER), np.array(description.UPPER)
HAND = Hand.of(description)
CARD = PolicyCard(
    task="pen_spin_student",
    inputs=(
        Input(
            "student",
            (Feature("proprio", (32,), "rad", history=30), Feature("fingertips", (4, 3), "m")),
        ),
    ),
    actions=tuple(
        ActionChannel(n, "rad", 1 / 24, lo, hi, "delta")
        for n, lo, hi in zip(NAMES, description.LOWER, description.UPPER, strict=True)
    ),
    joints=tuple(
        Joint(n, "rad", lo, hi, 3.0, 0.1, 0.0)
        for n, lo, hi in zip(NAMES, description.LOWER, description.UPPER, strict=True)
    ),
    control_dt=0.05,
)
FULL = (
    Channel("observation/rgb_ori", (9, 16, 4), "uint8"),
    Channel("observation/rgb_c2d", (8, 8, 3), "uint8"),
    Channel("observation/depth", (8, 8), "uint16", "mm"),
    Channel("observation/pc", (8, 8, 3), "float64", "m"),
    Channel("observation/pen_ends", (2, 3), "float32", "m"),
)


def header(*more, source="twin"):
    return Header.of_card(CARD, source=source, robot="allegro", more=more)


def hand_columns(steps=40, seed=0, more=()):
    """A hand that follows random actions, measured with an error."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (steps, 16)).astype(np.float32)
    target = (LOW + HIGH) / 2 + np.cumsum(action / 24, axis=0, dtype=np.float64)
    qpos = (target + rng.normal(0, 0.01, target.shape)).astype(np.float32)
    last = np.concatenate(((LOW + HIGH)[None] / 2, target[:-1]))
    out = {
        "time": 0.05 * np.arange(steps),
        "observation/proprio": np.concatenate((qpos, last), axis=1).astype(np.float32),
        "observation/fingertips": HAND.fingertips(qpos.astype(np.float64)).astype(np.float32),
        "action": action,
        "target": target,
        "sent": target,
    }
    for channel in more:
        shape = (steps, *channel.shape)
        whole = channel.dtype.startswith("uint")
        drawn = rng.integers(0, 250, shape) if whole else rng.normal(size=shape)
        out[channel.name] = drawn.astype(channel.dtype)
    return out


def recorded(path, targets="current_target", tips=None, steps=40):
    """Write a file as PenSpin's recording script does; return what is in it."""
    truth = hand_columns(steps, 9)
    qpos = truth["observation/proprio"][:, :16].astype(np.float64)
    with h5py.File(path, "w") as file:
        demo = file.create_group("replay_demon_0")
        demo["qpos"], demo["action"], demo[targets] = qpos, truth["sent"] - qpos, truth["sent"]
        demo.create_dataset("tactile", data=np.zeros((0,)))
        if tips is not None:
            demo["finger_tip_pose"] = tips(qpos)
    return qpos, truth["sent"]


def record(folder):
    """Record three successes and a failure, the third, of 40 to 43 steps."""
    for i in range(4):
        write_episode(folder, header(), hand_columns(40 + i, i), i != 2)
    return folder


def opened(folder):
    return [Episode.open(path) for path in episodes(folder)]
