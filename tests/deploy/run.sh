#!/usr/bin/env bash
# tests/deploy/run.sh SCRIPT ARGUMENTS...: runs a script here with the packages of requirements.txt.
set -euo pipefail

folder=$(dirname "$(realpath "$0")")
exec "$folder/../venv.sh" "$folder" "$@"
