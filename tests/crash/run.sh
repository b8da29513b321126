#!/usr/bin/env bash
# tests/crash/run.sh SCRIPT ARGUMENTS...: installs what the scripts here need beside this file, pinned, and runs one.
set -euo pipefail

folder=$(dirname "$(realpath "$0")")

# The stamp holds what was installed, so that a changed pin is installed anew.
if ! cmp -s "$folder/requirements.txt" "$folder/.venv/installed.txt"; then
  python3 -m venv --clear "$folder/.venv"
  "$folder/.venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$folder/requirements.txt"
  cp "$folder/requirements.txt" "$folder/.venv/installed.txt"
fi

script=${1:?usage: tests/crash/run.sh SCRIPT ARGUMENTS...}
shift
exec "$folder/.venv/bin/python" "$folder/$script" "$@"
