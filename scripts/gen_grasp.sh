#!/usr/bin/env bash
# Make a cache of grasps of a pen, from which `pen_spin` begins its episodes.
#   scripts/gen_grasp.sh GPU SCALE [KEY=VALUE ...] [--count N] [--out DIR]
# GPU: a number, or cpu. SCALE: 0.28 is a pen of 22.4 mm across. With 50,000 grasps unless told
# otherwise it lands in outputs/grasps/s<SCALE>/; task.grasps=outputs/grasps trains from it.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: scripts/gen_grasp.sh GPU SCALE [KEY=VALUE ...] [--count N] [--out DIR]" >&2
    exit 2
fi
source "$(dirname "$0")/setup_env.sh" plot
exec python "$root/scripts/gen_grasp.py" "$@"
