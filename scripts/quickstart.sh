#!/usr/bin/env bash
# From nothing to a robot policy in one file: install, train a teacher that lifts a cube with full
# knowledge, distil a student that sees it through two cameras, export the student as ONNX, run the
# ONNX closed loop in simulation, record a video.
#   scripts/quickstart.sh [KEY=VALUE ...]    the overrides go to both trainings, e.g. total_samples=20000
set -euo pipefail
began=$SECONDS
source "$(dirname "$0")/setup_env.sh" ""
name="quickstart-$(date +%Y%m%d-%H%M%S)"
teacher="outputs/panda_lift_cube/$name"
student="outputs/panda_lift_cube_vision/$name"
episodes=${PENSPIN_EPISODES:-500}
step() { printf '\n== [%s/7] %s (%d s)\n' "$1" "$2" $((SECONDS - began)); }

step 1 "what this machine can do"
penspin doctor
step 2 "train a teacher, which knows where the cube is"
penspin train task=panda_lift_cube name="$name" video=false "$@"
step 3 "distil a student, which sees images"
penspin train task=panda_lift_cube_vision name="$name" video=false algo.teacher="$teacher" "$@"
step 4 "evaluate both over $episodes episodes"
penspin eval "$teacher" --episodes "$episodes" --json > "$teacher/eval_torch.json"
penspin eval "$student" --episodes "$episodes" --json > "$student/eval_torch.json"
step 5 "export the student as ONNX, checked against torch"
# float32 in other orders of summation: encoders of images come near 1e-5, which is the default
penspin export "$student" --tolerance 5e-5
step 6 "run the ONNX file closed loop over the same episodes"
penspin eval "$student/policy.onnx" --episodes "$episodes" --json > "$student/eval_onnx.json"
step 7 "record a video"
mkdir -p "$student/videos"
penspin play "$student/policy.onnx" --video "$student/videos/episode.mp4" \
    --strip "$student/videos/episode.png" --views "$student/videos/views.png" \
    || echo "no video on this machine; the policy is not affected"

python - "$teacher" "$student" <<'PY'
import json, pathlib, sys
teacher, student = map(pathlib.Path, sys.argv[1:])
rates = {}
for kind, path in (
    ("teacher", teacher / "eval_torch.json"),
    ("student", student / "eval_torch.json"),
    ("onnx", student / "eval_onnx.json"),
):
    result = json.loads(path.read_text())
    low, high = result["interval"]
    rates[kind] = f"{result['success_rate']:.1%} (95% interval {low:.1%} to {high:.1%})"
print(f"""
== done
success, teacher        {rates['teacher']}
success, student        {rates['student']}
success, student, ONNX  {rates['onnx']}
run folder              {student}
  policy/               weights and card
  policy.onnx           the same function for a robot: camera images in, actions out, card inside
  metrics.csv           every number of the training (tensorboard --logdir {student})
  videos/episode.mp4    what it looks like, and what the student sees
watch it again          penspin play {student} --video episode.mp4""")
PY
printf 'total                   %d s\n' $((SECONDS - began))
