#!/usr/bin/env bash
# tests/interop/run.sh BINARY [SCRIPT ARGUMENTS...]: installs the peers beside this file, pinned, where they are missing,
# and runs the checks: those of run.py, or of another script, such as bots.py.
set -euo pipefail

binary=$(realpath "${1:?usage: tests/interop/run.sh BINARY [SCRIPT ARGUMENTS...]}")
script=${2:-run.py}
shift $(($# < 2 ? $# : 2))
cd "$(dirname "$0")"

# The stamps hold what was installed, so that a changed pin is installed anew.
if ! cmp -s requirements.txt .venv/installed.txt; then
  python3 -m venv --clear .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.txt
  cp requirements.txt .venv/installed.txt
fi
if ! cmp -s package-lock.json node_modules/.installed.json; then
  npm ci --no-audit --no-fund --loglevel=error
  cp package-lock.json node_modules/.installed.json
fi

exec .venv/bin/python "$script" "$binary" "$@"
