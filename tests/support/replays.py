"""Trajectories of the carts, and an opened robot to replay them on."""

import dataclasses

import numpy as np

from penspin_style.data.episodes.episode import Header, commands, write_episode
from penspin_style.features import PolicyCard
from real.control.session import Opened
from tests.support.cart import CHANNELS, DT, Carts


def trajectory(folder, steps=8, start=None, channels=CHANNELS, dt=DT, **facts):
    """Write one for the carts: to the right by 5 cm a step."""
    card = PolicyCard("carts", (), channels, (), dt)
    start = {"left": [0.1], "right": [0.0], "cube": [0.0] * 7} if start is None else start
    head = Header("carts", "sim", "carts", dt, commands(card), None, {"start": start, **facts})
    target = np.stack([0.05 * np.arange(1, steps + 1), np.zeros(steps)], axis=1)
    zeros = np.zeros((steps, 2), np.float32)
    columns = {"time": dt * np.arange(steps), "action": zeros, "target": target, "sent": target}
    return write_episode(folder, head, columns, True)


def carts_opened(**changes):
    opened = Opened(Carts(), "carts", "carts", "twin", False, 100)
    opened.robot.seed = lambda seed: opened.robot.told.append(f"seed {seed}")
    return dataclasses.replace(opened, **changes)
