#!/usr/bin/env bash
# Install with what developers need, then lint, types, layers and tests.
#   scripts/test.sh [PYTEST ARGUMENTS]
set -euo pipefail
source "$(dirname "$0")/setup_env.sh" dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # small tensors: a second thread only waits busily
ruff check .
ruff format --check .
pyright
python -m pytest -q "$@"
