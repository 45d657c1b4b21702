#!/usr/bin/env bash
# Train ALOHA's teachers, each run beginning or going on where it was.
#   scripts/train_aloha.sh handover|pick|insertion|all GPU SEED NAME [KEY=VALUE ...]
# GPU: a number, or cpu. Runs land in outputs/aloha_handover/NAME/, outputs/aloha_pick/NAME/ and
# outputs/aloha_peg_insertion/NAME/. All are taught by the tasks' scripts (algo=distill).
# Before the insertion that pick moves both arms where it has been trained, and the one in the package
# otherwise. The overrides go to every run.
set -euo pipefail
usage() {
    echo "usage: scripts/train_aloha.sh handover|pick|insertion|all GPU SEED NAME [KEY=VALUE ...]" >&2
    exit 2
}
[ $# -ge 4 ] || usage
what=$1 gpu=$2 seed=$3 name=$4
shift 4
case "$what" in
    handover) tasks=(aloha_handover) ;;
    pick) tasks=(aloha_pick) ;;
    insertion) tasks=(aloha_peg_insertion) ;;
    all) tasks=(aloha_pick aloha_peg_insertion aloha_handover) ;;
    *) usage ;;
esac
device="cuda:$gpu"
[ "$gpu" = cpu ] && device=cpu
source "$(dirname "$0")/setup_env.sh" ""
for task in "${tasks[@]}"; do
    own=(algo=distill)
    if [ "$task" = aloha_peg_insertion ]; then
        pick="outputs/aloha_pick/$name"
        [ -d "$pick/policy" ] || pick=pretrained:aloha_pick
        own+=(task.pick_policy="$pick")
    fi
    [ -d "outputs/$task/$name/checkpoints" ] && own+=(resume=true)
    penspin train task="$task" device="$device" seed="$seed" name="$name" "${own[@]}" "$@"
done
