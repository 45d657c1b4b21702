#!/usr/bin/env bash
# Sourced by the other scripts: make .venv with this package and its extras, once, and activate it.
#   source scripts/setup_env.sh [EXTRA]      PENSPIN_VENV names another folder
# A script that has arguments says "" for no extra: without any word bash hands on the script's own.
# `root` is the repository; the folder stays the user's, so that paths given to a script mean the same.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" || exit 2
if [ -n "${PENSPIN_SKIP_INSTALL:-}" ]; then # the tests run the scripts where they are themselves
    return 0
fi
if [ -n "${1:-}" ] && ! grep -qxF "$1 =" "$root/setup.cfg"; then
    echo "setup_env.sh: setup.cfg has no extra $1" >&2
    exit 2
fi
venv="${PENSPIN_VENV:-.venv}"
[[ "$venv" = /* ]] || venv="$root/$venv"
extra="${1:+[$1]}"
stamp="$venv/.installed-${1:-core}"

if [ ! -x "$venv/bin/python" ]; then
    python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed, $python is $("$python" --version 2>&1); set PYTHON=" >&2
        exit 2
    fi
    "$python" -m venv "$venv" || exit 2
fi
if [ -e "$venv/.installed-dev" ]; then
    stamp="$venv/.installed-dev" # has all of the core
    extra="[dev]"
fi
if [ ! -e "$stamp" ] || [ "$root/setup.cfg" -nt "$stamp" ]; then
    echo "installing into $venv (several hundred MB the first time) ..."
    "$venv/bin/python" -m pip install --quiet --upgrade pip || exit 2
    (cd "$root" && "$venv/bin/python" -m pip install --quiet --editable ".$extra") || exit 2
    touch "$stamp"
fi
source "$venv/bin/activate"
