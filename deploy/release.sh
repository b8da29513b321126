#!/usr/bin/env bash
# deploy/release.sh [FLAGS]: writes what users download to target/publish. For x86-64 and ARM64: a static binary in an
# archive with man pages, completions and examples, a Debian package, and an SBOM; for both, a container image (OCI
# archive) and SHA256SUMS. Each binary is run before it is packed, under emulation where it must be, and built a second
# time elsewhere: the script stops if the bytes differ.
#
#   --tag TAG            stop unless TAG is `v` and the version in Cargo.toml
#   --arch ARCH          only this architecture: x86_64 or aarch64
#   --once               do not build a second time
#   --binary ARCH=FILE   pack this binary as it is, and build none: to check the packing
#   --fast               compress less: to check the packing
#
# It lists what the machine lacks, with the registry that has it, before it begins.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"
}

publish=target/publish
archs=() tag='' once='' fast=() level=9
declare -A given=()
while (($#)); do
  case $1 in
    --tag) tag=$2 && shift ;;
    --arch) archs+=("$2") && shift ;;
    --binary) given[${2%%=*}]=${2#*=} && archs+=("${2%%=*}") && shift ;;
    --once) once=1 ;;
    --fast) fast=(--fast) level=1 ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done
if ((${#archs[@]} == 0)); then archs=(x86_64 aarch64); fi
declare -A debian=([x86_64]=amd64 [aarch64]=arm64)
for arch in "${archs[@]}"; do
  if [[ -z ${debian[$arch]:-} ]]; then
    echo "$arch: expected x86_64 or aarch64" >&2
    exit 2
  fi
done
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

triple() {
  # A given binary that is not static is this machine's own.
  if is_static "$(binary "$1")"; then echo "$1-unknown-linux-musl"; fi
}

binary() {
  echo "${given[$1]:-target/$1-unknown-linux-musl/dist/wxrelay}"
}

emulator() {
  if [[ $1 != "$(uname -m)" ]]; then echo "qemu-$1-static"; fi
}

is_static() {
  ! readelf --program-headers --wide "$1" | grep -q INTERP
}

# NAME WHERE COMMAND...: noted as missing if the command fails.
missing=()
needs() {
  local name=$1 where=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then missing+=("$name: $where"); fi
}

has_target() {
  # A network may have no answer: rustup alone would wait for it.
  [[ -e $(rustc --print sysroot)/lib/rustlib/$1 ]] || timeout 300 rustup target add "$1"
}

check_machine() {
  local arch qemu
  needs readelf "Debian: binutils" command -v readelf
  needs python3 "Debian: python3" command -v python3
  needs "CA certificates" "Debian: ca-certificates" test -e /etc/ssl/certs/ca-certificates.crt
  needs cargo-deb "crates.io: cargo install cargo-deb" command -v "${CARGO_DEB:-cargo-deb}"
  needs cargo-cyclonedx "crates.io: cargo install cargo-cyclonedx" command -v "${CARGO_CYCLONEDX:-cargo-cyclonedx}"
  for arch in "${archs[@]}"; do
    qemu=$(emulator "$arch")
    if [[ -n $qemu ]]; then needs "$qemu" "Debian: qemu-user-static" command -v "$qemu"; fi
    if [[ -n ${given[$arch]:-} ]]; then continue; fi
    needs "Rust's target $arch-unknown-linux-musl" "rustup target add $arch-unknown-linux-musl; no other registry has it" \
      has_target "$arch-unknown-linux-musl"
    needs cargo-zigbuild "crates.io or PyPI: cargo install cargo-zigbuild" command -v cargo-zigbuild
    needs Zig "PyPI: pip install ziglang" sh -c 'command -v zig || python3 -m ziglang version'
  done
  if ((${#missing[@]})); then
    echo "this machine lacks:" >&2
    printf '%s\n' "${missing[@]}" | sort -u | sed 's/^/  /' >&2
    exit 1
  fi
}

build() {
  local arch=$1
  if [[ -n ${given[$arch]:-} ]]; then return; fi
  deploy/build.sh --target "$arch-unknown-linux-musl"
  if ! is_static "$(binary "$arch")"; then
    echo "$(binary "$arch") is not static" >&2
    exit 1
  fi
  if [[ -z $once ]]; then deploy/reproduce.sh "$arch-unknown-linux-musl"; fi
}

# The binary starts, and a relay with WeChat and targets works.
try() {
  local arch=$1 log=target/demo.log run said begun=$SECONDS
  run=("$(realpath "$(binary "$arch")")")
  if [[ $arch != "$(uname -m)" ]]; then run=("$(emulator "$arch")" "${run[@]}"); fi
  said=$(timeout 60 "${run[@]}" --version)
  if [[ $said != "wxrelay $version" ]]; then
    echo "$arch: expected wxrelay $version, found $said" >&2
    exit 1
  fi
  if ! timeout 300 "${run[@]}" demo --once >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "$arch: demo --once failed" >&2
    exit 1
  fi
  echo "$arch: --version and demo --once${run[1]:+ under ${run[0]}}: $((SECONDS - begun)) s"
}

pack() {
  local arch=$1 name=wxrelay-$version-$1-linux
  local folder=target/release-files/$name
  BINARY=$(binary "$arch") TARGET=$(triple "$arch") EMULATOR=$(emulator "$arch") \
    deploy/debian/build.sh ${fast[@]+"${fast[@]}"} --output "$PWD/$publish/wxrelay_$version-1_${debian[$arch]}.deb"
  mkdir -p "$folder"/deploy
  cp -r target/package/{wxrelay,man,completions,wxrelay.cdx.json} LICENSE README.md README.zh-CN.md CHANGELOG.md \
    config.toml.example "$folder"
  cp -r deploy/{systemd,nginx,haproxy,prometheus,grafana} "$folder/deploy"
  cp target/package/wxrelay.cdx.json "$publish/$name.cdx.json"
  # The same files give the same bytes.
  chmod -R u=rwX,go=rX "$folder"
  tar -C "$(dirname "$folder")" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
    gzip -n "-$level" >"$publish/$name.tar.gz"
}

image() {
  local arch named=()
  for arch in "${archs[@]}"; do named+=("${debian[$arch]}=$(binary "$arch")"); done
  python3 deploy/oci.py --output "$publish/wxrelay-$version-oci.tar" --version "$version" \
    --revision "$(git rev-parse HEAD)" "${named[@]}"
}

if [[ -n $tag && $tag != "v$version" ]]; then
  echo "the tag is $tag, and Cargo.toml has version $version" >&2
  exit 1
fi
check_machine
rm -rf "$publish" target/release-files
mkdir -p "$publish"
for arch in "${archs[@]}"; do
  build "$arch"
  try "$arch"
  pack "$arch"
done
image
rm -rf target/release-files
(cd "$publish" && sha256sum -- * >SHA256SUMS && ls -l && cat SHA256SUMS)
for arch in "${archs[@]}"; do
  if ! is_static "$(binary "$arch")"; then echo "NOT FOR USERS: $(binary "$arch") is not static"; fi
done
