#!/usr/bin/env bash
# Pre-train the image encoder on CIFAR-10.
#   scripts/pretrain_encoder.sh DATA [--out DIR] [--epochs N] [--seed N] [--json]
# DATA: the folder cifar-10-batches-bin of cifar-10-binary.tar.gz, or the folder that holds it.
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: scripts/pretrain_encoder.sh DATA [--out DIR] [--epochs N] [--seed N] [--json]" >&2
    exit 2
fi
source "$(dirname "$0")/setup_env.sh" ""
exec penspin pretrain "$@"
