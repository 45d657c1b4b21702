#!/usr/bin/env bash
# To the robot and back on the pen's twin, unattended: roll a teacher out in simulation, replay its
# trajectories on the twin open loop, record, verify, pack for PenSpin, fine-tune a student on them,
# export it, serve it, and let the server control the twin.
#   scripts/real_chain.sh [--small] [OUT]        OUT: default outputs/real_chain; must not exist
# From the environment: TEACHER and STUDENT, run folders, default the shipped ones; ROBOT, the twin,
# default pen_shifted; RULE, what a success is there, default turns>=0.3; COUNT, trajectories to learn
# from, default 45; SEED.
# --small does every step in about a minute, too little of each to learn anything.
set -euo pipefail
began=$SECONDS
small=""
if [ "${1:-}" = --small ]; then
    small=1
    shift
fi
case "${1:-}" in
    -*)
        echo "usage: scripts/real_chain.sh [--small] [OUT]" >&2
        exit 2
        ;;
esac
out="$(realpath -m "${1:-outputs/real_chain}")"
source "$(dirname "$0")/setup_env.sh" ""
teacher="${TEACHER:-$root/outputs/pretrained/pen_spin/teacher}"
student="${STUDENT:-$root/outputs/pretrained/pen_spin/student}"
robot="${ROBOT:-pen_shifted}"
rule="${RULE:-turns>=0.3}"
seed="${SEED:-0}"
if [ -e "$out" ]; then
    echo "real_chain.sh: $out exists already; move it away, or name another folder" >&2
    exit 2
fi
mkdir -p "$out"
count="${COUNT:-45}" make=(--num-envs 128)
tune=() episodes=10 evaluated=200 clock=--realtime
if [ -n "$small" ]; then
    count=3 make=(--num-envs 16 --best turns --share 0.2) rule="turns>=0.02"
    tune=(--num-epochs=2 --eval-freq=1) episodes=1 evaluated=4 clock=--fast
fi
step() { printf '\n== [%s/8] %s (%d s)\n' "$1" "$2" $((SECONDS - began)); }

step 1 "roll the teacher out in simulation, keep trajectories"
penspin replay make "$teacher" "$out/trajectories" --robot "$robot" --episodes "$((2 * count))" \
    --seed "$((seed + 4000003))" "${make[@]}"
step 2 "replay them on the twin $robot, record what succeeds"
penspin replay run "$out/trajectories" --robot "$robot" --out "$out/episodes" --seed "$seed" \
    --success "$rule" --successes --episodes "$count" --repeats 20
step 3 "verify what was recorded"
penspin data verify "$out/episodes"
step 4 "pack it as PenSpin's real_data.h5"
penspin data pack "$out/episodes" "$out/real_data.h5"
penspin data verify "$out/real_data.h5"
step 5 "fine-tune the student on it"
"$root/scripts/finetune_ppo.sh" --real-dataset-folder="$out/episodes" --checkpoint-path="$student" \
    --out="$out" --name=finetuned --seed="$seed" "${tune[@]}"
tuned="$out/pen_spin_student/finetuned"
step 6 "export it as ONNX, checked against torch"
penspin export "$tuned" --out "$out/policy.onnx" ${small:+--samples 500}
step 7 "serve it, and let the server control the twin"
penspin serve "$out/policy.onnx" --port 0 --json > "$out/server.json" &
server=$!
trap 'kill "$server" 2> /dev/null || true' EXIT
for _ in $(seq 600); do
    [ -s "$out/server.json" ] && break
    kill -0 "$server" # a server that has ended ends this too
    sleep 0.1
done
url=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["url"])' "$out/server.json")
penspin rollout --robot "$robot" --server "$url" "$clock" --episodes "$episodes" \
    --seed "$((seed + 1000))" --success "$rule" --out "$out/closed_loop"
kill "$server"
wait "$server"
trap - EXIT
penspin data verify "$out/closed_loop"
step 8 "evaluate it on the twin, before and after"
penspin export "$student" --out "$out/before.onnx" ${small:+--samples 500} > /dev/null
for policy in before policy; do
    printf '\n%s.onnx\n' "$policy"
    penspin twin "$robot" "$out/$policy.onnx" --episodes "$evaluated"
done
printf '\n== done: %s (%d s)\n' "$out" $((SECONDS - began))
