#!/usr/bin/env bash
# deploy/reproduce.sh: builds the release a second time, from a copy of the source in another folder, with another CARGO_HOME, and
# compares it with target/dist/wxrelay as deploy/build.sh has made it. A part of deploy/release.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

first=target/dist/wxrelay
folder=$PWD/target/reproduce
second=$folder/elsewhere/source/$first

build() {
  local home=${CARGO_HOME:-$HOME/.cargo}
  rm -rf "$folder"
  mkdir -p "$folder"/{cargo/registry,elsewhere/source}
  # What was downloaded already; it is unpacked anew.
  for part in registry/cache registry/index config.toml; do
    if [[ -e $home/$part ]]; then cp -a "$home/$part" "$folder/cargo/$part"; fi
  done
  git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- | tar -x -C "$folder/elsewhere/source"
  CARGO_HOME=$folder/cargo "$folder/elsewhere/source/deploy/build.sh"
}

compare() {
  local place
  for place in "$PWD" "$HOME" "${CARGO_HOME:-$HOME/.cargo}"; do
    if grep -aqF "$place/" "$first" "$second"; then
      echo "$place is in the binary"
      return 1
    fi
  done
  sha256sum "$first" "$second"
  cmp "$first" "$second"
  echo "the same"
}

build
compare
rm -rf "$folder"
