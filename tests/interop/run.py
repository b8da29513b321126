"""Tests the built relay against independent peers: `run.sh BINARY` prepares what this needs and calls it.

Prints one line per check and closes with `N passed, N failed`. Everything is on loopback, on ports the kernel chooses,
and ends within TIME, whatever happens.
"""
import argparse
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import api
import backend
import envelopes
import identity
import logins
import monitoring
import providers
import sdks
import traces
import webhooks
from harness import HERE, Harness
from remade import Remade
from rig import Checks, expect, expect_that

TIME = 550  # seconds


def golden_data_is_current():
    run = subprocess.run(["node", str(HERE / "authing_cases.js"), "--check"], capture_output=True, text=True, timeout=60)
    expect_that(run.returncode == 0, run.stderr.strip())
    return run.stdout.strip()


def drained(harness):
    """SIGTERM: everything that was under way is finished, exit 0."""
    expect(harness.relay_process.end(), 0, "exit code after SIGTERM")


def audited(harness):
    """Every push answered 200 is one event, delivered once to each target of its routes, and nothing else is in the store."""
    found = harness.audit()
    expect(found["events"], len(harness.accepted), "events")
    expect((found["delivered"], found["pending"], found["dead"], found["expired"], found["unaccounted"]),
           (harness.due(), 0, 0, 0, 0), "delivered, pending, dead, expired, unaccounted")
    arrivals = Counter()
    for peer in [harness.authing, *harness.backends.values()]:
        expect([line for line in peer.lines if "error" in line], [], f"pushes that {peer.name} refused")
        arrivals.update((line["headers"]["wxrelay-event-id"], line.get("path", peer.name)) for line in peer.lines if "headers" in line)
    expect([arrival for arrival, times in arrivals.items() if times > 1], [], "deliveries that arrived twice")
    expect(len(arrivals), harness.due(), "deliveries that arrived")
    return f"{len(harness.accepted)} events, {len(arrivals)} deliveries"


class OutOfTime(BaseException):
    """Not an Exception: no check may take it for its own failure."""


def stop_at_once(*_):
    raise OutOfTime(f"not done after {TIME} s")


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("binary", type=Path, help="the wxrelay to test")
    binary = arguments.parse_args().binary.resolve()
    if not binary.is_file():
        sys.exit(f"{binary} is not there; build it with `cargo build --profile dist`")
    signal.signal(signal.SIGALRM, stop_at_once)
    signal.alarm(TIME)
    checks, harness, remade = Checks(), Harness(binary), Remade(binary)
    parts = [sdks.Sdks(binary), webhooks.Webhooks(binary), monitoring.Monitoring(binary), api.Api(binary),
             traces.Traces(binary), providers.Providers(binary), logins.Logins(binary)]
    try:
        checks.run("the golden data of authing-json is what the packages make", golden_data_is_current)
        for name, check in remade.checks():
            checks.run(name, check)
        checks.run("the relay and its peers start", harness.start)
        if checks.failed == 0:
            for part in (envelopes, backend, identity):
                for name, check in part.checks(harness):
                    checks.run(name, check)
            checks.run("SIGTERM ends the relay with exit code 0", lambda: drained(harness))
            checks.run("the audit counts what was sent, and the peers got each delivery once", lambda: audited(harness))
        harness.end()
        for part in parts:
            before = checks.failed
            checks.run(f"{type(part).__name__}: the relay and its programs start", part.start)
            if checks.failed == before:
                for name, check in part.checks():
                    checks.run(name, check)
            part.end()
    except OutOfTime as late:
        checks.failed += 1
        print(f"FAIL {late}", flush=True)
    finally:
        signal.alarm(0)
        for one in [harness, remade, *parts]:
            one.end()
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
