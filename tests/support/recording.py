"""Episodes to record: a small kind with every sort of column, and rows that all number alike."""

import numpy as np

from penspin_style.data.episodes.episode import Channel, Header
from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard

JOINTS = ("left", "right")
CARD = PolicyCard(
    task="cart",
    inputs=(
        Input("student", (Feature("joint_pos", (2,), "rad", history=3), Feature("on", ()))),
        Input("eye_rgb", (Feature("eye_rgb", (8, 8, 3), "1", "uint8"),)),
    ),
    actions=tuple(ActionChannel(n, "rad", 0.1, -1.0, 2.0, "delta") for n in JOINTS),
    joints=tuple(Joint(n, "rad", -1.0, 2.0, 3.0, 0.1, 0.0) for n in JOINTS),
    control_dt=0.05,
)
MORE = (
    Channel("observation/depth", (4, 4), "uint16", "mm"),
    Channel("measure/turns", (), "float64"),
)


def header(**changes):
    given = {"source": "twin", "robot": "cart", "facts": {"seed": 3}, "more": MORE}
    return Header.of_card(CARD, **{**given, **changes})


def columns(steps, head=None, first=0):
    """Columns whose values number the rows from `first` on."""
    head = header() if head is None else head
    t = np.arange(first, first + steps)
    out = {"time": 0.05 * np.arange(steps)}
    for channel in head.channels:
        scale = 1.0 if channel.dtype.startswith("uint") else 0.01
        values = scale * (t % 100).reshape(-1, *(1 for _ in channel.shape))
        whole = np.broadcast_to(values, (steps, *channel.shape))
        out[channel.name] = whole.astype(channel.dtype)
    return out


def rows(steps, head=None, first=0):
    given = columns(steps, head, first)
    for t in range(steps):
        yield {name: column[t] for name, column in given.items()}
