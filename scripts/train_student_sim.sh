#!/usr/bin/env bash
# Distil a student from its teacher in simulation: of the pen, unless task=TASK says otherwise.
#   scripts/train_student_sim.sh [KEY=VALUE ...]
# algo.teacher=DIR names the teacher, the task's own in the package unless given; name=NAME
# the run, which lands in outputs/<task>/NAME/, outputs/pen_spin_student/NAME/ for the pen.
set -euo pipefail
overrides=(task=pen_spin_student)
for word in "$@"; do
    case "$word" in
        task=*) overrides=() ;;
    esac
done
source "$(dirname "$0")/setup_env.sh" ""
exec penspin train "${overrides[@]}" "$@"
