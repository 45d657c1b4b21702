#!/usr/bin/env bash
# Install with what developers need, then lint, types, layers and tests.
#   scripts/test.sh [PYTEST ARGUMENTS]
# Without arguments all tests: two processes, then those of robots alone, for their clocks are real.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh" dev
export PYTHONHASHSEED=0 # both processes below must see the same tests
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # small tensors: a second thread only waits busily
ruff check .
ruff format --check .
pyright
if [ $# -gt 0 ]; then
    exec python -m pytest -q "$@"
fi
python -m pytest -q --numprocesses=2 --dist=loadfile --ignore=tests/real
python -m pytest -q tests/real
