#!/usr/bin/env bash
# deploy/build.sh [cargo build's flags]: the release's binary, target/dist/wxrelay, by the profile `dist`. With the same Rust, C compiler and
# linker it is the same, byte for byte, wherever it is built: the paths of this machine do not get in. deploy/reproduce.sh shows it.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fetch --locked --quiet
# From what is to be left out, to what stands in its place; both compilers take the last that fits.
from=("$PWD") to=(/wxrelay)
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
  from+=("${registry%/}")
  to+=(/crates)
done
rust=() c=
for ((i = 0; i < ${#from[@]}; i++)); do
  rust+=("--remap-path-prefix=${from[i]}=${to[i]}")
  c+=" -ffile-prefix-map=${from[i]}=${to[i]}"
done
printf -v flags '%s\x1f' "${rust[@]}"
export CARGO_ENCODED_RUSTFLAGS=${flags%$'\x1f'}
export CFLAGS="${CFLAGS:-}$c"
exec cargo build --profile dist --locked --bin wxrelay "$@"
