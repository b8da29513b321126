#!/usr/bin/env bash
# deploy/debian/build.sh [FLAGS OF CARGO-DEB]: builds the Debian package of target/dist/wxrelay from deploy/build.sh, in
# target/debian/. Of another binary: BINARY=FILE. A static one is packed for the architecture of TARGET, such as
# aarch64-unknown-linux-musl; one of another architecture is run by the emulator EMULATOR. What is in the package is left
# in target/package. Needs cargo-deb and cargo-cyclonedx (`cargo install cargo-deb cargo-cyclonedx`).
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=${BINARY:-target/dist/wxrelay}
target=${TARGET:-}
run=(${EMULATOR:+"$EMULATOR"} "$binary")
rm -rf target/package
rm -f target/debian/wxrelay_*.deb
mkdir -p target/package/completions
cp "$binary" target/package/wxrelay
"${run[@]}" man --dir target/package/man
for shell in bash zsh fish; do
  "${run[@]}" completions "$shell" >"target/package/completions/wxrelay.$shell"
done
# A package has nothing in /usr/local.
sed 's|/usr/local/lib/wxrelay/|/usr/lib/wxrelay/|' deploy/systemd/wxrelay-notify@.service >target/package/wxrelay-notify@.service
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
deploy/sbom.sh ${target:+"$target"}
# The variant of a static binary needs no libc. It is stripped already.
exec "${CARGO_DEB:-cargo-deb}" --no-build --no-strip --profile dist ${target:+--target "$target" --variant static} "$@"
