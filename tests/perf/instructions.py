#!/usr/bin/env python3
"""The guard on what a push costs: `tests/perf/instructions.py [--update] [NAME...]`, for all or some of the figures.

Counts by callgrind how many instructions each pure part of `benches/parts.rs` and one whole push take, in an optimised
build, and compares that with figures.toml beside this file. Over 5 % more than the figure fails, with the functions that it
went to. Over 5 % less does not: then the figures are to be lowered, by `--update`, which writes what was counted.

Instructions are no time, but they hardly differ from run to run, nor from a fast machine to a slow or a busy one. They do
differ with the compiler, SQLite and the C library, which also picks its functions by the processor's features; callgrind
has those up to AVX2 and AES, not SHA's, so SHA counts as the plain code it is elsewhere. For x86-64 Linux.
"""
import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

import build
import callgrind
import relay

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIGURES = HERE / "figures.toml"
TOLERATED = 0.05
CALLS = 100
# Functions with a smaller share of a figure are not listed.
WORTH = 0.01
LINES = 15

# The function in `benches/parts.rs`, and its argument.
PARTS = ["verify", "unseal", "parse", "open", "refuse", "key", "plan 1", "plan 100", "plan 1000", "seal"]
# And whether a handler gets it.
PUSHES = {"push answered": False, "push answered and delivered": True}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--update", action="store_true", help="write the figures instead of comparing with them")
    arguments.add_argument("names", nargs="*", metavar="NAME", help="figures; all if none is named")
    options = arguments.parse_args()
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        sys.exit("the figures are those of x86-64 Linux, and can be compared there alone")
    missing = [program for program in ("valgrind", "callgrind_control", "openssl") if not shutil.which(program)]
    if missing:
        sys.exit(f"not found: {', '.join(missing)}; `apt-get install valgrind openssl` has them")
    unknown = set(options.names) - {*PARTS, *PUSHES}
    if unknown:
        sys.exit(f"no figure is called {', '.join(sorted(unknown))}; there are: {', '.join([*PARTS, *PUSHES])}")
    names = options.names or [*PARTS, *PUSHES]
    figures = tomllib.loads(FIGURES.read_text()) if FIGURES.exists() else {"made_by": {}, "figures": {}}
    if options.update:
        counted = measure(names, named=True)
        write(figures["figures"] | {name: figure(functions) for name, functions in counted.items()})
        print(f"written: {FIGURES.relative_to(ROOT)}")
        return 0
    return compare(figures, measure(names))


def measure(names, named=False):
    """A Counter of instructions by function for each figure, per call or per push.

    The relay is counted as it is shipped, without the names of its functions, unless it is to be `named`: that is minutes
    of linking.
    """
    counted = {}
    parts = [name for name in names if name in PARTS]
    if parts:
        binary = build.parts()
        counted |= {name: part(binary, *name.split()) for name in parts}
    pushes = [name for name in names if name in PUSHES]
    if pushes:
        with tempfile.TemporaryDirectory(prefix="wxrelay-perf-") as folder:
            binary = build.relay_named(Path(folder)) if named else build.relay()
            counted |= {name: relay.instructions(binary, PUSHES[name]) for name in pushes}
    return counted


def part(binary, function, *argument):
    """Instructions of the function of `benches/parts.rs` per call, with all that it calls."""
    name = "::".join(["parts", function, *argument])
    with tempfile.TemporaryDirectory(prefix="wxrelay-perf-") as folder:
        counts = Path(folder) / "counts"
        command = [*callgrind.COMMAND, f"--toggle-collect=*parts::part::{function}*", f"--callgrind-out-file={counts}",
                   binary, "--bench", "--exact", name, "--sample-count", "1", "--sample-size", str(CALLS)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{name}: {done.stdout}{done.stderr}")
        functions, calls = callgrind.counted(counts)
    if not calls[f"parts::part::{function}"]:
        sys.exit(f"{name}: nothing was counted; is the function still called parts::part::{function}, and the benchmark {name}?")
    return Counter({name: count / calls[f"parts::part::{function}"] for name, count in functions.items()})


def compare(figures, counted):
    """Prints the table and its findings; the exit code."""
    over, under = [], []
    print(f"{'instructions':<28}{'figure':>12}{'counted':>12}{'ratio':>8}")
    for name, functions in counted.items():
        if name not in figures["figures"]:
            sys.exit(f"{FIGURES.name} has no figure for '{name}': write it by --update")
        was, now = figures["figures"][name]["instructions"], functions.total()
        print(f"{name:<28}{was:>12,}{now:>12,.0f}{now / was:>8.3f}")
        if now > was * (1 + TOLERATED):
            over.append(name)
        elif now < was * (1 - TOLERATED):
            under.append(name)
    for name in over:
        print(f"\nFAIL {name}: over {TOLERATED:.0%} more instructions. Most of the difference, function by function:", flush=True)
        functions = measure([name], named=True)[name] if name in PUSHES else counted[name]
        explain(figures["figures"][name]["functions"], functions)
    if under:
        print(f"\nOver {TOLERATED:.0%} less: {', '.join(under)}. The figures should be lowered to it, by --update.")
    made, here = figures["made_by"], makers()
    for what in [what for what in here if (over or under) and here[what] != made.get(what)]:
        print(f"The figures were made with {what} {made.get(what)}, here it is {here[what]}: that may be all of the difference.")
    return 1 if over else 0


def explain(was, now):
    """The functions that differ most; one that was not worth a line is compared with nothing."""
    more = {name: now[name] - was.get(name, 0) for name in {*was, *now}}
    for name in sorted(more, key=lambda name: -abs(more[name]))[:LINES]:
        print(f"  {more[name]:>+12,.0f}  {was.get(name, 0):>10,} -> {now[name]:>10,.0f}  {name}")


def figure(functions):
    total = functions.total()
    worth = {name: round(count) for name, count in functions.most_common() if count >= total * WORTH}
    return {"instructions": round(total), "functions": worth}


def write(figures):
    lines = ["# Instructions of the parts and of a whole push, and the functions that take most of them themselves, as counted",
             "# by `tests/perf/instructions.py --update`. That file says what they mean; this one is not for hands.",
             "", "[made_by]", *assignments(makers())]
    for name in [*PARTS, *PUSHES]:
        if name in figures:
            table = f"figures.{json.dumps(name)}"
            lines += ["", f"[{table}]", f"instructions = {figures[name]['instructions']}"]
            lines += ["", f"[{table}.functions]", *assignments(figures[name]["functions"])]
    FIGURES.write_text("\n".join(lines) + "\n")


def assignments(table):
    # JSON's texts and numbers are TOML's too.
    return [f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]


def makers():
    """What the counts depend on, besides our own code and Cargo.lock."""
    tell = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    features = sorted({"aes", "avx2", "bmi2", "pclmulqdq"} & set(flags[1].split() if flags else []))
    return {"rustc": tell("rustc", "--version"), "valgrind": tell("valgrind", "--version"),
            "libc": " ".join(platform.libc_ver()), "processor": " ".join(features)}


if __name__ == "__main__":
    sys.exit(main())
