#!/usr/bin/env bash
# Train the pixel student again and again, each time with one thing changed, and print one table.
#   scripts/compare_students.sh augmentation|encoder [KEY=VALUE ...]   the overrides go to every training
# All are evaluated over the same 500 episodes, with everything that makes an episode hard switched on.
set -euo pipefail
kind=${1:-}
case "$kind" in
    augmentation) names=(everything no_shift no_brightness no_noise no_depth_noise no_latency all_present nothing) ;;
    encoder) names=(cifar10 random end_to_end in_domain cifar10_pooled) ;;
    *)
        echo "usage: scripts/compare_students.sh augmentation|encoder [KEY=VALUE ...]" >&2
        exit 2
        ;;
esac
shift
source "$(dirname "$0")/setup_env.sh" ""
task=panda_lift_cube_vision
group=outputs/$task/compare-$kind
depth_noise="algo.augment.depth_edge=0 algo.augment.depth_jitter=0 algo.augment.depth_disparity=0
    algo.augment.depth_dropout=0 algo.augment.depth_lines=0 algo.augment.depth_blackout=0"
no_noise="algo.augment.noise=0"
no_shift="algo.augment.shift=0"
no_brightness="algo.augment.brightness=[1,1]"
no_latency="task.latency.student.weights=[1.0]"
change() {
    case "$1" in
        no_shift | no_brightness | no_noise | no_latency) echo "${!1}" ;;
        no_depth_noise) echo "$depth_noise" ;;
        all_present) echo "algo.absent_object=0" ;;
        nothing) echo "$no_shift $no_brightness $no_noise $no_latency $depth_noise algo.absent_object=0" ;;
        random) echo "algo.encoder=" ;;
        end_to_end) echo "algo.encoder= algo.train_encoder=true" ;;
        in_domain) echo "algo.encoder=$group/in_domain_encoder" ;;
        cifar10_pooled) echo "algo.pool=true" ;;
    esac
}
mkdir -p "$group"
if [ "$kind" = encoder ] && [ ! -e "$group/in_domain_encoder" ]; then
    rm -rf "$group/recording"
    penspin record "$root/outputs/pretrained/panda_lift_cube" "$group/recording" task=$task --episodes 300
    penspin pretrain "$group/recording" --out "$group/in_domain_encoder"
fi
for name in "${names[@]}"; do
    [ -e "$group/$name.json" ] && continue # a killed comparison continues
    rm -rf "outputs/$task/compare-$kind-$name"
    read -ra overrides <<< "$(change "$name" | tr '\n' ' ')"
    penspin train task=$task name="compare-$kind-$name" video=false eval_every=0 final_episodes=1 \
        "${overrides[@]}" "$@"
    penspin eval "outputs/$task/compare-$kind-$name" 'task.latency.student.weights=[0.857,0.107,0.0207,0.0145]' \
        --json > "$group/$name.part"
    mv "$group/$name.part" "$group/$name.json"
done
python - "$group" "${names[@]}" <<'PY'
import csv, json, pathlib, sys
group, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
print("| student | success, 500 episodes | 95 % interval | samples | learning time |\n| --- | --- | --- | --- | --- |")
for name in names:
    result = json.loads((group / f"{name}.json").read_text())
    low, high = result["interval"]
    rows = list(csv.DictReader((group.parent / f"{group.name}-{name}" / "metrics.csv").open()))
    seconds = sum(float(r["time/rollout"]) + float(r["time/update"]) for r in rows)
    print(f"| {name} | {result['success_rate']:.1%} | {low:.1%} to {high:.1%} | {rows[-1]['samples']} | {seconds:.0f} s |")
PY
