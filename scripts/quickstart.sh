#!/usr/bin/env bash
# From nothing to a robot policy in one file: install, train a Panda to lift a cube, judge it, export
# it as ONNX, run the ONNX closed loop in simulation, film it.
#   scripts/quickstart.sh [KEY=VALUE ...]    the words go to the training, e.g. total_samples=200000
set -euo pipefail
began=$SECONDS
source "$(dirname "$0")/setup_env.sh"
name="quickstart-$(date +%Y%m%d-%H%M%S)"
run="outputs/panda_lift_cube/$name"
step() { printf '\n== [%s/6] %s (%d s)\n' "$1" "$2" $((SECONDS - began)); }

step 1 "what this machine can do"
penspin doctor
step 2 "train a teacher"
penspin train task=panda_lift_cube name="$name" video=false "$@"
step 3 "judge it over 500 episodes"
penspin eval "$run" --json > "$run/eval_torch.json"
step 4 "export it as ONNX, checked against torch"
penspin export "$run"
step 5 "run the ONNX file closed loop over the same 500 episodes"
penspin eval "$run/policy.onnx" --json > "$run/eval_onnx.json"
step 6 "film it"
mkdir -p "$run/videos"
penspin play "$run/policy.onnx" --video "$run/videos/episode.mp4" --strip "$run/videos/episode.png" \
    || echo "no film on this machine; the policy is not affected"

python - "$run" <<'PY'
import json, pathlib, sys
run = pathlib.Path(sys.argv[1])
rates = {}
for kind in ("torch", "onnx"):
    result = json.loads((run / f"eval_{kind}.json").read_text())
    low, high = result["interval"]
    rates[kind] = f"{result['success_rate']:.1%} (95% interval {low:.1%} to {high:.1%})"
print(f"""
== done
success, torch policy   {rates['torch']}
success, ONNX policy    {rates['onnx']}
run folder              {run}
  policy/               weights and card
  policy.onnx           the same function for a robot, card inside
  metrics.csv           every number of the training (tensorboard --logdir {run})
  videos/episode.mp4    what it looks like
watch it again          penspin play {run} --video film.mp4""")
PY
printf 'total                   %d s\n' $((SECONDS - began))
