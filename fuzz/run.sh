#!/usr/bin/env bash
# Fuzzes the parsers: fuzz/run.sh [--seconds 60] [TARGET...]. Exit code 1 if an input breaks an invariant.
# fuzz/run.sh --build only builds.
#
# By the stable compiler: the coverage that libFuzzer steers by is LLVM's own, no sanitizer is linked in, and safe Rust
# panics where C would run on. With nightly, `cargo +nightly fuzz run TARGET` works too and adds AddressSanitizer.
# The seeds are the pushes, configurations and replies of tests/data and of fuzz/seeds. What is found on the way
# is kept in target/fuzz/corpus, what breaks an invariant in target/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/.."

SECONDS_EACH=60
BUILD_ONLY=
if [[ ${1:-} == --build ]]; then
  BUILD_ONLY=1
  shift
fi
if [[ ${1:-} == --seconds ]]; then
  SECONDS_EACH=$2
  shift 2
fi
TARGETS=("$@")
if ((${#TARGETS[@]} == 0)); then
  for file in fuzz/targets/*.rs; do
    if grep -q '^fuzz_target!' "$file"; then TARGETS+=("$(basename "$file" .rs)"); fi
  done
fi
OUT=$PWD/target/fuzz
HOST=$(rustc -vV | sed -n 's/^host: //p')

build() {
  local flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
  flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
  flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
  local bins=() target
  for target in "${TARGETS[@]}"; do bins+=(--bin "$target"); done
  # With --target the flags are for the relay alone, not for build scripts.
  RUSTFLAGS=$flags cargo build --release --locked --manifest-path fuzz/Cargo.toml --target "$HOST" --target-dir "$OUT/build" "${bins[@]}"
}

# The seeds of a target, each a file of its own. Envelopes and PROXY headers have a byte before them that steers.
seeds() {
  local into=$OUT/seeds/$1 file
  rm -rf "$into"
  mkdir -p "$into"
  case $1 in
    xml | body) cp tests/data/pushes/*.xml "$into" ;;
    json) cp tests/data/pushes/*.json "$into" ;;
    envelope) for file in tests/data/pushes/*.xml; do { printf 7; cat "$file"; } >"$into/$(basename "$file")"; done ;;
    config) for file in config.toml.example tests/data/config/*/*.toml; do cp "$file" "$into/${file//\//-}"; done ;;
    proxy_header)
      printf '\200PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\nGET / HTTP/1.0\r\n\r\n' >"$into/1-tcp4"
      printf '\200PROXY TCP6 2001:db8::7 ::1 40000 443\r\n\026\003\001' >"$into/1-tcp6"
      printf '\200PROXY UNKNOWN\r\nGET' >"$into/1-unknown"
      printf '\200\r\n\r\n\0\r\nQUIT\n\041\021\0\014\300\0\2\7\12\0\0\1\234\100\1\273GET / HTTP/1.0\r\n' >"$into/2-tcp4"
      printf '\200\r\n\r\n\0\r\nQUIT\n\040\0\0\0GET / HTTP/1.0\r\n' >"$into/2-local"
      ;;
  esac
  if [[ -d fuzz/seeds/$1 ]]; then cp fuzz/seeds/"$1"/* "$into"; fi
}

fuzz() {
  local target=$1 log=$OUT/$1.log
  seeds "$target"
  mkdir -p "$OUT/corpus/$target" "$OUT/findings"
  local code=0
  "$OUT/build/$HOST/release/$target" -max_total_time="$SECONDS_EACH" -max_len=65536 -timeout=10 -rss_limit_mb=1024 \
    -print_final_stats=1 -artifact_prefix="$OUT/findings/$target-" "$OUT/corpus/$target" "$OUT/seeds/$target" >"$log" 2>&1 || code=$?
  local runs covered peak
  runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
  peak=$(sed -n 's/^stat::peak_rss_mb: //p' "$log")
  covered=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
  if ((code == 0)); then
    printf 'pass  %-13s %10s executions, %s, %s seeds, at most %s MiB\n' "$target" "$runs" "$covered" "$(ls "$OUT/seeds/$target" | wc -l)" "$peak"
  else
    printf 'FAIL  %-13s after %s executions: %s\n' "$target" "${runs:-?}" "$(grep -m 1 -E 'panicked|ERROR' "$log" || echo "exit code $code")"
    tail -n 40 "$log"
  fi
  return "$code"
}

build
if [[ -n $BUILD_ONLY ]]; then exit; fi
failed=0
# Two at a time, as many as the smallest machine has cores.
for ((i = 0; i < ${#TARGETS[@]}; i += 2)); do
  jobs=()
  for target in "${TARGETS[@]:i:2}"; do
    fuzz "$target" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=$((failed + 1)); done
done
echo "$((${#TARGETS[@]} - failed)) passed, $failed failed"
((failed == 0))
