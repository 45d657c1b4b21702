#!/usr/bin/env bash
# Install with what developers need, then lint, types, layers and tests.
#   scripts/test.sh [PYTEST ARGUMENTS]
# Without arguments all tests but the slow ones (pytest -m slow: soak programmes): in two processes, the
# longest of the README's blocks beside each other, and at last, alone, those that fork their process and
# those whose clock is real.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh" dev
cd "$root"
export PYTHONHASHSEED=0 # both processes below must see the same tests
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # small tensors: a second thread only waits busily
ruff check .
ruff format --check .
pyright
if [ $# -gt 0 ]; then
    exec python -m pytest -q "$@"
fi
both="python -m pytest -q --numprocesses=2"
# in processes of its own: JAX's threads do not survive a fork
with_jax=(tests/bridge tests/sim/test_mjx_sim.py tests/render/test_madrona_renderer.py)
without=(--ignore=tests/test_readme.py "${with_jax[@]/#/--ignore=}")
$both --dist=loadfile -m "not slow and not clock and not forks" "${without[@]}"
$both --dist=loadfile -m "not slow and not clock" "${with_jax[@]}"
$both tests/test_readme.py
python -m pytest -q -m "forks and not slow" tests/system tests/algo tests/train
python -m pytest -q -m "clock and not slow"
