#!/usr/bin/env bash
# deploy/release.sh: the files of a release, in target/publish: the binary, the Debian package, what both are made of (SBOM), and
# SHA256SUMS. None is made of a binary that comes out otherwise when it is built again elsewhere. Needs
# cargo-deb and cargo-cyclonedx (`cargo install cargo-deb cargo-cyclonedx`).
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
