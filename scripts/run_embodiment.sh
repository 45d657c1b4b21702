#!/usr/bin/env bash
# Train the lift by the name of RLinf's configuration.
#   scripts/run_embodiment.sh CONFIG [KEY=VALUE ...]
# CONFIG: mujoco_ppo_mlp (RLinf now says frankasim_ppo_mlp) or mujoco_grpo_mlp.
# The run lands in outputs/panda_lift_cube/CONFIG/.
set -euo pipefail
case "${1-}" in
    mujoco_ppo_mlp | frankasim_ppo_mlp) algo=ppo ;;
    mujoco_grpo_mlp) algo=grpo ;;
    *)
        echo "usage: scripts/run_embodiment.sh mujoco_ppo_mlp|mujoco_grpo_mlp [KEY=VALUE ...]" >&2
        exit 2
        ;;
esac
config=$1
shift
source "$(dirname "$0")/setup_env.sh" ""
exec penspin train task=panda_lift_cube algo="$algo" name="$config" "$@"
