#!/usr/bin/env bash
# deploy/build.sh [FLAGS OF CARGO BUILD]: builds the release binary, target/dist/wxrelay, with the profile `dist`.
# With `--target x86_64-unknown-linux-musl` or `--target aarch64-unknown-linux-musl` it is static, in target/TARGET/dist;
# this needs cargo-zigbuild and Zig (PyPI: ziglang), which has a C compiler, a linker and a libc for each of them.
# The build is reproducible: with the same Rust, C compiler and linker, the binary has the same bytes on every machine,
# because no path of the machine gets into it. deploy/reproduce.sh checks this.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fetch --locked --quiet
# Paths to remap, and their replacements. Both compilers use the last match.
from=("$PWD") to=(/wxrelay)
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
  from+=("${registry%/}")
  to+=(/crates)
done
rust= c=
for ((i = 0; i < ${#from[@]}; i++)); do
  rust+="'--remap-path-prefix=${from[i]}=${to[i]}', "
  c+=" -ffile-prefix-map=${from[i]}=${to[i]}"
done
export CFLAGS="${CFLAGS:-}$c"
build=build
for flag in "$@"; do
  if [[ $flag == *-linux-musl ]]; then build=zigbuild; fi
done
# In the environment, flags would replace those of .cargo/config.toml; as configuration, they are added.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
exec cargo "$build" --config "target.'cfg(all())'.rustflags = [$rust]" --profile dist --locked --bin wxrelay "$@"
