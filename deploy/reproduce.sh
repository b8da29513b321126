#!/usr/bin/env bash
# deploy/reproduce.sh [TARGET]: builds the release a second time, from a copy of the source in another folder and with
# another CARGO_HOME, and compares it with what deploy/build.sh has built: target/dist/wxrelay, or that of a target such
# as aarch64-unknown-linux-musl. Called by deploy/release.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-}
first=target/${target:+$target/}dist/wxrelay
folder=$PWD/target/reproduce
second=$folder/elsewhere/source/$first

build() {
  local home=${CARGO_HOME:-$HOME/.cargo}
  rm -rf "$folder"
  mkdir -p "$folder"/{cargo/registry,elsewhere/source}
  # Downloaded crates are reused, and unpacked again. Programs such as cargo-zigbuild are found on the path.
  for part in registry/cache registry/index config.toml; do
    if [[ -e $home/$part ]]; then cp -a "$home/$part" "$folder/cargo/$part"; fi
  done
  git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- | tar -x -C "$folder/elsewhere/source"
  CARGO_HOME=$folder/cargo PATH=$PATH:$home/bin "$folder/elsewhere/source/deploy/build.sh" ${target:+--target "$target"}
}

compare() {
  local path
  for path in "$PWD" "$HOME" "${CARGO_HOME:-$HOME/.cargo}"; do
    if grep -aqF "$path/" "$first" "$second"; then
      echo "the binary contains the path $path"
      return 1
    fi
  done
  sha256sum "$first" "$second"
  cmp "$first" "$second"
  echo "identical"
}

build
compare
rm -rf "$folder"
