#!/usr/bin/env bash
# deploy/debian/build.sh [FLAGS OF CARGO-DEB]: builds the Debian package of target/dist/wxrelay from deploy/build.sh, in
# target/debian/. Needs cargo-deb and cargo-cyclonedx (`cargo install cargo-deb cargo-cyclonedx`).
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=target/dist/wxrelay
rm -rf target/package
rm -f target/debian/wxrelay_*.deb
mkdir -p target/package/completions
"$binary" man --dir target/package/man
for shell in bash zsh fish; do
  "$binary" completions "$shell" >"target/package/completions/wxrelay.$shell"
done
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
deploy/sbom.sh
exec "${CARGO_DEB:-cargo-deb}" --no-build --profile dist "$@"
