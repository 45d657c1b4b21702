"""Episodes of a robot with two cameras and every type of column, as converters meet them."""

import numpy as np

from penspin_style.data.episodes.episode import Channel, Episode, Header, write_episode
from tests.support.recording import CARD, JOINTS

OBSERVED = (
    Channel("observation/front_rgb", (16, 32, 3), "uint8"),
    Channel("observation/wrist_rgb", (9, 7, 3), "uint8"),  # odd sides
    Channel("observation/depth", (4, 5), "float32", "m"),
    Channel("observation/points", (3, 3), "float64", "m"),
    Channel("observation/mask", (4, 5), "uint8"),
    Channel("observation/joint_pos", (2,), "float32", "rad", JOINTS),
    Channel("observation/joint_vel", (2,), "float64", "rad/s", JOINTS),
    Channel("observation/count", (), "int64"),
    Channel("observation/on", (), "uint8"),
)
CHANNELS = (
    *OBSERVED,
    Channel("action", (2,), "float32", "1", JOINTS),
    Channel("target", (2,), "float64", "rad", JOINTS),
    Channel("sent", (2,), "float64", "rad", JOINTS),
    Channel("measure/turns", (), "float64"),
)
STEPS = (7, 12, 1, 5)
SUCCESS = (True, False, True, False)


def header(**changes):
    given = {"task": "cart", "source": "twin", "robot": "cart", "control_dt": 0.05}
    return Header(**{**given, "channels": CHANNELS, "card": CARD, "facts": {"seed": 3}, **changes})


def camera_frames(steps, height, width, seed):
    """Images as smooth as a camera's, each unlike the next: a codec keeps them nearly."""
    t = np.arange(steps).reshape(-1, 1, 1)
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [np.sin(2 * x + 0.9 * t + seed), np.cos(3 * y - 0.7 * t), np.sin(x + y + 0.8 * t)]
    return (127.5 + 100 * np.stack(planes, -1)).astype(np.uint8)


def columns(steps, seed=0, channels=CHANNELS):
    rng = np.random.default_rng(seed)
    found = {"time": 0.05 * np.arange(steps) + rng.uniform(0, 0.01, steps)}
    for channel in channels:
        if channel.shape[2:] == (3,):
            found[channel.name] = camera_frames(steps, *channel.shape[:2], seed)
        elif channel.dtype.startswith(("uint", "int")):
            high = 256 if channel.dtype == "uint8" else 2**50
            values = rng.integers(0, high, (steps, *channel.shape))
            found[channel.name] = values.astype(channel.dtype)
        else:
            values = rng.uniform(-1, 1, (steps, *channel.shape))
            found[channel.name] = values.astype(channel.dtype)
    return found


def record(folder, *, steps=STEPS, success=SUCCESS, **changes):
    """Write episodes that differ in length, success, card and facts; return them opened."""
    paths = []
    for i, (n, good) in enumerate(zip(steps, success, strict=True)):
        own = {"facts": {"seed": i}, "card": CARD if i % 2 else None, **changes}
        head = header(**own)
        paths.append(write_episode(folder, head, columns(n, i, head.channels), good))
    return [Episode.open(path) for path in paths]


def check_same(recording, episode, *, but=()):
    """What was restored is the episode, bit for bit; columns `but` are returned beside theirs."""
    head, found, success = recording
    assert head == episode.header and success == episode.success
    assert sorted(found) == sorted(episode.keys())
    for key in set(found) - set(but):
        wanted = episode[key]
        assert found[key].dtype == wanted.dtype and found[key].shape == wanted.shape, key
        assert found[key].tobytes() == wanted.tobytes(), key
    return {key: (found[key], episode[key]) for key in but}
