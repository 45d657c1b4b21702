"""Students to learn on, what they learn from, and the loop that a run makes of it."""

import dataclasses
from importlib.metadata import EntryPoint

import pytest
import torch

from penspin_style.algo.act import ACT, ACTConfig, act_card
from penspin_style.algo.clone import Clone, CloneConfig
from penspin_style.data.dataset import Trajectories, windows
from penspin_style.nets import act
from penspin_style.nets.student import StudentPolicy
from penspin_style.nets.temporal import TemporalPolicy
from tests.support.episodes import image_card, record, taught, vector_card

CPU = torch.device("cpu")
TASK = "tests.support.toy"
"""Of the cards of what is published."""
SMALL = {
    **{"recent": 2, "normalize_history": True, "width": 8, "heads": 2, "layers": 1},
    **{"feedforward": 16, "dropout": 0.1, "latent": 6, "fingertips": [16, 8]},
    **{"fingertip_noise": 0.01, "ends": [6], "points": [6], "trunk": [16]},
}
SEES = {
    **{"pool": True, "latent": 8, "depth_pixels": 4, "max_depth": {"front": 2.0}},
    **{"hidden": [16], "activation": "relu", "train_encoder": False, "layer_norm": True},
}


def register(monkeypatch):
    """Let files name the task `TASK`, as an installed package does."""
    entry = EntryPoint("toy", TASK, "penspin_style.tasks")
    monkeypatch.setattr("penspin_style.env.task.entry_points", lambda group: [entry])


@pytest.fixture
def toy_task(monkeypatch):
    register(monkeypatch)


def student(task="toy"):
    """A small student of joints with statistics of its own, and its card."""
    card = dataclasses.replace(vector_card(), task=task)
    policy = TemporalPolicy(card.inputs, 3, rng=torch.Generator().manual_seed(5), **SMALL)
    policy.normalizer.update(torch.rand(50, card.inputs[0].size) + 0.1)
    return policy.eval(), dataclasses.replace(card, network=policy.describe())


def seeing(**network):
    """A small student of a colour and a depth image."""
    card = image_card()
    card = dataclasses.replace(
        card,
        inputs=tuple(
            dataclasses.replace(
                i,
                features=tuple(
                    dataclasses.replace(f, shape=(32, 32, *f.shape[2:])) if i.is_image else f
                    for f in i.features
                ),
            )
            for i in card.inputs
        ),
    )
    settings = {**SEES, **network}
    policy = StudentPolicy(card.inputs, 3, rng=torch.Generator().manual_seed(5), **settings)
    policy.normalizer.update(torch.rand(50, 3))
    return policy.eval(), dataclasses.replace(card, network=policy.describe())


def demonstrated(folder, card, count=6, steps=20):
    return [windows(record(folder, card, taught(card, steps, seed=i)), card) for i in range(count)]


def trajectories(rows):
    return Trajectories(rows, {f"{i}.h5": str(i) for i in range(len(rows))})


def cloning(policy, card, rows, seed=0, **cfg):
    """A cloning that has not begun."""
    return Clone(CloneConfig(**cfg), policy, card, trajectories(rows), device=CPU, seed=seed)


def fit(learner):
    """Learn to the end, take the best weights; return the rows of metrics."""
    rows = []
    while not learner.finished:
        learner.process(None)
        rows.append(learner.update())
    learner.result("run", {})
    return rows


# ACT.

SMALL_ACT = {
    **{"num_queries": 5, "hidden_dim": 16, "dim_feedforward": 32, "enc_layers": 1},
    **{"dec_layers": 2, "nheads": 2, "latent_dim": 4},
}


SMALL_DIFFUSION = {"num_queries": 5, "hidden_dim": 16, "blocks": 1, "levels": 20, "steps": 4}


def act_reads(card=None, mode=""):
    """The card of an ACT of a student."""
    return act_card(ACTConfig(input_mode=mode), card or vector_card())


def chunking(rows, card=None, eyes=None, seed=1, **changes):
    """An ACT that has not begun to learn."""
    base = {**SMALL_ACT, "num_epochs": 20, "eval_freq": 5, "eval_start_epoch": 0, "lr": 3e-3}
    cfg = ACTConfig(**{**base, "val_ratio": 0.34, "kl_weight": 1.0, **changes})
    return ACT(cfg, eyes, card or act_reads(), trajectories(rows), device=CPU, seed=seed)


def act_network(inputs=None, naction=3, eyes=None, seed=0, **changes):
    sizes = {**SMALL_ACT, "dropout": 0.1, **changes}
    rng = torch.Generator().manual_seed(seed)
    return act.ACT(inputs or act_reads().inputs, naction, eyes=eyes, rng=rng, **sizes)
