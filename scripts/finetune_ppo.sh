#!/usr/bin/env bash
# Fine-tune a student on the robot's successful episodes, by behaviour cloning.
#   scripts/finetune_ppo.sh --real-dataset-folder=DIR --checkpoint-path=RUN [--name=NAME] [--OPTION=VALUE ...]
# DIR holds episodes of `penspin replay run` or `penspin rollout`; RUN is a student's run folder. The
# result lands in outputs/<task>/NAME/. --help lists all options; docs/finetuning.md has figures.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh" ""
exec python -m real.cli.finetune "$@"
