#!/usr/bin/env bash
# tests/console/run.sh [--binary BINARY] [TOPIC...]: installs the browser's driver and the judges beside this file, pinned,
# where they are missing, and drives the console of the relay in Chromium. Without a topic: all of main.js.
#
#   tests/console/run.sh night fence       two topics
#   tests/console/run.sh screens           writes the pictures of the docs
#   tests/console/run.sh cost              what eight readers cost a push; wants an idle machine
#
# BINARY is WXRELAY's, else target/dist/wxrelay.
set -euo pipefail

binary=${WXRELAY:-}
if [[ ${1:-} == --binary ]]; then
  binary=${2:?usage: tests/console/run.sh [--binary BINARY] [TOPIC...]}
  shift 2
fi
binary=$(realpath "${binary:-$(dirname "$0")/../../target/dist/wxrelay}")
cd "$(dirname "$0")"

# The stamp holds what was installed, so that a changed pin is installed anew.
if ! cmp -s package-lock.json node_modules/.installed.json; then
  npm ci --no-audit --no-fund --loglevel=error
  cp package-lock.json node_modules/.installed.json
fi

exec node main.js "$binary" "$@"
