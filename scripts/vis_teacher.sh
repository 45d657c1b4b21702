#!/usr/bin/env bash
# Watch a teacher: in a window where there is a display, as a video otherwise.
#   scripts/vis_teacher.sh NAME [task=TASK] [KEY=VALUE ...]      the pen's, unless task=TASK is given
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: scripts/vis_teacher.sh NAME [task=TASK] [KEY=VALUE ...]" >&2
    exit 2
fi
name=$1
shift
task=pen_spin
overrides=()
for word in "$@"; do
    case "$word" in
        task=*) task=${word#task=} ;;
        *) overrides+=("$word") ;;
    esac
done
source "$(dirname "$0")/setup_env.sh" ""
run="outputs/$task/$name"
if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
    exec penspin play "$run" "${overrides[@]}"
fi
mkdir -p "$run/videos"
exec penspin play "$run" "${overrides[@]}" --video "$run/videos/teacher.mp4" --strip "$run/videos/teacher.png"
