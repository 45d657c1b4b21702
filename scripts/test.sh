#!/usr/bin/env bash
# Install with what developers need, then lint, types, layers and tests.
#   scripts/test.sh [PYTEST ARGUMENTS]
# Without arguments all tests: in two processes, the README's longest blocks side by side, and at last
# those of robots alone, for their clocks are real.
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
python -m pytest -q --numprocesses=2 --dist=loadfile --ignore=tests/real --ignore=tests/test_readme.py
python -m pytest -q --numprocesses=2 tests/test_readme.py
python -m pytest -q tests/real
