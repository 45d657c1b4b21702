#!/usr/bin/env bash
# Train a teacher: of the pen, unless task=TASK says otherwise.
#   scripts/train_teacher.sh GPU SEED NAME [KEY=VALUE ...]
# GPU: a number, or cpu. The run lands in outputs/<task>/NAME/, outputs/pen_spin/NAME/ for the pen.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: scripts/train_teacher.sh GPU SEED NAME [KEY=VALUE ...]   (GPU: a number, or cpu)" >&2
    exit 2
fi
gpu=$1 seed=$2 name=$3
shift 3
device="cuda:$gpu"
[ "$gpu" = cpu ] && device=cpu
overrides=(task=pen_spin)
for word in "$@"; do
    case "$word" in
        task=*) overrides=() ;;
    esac
done
source "$(dirname "$0")/setup_env.sh" ""
exec penspin train "${overrides[@]}" device="$device" seed="$seed" name="$name" "$@"
