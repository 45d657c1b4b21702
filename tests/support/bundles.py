"""The card of a small policy."""

import pathlib

from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard

ROOT = pathlib.Path(__file__).parents[2]
FEATURES = (
    Feature("joint_pos", (4,), "rad", history=3),
    Feature("pen_pos", (3,), "m"),
    Feature("grip", (), "N"),
)
CARD = PolicyCard(
    task="spin",
    inputs=(Input("student", FEATURES),),
    actions=(
        ActionChannel("finger", "rad", 0.04, -0.5, 1.5, "delta"),
        ActionChannel("thumb", "rad", 0.08, -0.25, 1.25, "absolute"),
    ),
    joints=(Joint("index_0", "rad", -0.5, 1.5, 3.0, 0.1, 0.25),),
    control_dt=0.05,
    run="runs/spin-7",
)
