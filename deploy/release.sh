#!/usr/bin/env bash
# deploy/release.sh: writes the files of a release to target/publish: binary, Debian package, SBOM and SHA256SUMS. Stops if
# a second build of the binary differs. Needs cargo-deb and cargo-cyclonedx
# (`cargo install cargo-deb cargo-cyclonedx`).
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/build.sh
deploy/reproduce.sh
deploy/debian/build.sh
rm -rf target/publish
mkdir target/publish
cp target/dist/wxrelay target/package/wxrelay.cdx.json target/debian/wxrelay_*.deb target/publish
cd target/publish
sha256sum -- * >SHA256SUMS
cat SHA256SUMS
