#!/usr/bin/env bash
# Distil a student from its teacher in simulation.
#   scripts/train_student_sim.sh [KEY=VALUE ...]     task=TASK if it is not panda_lift_cube_vision
# algo.teacher=DIR names the teacher, name=NAME the run; it lands in outputs/<task>/NAME/.
set -euo pipefail
words=(task=panda_lift_cube_vision)
for word in "$@"; do
    case "$word" in
        task=*) words=() ;;
    esac
done
source "$(dirname "$0")/setup_env.sh"
exec penspin train "${words[@]}" "$@"
