#!/usr/bin/env bash
# deploy/sbom.sh [TARGET]: writes the SBOM of the release binary for this target (by default, this machine's), as CycloneDX
# 1.5, to target/package/wxrelay.cdx.json: every linked crate with version, licence, checksum and dependencies. Needs cargo-cyclonedx (`cargo install cargo-cyclonedx`) and
# Python 3. The same source gives the same file: no serial number, the time of the commit (or SOURCE_DATE_EPOCH), and no
# path of the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
mkdir -p target/package
# cargo-cyclonedx writes beside Cargo.toml, wherever it is called from.
made=wxrelay-sbom
trap 'rm -f "$made.json"' EXIT
"${CARGO_CYCLONEDX:-cargo-cyclonedx}" cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps \
  --target "$target" --override-filename "$made"
# cargo-cyclonedx counts features that are not enabled, and so lists crates that are not linked: `cargo tree` has the right
# list. And its reference to the relay's own crate contains the path of the source.
cargo tree --locked --edges normal --target "$target" --prefix none --format '{p}' | python3 -c '
import json, re, sys

told = json.loads(re.sub(r"path\+file://[^\"#]*#", "path+file:///wxrelay#", open(sys.argv[1]).read()))
linked = {tuple(line.split()[:2]) for line in sys.stdin}
told["components"] = [crate for crate in told["components"] if (crate["name"], "v" + crate["version"]) in linked]
kept = {crate["bom-ref"] for crate in [told["metadata"]["component"], *told["components"]]}
told["dependencies"] = [needs for needs in told["dependencies"] if needs["ref"] in kept]
for needs in told["dependencies"]:
    needs["dependsOn"] = [ref for ref in needs.get("dependsOn", []) if ref in kept]
print(json.dumps(told, indent=2, ensure_ascii=False))
' "$made.json" >target/package/wxrelay.cdx.json
