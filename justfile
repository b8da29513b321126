# The development loop, by https://just.systems: `just` lists the recipes. Without just, run their commands yourself.

# List the recipes.
default:
    @just --list

# Format, then check formatting, lints and types: what to run before each commit.
check:
    cargo fmt --all
    cargo clippy --all-targets --locked -- -D warnings

# Run every test. Tests that need a program that is not installed say so and are skipped.
test *ARGUMENTS:
    cargo test --locked {{ ARGUMENTS }}

# Run the integration tests whose name contains NAME: `just it proxies`.
it NAME:
    cargo test --locked --test it {{ NAME }}

# Play seeds of the simulation: crashes, slow commits and failing targets in simulated time. `just simulate 10000` takes minutes.
simulate SEEDS="1000":
    WXRELAY_SIM_SEEDS={{ SEEDS }} cargo test --locked --profile soak --lib simulation

# Fuzz the parsers, or those that are named, for so many seconds each: `just fuzz 60 xml json`.
fuzz SECONDS="60" *TARGETS:
    fuzz/run.sh --seconds {{ SECONDS }} {{ TARGETS }}

# Kill the relay again and again, and check that no accepted event is lost.
crash KILLS="25":
    cargo build --release --locked --bin wxrelay
    tests/crash/run.sh run.py --kills {{ KILLS }}

# Run a benchmark on what is shipped: `just bench pace`. The machine should have nothing else to do.
bench NAME *ARGUMENTS:
    cargo bench --locked --bench {{ NAME }} -- {{ ARGUMENTS }}

# Count the instructions of a push, and compare them with the figures.
instructions *NAMES:
    tests/perf/instructions.py {{ NAMES }}

# Build what is shipped: target/dist/wxrelay.
dist:
    deploy/build.sh

# Everything that CI checks, or some groups of it: `just ci format test`. `.ci/run --list` shows the groups.
ci *GROUPS:
    .ci/run {{ GROUPS }}
