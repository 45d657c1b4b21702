"""Cards and episodes for the tests of learning from the robot: small, and drawn from a seed."""

import dataclasses

import numpy as np

from penspin_style.data.episodes.episode import Episode, Header, write_episode
from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard

DT = 0.05
NAMES = ("ff", "mf", "th")
SCALE = 0.05


def channels(mode="delta"):
    return tuple(ActionChannel(n, "rad", SCALE, -1.0, 1.0, mode) for n in NAMES)


def joints():
    return tuple(Joint(n, "rad", -1.0, 1.0, 3.0, 0.1, 0.0) for n in NAMES)


def vector_card(history=4, delay=1, mode="delta", network=None):
    """A student of three joints: positions and targets with a past, and where the tip is."""
    proprio = Feature("proprio", (6,), "rad", history=history, delay=delay)
    tip = Feature("fingertips", (3,), "m")
    return PolicyCard(
        task="toy",
        inputs=(Input("student", (proprio, tip)),),
        actions=channels(mode),
        joints=joints(),
        control_dt=DT,
        network=network or {},
    )


def image_card(history=1):
    """A student of numbers, a colour and a depth image."""
    card = vector_card(1, 0)
    rgb = Feature("front_rgb", (8, 8, 3), dtype="uint8", history=history)
    depth = Feature("front_depth", (8, 8), "m", history=history)
    tip = Input("student", (Feature("fingertips", (3,), "m"),))
    images = (Input("front_rgb", (rgb,)), Input("front_depth", (depth,)))
    return dataclasses.replace(card, inputs=(tip, *images))


def columns(card, steps=12, seed=0, reach=0.9):
    """Columns of an episode in which what is sent moves by up to `reach` of an action a step."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-reach, reach, (steps, len(card.actions))).astype(np.float32)
    sent = np.cumsum(SCALE * action.astype(np.float64), axis=0)
    out = {
        "time": DT * np.arange(steps),
        "action": action,
        "target": sent.copy(),
        "sent": sent.copy(),
    }
    for feature in (f for i in card.inputs for f in i.features):
        shape = (steps, *feature.shape)
        if feature.dtype == "uint8":
            value = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            value = rng.uniform(0.0, 1.0, shape).astype(np.float32)
        out[f"observation/{feature.name}"] = value
    return out


def taught(card, steps=12, seed=0):
    """Columns in which the action is what the fingertips say: there is something to learn."""
    out = columns(card, steps, seed)
    mix = np.array([[0.9, 0.3, 0.0], [0.0, -0.8, 0.4], [0.5, 0.0, 0.7]])
    out["action"] = ((out["observation/fingertips"] - 0.5) @ mix).astype(np.float32)
    out["sent"] = out["target"] = np.cumsum(SCALE * out["action"].astype(np.float64), axis=0)
    return out


def record(folder, card, values=None, *, success=True, header=None, changes=None, **facts):
    """Write an episode and open it. changes: name of a channel -> fields of it to replace."""
    values = columns(card) if values is None else values
    head = header or Header.of_card(card, source="twin", robot="toy")
    listed = tuple(
        dataclasses.replace(channel, **(changes or {}).get(channel.name, {}))
        for channel in head.channels
        if channel.name in values
    )
    head = dataclasses.replace(head, channels=listed, card=None, **facts)
    return Episode.open(write_episode(folder, head, values, success))
