#!/usr/bin/env bash
# Train the pen's teacher again and again, each time without one thing, and print one table.
#   scripts/compare_teachers.sh GPU SEED [KEY=VALUE ...]      the overrides go to every training
# PENSPIN_ABLATIONS="NAME ..." leaves out other things than PenSpin did, `cfg/ablation/NAME.yaml`; for
# recipe=teacher_cpu these are stall_as_limit, no_posture, no_sides, no_starts, published_observation
# and published_physics. GPU: a number, or cpu. PENSPIN_JOBS trainings run at once (1), each with its share of the cores.
# All are evaluated over the same 500 episodes. A comparison that was killed continues.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: scripts/compare_teachers.sh GPU SEED [KEY=VALUE ...]   (GPU: a number, or cpu)" >&2
    exit 2
fi
gpu=$1 seed=$2
shift 2
device="cuda:$gpu"
[ "$gpu" = cpu ] && device=cpu
source "$(dirname "$0")/setup_env.sh" ""
jobs=${PENSPIN_JOBS:-1}
threads=$(($(nproc) / jobs > 0 ? $(nproc) / jobs : 1))
read -ra ablations <<< "${PENSPIN_ABLATIONS:-no_tactile no_point_cloud no_privileged no_z_reward}"
names=(everything "${ablations[@]}")
group=outputs/pen_spin/ablation-$seed
mkdir -p "$group"
train() {
    local name=$1 run="ablation-$seed-$1" overrides=()
    shift
    [ -e "$group/$name.json" ] && return
    [ "$name" = everything ] || overrides=("ablation=$name")
    rm -rf "outputs/pen_spin/$run"
    penspin train task=pen_spin name="$run" device="$device" seed="$seed" video=false eval_every=0 \
        final_episodes=1 sim.nthread="$threads" learn_threads="$threads" "${overrides[@]}" "$@" \
        > "$group/$name.log" 2>&1
    penspin eval "outputs/pen_spin/$run" --episodes 500 --json > "$group/$name.part"
    mv "$group/$name.part" "$group/$name.json"
}
export -f train
export group seed device threads
printf '%s\n' "${names[@]}" | xargs -P "$jobs" -I{} bash -euo pipefail -c 'train "$@"' train {} "$@"
python - "$group" "${names[@]}" <<'PY'
import csv, json, pathlib, sys
group, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
print("| teacher | turns per 20 s | 95 % interval | survival | time to fall | samples |")
print("| --- | --- | --- | --- | --- | --- |")
for name in names:
    result = json.loads((group / f"{name}.json").read_text())
    low, high = result["measures"]["turns"]["interval"]
    rows = list(csv.DictReader((group.parent / f"{group.name}-{name}" / "metrics.csv").open()))
    print(f"| {name} | {result['turns']:.3f} | {low:.3f} to {high:.3f} | {result['survival']:.1%} "
          f"| {result['time_to_fall']:.2f} s | {rows[-1]['samples']} |")
PY
