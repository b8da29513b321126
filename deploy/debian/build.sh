#!/usr/bin/env bash
# deploy/debian/build.sh [cargo-deb's flags]: the Debian package of target/release/wxrelay, which is built already.
# Needs cargo-deb (`cargo install cargo-deb`). The package is in target/debian/.
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=target/release/wxrelay
rm -rf target/package
rm -f target/debian/wxrelay_*.deb
mkdir -p target/package/completions
"$binary" man --dir target/package/man
for shell in bash zsh fish; do
  "$binary" completions "$shell" >"target/package/completions/wxrelay.$shell"
done
exec "${CARGO_DEB:-cargo-deb}" --no-build "$@"
