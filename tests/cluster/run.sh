#!/usr/bin/env bash
# tests/cluster/run.sh SCRIPT ARGUMENTS...: as ../crash/run.sh, whose packages and modules the scripts here use.
set -euo pipefail

script=${1:?usage: tests/cluster/run.sh SCRIPT ARGUMENTS...}
shift
exec "$(dirname "$(realpath "$0")")/../crash/run.sh" "../cluster/$script" "$@"
