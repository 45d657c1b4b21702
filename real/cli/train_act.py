"""PenSpin's options of ACT, as overrides of `penspin train algo=act`.

scripts/train_act.sh --real-dataset-folder=DIR --checkpoint-path=STUDENT [--name=NAME ...]
"""

import sys

from real.cli.finetune import Script

TRAIN_ACT = Script(
    "train_act.sh",
    "act",
    "Train ACT, the baseline: chunks of actions, learned from the robot's successful episodes.",
    "act",
    seed=20230915,
)

if __name__ == "__main__":
    sys.exit(TRAIN_ACT.main())
