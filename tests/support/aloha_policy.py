"""Policies of ALOHA's arms with two wrist cameras: one that does as it is told, one exported."""

import numpy as np
import torch

from penspin_style.deploy.export import export
from penspin_style.features import Feature, Input, Joint, PolicyCard
from penspin_style.nets.student import StudentPolicy
from tasks.robots.aloha.description import HOME, JOINTS, LOWER, PROPRIOCEPTION, UPPER, actions

SIZE = 32
CAMERAS = ("wrist_cam_left", "wrist_cam_right")
NUMBERS = Input("student", PROPRIOCEPTION)
IMAGES = tuple(
    Input(f"{camera}_rgb", (Feature(f"{camera}_rgb", (SIZE, SIZE, 3), "1", "uint8"),))
    for camera in CAMERAS
)


def card(*, inputs=(NUMBERS, *IMAGES), channels=None):
    channels = channels or actions(gripper_scale=0.004)
    joints = tuple(
        Joint(name, c.unit, low, high, 1.0, 0.1, home)
        for name, c, low, high, home in zip(JOINTS, channels, LOWER, UPPER, HOME, strict=True)
    )
    return PolicyCard("aloha_student", inputs, channels, joints, 0.05)


class Told:
    """Notes what it sees, and acts as `actions` says, one after the other; the last for ever."""

    sha256 = "of the toy"

    def __init__(self, *actions, made=None, **fields):
        self.card, self.actions = made or card(**fields), actions or (np.zeros(14),)
        self.seen, self.resets = [], 0

    def reset(self):
        self.resets += 1

    def act(self, observation):
        self.seen.append(observation)
        at = min(len(self.seen), len(self.actions)) - 1
        return np.broadcast_to(self.actions[at], self.actions[at].shape).astype(np.float32)


def exported(path):
    """Write a small student with two encoders; its actions are far from 0."""
    rng = torch.Generator().manual_seed(0)
    settings = {"pool": True, "latent": 8, "depth_pixels": 8, "max_depth": {}, "hidden": (16,)}
    made = card()
    policy = StudentPolicy(
        made.inputs, 14, activation="elu", train_encoder=False, rng=rng, **settings
    )
    with torch.no_grad():
        policy.trunk[-1].weight.mul_(60.0)
    export(policy, made, path, samples=8)
    return path


def request(state=None, size=(SIZE, SIZE), **more):
    """What the stock client asks: the arms at home with open grippers, grey images."""
    state = np.array([*HOME[:6], 1.0] * 2) if state is None else state
    image = np.full((3, *size), 128, np.uint8)
    images = {name: image for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")}
    return {"state": state, "images": images, "prompt": "put the peg in", **more}
