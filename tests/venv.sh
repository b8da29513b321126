#!/usr/bin/env bash
# tests/venv.sh FOLDER SCRIPT ARGUMENTS...: installs the packages that a folder of tests pins, beside them, and runs a
# script there.
set -euo pipefail

folder=${1:?usage: tests/venv.sh FOLDER SCRIPT ARGUMENTS...}
script=${2:?usage: tests/venv.sh FOLDER SCRIPT ARGUMENTS...}
shift 2

# The stamp holds what was installed, so that a changed pin is installed anew.
if ! cmp -s "$folder/requirements.txt" "$folder/.venv/installed.txt"; then
  python3 -m venv --clear "$folder/.venv"
  "$folder/.venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$folder/requirements.txt"
  cp "$folder/requirements.txt" "$folder/.venv/installed.txt"
fi
exec "$folder/.venv/bin/python" "$folder/$script" "$@"
