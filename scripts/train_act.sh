#!/usr/bin/env bash
# Train ACT, the baseline, from nothing on the robot's successful episodes.
#   scripts/train_act.sh --real-dataset-folder=DIR --checkpoint-path=STUDENT [--name=NAME] [--OPTION=VALUE ...]
# The student says what the robot measures and commands. Lands in outputs/<task>/NAME/; --help lists all options.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh" ""
exec python -m real.cli.train_act "$@"
